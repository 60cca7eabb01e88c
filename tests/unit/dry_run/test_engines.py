"""How long engines sample, against a naive simulation that counts every step."""

import random

import pytest

from herl.dry_run.engines import EngineSpeed, engine_seconds
from herl.rollout.dealing import dealt
from herl.types import SampleRequest, Sampling
from herl.update.gpu_cost import Asked


def speed(slots, prompt_seconds=0.0):
    return EngineSpeed(
        step_seconds=lambda running: 1.0 + 0.1 * running, prompt_seconds=prompt_seconds, slots=slots
    )


def naive(asked, slots):
    """One engine, step by step."""
    waiting = [(tokens, place) for place, one in enumerate(asked) for tokens in one.answers]
    left = {place: len(one.answers) for place, one in enumerate(asked)}
    running, seconds = [], 0.0
    while waiting or running:
        while waiting and len(running) < slots:
            running.append(list(waiting.pop(0)))
        seconds += 1.0 + 0.1 * len(running)
        for one in running:
            one[0] -= 1
        for _, place in sorted(one for one in running if one[0] == 0):
            left[place] -= 1
            if left[place] == 0:
                waiting += [(tokens, place) for tokens in asked[place].follow_ups]
        running = [one for one in running if one[0] > 0]
    return seconds


def drawn(prompts, answers, follow_ups, seed):
    draw = random.Random(seed)
    return [
        Asked(
            answers=tuple(draw.randint(1, 40) for _ in range(answers)),
            follow_ups=tuple(draw.randint(1, 40) for _ in range(draw.randint(0, follow_ups))),
        )
        for _ in range(prompts)
    ]


@pytest.mark.parametrize("slots", [1, 3, 7, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_an_engine_takes_the_time_of_its_steps(slots, seed):
    asked = drawn(6, 5, 3, seed)
    [seconds] = engine_seconds(asked, 1, speed(slots), whole_groups=True)
    assert seconds == pytest.approx(naive(asked, slots))


@pytest.mark.parametrize("engines", [2, 5, 64])
@pytest.mark.parametrize("whole", [True, False])
def test_each_engine_works_on_what_herl_deals_it(engines, whole):
    asked = drawn(9, 6, 2 * whole, 0)
    requests = [
        SampleRequest(
            task_id=str(place), group_id=str(place), prompt_ids=(), n=6, sampling=Sampling(), seed=0
        )
        for place in range(9)
    ]
    found = engine_seconds(asked, engines, speed(4, prompt_seconds=100.0), whole_groups=whole)
    for engine, seconds in enumerate(found):
        share = dealt(requests, engine, engines, whole_groups=whole)
        parts = [
            Asked(
                answers=tuple(asked[int(part.task_id)].answers[index] for index in part.indices),
                follow_ups=asked[int(part.task_id)].follow_ups,
            )
            for part in share
        ]
        assert seconds == pytest.approx(naive(parts, 4) + 100.0 * len({part.task_id for part in share}))


def test_no_engine_finishes_before_its_longest_answer():
    asked = [Asked(answers=(1,) * 7 + (100,))]
    assert max(engine_seconds(asked, 8, speed(8), whole_groups=False)) == pytest.approx(110.0)
    assert sorted(engine_seconds(asked, 4, speed(8), whole_groups=True)) == [0.0, 0.0, 0.0, 110.7]


def test_prompts_without_answers_take_no_time():
    assert engine_seconds([Asked(answers=())], 2, speed(8, 1.0), whole_groups=False) == [0.0, 0.0]
    assert engine_seconds([], 1, speed(8, 1.0), whole_groups=True) == [0.0]
