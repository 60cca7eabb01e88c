"""What a run would take on other GPUs, against numbers worked out by hand."""

from dataclasses import replace

import pytest

from herl.cost import ACTIVATION_BYTES, GIB, GPU, ModelSize, Settings, Work, estimate, gpu_named, model_size
from herl.errors import ConfigError

SIZE = ModelSize(parameters=1_000_000_000, layers=10, width=1000, kv_bytes=10_000)
WORK = Work(
    answers=100, answer_tokens=200, prompt_tokens=10_000, trained_tokens=30_000, micro_batch_tokens=1000,
    judge_seconds=1.5,
)  # fmt: skip
CARD = GPU(tflops=100, gib=80, bandwidth=1.0)


def test_each_phase_is_what_its_formula_says():
    found = estimate(SIZE, WORK, Settings(), CARD, 1)["seconds"]
    attention = 6 * 10 * 1000 * 30_000 * 300
    assert found["update"] == pytest.approx((6 * 1e9 * 30_000 + attention) / 40e12)
    prefill = 2e9 * 10_000 / 40e12
    computed = 2e9 * 100 / 40e12  # of 100 answers, longer than to read 2 GB of weights
    assert found["sample"] == pytest.approx(200 * (0.005 + computed) + prefill)
    few = replace(WORK, answers=10, prompt_tokens=1000)
    read = (2e9 + 10 * 10_000 * 300) / 0.7e12
    slow = estimate(SIZE, few, Settings(), CARD, 1)["seconds"]["sample"]
    assert slow == pytest.approx(200 * (0.005 + read) + prefill / 10)
    assert found["refresh"] == pytest.approx(0.1)
    assert found["judge"] == 1.5


def test_memory_is_what_its_formula_says():
    gib = estimate(SIZE, WORK, Settings(), CARD, 2)["gib"]
    assert gib["weights_gradients_moments"] == pytest.approx(16e9 / 2 / GIB)
    assert gib["activations"] == pytest.approx(10 * 1000 * 1000 * ACTIVATION_BYTES / GIB)
    assert gib["engine_weights"] == pytest.approx(2e9 / GIB)
    assert gib["keys_and_values"] == pytest.approx(50 * 300 * 10_000 / GIB)
    parts = [value for name, value in gib.items() if name not in ("total", "of")]
    assert gib["total"] == pytest.approx(sum(parts))


def changed(settings=None, devices=8, **work):
    found = estimate(SIZE, replace(WORK, **work), settings or Settings(), CARD, devices)
    return found["seconds"] | found["gib"]


def test_settings_cost_what_they_cost():
    plain = changed()
    assert changed(devices=16)["update"] == pytest.approx(plain["update"] / 2)
    assert changed(Settings(checkpointing=True))["update"] == pytest.approx(plain["update"] * 4 / 3)
    assert changed(Settings(checkpointing=True))["activations"] < plain["activations"]
    assert changed(Settings(updates_per_batch=4))["update"] == pytest.approx(plain["update"] * 3.75 / 3)
    reference = changed(Settings(reference=True, second_model=True))
    assert reference["update"] == pytest.approx(plain["update"] * 4 / 3)
    assert reference["weights_gradients_moments"] == pytest.approx(
        plain["weights_gradients_moments"] * 20 / 16
    )
    adapters = changed(Settings(trained_share=0.01))
    assert adapters["weights_gradients_moments"] == pytest.approx(
        plain["weights_gradients_moments"] * 4.12 / 16
    )
    assert changed(Settings(tensor_parallel=2))["engine_weights"] == pytest.approx(
        plain["engine_weights"] / 2
    )
    assert changed(Settings(most_at_once=4))["sample"] > plain["sample"]


def test_what_does_not_fit_is_said():
    assert estimate(SIZE, WORK, Settings(), CARD, 1)["fits"]
    assert not estimate(SIZE, WORK, Settings(), replace(CARD, gib=16), 1)["fits"]


def test_mistakes_are_clear_errors():
    with pytest.raises(ConfigError, match="cost.gpu: expected one of a100, .*, got 'h1000'"):
        gpu_named("h1000")
    with pytest.raises(
        ConfigError, match="cost.devices: expected a multiple of the 4 GPUs of an engine, got 6"
    ):
        estimate(SIZE, WORK, Settings(tensor_parallel=4), CARD, 6)
    with pytest.raises(ConfigError, match="cost.model: cannot read the configuration of 'nothing-here'"):
        model_size("nothing-here")


def test_the_size_of_a_model_is_read_from_its_configuration(policy):
    size = model_size("tiny")
    assert size.parameters == sum(p.numel() for p in policy.parameters())
    assert (size.layers, size.width) == (policy.config.num_hidden_layers, policy.config.hidden_size)
    cache = policy(**policy.dummy_inputs).past_key_values
    held = sum(layer.keys[0, :, 0].numel() + layer.values[0, :, 0].numel() for layer in cache.layers)
    assert size.kv_bytes == 2 * held
