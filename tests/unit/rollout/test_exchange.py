import gc
import pickle
from copy import deepcopy

import numpy as np
import pytest

from herl.distributed import rank
from herl.errors import SamplerError
from herl.replay import ReplayBuffer
from herl.rollout.exchange import Numbers, collector_paused, exchanged
from herl.testing import make_experience, make_judged, make_rollout
from herl.types import Member, ToolCall, Turn
from herl.update.batch import micro_batches
from tests.support.ranks import run_on_ranks

LOGPROBS = (-0.5, float(np.float32(-1.1)), -0.25)


def turns_of(place):
    """An episode's turns before its last, one of them without a reply's tokens."""
    return [
        Turn(
            text="Look up.", end=1, reply=({"role": "user", "content": "fish"},), reply_ids=(80_000, place)[:size],
            calls=(ToolCall(name="f", arguments={"x": [1, {"y": None}]}),),
        )
        for size in (2, 0)
    ]  # fmt: skip


def answers_of(place):
    """The answers of one rank: fewer on later ranks, none on the last of three."""
    return [
        make_judged(
            float(number),
            rollout=make_rollout(
                id=f"{place}/{number}", token_ids=(70_000 + number, place, 3)[: number + 1],
                logprobs=LOGPROBS[: number + 1], text=f"héllo {place}", turns=turns_of(place)[:number],
            ),
        )
        for number in range(2 - place)
    ]  # fmt: skip


def test_numbers_behave_as_a_tuple():
    numbers = Numbers(np.array([7, 8, 9], dtype=np.int32))
    same = (7, 8, 9)
    assert numbers == same
    assert same == numbers
    assert numbers == Numbers(np.array([7, 8, 9]))
    assert numbers != (7, 8)
    assert numbers != Numbers(np.array([7, 8]))
    assert numbers != [7, 8, 9]
    assert hash(numbers) == hash(same)
    assert {numbers, same} == {same}
    assert (len(numbers), numbers[-1], numbers[1:], [*numbers], repr(numbers)) == (
        3,
        9,
        (8, 9),
        [7, 8, 9],
        "(7, 8, 9)",
    )
    assert type(numbers[0]) is int
    assert 8 in numbers
    assert np.array(numbers).tolist() == [7, 8, 9]
    one = (1,)
    assert (one + numbers, numbers + one, numbers + numbers) == (
        (1, 7, 8, 9), (7, 8, 9, 1), (7, 8, 9, 7, 8, 9)
    )  # fmt: skip
    for copy in (deepcopy(numbers), pickle.loads(pickle.dumps(numbers))):
        assert type(copy) is tuple
        assert copy == same


def test_a_process_alone_gets_its_own_answers_back():
    own = answers_of(0)
    assert all(got is one for got, one in zip(exchanged(own), own, strict=True))


def test_an_answer_without_one_logprob_for_each_token_is_an_error(monkeypatch):
    monkeypatch.setattr("herl.rollout.exchange.world_size", lambda: 2)
    wrong = make_judged(1.0, rollout=make_rollout(id="odd", token_ids=(1, 2), logprobs=(-0.5,)))
    with pytest.raises(
        SamplerError, match="answer odd: expected one log-prob for each of its 2 tokens, got 1"
    ):
        exchanged([wrong])


def _exchange():
    everything = exchanged(answers_of(rank()))
    expected = [one for place in range(3) for one in answers_of(place)]
    assert everything == expected, "records, tokens and log-probs of all ranks, in rank order"
    assert [type(one.rollout.token_ids) for one in everything] == [Numbers] * len(expected)
    assert all(one.rollout.token_ids._array.base is None for one in everything), "none keeps its neighbors"
    replies = [turn.reply_ids for one in everything for turn in one.rollout.turns]
    assert [type(ids) for ids in replies] == [Numbers], "of the episode of rank 0"
    assert replies[0]._array.dtype == np.int32
    assert replies[0]._array.base is None
    assert everything[1].rollout.sequence == expected[1].rollout.sequence
    rows = [
        [
            *micro_batches(
                [make_experience(one.rollout) for one in some], max_tokens=9, aggregation="token_mean"
            )
        ]
        for some in (everything, expected)
    ]
    for got, plain in zip(*rows, strict=True):
        for name in ("input_ids", "answer_ids", "sampler_logprobs", "weight"):
            assert getattr(got, name).equal(getattr(plain, name)), name
            assert getattr(got, name).dtype == getattr(plain, name).dtype
    buffer = ReplayBuffer(of="best")
    buffer.keep("task", [Member(judged=one, reward=one.reward) for one in everything], everything)
    kept = pickle.loads(pickle.dumps(buffer.state_dict()))["task"][0]["answer"]["Judged"]["rollout"][
        "Rollout"
    ]
    assert type(kept["token_ids"]) is tuple, "checkpoints hold plain types"
    assert exchanged([]) == [], "no rank has an answer"


@pytest.mark.integration
def test_ranks_get_all_answers_as_they_were(tmp_path):
    run_on_ranks(_exchange, 3, tmp_path)


def test_the_collector_of_cycles_goes_on_after_an_error():
    @collector_paused()
    def fails():
        assert not gc.isenabled()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert gc.isenabled()
