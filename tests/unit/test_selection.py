import math
from dataclasses import replace
from functools import partial

import pytest

from herl.selection import form_group, keep_ranked
from herl.testing import check_selection, make_judged, make_rollout, make_task
from herl.types import Criterion, Member, Rubric

ATTEMPTS = [make_judged(r, id=f"group/{i}") for i, r in enumerate((0.2, 0.6, 0.4))]


def revision(reward, index=0):
    return make_judged(reward, id=f"group/1/{index}", parent_id="group/1")


def totals(members):
    return [round(member.total, 6) for member in members]


def test_a_better_revision_replaces_the_worst_attempt():
    members = form_group(make_task(), ATTEMPTS, [revision(0.8)], {}, seed=0)
    assert totals(members) == [0.8, 0.6, 0.4]
    assert members[0].origin == "hindsight"


def test_rewards_that_differ_by_rounding_alone_are_tied():
    attempts = [make_judged(0.5, id="a0"), make_judged(0.1, id="a1")]
    revision = make_judged(math.nextafter(0.5, 1.0), id="r", parent_id="a0")
    for strict, joined in ((True, False), (False, True)):
        group = form_group(make_task(), attempts, [revision], {}, seed=0, strict=strict)
        assert ("r" in {member.judged.rollout.id for member in group}) == joined
    below = make_judged(math.nextafter(0.5, 0.0), id="r", parent_id="a0")
    assert len(form_group(make_task(), attempts, [below], {}, seed=0, strict=False, placement="append")) == 3


@pytest.mark.parametrize(("strict", "expected"), [(True, [0.2, 0.6, 0.4]), (False, [0.6, 0.6, 0.4])])
def test_a_tie_joins_only_when_not_strict(strict, expected):
    assert totals(form_group(make_task(), ATTEMPTS, [revision(0.6)], {}, seed=0, strict=strict)) == expected


def test_a_worse_revision_never_joins():
    members = form_group(make_task(), ATTEMPTS, [revision(0.5)], {}, seed=0, strict=False)
    assert totals(members) == [0.2, 0.6, 0.4]


@pytest.mark.parametrize(
    ("met", "joins", "joined"),
    [
        ({"fish": False, "river": True}, "new", True),  # no attempt names the river
        ({"fish": False, "river": True}, "better", False),
        ({"fish": True, "river": False}, "new", False),
        ({"fish": True, "river": None}, "new", False),
        ({"fish": True, "river": False, "rude": False}, "new", True),  # every attempt is rude
        ({"fish": True, "river": False, "cold": True}, "new", False),  # no attempt could be judged on it
        ({"fish": True, "river": False, "idle": True}, "new", False),  # it weighs nothing
    ],
)
def test_a_revision_may_join_for_a_criterion_that_no_attempt_fulfills(met, joins, joined):
    task = make_task({"fish": 3.0, "river": 2.0, "rude": -1.0, "cold": 1.0, "idle": 0.0})
    verdicts = {"fish": True, "river": False, "rude": True, "cold": None, "idle": False}
    attempts = [make_judged(0.5, met=verdicts, id=f"group/{i}") for i in range(2)]
    new = make_judged(0.3, met={"rude": True, "cold": None, "idle": False} | met, id="r", parent_id="group/0")
    for placement in ("append", "replace_worst"):
        members = form_group(task, attempts, [new], {}, 0, joins=joins, placement=placement)
        assert [member.origin for member in members].count("hindsight") == joined
        assert len(members) == 2 + (joined and placement == "append")


def test_a_better_revision_comes_before_a_new_one():
    task = make_task()
    attempt = make_judged(0.6, met={"fish": True, "river": False})
    new = make_judged(0.4, met={"fish": False, "river": True}, id="new", parent_id="group/0")
    better = make_judged(1.0, met={"fish": True, "river": True}, id="better", parent_id="group/0")
    members = form_group(task, [attempt], [new, better], {}, 0, joins="new", placement="append")
    assert [member.judged.rollout.id for member in members] == ["group/0", "better"]


def test_append_grows_the_group():
    assert totals(form_group(make_task(), ATTEMPTS, [revision(0.8)], {}, 0, placement="append")) == [
        0.2,
        0.6,
        0.4,
        0.8,
    ]


def test_top_n_takes_the_best_revisions_into_the_worst_slots():
    revisions = [revision(0.7, 0), revision(0.9, 1), revision(0.8, 2)]
    assert totals(form_group(make_task(), ATTEMPTS, revisions, {}, seed=0, top_n=2)) == [0.9, 0.6, 0.8]


def test_replace_random_depends_on_the_seed_alone_and_reaches_every_slot():
    def slot(seed):
        members = form_group(make_task(), ATTEMPTS, [revision(0.8)], {}, seed, placement="replace_random")
        return [member.origin for member in members].index("hindsight")

    assert [slot(seed) for seed in range(20)] == [slot(seed) for seed in range(20)]
    assert {slot(seed) for seed in range(20)} == {0, 1, 2}


def test_a_recalled_answer_joins_like_a_revision_but_is_no_reason_for_a_fallback_copy():
    def recalled(reward):
        one = make_judged(reward, id="old/0")
        return replace(one, rollout=replace(one.rollout, origin="replay"))

    assert totals(form_group(make_task(), ATTEMPTS, [recalled(0.8)], {}, 0)) == [0.8, 0.6, 0.4]
    assert totals(form_group(make_task(), ATTEMPTS, [recalled(0.1)], {}, 0, fallback_copies=True)) == [
        0.2,
        0.6,
        0.4,
    ]


def test_bonus_is_paid_to_attempts_but_rewards_are_compared_without_it():
    members = form_group(make_task(), ATTEMPTS, [revision(0.61)], {"group/1": 0.05}, seed=0)
    assert totals(members) == [0.61, 0.65, 0.4]
    assert members[1].reward == 0.6


def test_fallback_copies_the_best_attempt_with_its_bonus_over_a_random_slot():
    groups = [
        form_group(make_task(), ATTEMPTS, [revision(0.1)], {"group/1": -0.025}, seed, fallback_copies=True)
        for seed in range(20)
    ]
    seen = {tuple(totals(group)) for group in groups}
    assert seen == {(0.575, 0.575, 0.4), (0.2, 0.575, 0.4), (0.2, 0.575, 0.575)}
    assert {member.origin for group in groups for member in group} == {"policy"}


def test_no_fallback_without_revisions():
    assert totals(form_group(make_task(), ATTEMPTS, [], {}, seed=0, fallback_copies=True)) == [0.2, 0.6, 0.4]


def test_a_group_in_which_nothing_was_judged_stays_empty():
    assert form_group(make_task(), [], [revision(0.8)], {}, seed=0) == []


def test_of_equal_attempts_the_copy_is_of_the_one_that_fulfils_more():
    task = make_task({"fish": 1.0, "rude": -1.0})
    rude = make_judged(0.5, met={"fish": True, "rude": True}, id="group/0")
    polite = make_judged(0.5, met={"fish": True, "rude": False}, id="group/1")
    members = form_group(task, [rude, polite], [revision(0.1)], {}, seed=0, fallback_copies=True)
    copied = [member.judged.rollout.id for member in members]
    assert copied in (["group/1", "group/1"], ["group/0", "group/1"])
    assert any(
        form_group(task, [rude, polite], [revision(0.1)], {}, seed, fallback_copies=True)[0].judged is polite
        for seed in range(9)
    )


@pytest.mark.parametrize(
    "selection",
    [
        form_group,
        partial(form_group, strict=False, placement="replace_random", fallback_copies=True),
        partial(form_group, placement="append"),
        partial(form_group, joins="new"),
        keep_ranked,
        partial(keep_ranked, worst=1),
    ],
)
def test_the_shipped_selections_keep_the_contract(selection):
    check_selection(selection)


def test_a_selection_that_invents_an_answer_breaks_the_contract():
    def invents(task, attempts, revisions, bonuses, seed):
        return [Member(judged=make_judged(1.0, id="new"), reward=1.0)]

    with pytest.raises(AssertionError, match="must be one of the attempts and revisions"):
        check_selection(invents)


@pytest.mark.parametrize(("max_quote", "joins"), [(None, True), (6, True), (5, False), (2, False)])
def test_a_revision_that_recites_a_criterion_does_not_join(max_quote, joins):
    short = Criterion(id="short", text="Use at most 30 words please.")
    task = replace(make_task(), rubric=Rubric(criteria=(short,)))
    texts = {"group/0/0": "Fish. Use at most 30 words please!", "group/0/1": "Fish."}
    rollouts = [make_rollout(text, id=id, parent_id="group/0") for id, text in texts.items()]
    revisions = [make_judged(0.9 - 0.1 * n, rollout=rollout) for n, rollout in enumerate(rollouts)]
    members = form_group(task, ATTEMPTS, revisions, {}, seed=0, max_quote=max_quote)
    assert [member.judged.rollout.id for member in members if member.origin == "hindsight"] == [
        "group/0/0" if joins else "group/0/1"
    ]
