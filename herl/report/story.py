"""A run in words: the sentences at the top of report.html, which are TensorBoard's first card too.

A change is called a rise or a fall only if `change.moved` can tell it from chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from herl.display.duration import duration
from herl.report.change import moved, paired
from herl.report.run_files import Result, RunFiles, Validation

ALARMS = {
    "entropy": "the policy's entropy was very low: it samples nearly the same answers again and again",
    "truncated": "most attempts were cut off at the token limit",
    "identical": "in most groups, all attempts were identical",
    "zero_signal": "most groups carried no gradient",
    "kl": "the policy was far from the reference",
    "kl_to_old": "one batch moved the policy very far; lower optimizer.lr",
    "unfinished": "most episodes were cut off, or their environment failed",
    "gap": "the training judge's reward rose more than a gold judge's: the policy may be pleasing the judge",
    "clipped": "the loss clipped many tokens, because steps were too large; lower optimizer.lr",
}
"""What an alarm means, by its name in `callbacks.alarms`."""


def headline(run: RunFiles) -> str:
    """Returns what became of the held-out reward, in a sentence."""
    measured = run.measured
    if not run.trained:
        return _evaluated(measured)
    seconds = run.summary.seconds.get("total")
    spent = f"{count(run.summary.answers_sampled)} sampled answers"
    if run.ended_early:
        spent = f"{count(measured[-1].answers)} of {spent}"
    spent += f" ({duration(seconds)})" if seconds is not None else ""
    if not measured:
        return (
            f"The run took {spent}. Nothing tells whether the model improved, "
            "since no held-out answers were measured."
        )
    first, last = measured[0], measured[-1]
    if len(measured) == 1:
        return (
            f"The held-out reward was {interval(first.rows['reward'])} after {count(first.answers)} "
            "sampled answers."
        )
    if first.answers == 0:
        return _change("The held-out reward", first, last, f"in {spent}")
    return _change(f"From {count(first.answers)} answers on, the held-out reward", first, last, f"in {spent}")


def story(run: RunFiles, gains: Sequence[float] = ()) -> list[str]:
    """Returns the headline and the sentences after it.

    Args:
        run: What the run left.
        gains: Reward of each recorded revision minus its draft's, or the best attempt's if it has no draft.
    """
    return [
        headline(run),
        *(f"The run was stopped: {_sentence(str(why))}" for why in (run.summary.stopped,) if why),
        *_best(run),
        *_revisions(run, gains),
        judge_cost(run),
        *_environment(run),
        *alarms(run),
    ]


def alarms(run: RunFiles) -> list[str]:
    """Returns a sentence for each kind of alarm that went off."""
    return [
        f"Alarm ({times} {'time' if times == 1 else 'times'}): {ALARMS.get(name, name)}."
        for name, times in run.summary.alarms.items()
    ]


def judge_cost(run: RunFiles) -> str:
    """Returns what judging cost, in a sentence."""
    judge = run.summary.judge
    parts = [
        f"{count(number)} {words}"
        for number, words in (
            (judge.calls, "calls"),
            (judge.tokens, "tokens"),
            (judge.cache_hits, "replies from the cache"),
        )
        if number
    ]
    seconds = run.summary.seconds.get("judge", 0.0)
    said = f"Judging took {', '.join(parts)}" if parts else "Judging made no calls to a model"
    if judge.cost:
        said += f" and cost {judge.cost:.4g}"
    said += f"; the run waited {duration(seconds)} for it."
    if causes := judge.abstained:
        listed = ", ".join(f"{cause} ({count(times)})" for cause, times in causes.items())
        said += f" Verdicts that could not be reached: {listed}."
    return said


def _environment(run: RunFiles) -> list[str]:
    """How long the run waited for an environment, if it has one that replies."""
    seconds = run.summary.seconds.get("environment", 0.0)
    return [f"The run waited {duration(seconds)} for its environment."] if seconds >= 1 else []


def interval(result: Result) -> str:
    """Returns a mean with its 95 % interval."""
    return f"{result.mean:.2f} [{result.low:.2f}, {result.high:.2f}]"


def count(number: float) -> str:
    """Returns a whole number with a space between its thousands."""
    return f"{number:,.0f}".replace(",", "\N{NO-BREAK SPACE}")


def _change(what: str, first: Validation, last: Validation, spent: str) -> str:
    before, after = interval(first.rows["reward"]), interval(last.rows["reward"])
    if sign := moved(first, last):
        return f"{what} {'rose' if sign > 0 else 'fell'} from {before} to {after} {spent}."
    compared = "prompt by prompt" if paired(first, last) is not None else "by their intervals"
    return (
        f"{what} did not change clearly {spent}: it was {before} before and {after} after, and compared "
        f"{compared}, that may be chance."
    )


def _evaluated(rounds: Sequence[Validation]) -> str:
    if not rounds:
        return "No held-out answer was measured."
    if len(rounds) == 1:
        only = rounds[0].rows["reward"]
        return f"The held-out reward is {interval(only)}, over {count(only.count)} answers."
    revisions = f"with up to {len(rounds) - 1} revision{'s' if len(rounds) > 2 else ''} of each answer"
    return _change("The reward of the best answer", rounds[0], rounds[-1], revisions)


def _best(run: RunFiles) -> list[str]:
    """Names the best validation if the last one is clearly worse."""
    if not run.trained or len(run.curve) < 2:
        return []
    *earlier, last = run.measured
    best = max(earlier, key=lambda one: one.rows["reward"].mean)
    if moved(best, last, comparisons=len(earlier)) >= 0:
        return []
    place = f"after {count(best.answers)} answers" if best.answers else "before training"
    kept = "; that checkpoint is kept" if best.answers and run.summary.heldout_reward_best is not None else ""
    return [f"It was best {place}, at {interval(best.rows['reward'])}{kept}."]


def _revisions(run: RunFiles, gains: Sequence[float]) -> list[str]:
    if not len(gains):
        return []
    gained = np.asarray(gains)
    made = run.summary.revisions_sampled
    made = len(gained) if made is None else made
    made_of, draft = "revisions", "their draft"
    if run.choices.get("hindsight") == "told":
        made_of, draft = "sampled with the rubric in the prompt", "the best attempt"
    return [
        f"{count(made)} of the answers were {made_of}: {np.mean(gained > 0):.0%} earned more than {draft}, "
        f"{np.mean(gained < 0):.0%} less, and the mean change was {np.mean(gained):+.2f}."
    ]


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
