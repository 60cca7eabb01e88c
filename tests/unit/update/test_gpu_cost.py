"""The memory of a run on other GPUs, against numbers worked out by hand."""

from dataclasses import replace

import pytest

from herl.errors import ConfigError
from herl.update.gpu_cost import (
    GIB,
    LOGIT_BYTES,
    LOGITS_AT_ONCE,
    RESERVE_GIB,
    Asked,
    ModelSize,
    Settings,
    batch_gib,
    gpu_named,
    model_size,
    update_gib,
)
from tests.support.gpu_sizes import CARD, SIZE, WORK

QWEN_05B = ModelSize(
    parameters=494_032_768, layers=24, width=896, inner=4864, vocabulary=151_936, outer=136_134_656,
    kv_bytes=12_288,
)  # fmt: skip
QWEN_15B = replace(QWEN_05B, parameters=1_543_569_408, layers=28, width=1536, inner=8960, outer=233_373_696)
QWEN_7B_6 = replace(
    QWEN_05B, parameters=2_487_353_344, layers=6, width=3584, inner=18944, outer=1_089_077_248
)


def gib_of(work=WORK, settings=None, devices=1):
    return batch_gib(SIZE, work, settings or Settings(), CARD, devices)[0]


# (what, peak GiB that torch's allocator had in use, model, tokens of the longest row, settings, GPUs, moments)
MEASURED = [
    ("0.5B on an H100, eager blocks, no optimizer", 22.9, QWEN_05B, 10_700, Settings(), 1, False),
    ("0.5B on an H100, compiled blocks", 19.8, QWEN_05B, 10_950, Settings(compiled=True), 1, False),
    ("1.5B on an H100, compiled blocks", 41.0, QWEN_15B, 10_950, Settings(compiled=True), 1, False),
    ("7B, six layers, compiled blocks", 37.4, QWEN_7B_6, 10_950, Settings(compiled=True), 1, False),
]


@pytest.mark.parametrize("point", MEASURED, ids=lambda point: point[0])
def test_the_formulas_hold_at_the_measured_points(point):
    _, measured, size, row, settings, devices, moments = point
    estimated = sum(update_gib(size, row, settings, devices, moments=moments).values())
    assert 0.85 <= measured / estimated <= 1.05


def test_memory_is_what_its_formulas_say():
    gib = gib_of()
    assert gib["weights_gradients_moments"] == pytest.approx(16e9 / GIB)
    assert gib["bfloat16_weights"] == pytest.approx(2e9 / GIB)
    assert gib["activations"] == pytest.approx((34 * 1000 + 8 * 3000) * 10 * 1000 / GIB)
    assert gib["logits"] == pytest.approx(LOGIT_BYTES * 50_000 * 1000 / GIB)
    assert gib["engine"] == pytest.approx(2e9 / GIB + 2)
    assert gib["keys_and_values"] == pytest.approx(100 * 300 * 10_000 / GIB)
    parts = [value for name, value in gib.items() if name != "total"]
    assert gib["total"] == pytest.approx(sum(parts))


def test_the_head_never_holds_more_than_its_share_of_logits():
    whole = update_gib(SIZE, 100_000, Settings(), 1)["logits"]
    assert whole == pytest.approx(LOGIT_BYTES * LOGITS_AT_ONCE / GIB)


def test_several_gpus_share_the_state_and_gather_one_layer_after_the_other():
    gib = update_gib(SIZE, 1000, Settings(), 2)
    assert gib["weights_gradients_moments"] == pytest.approx(8e9 / GIB)
    assert gib["bfloat16_weights"] == pytest.approx((2 * (100e6 + 180e6) + 6 * (100e6 + 90e6)) / GIB)


def test_an_engine_that_sleeps_and_the_update_are_never_there_together():
    long = replace(WORK, micro_batch_tokens=20_000)
    awake = gib_of(long)
    asleep = gib_of(long, Settings(sleep=True))
    update = sum(update_gib(SIZE, 20_000, Settings(), 1).values()) + RESERVE_GIB
    assert asleep["total"] == pytest.approx(update)
    assert awake["total"] == pytest.approx(update + awake["engine"] + awake["keys_and_values"])
    sampling = gib_of(replace(WORK, micro_batch_tokens=1), Settings(sleep=True))
    held = 12e9 / GIB + sampling["engine"] + sampling["keys_and_values"] + RESERVE_GIB
    assert sampling["total"] == pytest.approx(max(held, 18e9 / GIB + RESERVE_GIB), rel=1e-3)


def test_other_samplers_take_a_copy_of_the_weights_or_nothing():
    copy = gib_of(WORK, Settings(engine="transformers"))
    assert copy["engine"] == pytest.approx(2e9 / GIB)
    away = gib_of(WORK, Settings(engine="elsewhere"))
    assert away["engine"] == away["keys_and_values"] == 0.0


def test_settings_cost_what_they_cost():
    plain = gib_of(devices=8)
    recomputed = gib_of(WORK, Settings(checkpointing=True), 8)["activations"]
    assert recomputed == pytest.approx(plain["activations"] * (4 * 10 * 1000 + 58_000) / 580_000)
    state = plain["weights_gradients_moments"]
    reference = gib_of(WORK, Settings(reference=True, second_model=True), 8)
    assert reference["weights_gradients_moments"] == pytest.approx(state * 20 / 16)
    adapters = gib_of(WORK, Settings(trained_share=0.01), 8)
    assert adapters["weights_gradients_moments"] == pytest.approx(state * 4.12 / 16)
    assert plain["engine"] - gib_of(WORK, Settings(tensor_parallel=2), 8)["engine"] == pytest.approx(
        1e9 / GIB
    )


def test_an_engine_that_gets_whole_groups_keeps_all_answers_to_a_prompt():
    few = replace(WORK, rounds=((Asked(answers=(200,) * 40, follow_ups=(200,) * 10),) * 2,))
    cache = {
        whole: gib_of(few, Settings(whole_groups=whole), 100)["keys_and_values"] for whole in (False, True)
    }
    assert cache[False] == pytest.approx(300 * 10_000 / GIB)
    assert cache[True] == pytest.approx(40 * 300 * 10_000 / GIB)


def test_an_engine_has_room_for_as_many_answers_as_its_memory_holds():
    _, slots = batch_gib(SIZE, WORK, Settings(max_at_once=10**9), CARD, 1)
    gib = gib_of(WORK, Settings(max_at_once=10**9))
    free = 80 - (gib["total"] - gib["keys_and_values"])
    assert slots == pytest.approx(free * GIB / (300 * 10_000))


def test_quantized_weights_are_whole_only_while_they_are_used():
    adapters = Settings(trained_share=0.01, engine="transformers")
    bits = replace(adapters, frozen_bytes=1.3, quantized_share=0.8)
    whole, packed = (update_gib(SIZE, 1000, settings, 1) for settings in (adapters, bits))
    saved = whole["weights_gradients_moments"] - packed["weights_gradients_moments"]
    assert saved == pytest.approx((4 - 1.3) * 0.99e9 / GIB)
    assert packed["bfloat16_weights"] == pytest.approx((2 * 0.2e9 + 6 * SIZE.layer) / GIB)
    engine = gib_of(WORK, bits)["engine"]
    assert engine == pytest.approx(2 * 0.2e9 / GIB)


def test_mistakes_are_clear_errors():
    with pytest.raises(ConfigError, match="cost.gpu: expected one of a100, .*, got 'h1000'"):
        gpu_named("h1000")
    with pytest.raises(ConfigError, match="cost.model: cannot read the configuration of 'nothing-here'"):
        model_size("nothing-here")


def test_the_size_of_a_model_is_read_from_its_configuration(policy):
    size = model_size("tiny")
    assert size.parameters == sum(p.numel() for p in policy.parameters())
    config = policy.config
    assert (size.layers, size.width) == (config.num_hidden_layers, config.hidden_size)
    assert (size.inner, size.vocabulary) == (config.intermediate_size, config.vocab_size)
    inside = sum(p.numel() for layer in policy.model.layers for p in layer.parameters())
    assert size.outer == size.parameters - inside - policy.model.norm.weight.numel()
    cache = policy(**policy.dummy_inputs).past_key_values
    held = sum(layer.keys[0, :, 0].numel() + layer.values[0, :, 0].numel() for layer in cache.layers)
    assert size.kv_bytes == 2 * held
