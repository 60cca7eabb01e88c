from dataclasses import replace
from functools import partial

import pytest

from herl.advantages import group_advantages, ones
from herl.advantages.by_criterion import ByCriterion
from herl.advantages.contrast import Contrast
from herl.advantages.dropout import CriterionDropout
from herl.advantages.emphasis import emphasized, reweighted
from herl.bonus import NoBonus
from herl.errors import ConfigError
from herl.rollout.collect import compare
from herl.seeds import derive_seed
from herl.testing import check_advantages, check_emphasis, make_group, make_judged, make_task
from herl.types import Criterion, Rubric, Task

RUBRIC = Rubric(
    criteria=(
        Criterion(id="fish", text="", weight=3.0, category="fact"),
        Criterion(id="river", text="", weight=2.0, category="fact"),
        Criterion(id="rude", text="", weight=-4.0, undesirable=True),
        Criterion(id="short", text="", weight=1.0),
    )
)
TASK = Task(id="t", messages=(), rubric=RUBRIC)


def answer(fish, river, rude, short, **more):
    return make_judged(0.5, met={"fish": fish, "river": river, "rude": rude, "short": short}, **more)


GROUP = make_group(
    answer(True, True, True, True),
    answer(True, False, False, True),
    answer(True, False, False, None),
    answer(False, False, None, True),
    task=TASK,
)


class Half:
    """Halves and doubles."""

    def weights(self, group, seed):
        return {"fish": 6.0, "river": 1.0}


def test_contrast_shifts_weight_to_what_the_members_differ_on():
    """p (1 - p): 3/16 for fish, 3/16 for river, 2/9 for rude among three; all that were judged are short."""
    weights = Contrast().weights(GROUP, seed=0)
    assert weights == pytest.approx({"fish": 3.0, "river": 2.0, "rude": 5.0, "short": 0.0})
    fewer = make_group(*[member.judged for member in GROUP.members[:3]], task=TASK)
    assert Contrast().weights(fewer, seed=0) == pytest.approx(
        {"fish": 0.0, "river": 5.0, "rude": 5.0, "short": 0.0}
    )


@pytest.mark.parametrize("seed", range(3))
def test_contrast_equals_a_naive_implementation_and_keeps_the_sum_of_each_category(seed):
    task = Task(
        id="t",
        messages=(),
        rubric=Rubric(
            criteria=tuple(
                Criterion(id=str(i), text="", weight=float(i - 2), category="ab"[i % 2]) for i in range(6)
            )
        ),
    )
    answers = [
        make_judged(0.0, met={str(i): derive_seed(seed, a, i) % 3 > 0 for i in range(6)}) for a in range(5)
    ]
    raw, found = {}, Contrast().weights(make_group(*answers, task=task), 0)
    for i in range(6):
        values = [float(one.judgement.verdicts[i].met) for one in answers]
        share = sum(values) / 5
        raw[str(i)] = abs(i - 2) * share * (1 - share)
    for names in (("0", "2", "4"), ("1", "3", "5")):
        total = sum(raw[name] for name in names)
        scale = sum(abs(int(name) - 2) for name in names) / total
        assert {name: found[name] for name in names} == pytest.approx(
            {name: raw[name] * scale for name in names}
        )


def test_dropout_leaves_out_that_share_but_never_all():
    masks = [CriterionDropout(0.4).weights(GROUP, seed) for seed in range(2000)]
    assert all(0 < len(mask) <= 4 for mask in masks)
    assert all(
        mask[name] == abs(one.weight)
        for mask in masks
        for one in RUBRIC.criteria
        for name in mask
        if name == one.id
    )
    kept = sum(map(len, masks)) / 8000
    assert kept == pytest.approx(0.6 + 0.4**4 / 4, abs=0.02)  # where all would go, one stays
    assert {len(CriterionDropout(0.99).weights(GROUP, seed)) for seed in range(50)} <= {1, 2}


def test_the_mask_is_the_seeds_and_the_prompts_whatever_the_order():
    other = replace(GROUP, task=replace(TASK, id="other"))
    run = emphasized(partial(group_advantages, scale="none"), CriterionDropout(0.5))
    found = [run([GROUP, other], seed) for seed in range(20)]
    assert [run([other, GROUP], seed)[::-1] for seed in range(20)] == found
    assert len({str(one) for one in found}) > 5, "another seed, another mask"
    assert any(a != b for a, b in found), "another prompt, another mask"


def test_advantages_see_the_reward_that_follows_from_the_weights():
    """6 of 7 points are for fish, 1 for river; the last member abstains on both, so it is in the middle."""
    nothing = answer(None, None, False, True)
    group = make_group(answer(True, False, True, True), answer(False, True, False, True), nothing, task=TASK)
    seen = reweighted(group, Half().weights(group, 0))
    assert [member.reward for member in seen.members] == pytest.approx([6 / 7, 1 / 7, 0.5])
    [values] = emphasized(partial(group_advantages, scale="none"), Half())([group], 0)
    assert values == pytest.approx([5 / 14, -5 / 14, 0.0])
    [by_criterion] = emphasized(ByCriterion(scale="none"), Half())([group], 0)
    assert by_criterion == pytest.approx([5 / 7 / 2**0.5, -5 / 7 / 2**0.5, 0.0], rel=1e-4)


def test_members_keep_the_judges_rewards_and_bonuses():
    class Stages:
        advantages = staticmethod(emphasized(group_advantages, Contrast()))
        bonus = NoBonus()

    group = replace(GROUP, members=(replace(GROUP.members[0], bonus=0.1), *GROUP.members[1:]))
    [compared] = compare([group], Stages(), seed=0)
    assert any(compared.advantages)
    assert (compared.members, compared.task) == (group.members, TASK)


def test_without_emphasis_nothing_is_wrapped():
    assert emphasized(group_advantages) is group_advantages


def test_what_cannot_be_emphasized_is_refused():
    with pytest.raises(ConfigError, match="emphasis: .*advantages=ones: use emphasis=none"):
        emphasized(partial(ones), Contrast())
    for rate in (0.0, 1.0, -0.1):
        with pytest.raises(ConfigError, match=r"emphasis.rate: expected a share in \(0, 1\)"):
            CriterionDropout(rate)


@pytest.mark.parametrize("emphasis", [Contrast(), CriterionDropout(), CriterionDropout(0.9)])
def test_the_shipped_emphases_keep_the_contract(emphasis):
    check_emphasis(emphasis)
    check_advantages(emphasized(group_advantages, emphasis))


def test_an_emphasis_of_what_is_no_criterion_breaks_the_contract():
    class Invents(Half):
        def weights(self, group, seed):
            return {"bear": 1.0}

    with pytest.raises(AssertionError, match="weights of criteria only"):
        check_emphasis(Invents())


def test_a_criterion_that_a_revision_alone_fulfills_counts():
    task = make_task()
    attempts = [make_judged(0.6, met={"fish": True, "river": False}) for _ in range(3)]
    revision = make_judged(1.0, met={"fish": True, "river": True}, id="r", parent_id="group/0")
    assert Contrast().weights(make_group(*attempts, revision, task=task), 0)["river"] == 5.0
