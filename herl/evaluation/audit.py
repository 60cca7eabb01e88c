"""Measures judges by asking them again about recorded answers.

    retest     the same question, with stored replies ignored    a verdict that flips is noise
    position   the criteria in reverse order                     a verdict that flips depends on its place
    padding    the answer with a harmless sentence at its end    a verdict that flips can be bought

A verdict flips if it is met in one pass and not met in the other. A pair in which one abstains is counted
apart and is no flip. Judges that share all criteria are compared with each other and with people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import get_args

import numpy as np

from herl.errors import ConfigError, JudgeStop, check_at_least
from herl.evaluation.agreement import (
    alpha_row,
    by_prompt,
    cohen_kappa,
    disagreement,
    estimate,
    krippendorff_alpha,
    pair_row,
    ratio,
)
from herl.evaluation.audit_report import (
    MAX_EXAMPLES,
    Agreement,
    Check,
    Contested,
    Flips,
    Rater,
    Report,
)
from herl.evaluation.evaluate import judge_again
from herl.judge import Judge, JudgeRunner
from herl.records.answers import RecordedAnswers
from herl.types import Criterion, Judged, Rollout, Rubric, Task

Verdicts = Mapping[tuple[str, str], bool | None]
"""Ids of an answer and a criterion -> the verdict; None if the judge abstained."""
HUMAN = "human"
PAID = ("calls", "tokens", "cost")
"""What a budget counts."""


class JudgeAudit:
    """How judges are audited, and what they may do.

    Args:
        checks: What is tried: `retest`, `position`, `padding`.
        padding: Text that is appended to answers.
        max_prompts: Most prompts whose answers are judged, evenly spaced over all.
        answers_per_prompt: Most answers to each.
        max_retest_flips: Largest allowed share of flips when the judge is asked again; None for any.
        max_position_flips: The same with the criteria in another order.
        max_padding_flips: The same with the padding.
        min_kappa: Smallest allowed kappa of two judges, or a judge and people; None for any.
        seed: Seed of the confidence intervals.
    """

    def __init__(
        self,
        checks: Sequence[Check] = ("retest", "position", "padding"),
        padding: str = "\n\nI hope this helps.",
        max_prompts: int = 64,
        answers_per_prompt: int = 4,
        max_retest_flips: float | None = 0.1,
        max_position_flips: float | None = 0.1,
        max_padding_flips: float | None = 0.1,
        min_kappa: float | None = None,
        seed: int = 0,
    ) -> None:
        check_at_least("audit", 1, max_prompts=max_prompts, answers_per_prompt=answers_per_prompt)
        limits = {"retest": max_retest_flips, "position": max_position_flips, "padding": max_padding_flips}
        for name, limit in limits.items():
            if limit is not None and not 0.0 <= limit <= 1.0:
                raise ConfigError(f"audit.max_{name}_flips: expected a share in [0, 1], or null, got {limit}")
        if "padding" in checks and not padding:
            raise ConfigError("audit.padding: expected a text, or audit.checks without padding, got none")
        if unknown := [check for check in checks if check not in get_args(Check)]:
            raise ConfigError(f"audit.checks: expected some of {', '.join(get_args(Check))}, got {unknown}")
        self.checks = list(dict.fromkeys(checks))
        self.padding = padding
        self.max_prompts = max_prompts
        self.answers_per_prompt = answers_per_prompt
        self.max_flips = limits
        self.min_kappa = min_kappa
        self.seed = seed

    def run(
        self,
        answers: RecordedAnswers,
        judges: Mapping[str, Judge],
        runner_of: Callable[[Judge], JudgeRunner],
        human: Verdicts | None = None,
    ) -> Report:
        """Asks the judges, and returns what was found. A spent budget ends it early.

        Args:
            answers: The answers.
            judges: The judges by name.
            runner_of: Makes the runner of a judge; `JudgeRunner.for_judge` shares one budget.
            human: Verdicts of people.

        Raises:
            ConfigError: a judge cannot be asked again, since it answers from stored replies only.
            AbstentionLimit: a judge abstains too often.
        """
        again = {name: judge.uncached() for name, judge in judges.items()} if "retest" in self.checks else {}
        first: dict[str, list[Judged]] = {}
        flips: list[Flips] = []
        usage: Counter[str] = Counter()
        stopped = ""

        def judged(judge: Judge, tasks: Sequence[Task], rollouts: Sequence[Rollout]) -> list[Judged]:
            runner = runner_of(judge)
            before = {name: runner.budget.spent(name) for name in PAID}
            try:
                found = judge_again(runner, tasks, rollouts)
            except JudgeStop:  # the answers that were judged are lost, and were paid for
                usage.update({name: runner.budget.spent(name) - before[name] for name in PAID})
                raise
            usage.update({name: runner.usage[name] for name in (*PAID, "cache_hits")})
            return found

        try:
            for name, judge in judges.items():
                first[name] = judged(judge, answers.tasks, answers.rollouts)
            for name, judge in judges.items():
                for check in self.checks:
                    tasks, rollouts, places = self._changed(check, answers)
                    if places:
                        found = judged(again[name] if check == "retest" else judge, tasks, rollouts)
                        before = [first[name][place] for place in places]
                        flips.append(self._flips(name, check, tasks, before, found))
        except JudgeStop as stop:
            stopped = str(stop)
        return self._report(answers, first, flips, human or {}, usage, stopped)

    def _changed(self, check: Check, answers: RecordedAnswers) -> tuple[list[Task], list[Rollout], list[int]]:
        """What a check asks about: tasks and answers, and their places among all answers."""
        tasks, rollouts = list(answers.tasks), list(answers.rollouts)
        places = list(range(len(tasks)))
        if check == "position":  # a single criterion has no other place
            places = [place for place in places if len(tasks[place].rubric.criteria) > 1]
            tasks = [
                replace(tasks[place], rubric=Rubric(criteria=tasks[place].rubric.criteria[::-1]))
                for place in places
            ]
            rollouts = [rollouts[place] for place in places]
        if check == "padding":
            rollouts = [replace(rollout, text=rollout.text + self.padding) for rollout in rollouts]
        return tasks, rollouts, places

    def _flips(
        self,
        judge: str,
        check: Check,
        tasks: Sequence[Task],
        before: Sequence[Judged],
        after: Sequence[Judged],
    ) -> Flips:
        prompt_of = {one.rollout.id: task.id for task, one in zip(tasks, before, strict=True)}
        criteria = _criteria(tasks, [one.rollout for one in before])
        first, second = verdicts_of(before), verdicts_of(after)
        table, count, abstained = _pairs(first, second, prompt_of)
        good = [
            (criteria[key].good(bool(first[key])), criteria[key].good(bool(second[key])))
            for key in _both(first, second)
        ]
        changes = [
            (task.id, (abs(one.reward - other.reward), 1.0))
            for task, one, other in zip(tasks, before, after, strict=True)
            if one.has_reward and other.has_reward
        ]
        return Flips(
            judge=judge,
            check=check,
            flips=estimate(table, disagreement, count, self.seed),
            gained=sum(now and not was for was, now in good),
            lost=sum(was and not now for was, now in good),
            abstained=abstained,
            reward_change=estimate(by_prompt(changes, 2), ratio, len(changes), self.seed),
        )

    def _report(
        self,
        answers: RecordedAnswers,
        first: Mapping[str, Sequence[Judged]],
        flips: list[Flips],
        human: Verdicts,
        usage: Mapping[str, float],
        stopped: str,
    ) -> Report:
        raters = {name: verdicts_of(judged) for name, judged in first.items()}
        raters |= {HUMAN: dict(human)} if human else {}
        prompt_of = {
            rollout.id: task.id for task, rollout in zip(answers.tasks, answers.rollouts, strict=True)
        }
        criteria = _criteria(answers.tasks, answers.rollouts)
        agreements = []
        for one, other in combinations(raters, 2):
            table, count, abstained = _pairs(raters[one], raters[other], prompt_of)
            agreements.append(
                Agreement(
                    first=one,
                    second=other,
                    disagreement=estimate(table, disagreement, count, self.seed),
                    kappa=estimate(table, cohen_kappa, count, self.seed),
                    abstained=abstained,
                )
            )
        given = {key: _given(raters, key) for key in criteria}
        compared = {key: found for key, found in given.items() if len(found) > 1}
        rows = [(prompt_of[key[0]], alpha_row(list(found.values()))) for key, found in compared.items()]
        alpha = estimate(by_prompt(rows, 3), krippendorff_alpha, len(rows), self.seed)
        return Report(
            prompts=len(set(prompt_of.values())),
            answers=len(prompt_of),
            left_out=answers.left_out,
            raters=[self._rater(name, raters[name], first.get(name, ())) for name in raters],
            flips=flips,
            agreements=agreements,
            alpha=alpha if len(raters) > 1 else None,
            criteria=self._contested(compared, criteria, prompt_of),
            examples=list(_examples(compared, criteria, first)),
            usage={name: round(number, 6) for name, number in usage.items() if number},
            stopped=stopped,
        )

    def _rater(self, name: str, verdicts: Verdicts, judged: Sequence[Judged]) -> Rater:
        rewards = [(one.rollout.task_id, (one.reward, 1.0)) for one in judged if one.has_reward]
        return Rater(
            name=name,
            verdicts=len(verdicts),
            abstained=sum(met is None for met in verdicts.values()),
            causes=_causes(judged),
            reward=estimate(by_prompt(rewards, 2), ratio, len(rewards), self.seed),
        )

    def _contested(
        self,
        compared: Mapping[tuple[str, str], Mapping[str, bool]],
        criteria: Mapping[tuple[str, str], Criterion],
        prompt_of: Mapping[str, str],
    ) -> list[Contested]:
        rows: dict[str, list[tuple[str, tuple[float, float]]]] = {}
        for key, found in compared.items():
            differ = float(len(set(found.values())) > 1)
            rows.setdefault(_name(criteria[key]), []).append((prompt_of[key[0]], (differ, 1.0)))
        contested = [
            Contested(criterion=name, disagreement=estimate(by_prompt(one, 2), ratio, len(one), self.seed))
            for name, one in rows.items()
        ]
        return sorted(contested, key=lambda one: (-(one.disagreement.value or 0), -one.disagreement.count))

    def beyond(self, report: Report) -> list[str]:
        """Returns a sentence for each limit that a report is beyond."""
        found = []
        for one in report.flips:
            limit = self.max_flips[one.check]
            key = f"audit.max_{one.check}_flips"
            if limit is not None and one.flips.value is None:
                found.append(f"{one.judge} gave no two verdicts to compare ({key}={limit:g})")
            elif limit is not None and one.flips.value is not None and one.flips.value > limit:
                found.append(f"{one.judge} flips {one.flips.value:.3f} of its verdicts ({key}={limit:g})")
        for pair in report.agreements:
            kappa, least = pair.kappa.value, self.min_kappa
            both = f"{pair.first} and {pair.second}"
            if least is not None and kappa is None:
                found.append(
                    f"the kappa of {both} is undefined: they share no verdicts, or all are the same "
                    f"(audit.min_kappa={least:g})"
                )
            elif least is not None and kappa is not None and kappa < least:
                found.append(f"{both} agree by a kappa of {kappa:.3f} (audit.min_kappa={least:g})")
        return found


def verdicts_of(judged: Sequence[Judged]) -> dict[tuple[str, str], bool | None]:
    """Returns the verdicts by ids of answer and criterion."""
    return {
        (one.rollout.id, verdict.criterion_id): verdict.met
        for one in judged
        for verdict in one.judgement.verdicts
    }


def _causes(judged: Sequence[Judged]) -> dict[str, int]:
    """Abstained verdicts by cause."""
    total: Counter[str] = Counter()
    for one in judged:
        total.update(one.judgement.usage)
    found = {name: count for name, count in total.items() if name.startswith("abstained_")}
    return {name.removeprefix("abstained_"): int(count) for name, count in sorted(found.items())}


def _criteria(tasks: Sequence[Task], rollouts: Sequence[Rollout]) -> dict[tuple[str, str], Criterion]:
    return {
        (rollout.id, criterion.id): criterion
        for task, rollout in zip(tasks, rollouts, strict=True)
        for criterion in task.rubric.criteria
    }


def _both(first: Verdicts, second: Verdicts) -> list[tuple[str, str]]:
    """Where both gave a verdict."""
    return [key for key, met in first.items() if met is not None and second.get(key) is not None]


def _pairs(first: Verdicts, second: Verdicts, prompt_of: Mapping[str, str]) -> tuple[np.ndarray, int, int]:
    """Returns the pairs of verdicts by prompt, [prompts, 4], their number, and how many others abstained."""
    both = _both(first, second)
    rows = [(prompt_of[key[0]], pair_row(bool(first[key]), bool(second[key]))) for key in both]
    return by_prompt(rows, 4), len(both), len(first.keys() & second.keys()) - len(both)


def _given(raters: Mapping[str, Verdicts], key: tuple[str, str]) -> dict[str, bool]:
    """The verdicts on one criterion of one answer, by judge, without abstentions."""
    found = {name: verdicts.get(key) for name, verdicts in raters.items()}
    return {name: met for name, met in found.items() if met is not None}


def _name(criterion: Criterion) -> str:
    return criterion.id if criterion.named else criterion.text


def _examples(
    compared: Mapping[tuple[str, str], Mapping[str, bool]],
    criteria: Mapping[tuple[str, str], Criterion],
    first: Mapping[str, Sequence[Judged]],
) -> Iterator[dict[str, object]]:
    """Yields what judges disagree on, with their reasons."""
    reasons = {
        (name, one.rollout.id, verdict.criterion_id): verdict.reason
        for name, judged in first.items()
        for one in judged
        for verdict in one.judgement.verdicts
    }
    differing = [key for key, found in compared.items() if len(set(found.values())) > 1]
    for id, criterion_id in differing[:MAX_EXAMPLES]:
        yield {
            "id": id,
            "criterion_id": criterion_id,
            "criterion": criteria[id, criterion_id].text,
            "met": dict(compared[id, criterion_id]),
            "reasons": {name: reason for name in first if (reason := reasons.get((name, id, criterion_id)))},
        }
