import random
from itertools import chain

import pytest

from herl.rollout.dealing import PARTS_PER_ENGINE, dealt
from herl.sampler.transformers import TransformersSampler
from herl.types import SampleRequest, Sampling


def asked(name, n=1, group=None, first=0, parent=None):
    return SampleRequest(
        task_id=name,
        group_id=group or name,
        prompt_ids=(),
        n=n,
        sampling=Sampling(),
        seed=0,
        parent_id=parent,
        first=first,
    )


def shares(requests, engines, whole_groups=False):
    return [dealt(requests, engine, engines, whole_groups=whole_groups) for engine in range(engines)]


def places(requests):
    return [(one.task_id, one.parent_id, index) for one in requests for index in one.indices]


@pytest.mark.parametrize("engines", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("whole_groups", [False, True])
def test_every_answer_is_dealt_once_on_any_number_of_engines(engines, whole_groups):
    requests = [asked(str(number), n=number % 9 + 1) for number in range(40)]
    dealing = shares(requests, engines, whole_groups)
    assert sorted(places(chain.from_iterable(dealing))) == sorted(places(requests))


def test_one_engine_gets_whole_requests_in_their_order():
    requests = [asked("otter", n=64), asked("fox", n=3)]
    assert dealt(requests, 0, 1, whole_groups=False) == requests


def test_few_prompts_occupy_all_engines_evenly():
    dealing = shares([asked(str(number), n=64) for number in range(64)], 1024)
    assert [sum(one.n for one in share) for share in dealing] == [4] * 1024
    assert {len({one.task_id for one in share}) for share in dealing} == {4}, "of as many prompts as can be"


@pytest.mark.parametrize(("engines", "prompts", "n"), [(3, 18, 8), (5, 3, 64), (7, 100, 9)])
def test_engines_differ_by_a_part_at_most(engines, prompts, n):
    dealing = shares([asked(str(number), n=n) for number in range(prompts)], engines)
    answers = [sum(one.n for one in share) for share in dealing]
    assert max(answers) - min(answers) <= max(one.n for one in chain.from_iterable(dealing))


@pytest.mark.parametrize("engines", [2, 8])
def test_enough_requests_are_dealt_whole_and_in_turn(engines):
    requests = [asked(str(number), n=8) for number in range(PARTS_PER_ENGINE * engines)]
    assert shares(requests, engines) == [requests[engine::engines] for engine in range(engines)]


def test_parts_of_a_part_keep_their_indices():
    dealing = shares([asked("otter", n=3, first=5)], 2)
    assert sorted(places(chain.from_iterable(dealing))) == [("otter", None, index) for index in (5, 6, 7)]


@pytest.mark.parametrize("engines", [1, 2, 3, 5])
def test_whole_groups_stay_on_one_engine(engines):
    """The answers of one question to a judge of groups must not depend on how requests are dealt."""
    requests = [asked(f"{name}{i}", group=name, parent=f"{name}/{i}") for name in "abcd" for i in range(3)]
    dealing = shares(requests, engines, whole_groups=True)
    assert sum(len({one.group_id for one in share}) for share in dealing) == 4
    assert sorted(chain.from_iterable(dealing), key=requests.index) == requests


@pytest.mark.parametrize("engines", [2, 3])
def test_an_answer_is_the_same_whichever_engine_draws_it_and_in_whatever_order(policy, tokenizer, engines):
    requests = [
        SampleRequest(
            task_id=name,
            group_id=name,
            prompt_ids=tuple(tokenizer.encode(name * length)),
            n=5,
            sampling=Sampling(max_new_tokens=6),
            seed=length,
        )
        for length, name in enumerate(("otter", "fox", "lion"), 1)
    ]

    def drawn(asked, batch_size):
        sampler = TransformersSampler(batch_size=batch_size)
        sampler.start(policy, tokenizer)
        return {one.id: one for one in sampler.generate(asked)}

    whole = drawn(requests, 128)
    together = {}
    for share in shares(requests, engines):
        random.Random(engines).shuffle(share)
        together |= drawn(share, 3)
    assert together.keys() == whole.keys()
    assert len({one.token_ids for one in whole.values()}) == 15
    for name, one in together.items():
        assert one.token_ids == whole[name].token_ids
        assert one.logprobs == pytest.approx(whole[name].logprobs, abs=1e-5)
