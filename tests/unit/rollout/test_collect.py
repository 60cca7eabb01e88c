import math
from functools import partial

import numpy as np
import pytest

from herl import NoHindsight, Sampling
from herl.advantages import group_advantages, ones
from herl.advantages.by_criterion import ByCriterion
from herl.advantages.contrast import Contrast
from herl.advantages.dropout import CriterionDropout
from herl.advantages.emphasis import emphasized
from herl.bonus.improvement import ImprovementBonus
from herl.environment import NoEnvironment
from herl.errors import ConfigError
from herl.hindsight.revision import RevisionBuilder
from herl.hindsight.teacher import Teacher
from herl.judge import JudgeRunner
from herl.judge.rule import RuleJudge
from herl.metrics.collection import collection_metrics
from herl.models.chat_template import render
from herl.replay import ReplayBuffer
from herl.rollout.check_signal import check_signal, trial_advantages
from herl.rollout.collect import collect
from herl.rollout.stages import RolloutPlan, Stages
from herl.sampler.scripted import ScriptedSampler
from herl.sampler.transformers import TransformersSampler
from herl.selection import form_group, keep_ranked
from herl.testing import FakeJudge, make_task

ATTEMPTS = {"task": ["It eats fish.", "It is brown.", "river", "fish"]}
REVISIONS = {"task": ["fish river"]}


@pytest.fixture
def stages(tokenizer):
    def make(**changes):
        sampler = changes.pop("sampler", None) or ScriptedSampler(ATTEMPTS, REVISIONS)
        sampler.start(changes.pop("policy", None), tokenizer)
        plan = {"attempts_per_prompt": 4} | changes.pop("plan", {})
        judge = changes.pop("judge", RuleJudge())
        runner = JudgeRunner(judge)
        runner.__enter__()
        runners.append(runner)
        defaults = {
            "tokenizer": tokenizer,
            "sampler": sampler,
            "judge_runner": runner,
            "plan": RolloutPlan(**plan),
            "selection": form_group,
            "advantages": group_advantages,
            "hindsight": RevisionBuilder(draft=True),
            "bonus": ImprovementBonus(0.05),
        }
        return Stages(**(defaults | changes))

    runners = []
    yield make
    for runner in runners:
        runner.__exit__(None, None, None)


def test_one_prompt_all_the_way(stages):
    task = make_task()
    collection = collect([task], stages(), (0, 0, 0))
    [group] = collection.groups
    assert [judged.judgement.reward for judged in group.attempts] == [0.6, 0.0, 0.4, 0.6]
    [revision] = group.revisions
    assert revision.rollout.parent_id == group.attempts[0].rollout.id
    assert revision.judgement.reward == 1.0
    # the revision takes the place of the worst attempt; its parent earns 0.05 * (1.0 - 0.6)
    assert [m.total for m in group.members] == pytest.approx([0.62, 1.0, 0.4, 0.6])
    assert [e.origin for e in collection.experiences] == ["policy", "hindsight", "policy", "policy"]
    assert sum(e.advantage for e in collection.experiences) == pytest.approx(0.0, abs=1e-9)
    assert math.isclose(collection.experiences[0].bonus, 0.02)


class FakeNumpyBonus(ImprovementBonus):
    """Computes with arrays, as a component of one's own may."""

    def bonus(self, draft, revisions):
        return np.float64(super().bonus(draft, revisions))


def test_numbers_of_ones_own_components_become_pythons(stages):
    """A checkpoint with NumPy's could not be read without running code."""

    def advantages(groups, seed):
        return [np.array(values) for values in group_advantages(groups, seed)]

    parts = {"bonus": FakeNumpyBonus(0.05), "advantages": advantages}
    [group] = collect([make_task()], stages(**parts), (0, 0, 0)).groups
    [plain] = collect([make_task()], stages(), (0, 0, 0)).groups
    assert (group.advantages, [m.total for m in group.members]) == (
        plain.advantages, [m.total for m in plain.members]
    )  # fmt: skip
    assert {type(one) for one in (*group.advantages, *(m.bonus for m in group.members))} == {float}


def test_an_answer_alone_cannot_be_compared(stages):
    alone = {"attempts_per_prompt": 1}
    with pytest.raises(
        ConfigError, match="attempts_per_prompt: expected at least 2 without hindsight, got 1"
    ):
        check_signal(stages(plan=alone, hindsight=NoHindsight()))
    with pytest.raises(ConfigError, match="takes the place of the only attempt"):
        check_signal(stages(plan=alone))
    with pytest.raises(ConfigError, match="use advantages=ones"):
        check_signal(stages(selection=keep_ranked))
    check_signal(stages(plan=alone, selection=partial(form_group, placement="append")))
    check_signal(stages(plan=alone, selection=keep_ranked, advantages=ones, hindsight=NoHindsight()))
    check_signal(stages(selection=partial(keep_ranked, at_least=5.0), advantages=ones))


def test_a_group_that_only_the_bonus_tells_apart_has_no_signal(stages):
    """All earn 0.6, the revision of the first earns 0: its bonus alone would be an advantage of -1.5."""
    sampler = ScriptedSampler({"task": ["It eats fish."] * 4}, {"task": ["No idea."]})
    for paid, expected in ((False, [0.0] * 4), (True, [-1.5, 0.5, 0.5, 0.5])):
        bonus = ImprovementBonus(in_flat_groups=paid)
        parts = {"sampler": sampler, "bonus": bonus, "selection": form_group}
        collection = collect([make_task()], stages(**parts), (0,))
        [group] = collection.groups
        assert group.bonus_alone
        assert group.advantages == pytest.approx(expected, abs=1e-3)
        assert bool(collection.experiences) == paid
        assert collection_metrics(collection)["bonus/alone"] == 1.0
        kept = collect([make_task()], stages(**parts, plan={"keep_flat_groups": True}), (0,))
        assert [one.advantage for one in kept.experiences] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("joins", "joined"), [("better", False), ("new", True)])
def test_a_new_criterion_joins_and_is_learned_by_criterion(stages, joins, joined):
    sampler = ScriptedSampler({"task": ["fish", "fish", "fish", "no"]}, {"task": ["river"]})
    run = stages(
        sampler=sampler, selection=partial(form_group, joins=joins), advantages=ByCriterion(scale="none")
    )
    [group] = collect([make_task()], run, (0,)).groups
    rewards = [member.reward for member in group.members]
    assert rewards == ([0.6, 0.6, 0.6, 0.4] if joined else [0.6, 0.6, 0.6, 0.0])
    advantage = dict(zip([m.judged.rollout.text for m in group.members], group.advantages, strict=True))
    assert (advantage.get("river", 0.0) > 0) == joined  # it lacks fish, which weighs more, and is spared


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("emphasis", [None, Contrast(), CriterionDropout(0.9)])
@pytest.mark.parametrize("inner", [group_advantages, ByCriterion()])
def test_made_up_groups_have_verdicts_to_learn_from(stages, count, emphasis, inner):
    parts = {"plan": {"attempts_per_prompt": count}, "advantages": emphasized(inner, emphasis)}
    check_signal(stages(**parts, selection=partial(form_group, placement="append")))
    if count == 1:
        with pytest.raises(ConfigError, match="attempts_per_prompt"):
            check_signal(stages(**parts, hindsight=NoHindsight()))
    low, *_, high = trial_advantages(stages(**parts, selection=form_group))
    assert low < 0 < high


def test_a_function_of_rewards_is_refused_before_a_model_loads(stages):
    with pytest.raises(ConfigError, match=r"expected a function of \(groups, seed\)"):
        check_signal(stages(advantages=lambda rewards, is_attempt: rewards))


@pytest.mark.parametrize(
    ("parts", "instead"),
    [
        ({}, "hindsight needs .* use algorithm=grpo"),
        (
            {"hindsight": NoHindsight(), "advantages": ByCriterion()},
            "advantages needs .* use advantages=group",
        ),
        (
            {"hindsight": NoHindsight(), "advantages": emphasized(group_advantages, Contrast())},
            "advantages needs .* with emphasis=none",
        ),
        (
            {
                "hindsight": NoHindsight(),
                "replay": ReplayBuffer(of="best"),
                "selection": partial(form_group, joins="new"),
                "advantages": lambda groups, seed: group_advantages(groups, seed),  # one's own
            },
            "selection needs .* use selection.joins=better",
        ),
    ],
)
def test_a_holistic_judge_is_refused_where_verdicts_are_needed(stages, parts, instead):
    judge = RuleJudge()
    judge.holistic = True
    with pytest.raises(ConfigError, match=instead):
        stages(judge=judge, **parts)
    judge.holistic = False
    stages(judge=judge, **parts)


def test_new_criteria_need_answers_that_may_join(stages):
    with pytest.raises(
        ConfigError, match=r"selection.joins=new needs answers that may join: .*replay=buffer"
    ):
        stages(selection=partial(form_group, joins="new"), hindsight=NoHindsight(), advantages=ByCriterion())


@pytest.mark.parametrize(
    "advantages",
    [group_advantages, partial(group_advantages, scale="none"), emphasized(group_advantages, Contrast()),
     ByCriterion(spare_new=False)],
)  # fmt: skip
def test_nothing_joins_to_be_punished(stages, advantages):
    with pytest.raises(ConfigError, match="selection.joins=new needs advantages that do not punish"):
        stages(selection=partial(form_group, joins="new"), advantages=advantages)
    stages(selection=partial(form_group, joins="new"), advantages=emphasized(ByCriterion(), Contrast()))


@pytest.mark.parametrize(
    ("context", "expected"),
    [("original", ["x"]), ("hindsight", ["h"]), ("both", ["x", "h"])],
)
def test_a_revision_is_trained_under_the_chosen_context(stages, tokenizer, context, expected):
    task = make_task()
    collection = collect([task], stages(plan={"training_context": context}), (0,))
    x = render(tokenizer, task.messages)
    [group] = collection.groups
    h = group.revisions[0].rollout.prompt_ids
    assert h != x
    contexts = [e.context_ids for e in collection.experiences if e.origin == "hindsight"]
    assert contexts == [{"x": x, "h": h}[name] for name in expected]
    assert {e.context_ids for e in collection.experiences if e.origin == "policy"} == {x}


def test_the_chat_template_is_applied_once_to_prompt_and_revision_prompt(stages, tokenizer):
    [group] = collect([make_task()], stages(), (0,)).groups
    for ids in (group.prompt_ids, group.revisions[0].rollout.prompt_ids):
        text = tokenizer.decode(ids)
        assert text.startswith("<|im_start|>user\n")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert text.count("<|im_start|>") == 2
    assert "Draft: It eats fish." in text


def test_a_group_without_signal_is_not_trained_on(stages):
    sampler = ScriptedSampler({"task": ["fish"]}, {"task": ["fish"]})
    collection = collect([make_task()], stages(sampler=sampler), (0,))
    assert collection.experiences == ()
    assert collection.groups[0].advantages == (0.0,) * 4


def test_an_over_long_revision_prompt_is_dropped_and_counted_never_cut(stages, tokenizer):
    fits = len(render(tokenizer, make_task().messages))
    collection = collect([make_task()], stages(plan={"max_prompt_tokens": fits}), (0,))
    assert collection.dropped == {"prompts": 0, "revision_prompts": 1}
    assert collection.groups[0].revisions == ()
    collection = collect([make_task()], stages(plan={"max_prompt_tokens": fits - 1}), (0,))
    assert collection.dropped == {"prompts": 1, "revision_prompts": 0}
    assert collection.groups == ()


def test_a_truncated_answer_has_no_end_token(stages, tokenizer):
    plan = {"attempt": Sampling(max_new_tokens=2), "revision": Sampling(max_new_tokens=2)}
    collection = collect([make_task()], stages(plan=plan), (0,))
    cut = [e.rollout for e in collection.experiences if e.rollout.finish_reason == "length"]
    assert cut
    assert all(tokenizer.eos_token_id not in rollout.token_ids for rollout in cut)


@pytest.mark.parametrize("masked", [False, True])
def test_truncated_answers_are_compared_and_trained_on_unless_they_are_masked(stages, masked):
    [whole] = collect([make_task()], stages(hindsight=NoHindsight()), (0,)).groups
    short = Sampling(max_new_tokens=max(len(one.rollout.token_ids) for one in whole.attempts) - 1)
    plan = {"attempt": short, "revision": short, "mask_truncated": masked}
    collection = collect([make_task()], stages(plan=plan, hindsight=NoHindsight()), (0,))
    [group] = collection.groups
    expected = [
        (member.judged.rollout.id, advantage)
        for member, advantage in zip(group.members, group.advantages, strict=True)
        if not (masked and member.judged.rollout.finish_reason == "length")
    ]
    assert [(e.rollout.id, e.advantage) for e in collection.experiences] == expected
    assert 0 < len(expected) <= 4
    assert (len(expected) < 4) == masked
    with pytest.raises(ConfigError, match="rollout.mask_truncated: expected false with selection=extremes"):
        stages(plan=plan | {"mask_truncated": True}, selection=partial(keep_ranked, worst=1))


def test_an_attempt_that_could_not_be_judged_leaves_its_group(stages):
    collection = collect([make_task()], stages(judge=FakeJudge(fail_on="brown")), (0,))
    [group] = collection.groups
    assert [judged.judgement.reward for judged in group.attempts] == [0.6, None, 0.4, 0.6]
    assert len(group.members) == 3
    assert all("brown" not in e.rollout.text for e in collection.experiences)


def test_without_hindsight_nothing_is_revised(stages):
    [group] = collect([make_task()], stages(hindsight=NoHindsight()), (0,)).groups
    assert group.revisions == ()
    assert [m.total for m in group.members] == [0.6, 0.0, 0.4, 0.6]


def test_the_order_of_prompts_does_not_change_their_answers(stages, policy):
    tasks = [
        make_task(id=name, request=f"Describe the {name}, a mammal.") for name in ("otter", "fox", "lion")
    ]
    plan = {"attempt": Sampling(max_new_tokens=16), "revision": Sampling(max_new_tokens=16)}

    def texts(order):
        sampler = TransformersSampler(batch_size=5)
        run = stages(sampler=sampler, policy=policy, plan=plan)
        groups = collect(order, run, (0, 1, 2)).groups
        return {g.task.id: [j.rollout.token_ids for j in (*g.attempts, *g.revisions)] for g in groups}

    assert texts(tasks) == texts(tasks[::-1])


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, 4096), (8192, 4096), (512, 448), (65, 1)])
def test_prompts_leave_room_for_the_longest_answer_in_the_model(max_tokens, expected):
    plan = RolloutPlan(attempt=Sampling(max_new_tokens=32), revision=Sampling(max_new_tokens=64))
    assert plan.within(max_tokens, NoEnvironment()).max_prompt_tokens == expected


def test_an_answer_that_fills_the_model_is_refused():
    plan = RolloutPlan(attempt=Sampling(max_new_tokens=32), revision=Sampling(max_new_tokens=64))
    with pytest.raises(ConfigError, match=r"rollout.revision.max_new_tokens: .*less than 64 .*got 64"):
        plan.within(64, NoEnvironment())
    plan = RolloutPlan(heldout=Sampling(max_new_tokens=1000))
    with pytest.raises(ConfigError, match=r"validation.sampling.max_new_tokens: .*less than 512 .*got 1000"):
        plan.within(512, NoEnvironment())


def test_bad_plans_are_refused():
    with pytest.raises(ConfigError, match="attempts_per_prompt"):
        RolloutPlan(attempts_per_prompt=0)
    with pytest.raises(ConfigError, match=r"rollout.revision: expected .* top_p in \(0, 1\]"):
        RolloutPlan(revision=Sampling(top_p=0.0))
    with pytest.raises(ConfigError, match=r"rollout.attempt.temperature: expected a number above 0"):
        RolloutPlan(attempt=Sampling(temperature=0.0))
    greedy = Sampling(temperature=0.0)
    RolloutPlan(revision=greedy, revisions_per_candidate=2)
    with pytest.raises(ConfigError, match="validation.sampling: expected temperature >= 0, .* got -1"):
        RolloutPlan(heldout=Sampling(temperature=-1))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"top_k": -1}, r"rollout.revision: expected top_k >= 0 \(0 for all tokens\)"),
        ({"min_p": 1.5}, r"rollout.revision: expected .* min_p in \[0, 1\], got 0 and 1.5"),
        ({"repetition_penalty": 0.0}, "rollout.revision.repetition_penalty: expected a number above 0"),
        ({"presence_penalty": 3.0}, r"rollout.revision.presence_penalty: expected a number in \[-2, 2\]"),
        ({"frequency_penalty": -3.0}, "rollout.revision.frequency_penalty: expected a number in"),
        ({"stop": "END"}, "rollout.revision.stop: expected a list of texts, none of them empty, got 'END'"),
        ({"stop": ["END", ""]}, "rollout.revision.stop: expected a list of texts, none of them empty"),
    ],
)
def test_settings_of_a_distribution_have_limits(wrong, said):
    with pytest.raises(ConfigError, match=said):
        RolloutPlan(revision=Sampling(**wrong))


def contexts(collection):
    return {e.rollout.id: e.teacher_ids for e in collection.experiences}


def test_attempts_get_the_teachers_context_and_share_it_while_revisions_have_none(stages, tokenizer):
    teacher = Teacher(coef=1.0)
    collection = collect([make_task()], stages(teacher=teacher), (0,))
    [group] = collection.groups
    messages = teacher.prompt(make_task(), group.attempts[0])
    expected = {
        member.judged.rollout.id: render(tokenizer, messages) if member.origin == "policy" else ()
        for member in group.members
    }
    assert contexts(collection) == expected
    assert () in expected.values()
    assert set(contexts(collect([make_task()], stages(), (0,))).values()) == {()}


def test_an_over_long_context_of_the_teacher_is_dropped_and_counted(stages, tokenizer):
    teacher = Teacher(coef=1.0, template="{request}{criteria}" + " fish" * 40)
    plan = {"max_prompt_tokens": len(render(tokenizer, make_task().messages)) + 20}
    collection = collect([make_task()], stages(teacher=teacher, plan=plan, hindsight=NoHindsight()), (0,))
    assert collection.dropped == {"prompts": 0, "revision_prompts": 0, "teacher_prompts": 4}
    assert set(contexts(collection).values()) == {()}
    assert collection_metrics(collection)["train/dropped_teacher_prompts"] == 4.0


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("flat_groups", [False, True])
def test_a_group_without_signal_is_taught_only_if_asked_for(stages, kept, flat_groups):
    answers = {"task": ["fish"], "perfect": ["fish river"]}
    made = stages(
        sampler=ScriptedSampler(answers, answers),
        teacher=Teacher(coef=1.0, flat_groups=flat_groups),
        plan={"keep_flat_groups": kept},
        hindsight=NoHindsight(),
    )
    found = collect([make_task(), make_task(id="perfect")], made, (0,)).experiences
    taught = [e for e in found if e.teacher_ids]
    assert len(taught) == 4 * flat_groups
    assert {e.rollout.task_id for e in taught} <= {"task"}, "perfect attempts need no teacher"
    assert len(found) == (8 if kept else len(taught))
    assert {e.advantage for e in found} <= {0.0}
