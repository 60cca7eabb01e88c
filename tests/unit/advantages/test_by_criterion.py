import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from herl.advantages import group_advantages
from herl.advantages.by_criterion import ByCriterion
from herl.advantages.contrast import Contrast
from herl.advantages.emphasis import emphasized, reweighted
from herl.bonus.improvement import ImprovementBonus
from herl.errors import ConfigError
from herl.judge.aggregation import weighted
from herl.rollout.collect import compare
from herl.selection import form_group
from herl.testing import check_advantages, make_group, make_judged, make_task
from herl.types import Criterion, Judged, Judgement, Rubric, Task, Verdict

TASK = make_task({"fish": 3.0, "river": 2.0, "rude": -1.0})  # rude is undesirable


def naive(groups, scale):
    """The formula in plain loops: group by group, criterion by criterion, member by member."""
    sums = []
    for group in groups:
        total = sum(abs(criterion.weight) for criterion in group.task.rubric.criteria)
        a = [0.0] * len(group.members)
        for criterion in group.task.rubric.criteria:
            values = {}
            for place, member in enumerate(group.members):
                for verdict in member.judged.judgement.verdicts:
                    if verdict.criterion_id == criterion.id and verdict.met is not None:
                        value = verdict.met if verdict.score is None else verdict.score
                        values[place] = 1 - value if criterion.undesirable else float(value)
            if len(values) < 2 or max(values.values()) == min(values.values()):
                continue
            mean = sum(values.values()) / len(values)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values.values()) / (len(values) - 1))
            for place, value in values.items():
                a[place] += abs(criterion.weight) / total * (value - mean) / (deviation + 1e-6)
        bonus = sum(member.bonus for member in group.members) / max(1, len(group.members))
        sums.append([value + member.bonus - bonus for value, member in zip(a, group.members, strict=True)])
    if scale == "none":
        return sums
    pooled = [value for group in sums if max(group) - min(group) > 1e-4 for value in group]
    mean = sum(pooled) / len(pooled)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in pooled) / (len(pooled) - 1))
    return [
        [value / (deviation + 1e-6) for value in group]
        if max(group) - min(group) > 1e-4
        else [0.0] * len(group)
        for group in sums
    ]


def judged(task, draw, place, graded):
    verdicts = []
    for criterion in task.rubric.criteria:
        met = draw.choice([True, False, False, None])
        score = draw.random() if graded and met is not None else None
        verdicts.append(Verdict(criterion_id=criterion.id, met=met, score=score))
    reward = weighted(task.rubric, verdicts) or 0.0
    made = make_judged(reward, id=f"group/{place}")
    return Judged(
        rollout=made.rollout,
        judgement=Judgement(rollout_id=made.rollout.id, verdicts=tuple(verdicts), reward=reward),
    )


@pytest.mark.parametrize("scale", ["batch_std", "none"])
@pytest.mark.parametrize("graded", [False, True])
def test_equals_the_naive_implementation(scale, graded):
    draw = random.Random(0)
    pitfall = Criterion(id="pitfall", text="Does not advertise.", weight=-2.0)  # desirable, and negative
    tasks = [TASK, Task(id="t", messages=(), rubric=Rubric(criteria=(*TASK.rubric.criteria, pitfall)))]
    groups = [
        make_group(
            *(judged(task, draw, place, graded) for place in range(n)),
            task=task,
            bonuses=[draw.random() * 0.05 for _ in range(n)],
        )
        for task in tasks
        for n in (2, 4, 8)
    ]
    flat = make_group(*[make_judged(0.5, met={"fish": True, "river": None, "rude": False})] * 3, task=TASK)
    for values, expected in zip(
        ByCriterion(scale=scale)([*groups, flat]), naive([*groups, flat], scale), strict=True
    ):
        assert values == pytest.approx(expected, rel=1e-9, abs=1e-12)


def only(*names, task=TASK, reward=0.0, **more):
    """An answer that fulfills these criteria only: rude by not being rude."""
    met = {one.id: one.good(one.id in names) for one in task.rubric.criteria}
    return make_judged(reward, met=met, **more)


def test_answers_that_earn_the_same_for_different_criteria_differ():
    """Seven are polite, which many are; one names the river, which weighs 2 of 6 and politeness 1."""
    group = make_group(*[only("rude", reward=0.4)] * 7, only("river", reward=0.4), task=TASK)
    assert group_advantages([group]) == [[0.0] * 8]
    z = 7 / 8 / math.sqrt(1 / 8)
    [values] = ByCriterion(scale="none")([group])
    assert values == pytest.approx([-z / 7 / 6] * 7 + [z / 6], rel=1e-4)


def test_an_abstention_leaves_only_its_criterion():
    """Were the abstention "not met", the third would differ from the second."""
    unsure = make_judged(0.0, met={"fish": False, "river": None, "rude": False})
    group = make_group(only("fish", "river", "rude"), only("river", "rude"), unsure, task=TASK)
    [values] = ByCriterion(scale="none")([group])
    z = 1 / 3 / math.sqrt(1 / 3)
    assert values == pytest.approx([0.5 * 2 * z, -0.5 * z, -0.5 * z], rel=1e-4)  # fish weighs 3 of 6


def test_groups_that_agree_are_flat_and_stay_out_of_the_scale():
    group = make_group(only("fish"), only(), task=TASK)
    flat = make_group(*[only("fish")] * 8, task=TASK)
    alone, together = ByCriterion()([group]), ByCriterion()([group, flat, make_group(task=TASK)])
    assert together == [*alone, [0.0] * 8, []]
    assert ByCriterion()([]) == []


@pytest.mark.parametrize(
    ("paid_when_flat", "expected"), [(False, [0.0, 0.0, 0.0]), (True, [0.02, -0.01, -0.01])]
)
def test_a_bonus_is_added_as_it_is_and_does_not_grow_where_nothing_else_differs(paid_when_flat, expected):
    """In group_advantages, divided by its own deviation, the bonus alone would be 1.15, -0.58 and -0.58."""
    bonus = ImprovementBonus(in_flat_groups=paid_when_flat)
    stages = SimpleNamespace(advantages=ByCriterion(scale="none"), bonus=bonus)
    flat = make_group(*[only("fish")] * 3, task=TASK, bonuses=(0.03, 0.0, 0.0))
    differ = make_group(only("fish"), only(), only(), task=TASK, bonuses=(0.03, 0.0, 0.0))
    without = make_group(only("fish"), only(), only(), task=TASK)
    groups = compare([flat, differ, without], stages, seed=0)
    assert [group.bonus_alone for group in groups] == [True, False, False]
    assert groups[0].advantages == pytest.approx(expected)
    added = [a - b for a, b in zip(groups[1].advantages, groups[2].advantages, strict=True)]
    assert added == pytest.approx([0.02, -0.01, -0.01])


@pytest.mark.parametrize("others", [[], [("fish",), ("fish", "rude"), ()]])
@pytest.mark.parametrize("dropped", [None, "river", "rude"])
def test_a_revision_is_not_punished_if_it_fulfills_what_no_attempt_does(others, dropped):
    """Nor does any attempt gain by beating it: on what the revision lacks, attempts are compared alone."""
    attempts = [only("fish", "rude", reward=0.6, id=f"group/{i}") for i in range(7 - len(others))]
    attempts += [only(*names, id=f"group/other/{i}") for i, names in enumerate(others)]
    revision = only("river", reward=0.2, id="group/0/0", parent_id="group/0")
    group = make_group(*attempts, revision, task=TASK)
    if dropped:
        weights = {one.id: abs(one.weight) for one in TASK.rubric.criteria if one.id != dropped}
        group = reweighted(group, weights)
    [punished], [spared] = (ByCriterion(scale="none", spare_new=spare)([group]) for spare in (False, True))
    [alone] = ByCriterion(scale="none")([replace(group, members=group.members[:-1])])
    assert group_advantages([group])[0][-1] < 0
    assert punished[-1] < spared[-1]
    if not others:
        assert punished[-1] < 0
    if dropped == "river":
        assert spared[-1] == 0
        assert spared[:-1] == pytest.approx(alone)
    else:
        assert spared[-1] > 0
        assert all(value < mine for value, mine in zip(spared[:-1], alone, strict=True))
        assert sum(spared) == pytest.approx(0.0, abs=1e-5)
    known = make_group(*attempts[:3], only("river"), revision, task=TASK)
    assert ByCriterion()([known])[0][-1] < 0, "an attempt fulfills it, too"


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="advantages.epsilon: expected a number above 0"):
        ByCriterion(epsilon=0.0)
    with pytest.raises(ConfigError, match="advantages.tolerance: expected at least 0"):
        ByCriterion(tolerance=-1.0)


@pytest.mark.parametrize(
    "advantages",
    [ByCriterion(), ByCriterion(scale="none", spare_new=False), emphasized(ByCriterion(), Contrast())],
)
def test_the_contract_is_kept(advantages):
    check_advantages(advantages)


def test_a_first_revision_is_not_punished_beside_better_ones():
    """No attempt fulfills anything, so all that tells the revisions apart is each other."""
    task = make_task({"a": 1.0, "b": 1.0, "c": 3.0})

    def answer(id, parent_id, *values):
        return make_judged(0.0, id=id, parent_id=parent_id, met=dict(zip("abc", values, strict=True)))

    attempts = [answer(f"group/{i}", None, False, False, False) for i in range(2)]
    met = [(False, True, True), (True, True, True), (True, False, False)]
    revisions = [answer(f"group/0/{i}", "group/0", *one) for i, one in enumerate(met)]
    group = replace(make_group(*attempts, *revisions, task=task))
    [values] = ByCriterion()([group])
    assert min(values[2:]) >= 0
    assert max(values[:2]) < 0


@pytest.mark.parametrize("seed", range(40))
def test_no_revision_that_joined_as_the_first_gets_a_negative_advantage(seed):
    """Neither beside another one that is better, nor with grades, nor where drafts earn a bonus."""
    draw = random.Random(seed)
    attempts = [judged(TASK, draw, place, graded=seed % 2) for place in range(4)]
    revisions = [judged(TASK, draw, f"0/{place}", graded=seed % 2) for place in range(3)]
    revisions = [
        replace(one, rollout=replace(one.rollout, origin="hindsight", parent_id="group/0"))
        for one in revisions
    ]
    placement = draw.choice(["append", "replace_worst"])
    members = form_group(
        TASK, attempts, revisions, {"group/0": 0.05}, 0, top_n=3, joins="new", placement=placement
    )
    group = replace(make_group(*attempts, task=TASK), members=tuple(members))
    [values] = ByCriterion()([group])
    before = [attempt.judgement.verdicts for attempt in attempts]
    for member, value in zip(members, values, strict=True):
        if member.origin != "policy" and TASK.rubric.fulfilled_first(
            member.judged.judgement.verdicts, before
        ):
            assert value >= 0.0
