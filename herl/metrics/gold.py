"""Is the training judge being gamed? Metrics of held-out answers that gold judges have judged again.

Training raises the reward of the training judge. If the answers get better, the reward of a judge that
teaches nothing rises with it; if the policy learns what the training judge falls for, only the first rises
(arXiv:2210.10760 measures this with a gold reward model). The gap between the two says little by itself,
since one judge may simply be stricter; what counts is how far it has opened since the first validation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import correlation, fmean, stdev

from herl.metrics.judging import judge_metrics
from herl.metrics.rubric import Pair, fulfilled, rubric_metrics
from herl.metrics.student_t import critical_value
from herl.types import Judged, Task

OWN_TO_ANSWERS = ("answer_tokens", "quotes", "thinking_tokens", "no_answer", "truncated")
"""Metrics of the answers themselves, which do not depend on the judge."""
CHANCE = 0.001
"""Share of validations at which noise alone may look like an opening, for all gold judges together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejudged:
    """A held-out answer with two judgements."""

    task: Task
    """As the training judge sees it. The gold judge sees `task.whole`."""
    trained: Judged
    gold: Judged

    @property
    def gap(self) -> float | None:
        """The training judge's reward minus the gold judge's; None unless both could judge the answer."""
        if not (self.gold.has_reward and self.trained.has_reward):
            return None
        return self.trained.reward - self.gold.reward


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How far a gap has opened since the first validation."""

    change: float
    """Mean over prompts of the gap now minus the gap then, in units of the reward."""
    error: float
    """Standard error of `change`, over prompts. 0 if all prompts changed alike."""
    prompts: int
    """Prompts with both gaps."""

    def is_beyond(self, limit: float, errors: float) -> bool:
        """Whether the change exceeds the limit, and also this many of its standard errors."""
        return self.change > limit and self.change > errors * self.error


def gaps(answers: Sequence[Rejudged]) -> dict[str, float]:
    """Returns the mean gap of each prompt, by task id. Prompts without a gap are left out."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for one in answers:
        if one.gap is not None:
            found[one.task.id].append(one.gap)
    return {task_id: fmean(values) for task_id, values in found.items()}


def opening(first: Mapping[str, float], now: Mapping[str, float]) -> Opening | None:
    """Compares the gaps of two validations, prompt by prompt, so that the prompts' own differences cancel.

    Args:
        first: `gaps` of the first validation.
        now: `gaps` of this one.

    Returns:
        None with fewer than two common prompts, of which there is no standard error.
    """
    changes = [now[task_id] - gap for task_id, gap in first.items() if task_id in now]
    if len(changes) < 2:
        return None
    error = stdev(changes) / len(changes) ** 0.5
    return Opening(change=fmean(changes), error=error, prompts=len(changes))


def errors_by_chance(prompts: int, judges: int) -> float:
    """Returns how many of its standard errors an opening must exceed to be more than noise.

    If no gap has changed but by Gaussian noise, the opening of any of the judges exceeds this at no more than
    a share `CHANCE` of the validations: Student's t of the changes by prompt, and Bonferroni's bound over the
    judges. All validations are compared with the same first one, so these few come together in some runs.

    Args:
        prompts: Prompts with both gaps, at least 2.
        judges: Gold judges of the run.
    """
    return critical_value(CHANCE / judges, prompts - 1)


def gold_metrics(name: str, answers: Sequence[Rejudged]) -> dict[str, float]:
    """Returns the curves of one gold judge. A mean over nothing is left out.

    `gold/<name>/visible_met` and `hidden_met` are the shares of visible and of hidden criteria that the gold
    judge finds fulfilled, of prompts that hide some.

    Args:
        name: The judge's name.
        answers: The held-out answers that it was given.
    """
    pairs = [(one.task.whole, one.gold) for one in answers]
    metrics: dict[str, float] = {}
    for curve, value in rubric_metrics("gold", pairs).items():
        family, _, rest = curve.partition("/")
        if rest not in OWN_TO_ANSWERS:
            metrics[f"{family}/{name}/{rest}"] = value
    for curve, value in judge_metrics([judged.judgement for _, judged in pairs]).items():
        metrics[f"gold/{name}/{curve.removeprefix('judge/')}"] = value
    if found := [one.gap for one in answers if one.gap is not None]:
        metrics[f"gold/{name}/gap"] = fmean(found)
    metrics |= _numbered(f"gold/{name}/length_correlation", length_correlation(pairs))
    for kind, values in _met(answers).items():
        metrics[f"gold/{name}/{kind}_met"] = fmean(values)
    for criterion, value in _gap_by_criterion(answers).items():
        metrics[f"gaming_criterion/{name}/{criterion}"] = value
    return metrics


def gaming_metrics(
    judges: Mapping[str, Sequence[Rejudged]], openings: Mapping[str, Opening]
) -> dict[str, float]:
    """Returns the curves over all gold judges: `gaming/gap`, the mean of their gaps; `gaming/opened`, the
    largest opening, with its standard error; and `gaming/length_correlation`, of the training judge.

    Args:
        judges: The held-out answers by gold judge.
        openings: How far the gap to each judge has opened; empty at the first validation.
    """
    metrics: dict[str, float] = {}
    means = [fmean(found) for one in judges.values() if (found := [a.gap for a in one if a.gap is not None])]
    if means:
        metrics["gaming/gap"] = fmean(means)
    if openings:
        widest = max(openings.values(), key=lambda one: one.change)
        metrics |= {"gaming/opened": widest.change, "gaming/opened_error": widest.error}
    answers = next(iter(judges.values()), ())
    trained = [(one.task, one.trained) for one in answers]
    return metrics | _numbered("gaming/length_correlation", length_correlation(trained))


def length_correlation(pairs: Sequence[Pair]) -> float | None:
    """Returns Pearson's correlation, in [-1, 1], of reward with answer length in tokens, without thinking.

    None for fewer than three answers with a reward, or if all have the same reward or length.
    """
    found = [
        (judged.reward, len(judged.rollout.token_ids) - judged.rollout.thinking_tokens)
        for _, judged in pairs
        if judged.has_reward
    ]
    rewards, lengths = [reward for reward, _ in found], [length for _, length in found]
    if len(found) < 3 or len(set(rewards)) == 1 or len(set(lengths)) == 1:
        return None
    return correlation(rewards, lengths)


def _numbered(name: str, value: float | None) -> dict[str, float]:
    return {} if value is None else {name: value}


def _met(answers: Sequence[Rejudged]) -> dict[str, list[bool]]:
    """Whether the gold judge finds each criterion fulfilled, for "visible" and "hidden" ones."""
    found: defaultdict[str, list[bool]] = defaultdict(list)
    for one in answers:
        hidden = {criterion.id for criterion in one.task.hidden}
        for criterion_id, good in fulfilled(one.task.whole, one.gold).items() if hidden else ():
            found["hidden" if criterion_id in hidden else "visible"].append(good)
    return dict(found)


def _gap_by_criterion(answers: Sequence[Rejudged], max_criteria: int = 64) -> dict[str, float]:
    """Share of answers that fulfill a criterion by the training judge minus that by the gold judge, over the
    answers that both have judged by it. Empty if there are too many criteria for curves."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for one in answers:
        trained, gold = fulfilled(one.task, one.trained), fulfilled(one.task, one.gold)
        named = {criterion.id for criterion in one.task.rubric.criteria if criterion.named}
        for criterion_id in named & trained.keys() & gold.keys():
            found[criterion_id].append(trained[criterion_id] - gold[criterion_id])
    means = {criterion_id: fmean(values) for criterion_id, values in sorted(found.items())}
    return means if len(means) <= max_criteria else {}
