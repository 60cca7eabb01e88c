import random

import pytest

from herl.update.batch import SPARE_ROWS, _advise, _Piece, _plan, micro_batches
from tests.support.experiences import PACKINGS, experience, several


def test_layout_of_shared_contexts():
    experiences = [
        experience([7, 8, 9], [1, 2]),
        experience([5], [3, 4, 6], advantage=-2.0, parent="p"),
        experience([7, 8, 9], [6], advantage=3.0),
    ]
    [batch] = micro_batches(experiences, max_tokens=100, aggregation="token_mean")
    assert batch.rows == (0, 2, 1)
    assert batch.input_ids.tolist() == [[7, 8, 9, 1, 2, 6, 5, 3, 4, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2, 3]]
    assert [(one.start, one.answers) for one in batch.contexts] == [(0, (3, 5, 6)), (6, (7, 10))]
    assert batch.answer_ids.tolist() == [1, 2, 6, 3, 4, 6]
    assert batch.before.tolist() == [2, 3, 2, 6, 7, 8], "the context's end predicts the first of each answer"
    assert batch.answer_lengths == (2, 1, 3)
    assert batch.row.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.advantage.tolist() == [1.0, 1.0, 3.0, -2.0, -2.0, -2.0]
    assert batch.revision.tolist() == [False, False, False, True, True, True]
    assert batch.weight.tolist() == pytest.approx([1 / 6] * 6)
    assert batch.sampler_logprobs.tolist() == pytest.approx([-0.1, -0.2, -0.1, -0.1, -0.2, -0.3])


def test_layout_of_packed_and_of_single_answers():
    experiences = [experience([7, 8], [1, 2]), experience([7, 8], [3])]
    [packed] = micro_batches(experiences, max_tokens=100, aggregation="token_mean", packing="packed")
    assert packed.input_ids.tolist() == [[7, 8, 1, 2, 7, 8, 3]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    single = micro_batches(experiences, max_tokens=100, aggregation="token_mean", packing="single")
    assert [batch.input_ids.tolist() for batch in single] == [[[7, 8, 1, 2]], [[7, 8, 3]]]


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_sampled_ids_are_the_trained_ids(packing):
    experiences = several()
    for batch in micro_batches(experiences, max_tokens=90, aggregation="token_mean", packing=packing):
        columns = [column for one in batch.contexts for column in range(one.answers[0], one.answers[-1])]
        assert batch.input_ids[0, columns].tolist() == batch.answer_ids.tolist()
        for row, trained in zip(batch.rows, batch.answer_ids.split(batch.answer_lengths), strict=True):
            assert tuple(trained.tolist()) == experiences[row].rollout.token_ids
        for one in batch.contexts:
            row = batch.rows[[c.start for c in batch.contexts].index(one.start)]
            assert batch.input_ids[0, one.start : one.answers[0]].tolist() in [
                list(e.context_ids) for e in experiences
            ], row


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("budget", [30, 60, 120, 10**6])
def test_micro_batches_keep_to_the_budget_and_lose_nothing(packing, budget):
    experiences = several(6)
    batches = list(micro_batches(experiences, max_tokens=budget, aggregation="token_mean", packing=packing))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(24))
    assert all(batch.input_ids.numel() <= budget or len(batch.rows) == 1 for batch in batches)
    assert sum(float(batch.weight.sum()) for batch in batches) == pytest.approx(1.0)
    assert not any(batch.filler for batch in batches)


def test_rows_carry_about_equal_work():
    batches = list(micro_batches(several(40), max_tokens=200, aggregation="token_mean"))
    lengths = [batch.input_ids.numel() for batch in batches]
    assert len(lengths) > 8
    assert sum(lengths) / len(lengths) > 0.9 * max(lengths)


def test_a_shared_context_stands_once_however_many_answers_it_has():
    experiences = [experience(list(range(50)), [60 + i, 61], index=i) for i in range(8)]
    [batch] = micro_batches(experiences, max_tokens=200, aggregation="token_mean")
    assert batch.input_ids.numel() == 50 + 8 * 2
    parts = list(micro_batches(experiences, max_tokens=60, aggregation="token_mean"))
    assert [len(part.rows) for part in parts] == [4, 4], "split, it is repeated as rarely as can be"


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("max_tokens", [1, 40, 10**6])
@pytest.mark.parametrize("packing", PACKINGS)
def test_ranks_share_the_answers_and_keep_step(world_size, max_tokens, packing):
    experiences = several(3, 4)
    shares = [
        list(
            micro_batches(
                experiences,
                max_tokens=max_tokens,
                aggregation="token_mean",
                rank=rank,
                world_size=world_size,
                packing=packing,
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1, "every rank makes as many passes"
    trained = [row for share in shares for batch in share if not batch.filler for row in batch.rows]
    assert sorted(trained) == list(range(12))
    fillers = [batch for share in shares for batch in share if batch.filler]
    assert all(float(batch.weight.abs().sum()) == 0.0 for batch in fillers)
    if max_tokens == 10**6 and packing != "single":
        assert not fillers, "answers that fit into one pass are still dealt out"


def test_one_answer_on_many_ranks_is_repeated_as_a_filler():
    [alone] = several(1, 1)
    shares = [
        list(micro_batches([alone], max_tokens=9, aggregation="token_mean", rank=rank, world_size=3))
        for rank in range(3)
    ]
    assert [[batch.filler for batch in share] for share in shares] == [[False], [True], [True]]


def test_a_long_context_that_rows_repeat_for_want_of_tokens_is_said_once(caplog):
    _advise.cache_clear()
    experiences = [experience(range(3, 103), [1, 2, 3], index=index) for index in range(4)]
    for max_tokens in (200, 111, 110, 110):
        batches = list(micro_batches(experiences, max_tokens=max_tokens, aggregation="token_mean"))
        assert len(batches) == {200: 1, 111: 2, 110: 2}[max_tokens]
    assert [record.args for record in caplog.records] == [(111,), (110,)]


def naive_rows(lengths, max_tokens, world_size):
    """Rows of piece lengths: one more row per rank at a time, until all pieces fit."""
    lengths = sorted(lengths, reverse=True)
    count = -(-min(-(-sum(lengths) // max_tokens), len(lengths)) // world_size) * world_size
    while True:
        rows, loads = [[] for _ in range(count)], [0] * count
        for length in lengths:
            least = loads.index(min(loads))
            rows[least].append(length)
            loads[least] += length
        if all(len(row) <= 1 or sum(row) <= max_tokens for row in rows):
            return sorted(rows, key=sum, reverse=True)
        count += world_size


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("max_tokens", [40, 64, 200])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_those_of_trying_one_more_at_a_time(monkeypatch, world_size, max_tokens, seed):
    draw = random.Random(seed)
    lengths = [draw.choice((draw.randint(2, 60), draw.randint(2, 12))) for _ in range(90)]
    pieces = [_Piece(1, (place,), (length - 1,)) for place, length in enumerate(lengths)]
    monkeypatch.setattr("herl.update.batch._pieces", lambda *_: pieces)
    plan = _plan([], max_tokens, world_size, "packed")
    expected = naive_rows(lengths, max_tokens, world_size)
    if len(expected) * SPARE_ROWS > world_size:  # more rows at a time
        assert len(expected) <= len(plan) <= len(expected) * (1 + SPARE_ROWS) + world_size
    else:
        assert [sorted(piece.tokens for piece in row) for row in plan] == [sorted(row) for row in expected]


def test_large_batches_get_few_rows_too_many():
    draw = random.Random(0)
    lengths = [draw.randint(10, 90) for _ in range(700)]
    expected = len(naive_rows(lengths, 100, 1))
    assert expected > 3 / SPARE_ROWS
    rows = _plan_of(lengths, 100)
    assert sorted(place for row in rows for piece in row for place in piece.answers) == [*range(700)]
    assert all(sum(piece.tokens for piece in row) <= 100 for row in rows)
    assert expected <= len(rows) <= expected * (1 + SPARE_ROWS) + 1


def _plan_of(lengths, max_tokens):
    experiences = [experience([1], range(length - 1), index=place) for place, length in enumerate(lengths)]
    return _plan(experiences, max_tokens, 1, "packed")


def test_equal_contexts_share_a_row_whether_they_are_the_same_object_or_not():
    experiences = [experience(context, [1], index=i) for i, context in enumerate(([7, 8], [9], [7, 8]))]
    [batch] = micro_batches(experiences, max_tokens=100, aggregation="token_mean")
    assert batch.rows == (0, 2, 1)
