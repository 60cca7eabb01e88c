"""The order of a mix against a plain loop, and what it promises of every batch and every epoch."""

import itertools
import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from herl import ConfigError, DataError, HerlError
from herl.data import RubricDataModule
from herl.data.mix import MixedTasks
from herl.data.mix_order import MixedOrder, drawn_of_each
from herl.seeds import derive_seed
from herl.testing import make_task
from tests.support.ranks import run_on_ranks


def mixed(weights, sizes, batch=4, seed=0):
    names = [name for name, size in sizes.items() for _ in range(size)]
    return names, MixedOrder(names, weights, seed, batch)


def naive(weights, sizes, seed, epoch):
    """The places of an epoch, one prompt at a time: a clock for each source, and a pack of cards that is
    shuffled again whenever it is used up."""
    total, offset, decks = sum(sizes.values()), 0, {}
    wanted = {
        name: Fraction(weight) * total / sum(map(Fraction, weights.values()))
        for name, weight in weights.items()
    }
    drawn = {name: int(share) for name, share in wanted.items()}
    while sum(drawn.values()) < total:
        drawn[max(weights, key=lambda name: wanted[name] - drawn[name])] += 1

    def cards(name, number):
        generator = np.random.default_rng(derive_seed(seed, name, number, "pass"))
        return generator.permutation(sizes[name]).tolist()

    def deck(name):
        for number in itertools.count():
            order, third = cards(name, number), sizes[name] // 3
            recent = set(cards(name, number - 1)[sizes[name] - third :])
            head, tail = order[: sizes[name] - third], order[sizes[name] - third :]
            yield from [card for card in head if card not in recent]
            yield from [card for card in head if card in recent]
            yield from tail

    first = {}
    for name, size in sizes.items():
        decks[name], first[name] = deck(name), offset
        offset += size
    start = derive_seed(seed, epoch, "mix")
    for name in weights:
        for _ in range(epoch * drawn[name]):
            next(decks[name])
    clock = {name: derive_seed(start, name, "start") / 2**63 for name in weights}
    count = dict.fromkeys(weights, 0)
    order = []
    while len(order) < total:
        due = {
            name: (count[name] + clock[name]) / drawn[name] for name in weights if count[name] < drawn[name]
        }
        name = min(due, key=due.get)
        order.append(first[name] + next(decks[name]))
        count[name] += 1
    return order


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_order_of_the_plain_loop(seed):
    chance = random.Random(seed)
    sizes = {name: chance.randint(9, 40) for name in "abc"[: chance.randint(1, 3)]}
    weights = {name: chance.choice([1, 2, 0.7, chance.uniform(0.5, 3)]) for name in sizes}
    _, order = mixed(weights, sizes, batch=1, seed=seed)
    for epoch in (0, 1, 5):
        assert order.places(epoch) == naive(weights, sizes, seed, epoch)


@pytest.mark.parametrize("trial", range(40))
def test_every_batch_has_about_its_shares_no_prompt_twice_and_all_prompts_come_equally_often(trial):
    chance = random.Random(trial)
    sizes = {str(n): chance.randint(1, 50) for n in range(chance.randint(1, 4))}
    weights = {name: chance.choice([1, 2, 7, 0.5, chance.random() + 0.01]) for name in sizes}
    batch = chance.randint(1, 12)
    try:
        names, order = mixed(weights, sizes, batch, trial)
    except HerlError:
        return
    times = Counter()
    for epoch in range(5):
        places = order.places(epoch)
        times.update(places)
        assert len(places) == len(names)
        assert Counter(names[place] for place in places) == order.drawn
        for start in range(len(places) - batch + 1):
            drawn = places[start : start + batch]
            assert len(set(drawn)) == batch
            found = Counter(names[place] for place in drawn)
            for name, share in order.drawn.items():
                assert abs(found[name] - batch * share / len(names)) < len(sizes) + 1
    for name in sizes:
        counts = [times[place] for place, of in enumerate(names) if of == name]
        assert max(counts) - min(counts) <= 1


def test_most_trials_of_the_former_test_are_not_refused():
    made = 0
    for trial in range(40):
        chance = random.Random(trial)
        sizes = {str(n): chance.randint(1, 50) for n in range(chance.randint(1, 4))}
        weights = {name: chance.choice([1, 2, 7, 0.5, chance.random() + 0.01]) for name in sizes}
        try:
            mixed(weights, sizes, chance.randint(1, 12), trial)
            made += 1
        except HerlError:
            pass
    assert made >= 20


def test_of_a_hundred_prompts_about_seventy_are_from_the_heavier_source():
    names, order = mixed({"math": 7, "chat": 3}, {"math": 100, "chat": 400})
    places = order.places(0) + order.places(1)
    for start in range(0, 1000, 100):
        assert abs(Counter(names[place] for place in places[start : start + 100])["math"] - 70) <= 1
    assert [order.places(0), order.places(1)] != [order.places(0)] * 2
    assert order.places(0) != mixed({"math": 7, "chat": 3}, {"math": 100, "chat": 400}, seed=1)[1].places(0)
    assert order.in_words() == [
        "math: 70% of the prompts drawn; its 100 come 3.5 times an epoch",
        "chat: 30% of the prompts drawn; its 400 come 0.375 times an epoch",
    ]


def test_a_pass_differs_from_the_one_before():
    _, order = mixed({"a": 1, "b": 1}, {"a": 30, "b": 30})
    passes = [[place for place in order.places(epoch) if place < 30] for epoch in range(3)]
    assert all(sorted(one) == list(range(30)) for one in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]


def test_further_prompts_keep_the_shares_until_a_source_comes_to_its_end():
    names, order = mixed({"a": 3, "b": 1}, {"a": 30, "b": 30})
    places = order.shuffled(11)
    assert sorted(places) == list(range(60))
    assert places == order.shuffled(11) != order.shuffled(12)
    assert abs(Counter(names[place] for place in places[:40])["a"] - 30) <= 1
    assert {names[place] for place in places[42:]} == {"b"}


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ({"a": 7, "b": 3}, 10, {"a": 7, "b": 3}),
        ({"a": 0.7, "b": 0.3}, 10, {"a": 7, "b": 3}),
        ({"a": 1, "b": 1, "c": 1}, 10, {"a": 4, "b": 3, "c": 3}),
        ({"a": 1e-9, "b": 1e9}, 10, {"a": 0, "b": 10}),
    ],
)
def test_prompts_of_an_epoch_are_divided_by_largest_remainders(weights, total, expected):
    assert drawn_of_each(weights, total) == expected


@pytest.mark.parametrize(
    ("weights", "sizes", "batch", "error", "message"),
    [
        ({"a": 1, "b": 1}, {"a": 50, "b": 6}, 16, DataError, "sources.b: expected at least 21 .* which may take 8 of"),
        ({"a": 1, "b": 1e-6}, {"a": 9, "b": 9}, 1, ConfigError, "sources.b.weight: expected at least one prompt in"),
        ({"a": 1, "b": 1}, {"a": 9}, 1, DataError, "sources.b: expected at least one prompt to train on, got none"),
    ],
)  # fmt: skip
def test_mixes_that_cannot_work_are_refused(weights, sizes, batch, error, message):
    with pytest.raises(error, match=message):
        mixed(weights, sizes, batch)
    if "21" in message:
        mixed(weights, {"a": 50, "b": 21}, batch)


# The data module


def tasks_of(**sizes):
    return {
        name: [replace(make_task(id=f"{name}{n}", request=f"{name} {n}"), source=name) for n in range(size)]
        for name, size in sizes.items()
    }


def module(**changes):
    return RubricDataModule(
        MixedTasks(tasks_of(a=12, b=30), {"a": 2, "b": 1}), **({"prompts_per_batch": 4, "seed": 3} | changes)
    )


def ids(data, epochs=2):
    loader = data.train_dataloader()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        yield from ((epoch, task.id) for batch in loader for task in batch)


def test_batches_are_those_of_the_order():
    data = module()
    expected = [(epoch, data.train[place].id) for epoch in (0, 1) for place in data.mix.places(epoch)]
    assert list(ids(data)) == expected
    assert Counter(id[0] for epoch, id in expected if epoch == 0) == {"a": 28, "b": 14}
    loader = data.train_dataloader()
    assert [task.id for n in range(11) for task in loader.batch(1, n)] == [id for e, id in expected if e == 1]


def test_what_is_held_out_and_hidden_leaves_the_weights():
    data = module(heldout_share=0.2, hidden_criteria=0.3)
    assert data.heldout
    train = Counter(task.source for task in data.train)
    assert data.mix.prompts == train
    drawn = Counter(id[0] for epoch, id in ids(data, 1))
    assert drawn == drawn_of_each({"a": 2, "b": 1}, train.total())


def test_further_prompts_are_those_of_the_order_without_those_drawn():
    data = module()
    order = [data.train[place] for place in data.mix.shuffled(5)]
    drawn = {order[0].id, order[3].id}
    assert data.further(3, 5, drawn) == [order[1], order[2], order[4]]


def _order_on_a_rank(expected):
    assert list(ids(module())) == expected


def test_two_ranks_get_the_batches_of_one(tmp_path):
    run_on_ranks(_order_on_a_rank, 2, tmp_path, list(ids(module())))
