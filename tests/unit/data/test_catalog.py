"""The task of experiment=lookup: only the tool knows the figures, and held-out products are in no training prompt."""

from pathlib import Path

import pytest

from herl.checks import read_check
from herl.data.catalog import CLOSINGS, FACTS, MAX_WORDS, catalog, products
from herl.environment.catalog import lookup
from herl.hindsight.told import ToldBuilder

TOOLS = Path(__file__).parents[3] / "tools" / "lookup"


def attributes(tasks):
    return [task.meta["attribute"] for task in tasks]


@pytest.mark.parametrize("tuning", [False, True])
def test_no_held_out_product_is_asked_about_in_training(tuning):
    data = catalog(tuning=tuning)
    asked = {
        name: {task.id.partition("-")[2] for task in getattr(data, name)} for name in ("train", "heldout")
    }
    assert not asked["train"] & asked["heldout"]
    assert (len(data.train), len(data.heldout)) == ((180, 60) if tuning else (240, 96))
    real = {one.name.lower() for one in products() if one.split == "heldout"}
    assert asked["heldout"].isdisjoint(real) if tuning else asked["heldout"] == real
    assert sorted(set(attributes(data.heldout))) == sorted(FACTS)


def test_the_rubric_is_met_by_the_figure_that_the_tool_returns_and_never_tells_it():
    by_name = {one.name.lower(): one for one in products()}
    for task in catalog().heldout:
        product, attribute = by_name[task.id.partition("-")[2]], task.meta["attribute"]
        value = lookup(product.name, attribute).split()[0]
        checks = {one.id: one.check for one in task.rubric.criteria}
        assert list(checks) == ["lookup", "value", "source", CLOSINGS[attribute], "words", "praise"]
        check = read_check(checks["value"])
        assert check.met(FACTS[attribute].format(value))
        assert not check.met(FACTS[attribute].format(int(value) + 1))
        assert checks["words"]["count"] == MAX_WORDS
        assert value not in ToldBuilder().tell(task)[-1]["content"].replace(str(MAX_WORDS), "")
        assert product.name in task.request


@pytest.mark.skipif(not TOOLS.is_dir(), reason="the tools are not there")
def test_the_catalog_is_the_makers_and_its_lessons_are_about_other_products(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import make
    import world

    rows = world.make_catalog(make.CATALOG_SEED)
    assert [(one.name, one.kind, one.split, one.values) for one in products()] == [
        (row["name"], row["kind"], row["split"], {name: row[name] for name in FACTS}) for row in rows
    ]
    teacher = world.Teacher(rows)
    assert len(teacher.names) + len(rows) == len(world.names())
    assert {row["name"] for row in rows}.isdisjoint(teacher.names)
