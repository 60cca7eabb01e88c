"""Which settings lower the memory of a run that does not fit."""

from dataclasses import replace

import pytest

from herl.update.cpu_memory import Processes, Sampling, cpu_gib
from herl.update.gpu_cost import ModelSize, Settings
from herl.update.run_memory import Plan, RunMemory, _changes, advised

SIZE = ModelSize(
    parameters=494_032_768, layers=24, width=896, inner=4864, vocabulary=151_936, outer=136_134_656,
    kv_bytes=12_288,
)  # fmt: skip
PLAN = Plan(
    settings=Settings(), sampling=Sampling(packs=True, answers=128, prompts=16, prompt_tokens=100, answer_tokens=256),
    processes=Processes(), budget=8192, prompt=100, answer=256, group=8, groups=8,
)  # fmt: skip
LORA = replace(PLAN, settings=Settings(trained_share=0.02))


def gib(plan):
    return cpu_gib(SIZE, plan.row_tokens(), plan.settings, plan.sampling, plan.processes)


def advice(plan, free, *, lora=False):
    found = advised(RunMemory(parts=gib(plan), free=free), plan, gib, on_cpu=True, lora=lora)
    return found, [change.override for change in found.changes]


def test_a_row_is_the_budget_unless_one_answer_is_longer_or_the_step_is_shorter():
    assert PLAN.row_tokens() == 8192
    assert replace(PLAN, budget=100).row_tokens() == 356
    assert replace(PLAN, groups=1).row_tokens() == 100 + 8 * 256
    assert replace(PLAN, groups=1, processes=Processes(world_size=2)).row_tokens() == (100 + 8 * 256) // 2
    assert replace(PLAN, budget=0).row_tokens() == 0


def test_each_change_that_fits_alone_is_named_the_best_first():
    found, changes = advice(PLAN, 20.0)
    assert set(changes) == {"model.gradient_checkpointing=true", "module.micro_batch_tokens=4096"}
    assert not found.together
    assert [change.gib for change in found.changes] == sorted(change.gib for change in found.changes)
    assert all(change.gib <= 20.0 for change in found.changes)


def test_the_number_of_tokens_is_the_largest_that_fits():
    _, changes = advice(PLAN, 15.0)
    assert "module.micro_batch_tokens=2048" in changes


def test_if_nothing_fits_alone_the_changes_add_up():
    found, changes = advice(PLAN, 6.0)
    assert found.together
    assert "lora=lora" in changes
    assert "model.gradient_checkpointing=true" in changes or any("micro_batch" in one for one in changes)
    assert found.changes[-1].gib == min(change.gib for change in found.changes) <= 6.0


@pytest.mark.parametrize(
    ("plan", "lora", "absent"),
    [
        (LORA, True, "lora"),
        (replace(PLAN, settings=Settings(checkpointing=True)), False, "checkpointing"),
        (replace(PLAN, budget=100), False, "micro_batch_tokens"),
        (replace(PLAN, sampling=Sampling()), False, "sampler."),
        (PLAN, False, "trainer.devices"),
    ],
)
def test_what_is_chosen_already_or_would_not_help_is_not_named(plan, lora, absent):
    for free in (1.0, 4.0, 8.0, 16.0):
        _, changes = advice(plan, free, lora=lora)
        assert not [one for one in changes if absent in one]


def test_weights_of_few_bits_are_not_advised_to_take_more():
    def named(**settings):
        plan = replace(LORA, settings=Settings(trained_share=0.02, **settings))
        return [name for name, _ in _changes(plan, lambda _: True, on_cpu=False, lora=True)]

    assert "model.dtype=bfloat16" in named()
    assert "model.dtype=bfloat16" not in named(quantized_share=0.3, frozen_bytes=3.0)


@pytest.mark.parametrize(("least", "expected"), [(32, 128), (200, 200)])
def test_what_shortens_an_episode_is_its_own_limit_and_no_turn_exceeds_it(least, expected):
    plan = replace(PLAN, budget=100, answer_key="environment.max_tokens", least_answer=least)
    changes = dict(_changes(plan, lambda _: False, on_cpu=True, lora=False))
    assert changes[f"environment.max_tokens={expected}"].answer == expected
    assert not [name for name in changes if "max_new_tokens" in name]
    of_one_turn = dict(_changes(replace(PLAN, budget=100), lambda _: False, on_cpu=True, lora=False))
    assert "rollout.attempt.max_new_tokens=128" in of_one_turn


def test_one_process_needs_less_than_two():
    two = replace(PLAN, budget=512, processes=Processes(here=2, world_size=2))
    assert sum(gib(two).values()) > 2 * sum(gib(replace(two, processes=Processes())).values())
    _, changes = advice(two, 12.0)
    assert "trainer.devices=1" in changes


def test_shards_need_less_than_copies():
    copies = replace(PLAN, processes=Processes(here=2, world_size=2))
    shards = replace(PLAN, processes=Processes(here=2, world_size=2, shards=2))
    for name in ("weights", "moments"):
        assert gib(shards)[name] == pytest.approx(gib(copies)[name] / 2)


@pytest.mark.parametrize("kept", [{"keeps_gathered": True}, {"whole_gradients": True}])
def test_what_is_not_gathered_twice_or_sent_at_once_is_kept(kept):
    shards = replace(PLAN, processes=Processes(here=2, world_size=2, shards=2))
    more = replace(shards, settings=replace(PLAN.settings, **kept))
    whole, some = 4 * SIZE.parameters / 2**30, 4 * (SIZE.outer + 2 * SIZE.layer) / 2**30
    assert gib(more)["gradients"] - gib(shards)["gradients"] == pytest.approx(2 * (whole - some))
    assert gib(replace(more, processes=Processes())) == gib(replace(shards, processes=Processes()))


def test_a_run_without_updates_needs_neither_gradients_nor_moments():
    parts = gib(replace(PLAN, budget=0, settings=Settings(trained_share=0.0)))
    assert set(parts) == {"weights", "sampler", "other"}
    assert sum(parts.values()) < sum(gib(PLAN).values()) / 2
