"""For authors of components: small records, fakes, and checks that a component keeps its contract.

    from herl.testing import check_judge
    def test_my_judge():
        check_judge(MyJudge())

Fakes are named Fake...; no run uses anything in this module.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

from herl.advantages import Advantages, check_takes_groups
from herl.advantages.emphasis import Emphasis
from herl.background.loop import run_apart
from herl.bonus import BonusReward
from herl.environment import Conversation, Environment, opened
from herl.environment.runner import EnvironmentRunner
from herl.errors import JudgeError
from herl.hindsight import HindsightBuilder
from herl.judge.base import Judge
from herl.rollout.stages import Selection
from herl.sampler import Sampler, StreamingSampler
from herl.types import (
    Criterion,
    Experience,
    Group,
    Judged,
    Judgement,
    Member,
    Message,
    Rollout,
    Rubric,
    SampleRequest,
    Sampling,
    Task,
    Turn,
    Verdict,
)

if TYPE_CHECKING:
    import torch


def make_task(
    weights: Mapping[str, float] | None = None, *, id: str = "task", request: str = "Describe the otter."
) -> Task:
    """Returns a task with a criterion for each id in `weights`; an answer that contains the id meets it.

    A criterion with a negative weight is undesirable.
    """
    criteria = tuple(
        Criterion(
            id=name,
            text=f"Says {name}.",
            weight=weight,
            check={"kind": "contains", "text": name},
            undesirable=weight < 0,
        )
        for name, weight in (weights or {"fish": 3.0, "river": 2.0}).items()
    )
    return Task(id=id, messages=({"role": "user", "content": request},), rubric=Rubric(criteria=criteria))


def make_rollout(
    text: str = "fish",
    *,
    id: str = "group/0",
    task_id: str = "task",
    group_id: str = "group",
    prompt_ids: Sequence[int] = (1, 2, 3),
    token_ids: Sequence[int] = (4, 5),
    logprobs: Sequence[float] | None = None,
    index: int = 0,
    parent_id: str | None = None,
    thinking: str = "",
    thinking_tokens: int = 0,
    has_answer: bool = True,
    turns: Sequence[Turn] = (),
) -> Rollout:
    """Returns an answer with made-up token ids."""
    return Rollout(
        id=id,
        task_id=task_id,
        group_id=group_id,
        prompt_ids=tuple(prompt_ids),
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs) if logprobs is not None else (-1.0,) * len(token_ids),
        text=text,
        finish_reason="stop",
        policy_version=0,
        index=index,
        origin="policy" if parent_id is None else "hindsight",
        parent_id=parent_id,
        thinking=thinking,
        thinking_tokens=thinking_tokens,
        has_answer=has_answer,
        turns=tuple(turns),
    )


def make_judged(
    reward: float | None,
    *,
    met: Mapping[str, bool | None] | None = None,
    rollout: Rollout | None = None,
    id: str = "group/0",
    parent_id: str | None = None,
) -> Judged:
    """Returns an answer with this reward and these verdicts."""
    rollout = rollout or make_rollout(id=id, parent_id=parent_id)
    verdicts = tuple(Verdict(criterion_id=name, met=value) for name, value in (met or {}).items())
    judgement = Judgement(rollout_id=rollout.id, verdicts=verdicts, reward=reward)
    return Judged(rollout=rollout, judgement=judgement)


def make_group(*answers: Judged, task: Task | None = None, bonuses: Sequence[float] = ()) -> Group:
    """Returns a group whose members are these answers, which all have a reward.

    Args:
        answers: Those with a parent are revisions.
        task: The prompt; that of `make_task` by default.
        bonuses: Bonus of each answer; none by default.
    """
    paid = bonuses or [0.0] * len(answers)
    return Group(
        id="group",
        task=task or make_task(),
        prompt_ids=(1, 2, 3),
        attempts=tuple(answer for answer in answers if answer.rollout.parent_id is None),
        revisions=tuple(answer for answer in answers if answer.rollout.parent_id is not None),
        members=tuple(
            Member(judged=answer, reward=answer.reward, bonus=bonus)
            for answer, bonus in zip(answers, paid, strict=True)
        ),
    )


def make_experience(
    rollout: Rollout,
    *,
    reward: float = 0.0,
    advantage: float = 0.0,
    context_ids: Sequence[int] | None = None,
) -> Experience:
    """Returns an answer as a training example, under its own prompt unless another context is given."""
    return Experience(
        rollout=rollout,
        judgement=make_judged(reward, rollout=rollout).judgement,
        reward=reward,
        bonus=0.0,
        advantage=advantage,
        context_ids=tuple(rollout.prompt_ids if context_ids is None else context_ids),
    )


class FakeJudge(Judge):
    """Judges a criterion as met if the answer contains its id; fails on answers that contain `fail_on`."""

    def __init__(self, fail_on: str | None = None) -> None:
        super().__init__()
        self.fail_on = fail_on

    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns verdicts, after yielding once to other judgements."""
        await asyncio.sleep(0)
        if self.fail_on is not None and self.fail_on in rollout.text:
            raise JudgeError(f"FakeJudge fails on {self.fail_on!r}")
        verdicts = [
            Verdict(criterion_id=criterion.id, met=criterion.id in rollout.text)
            for criterion in task.rubric.criteria
        ]
        return self.verdict_sum(task, rollout, verdicts)


def check_judge(judge: Judge, task: Task | None = None, text: str = "fish") -> Judgement:
    """Asserts that a judge keeps its contract on one answer, and returns its judgement.

    Raises:
        AssertionError: says which part of the contract is broken.
    """
    task = task or make_task()
    rollout = make_rollout(text, task_id=task.id)
    judgement = run_apart(judge.judge(task, rollout))
    assert judgement.rollout_id == rollout.id, "the judgement must carry the rollout's id"
    if judge.holistic:
        assert not judgement.verdicts, f"expected no verdicts of a holistic judge, got {judgement.verdicts}"
        assert judgement.reward is not None, "a holistic judge must return a reward or raise JudgeError"
        return judgement
    expected = [criterion.id for criterion in task.rubric.criteria]
    got = [verdict.criterion_id for verdict in judgement.verdicts]
    assert sorted(got) == sorted(expected), f"expected one verdict for each of {expected}, got {got}"
    for verdict in judgement.verdicts:
        in_range = verdict.score is None or 0.0 <= verdict.score <= 1.0
        assert in_range, f"expected a score in [0, 1] for '{verdict.criterion_id}', got {verdict.score}"
    abstained = all(verdict.met is None for verdict in judgement.verdicts)
    assert not abstained or judgement.reward is None, "an answer without verdicts must have no reward"
    return judgement


def check_hindsight_builder(builder: HindsightBuilder) -> None:
    """Asserts that a builder handles failed, perfect and unjudged attempts, and revises only the group's.

    Raises:
        AssertionError: says which part of the contract is broken.
    """
    task = make_task()
    group = [
        make_judged(0.6, met={"fish": True, "river": False}, id="group/0"),
        make_judged(1.0, met={"fish": True, "river": True}, id="group/1"),
        make_judged(None, met={"fish": None, "river": None}, id="group/2"),
    ]
    assert builder.build(task, []) == [], "an empty group has nothing to revise"
    assert builder.build(task, [group[2]]) == [], "an attempt that was not judged must not be revised"
    for attempts in (group[:1], group):
        parents = {judged.rollout.id for judged in attempts}
        for hindsight in builder.build(task, attempts):
            assert hindsight.parent.id in parents, "the parent must be one of the attempts"
            assert hindsight.messages, "the revision prompt must not be empty"
            assert hindsight.messages[-1]["role"] == "user", "the revision prompt must end with the user"
    prompt = builder.tell(task)
    if builder.tells:
        assert prompt is not None, "a builder that tells must return a prompt for a task with a rubric"
        assert prompt[-1]["role"] == "user", "the prompt must end with the user"
    else:
        assert prompt is None, "a builder that tells nothing must have tells=True to be asked"
    builder.begin_batch(0.5)
    builder.end_batch([group, []])
    state = builder.state_dict()
    builder.load_state_dict(state)
    assert builder.state_dict() == state, "load_state_dict must restore what state_dict returned"
    state = deepcopy(state)
    builder.end_batch([group])
    builder.load_state_dict(state)
    assert builder.state_dict() == state, "load_state_dict must replace the present state"
    builder.load_state_dict({})


def check_environment(environment: Environment, row: Task | None = None, text: str = "fish") -> list[Message]:
    """Asserts that an environment treats two episodes with the same answer alike; returns its reply, empty if
    the answer ends the episode. Raises AssertionError, which says which part of the contract is broken."""
    task = opened(environment, row or make_task())
    assert task == opened(environment, row or make_task()), "start must depend on the task alone"
    with closing(EnvironmentRunner(environment)) as runner:
        runner.open()
        talks = (Conversation(task=task, messages=task.messages) for _ in range(2))
        steps = [runner.step(talk, text, 0.0).result() for talk in talks]
        assert {step.ended for step in steps} == {"stop"}, "step must not raise or be late: see the log"
        first, second = ([*step.reply.messages] if step.reply else [] for step in steps)
        assert first == second, "equal episodes must get equal replies: keep what belongs to one in state"
        return first


def check_bonus_reward(bonus: BonusReward) -> None:
    """Asserts that a bonus is a finite number for better, equal and worse revisions.

    Raises:
        AssertionError: says which part of the contract is broken.
    """
    attempt = make_judged(0.5)
    for reward in (0.0, 0.5, 1.0):
        revision = make_judged(reward, id="group/0/0", parent_id="group/0")
        paid = bonus.bonus(attempt, [revision])
        assert isinstance(paid, int | float), f"expected a number, got {type(paid).__name__}"
        assert abs(paid) < float("inf"), f"expected a finite bonus, got {paid}"


def check_sampler(sampler: Sampler, prompt_ids: Sequence[int], *, n: int = 2) -> list[Rollout]:
    """Asserts that a started sampler keeps its contract on one prompt, and returns its answers.

    Raises:
        AssertionError: says which part of the contract is broken.
    """
    request = SampleRequest(
        task_id="task",
        group_id="group",
        prompt_ids=tuple(prompt_ids),
        n=n,
        sampling=Sampling(max_new_tokens=8),
        seed=1,
    )
    rollouts = sorted(sampler.generate([request]), key=lambda rollout: rollout.index)
    indices = [rollout.index for rollout in rollouts]
    assert indices == list(range(n)), f"expected answers with the indices 0 to {n - 1}, got {indices}"
    assert len({rollout.id for rollout in rollouts}) == n, "every answer must have an id that no other has"
    for rollout in rollouts:
        assert rollout.prompt_ids == request.prompt_ids, "the prompt's ids must come back unchanged"
        assert len(rollout.token_ids) == len(rollout.logprobs), "expected a log-prob for every token"
        assert 1 <= len(rollout.token_ids) <= 8, "expected 1 to max_new_tokens tokens"
        assert all(logprob <= 0.0 for logprob in rollout.logprobs), "log-probs must not exceed 0"
        assert (rollout.task_id, rollout.group_id) == ("task", "group"), "task_id and group_id must come back"
        assert rollout.origin == "policy", "without a parent_id, the origin must be policy"
    again = sorted(sampler.generate([request]), key=lambda rollout: rollout.index)
    assert [r.token_ids for r in again] == [r.token_ids for r in rollouts], (
        "the same seed must give the same answer"
    )
    part = sampler.generate([replace(request, first=1, n=n - 1)]) if n > 1 else ()
    parts = [r.token_ids for r in sorted(part, key=lambda rollout: rollout.index)]
    assert parts == [r.token_ids for r in rollouts[1:]], (
        "a part of a request must give the same answers as the whole: draw answer i for i in request.indices"
    )
    if isinstance(sampler, StreamingSampler):
        later = [replace(request, group_id="later")]
        streamed = list(sampler.stream([request], lambda wait: [later.pop()] if later else []))
        found = sorted((rollout.group_id, rollout.index) for rollout in streamed)
        expected = [(group, index) for group in ("group", "later") for index in range(n)]
        assert found == expected, f"expected {expected}, including a request added later, got {found}"
    return rollouts


def check_selection(selection: Selection) -> None:
    """Asserts that a selection returns answers that it was given, whether there are revisions or not.

    Raises:
        AssertionError: says which part of the contract is broken.
    """
    task = make_task()
    attempts = [make_judged(reward, id=f"group/{i}") for i, reward in enumerate((0.2, 0.6, 0.4))]
    revision = make_judged(0.8, id="group/1/0", parent_id="group/1")
    for revisions in ([], [revision]):
        members = selection(task, attempts, revisions, {"group/1": 0.01} if revisions else {}, 0)
        assert isinstance(members, list), f"expected a list of members, got {type(members).__name__}"
        given = {id(answer) for answer in (*attempts, *revisions)}
        for member in members:
            assert id(member.judged) in given, "every member must be one of the attempts and revisions"
            assert member.reward == member.judged.reward, "a member's reward is the judge's, without bonus"
        again = selection(task, attempts, revisions, {"group/1": 0.01} if revisions else {}, 0)
        assert members == again, "the same seed must give the same members"
    assert not selection(task, [], [], {}, 0), "without attempts there must be no members"


def check_advantages(advantages: Advantages) -> None:
    """Asserts that advantages are finite, one for each member of each group, an empty group included, and the
    same whenever they are computed.

    Raises:
        AssertionError: says which part of the contract is broken.
    """
    check_takes_groups(advantages)
    answers = [
        make_judged(0.0, met={"fish": False, "river": False}),
        make_judged(0.6, met={"fish": True, "river": None}),
        make_judged(1.0, met={"fish": True, "river": True}, id="group/0/0", parent_id="group/0"),
    ]
    groups = [make_group(*answers), make_group(), make_group(answers[1], answers[1])]
    found = advantages(groups, 0)
    counts = [len(group) for group in found]
    assert counts == [3, 0, 2], f"expected one advantage for each member, 3, 0 and 2, got {counts}"
    assert all(abs(value) < float("inf") for group in found for value in group), "expected finite advantages"
    assert advantages(groups, 0) == found, "the same seed must give the same advantages"


def check_emphasis(emphasis: Emphasis) -> None:
    """Asserts that an emphasis gives criteria of the rubric finite weights of at least 0, by the seed alone.

    Raises:
        AssertionError: says which part of the contract is broken.
    """
    fish = make_judged(0.6, met={"fish": True, "river": False})
    river = make_judged(0.4, met={"fish": None, "river": True})
    for group in (make_group(fish, river), make_group(fish, fish), make_group()):
        weights = emphasis.weights(group, 0)
        assert set(weights) <= {"fish", "river"}, f"expected weights of criteria only, got {weights}"
        assert all(0.0 <= one < float("inf") for one in weights.values()), f"expected weights, got {weights}"
        assert emphasis.weights(group, 0) == weights, "the same seed must give the same weights"


def check_lost_weights(sampler: Sampler, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Asserts that a started sampler names the weights that its engine lacks after a refresh, and no others.

    Args:
        sampler: Must implement `lost_weights`.
        named_tensors: The policy's weights as the sampler loads them. The check changes them and withholds
            one.

    Raises:
        AssertionError: says which part of the contract is broken.
    """
    sent = {name: tensor.clone() for name, tensor in named_tensors}
    sampler.load_weights(iter(sent.items()), 1)
    lost = sampler.lost_weights()
    assert lost is not None, (
        "this sampler cannot tell which weights its engine holds: lost_weights returns None"
    )
    assert not lost, f"expected no lost weights after a complete refresh, got {lost}"
    untied = [name for name in sent if ".layers." in name or ".h." in name]
    dropped = (untied or list(sent))[-1]
    others = [(name, tensor * 1.125) for name, tensor in sent.items() if name != dropped]
    sampler.load_weights(iter(others), 2)
    lost = sampler.lost_weights() or []
    assert dropped in lost, f"expected lost_weights to name '{dropped}', which was not sent, got {lost}"
    sampler.load_weights(iter(sent.items()), 3)
    lost = sampler.lost_weights()
    assert not lost, f"expected no lost weights after all were sent again, got {lost}"
