"""The time of a batch on other GPUs, against numbers worked out by hand and against measured points."""

from dataclasses import replace

import pytest

from herl.dry_run.batch_cost import (
    HELD_TOKEN,
    HOLDS_UP,
    binding,
    estimate,
    exchange_bytes,
    exchange_seconds,
    host_gib,
    plan_seconds,
    weights_seconds,
)
from herl.errors import ConfigError
from herl.update.gpu_cost import GIB, Asked, Settings
from tests.support.gpu_sizes import CARD, SIZE, WORK


def test_each_phase_is_what_its_formula_says():
    found = estimate(SIZE, WORK, Settings(), CARD, 1)["seconds"]
    attention = 6 * 10 * 1000 * 30_000 * 300
    assert found["update"] == pytest.approx((6 * 1e9 * 30_000 + attention) / 40e12)
    prefill = 2e9 * 10_000 / 40e12
    computed = 2e9 * 100 / 40e12  # for 100 answers it takes longer than reading 2 GB of weights
    assert found["sample"] == pytest.approx(200 * (0.005 + computed) + prefill)
    few = replace(WORK, rounds=((Asked(answers=(200,) * 10),),), prompt_tokens=1000)
    read = (2e9 + 10 * 10_000 * 300) / 0.7e12
    slow = estimate(SIZE, few, Settings(), CARD, 1)["seconds"]["sample"]
    assert slow == pytest.approx(200 * (0.005 + read) + prefill / 10)
    assert found["refresh"] == pytest.approx(0.1)
    assert found["judge"] == 1.5
    assert "exchange" not in found, "one process has nothing to exchange"
    assert found["plan"] == pytest.approx(plan_seconds(100, 1))


# What tools/bench/exchange.py measured over gloo: answers, tokens of each, ranks, MB that a rank received, CPU
# seconds of the slowest rank, GiB at the peak.
EXCHANGED = [
    (2048, 250, 2, 6.75, 0.147, 0.0365),  # median of five; a first try beside other programs took 0.284
    (2048, 250, 4, 6.75, 0.128, 0.0322),
    (2048, 250, 8, 6.74, 0.175, 0.0281),
    (2048, 1000, 2, 25.2, 0.249, 0.111),
    (2048, 1000, 4, 25.2, 0.251, 0.0923),
    (2048, 1000, 8, 25.2, 0.288, 0.0865),
    (8192, 250, 2, 27.0, 0.581, 0.129),
    (8192, 250, 4, 27.0, 0.507, 0.110),
    (8192, 250, 8, 27.0, 0.499, 0.103),
    (8192, 1000, 2, 101.0, 1.10, 0.333),
    (8192, 1000, 4, 101.0, 0.957, 0.276),
    (8192, 1000, 8, 101.0, 0.741, 0.235),
    (2048, 4000, 2, 98.9, 0.782, 0.327),
    (2048, 4000, 4, 98.9, 0.611, 0.266),
    (2048, 4000, 8, 98.9, 0.458, 0.227),
]


@pytest.mark.parametrize("point", EXCHANGED, ids=lambda point: f"{point[0]}x{point[1]} on {point[2]}")
def test_the_formulas_of_the_exchange_hold_at_the_measured_points(point):
    answers, length, ranks, megabytes, seconds, peak = point
    tokens = answers * length
    assert exchange_bytes(answers, tokens) / 1e6 == pytest.approx(megabytes, rel=0.05)
    assert exchange_seconds(answers, tokens, ranks) == pytest.approx(seconds, rel=0.3)
    assert host_gib(answers, tokens, ranks) == pytest.approx(peak, rel=0.25)


# What tools/bench/planning.py measured: answers, ranks, CPU seconds for answers of 250 and of 1000 tokens.
PLANNED = [
    (2048, 1, 0.0395, 0.0276),
    (2048, 8, 0.0389, 0.0275),
    (2048, 1024, 0.2192, 0.1448),
    (8192, 1, 0.0991, 0.1469),
    (8192, 8, 0.0975, 0.1531),
    (8192, 1024, 0.2523, 0.2317),
    (65_536, 1, 1.1081, 0.9885),
    (65_536, 8, 1.2220, 1.1751),
    (65_536, 1024, 1.3093, 1.4286),
]


@pytest.mark.parametrize("point", PLANNED, ids=lambda point: f"{point[0]} on {point[1]}")
def test_the_formula_of_planning_holds_at_the_measured_points(point):
    answers, ranks, *seconds = point
    assert plan_seconds(answers, ranks) == pytest.approx(sum(seconds) / 2, rel=0.3)


def seconds(settings=None, devices=8, **work):
    return estimate(SIZE, replace(WORK, **work), settings or Settings(), CARD, devices)["seconds"]


def test_settings_cost_what_they_cost():
    plain = seconds()
    assert seconds(devices=16)["update"] == pytest.approx(plain["update"] / 2)
    assert seconds(Settings(checkpointing=True))["update"] == pytest.approx(plain["update"] * 4 / 3)
    assert seconds(Settings(updates_per_batch=4))["update"] == pytest.approx(plain["update"] * 3.75 / 3)
    reference = Settings(reference=True, second_model=True)
    assert seconds(reference)["update"] == pytest.approx(plain["update"] * 4 / 3)
    assert seconds(Settings(max_at_once=4))["sample"] > plain["sample"]


def test_an_engine_works_as_long_as_its_longest_answers_and_then_idles():
    """One prompt with 8 answers, one of them five times as long, on 1 engine and on 8."""
    work = replace(WORK, rounds=((Asked(answers=(100,) * 7 + (500,)),),), prompt_tokens=0)

    def step(running):
        return 0.005 + (2e9 + running * 10_000 * 150) / 0.7e12

    one = estimate(SIZE, work, Settings(), CARD, 1)
    assert one["seconds"]["sample"] == pytest.approx(100 * step(8) + 400 * step(1))
    assert one["idle"] == 0.0
    eight = estimate(SIZE, work, Settings(), CARD, 8)
    assert eight["seconds"]["sample"] == pytest.approx(500 * step(1))
    assert eight["idle"] == pytest.approx(1 - (7 * 100 + 500) / (8 * 500))
    whole = estimate(SIZE, work, Settings(whole_groups=True), CARD, 8)
    assert whole["seconds"]["sample"] == pytest.approx(one["seconds"]["sample"])
    assert whole["idle"] == pytest.approx(7 / 8)
    assert estimate(SIZE, work, Settings(tensor_parallel=8), CARD, 8)["idle"] == 0.0


def test_a_round_waits_for_the_last_engine_of_the_one_before():
    first, second = (Asked(answers=(100, 10)),), (Asked(answers=(10, 50)),)
    one, other, both = (
        seconds(devices=2, rounds=rounds, prompt_tokens=0)["sample"]
        for rounds in ((first,), (second,), (first, second))
    )
    assert both == pytest.approx(one + other, rel=1e-3)  # the mean length is another


def test_weights_travel_once_for_each_pass_of_a_row():
    """30 rows of 1000 tokens: on 2 GPUs 15 each, with half of the weights from the other one."""
    assert weights_seconds(SIZE, WORK, Settings(), CARD, 1) == 0.0
    row = (2 + 2 + 4) * 1e9
    assert weights_seconds(SIZE, WORK, Settings(), CARD, 2) == pytest.approx(15 * row / 2 / 0.1e12)
    zero2 = weights_seconds(SIZE, WORK, Settings(keeps_gathered=True), CARD, 2)
    assert zero2 == pytest.approx(15 * (2 + 4) * 1e9 / 2 / 0.1e12)
    once = weights_seconds(SIZE, WORK, Settings(whole_gradients=True), CARD, 2)
    assert once == pytest.approx((15 * 4 + 4) * 1e9 / 2 / 0.1e12)
    adapters = weights_seconds(SIZE, WORK, Settings(trained_share=0.01), CARD, 2)
    assert adapters == pytest.approx(15 * (4 + 0.04) * 1e9 / 2 / 0.1e12)
    reference = weights_seconds(SIZE, WORK, Settings(reference=True), CARD, 2)
    assert reference == pytest.approx(15 * (row + 2e9) / 2 / 0.1e12)


def test_a_device_has_at_least_a_row_for_each_optimizer_step():
    many = weights_seconds(SIZE, WORK, Settings(updates_per_batch=2), CARD, 1024)
    assert many == pytest.approx(2 * (2.5 + 2 - 0.5 + 4 + 1) * 1e9 * 1023 / 1024 / 0.1e12, rel=1e-6)
    assert seconds(devices=1024)["update"] == weights_seconds(SIZE, WORK, Settings(), CARD, 1024)


def test_between_nodes_the_network_is_an_assumption_and_copies_only_sum_gradients():
    fast = replace(CARD, link=0.9)
    row = 8e9
    all_of_them = weights_seconds(SIZE, WORK, Settings(), fast, 64)
    assert all_of_them == pytest.approx(row * 63 / 64 / 0.4e12)  # eight cards of 50 GB/s
    copies = weights_seconds(SIZE, WORK, Settings(shards=8), fast, 64)
    assert copies == pytest.approx(row * 7 / 8 / 0.9e12 + 2 * 4e9 / 8 * 7 / 8 / 0.05e12)


def test_every_process_holds_the_answers_of_all_ranks():
    assert estimate(SIZE, WORK, Settings(), CARD, 1)["host_gib"] == 0.0
    one, two = (
        estimate(SIZE, replace(WORK, rounds=rounds), Settings(), CARD, 1000)["host_gib"]
        for rounds in (WORK.rounds, WORK.rounds * 2)
    )
    assert two == pytest.approx(2 * one)
    assert one > HELD_TOKEN * 100 * 200 / GIB


def test_the_longest_phase_is_said_and_what_keeps_more_gpus_from_helping():
    long = replace(WORK, judge_seconds=0.0, trained_tokens=300_000, micro_batch_tokens=10_000)
    assert binding(SIZE, long, Settings(), CARD, 1) == "update binds (95 %)"
    assert binding(SIZE, long, Settings(), CARD, 4) == "update binds (84 %)", "it still halves"
    judged = replace(long, judge_seconds=300.0)
    assert binding(SIZE, judged, Settings(), CARD, 8) == "judge binds (97 %); beyond 1 GPU the judge"
    few = replace(WORK, rounds=((Asked(answers=(9000,) * 4),),), judge_seconds=0.0)
    assert binding(SIZE, few, Settings(), CARD, 64).endswith("; beyond 1 GPU the longest answer")
    assert binding(SIZE, long, Settings(), CARD, 1024).endswith("; beyond 128 GPUs the longest answer")
    many = replace(long, rounds=((Asked(answers=(1,) * 100_000),),), trained_tokens=100_000)
    assert binding(SIZE, many, Settings(), CARD, 1024).endswith("; beyond 16 GPUs the exchange of answers")


def test_only_numbers_of_gpus_that_fill_engines_are_compared():
    assert (
        binding(SIZE, WORK, Settings(tensor_parallel=4), CARD, 24)
        == "judge binds (49 %); beyond 12 GPUs the judge"
    )


def test_every_phase_has_words_for_what_holds_it_up():
    work = replace(WORK, environment_seconds=1.0)
    assert set(estimate(SIZE, work, Settings(), CARD, 2)["seconds"]) == set(HOLDS_UP)


def test_what_does_not_fit_is_said():
    assert estimate(SIZE, WORK, Settings(), CARD, 1)["fits"]
    assert not estimate(SIZE, WORK, Settings(), replace(CARD, gib=16), 1)["fits"]


def test_gpus_that_leave_an_engine_incomplete_are_a_clear_error():
    with pytest.raises(
        ConfigError, match="cost.devices: expected a multiple of the 4 GPUs of an engine, got 6"
    ):
        estimate(SIZE, WORK, Settings(tensor_parallel=4), CARD, 6)
