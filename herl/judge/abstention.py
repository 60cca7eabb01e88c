"""When a judge abstains too often, the run stops: the share of abstentions over the latest answers.

A run in which no answer at all could be judged is an error too, even if it is too short to fill the window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from herl.errors import AbstentionLimit, ConfigError
from herl.types import Judgement


def abstained(judgement: Judgement) -> int:
    """Returns how many verdicts of a judgement abstained; 1 if it has neither verdicts nor a reward."""
    if not judgement.verdicts:
        return int(judgement.reward is None)
    return sum(verdict.met is None for verdict in judgement.verdicts)


class AbstentionWindow:
    """Watches the share of abstained verdicts over the last answers.

    Args:
        answers: Number of answers in the window. The limit applies once it is full.
        limit: Largest allowed share of abstained verdicts, in [0, 1].
    """

    def __init__(self, answers: int, limit: float) -> None:
        if answers < 1 or not 0.0 <= limit <= 1.0:
            raise ConfigError(
                "module.judge_runner: expected window of at least 1 and max_abstention in [0, 1], "
                f"got {answers} and {limit}"
            )
        self.answers = answers
        self.limit = limit
        self._counts: deque[tuple[int, int]] = deque(maxlen=answers)
        """(abstained, all) verdicts of each answer."""
        self._last_failure = ""
        self.last_error = ""
        """What this rank's judge last raised about an answer without a rubric, which no verdict can say."""
        self._seen = 0
        """Answers of the whole run, and those among them with a reward."""
        self._judged = 0

    def add(self, judgement: Judgement) -> None:
        """Counts the verdicts on one answer."""
        abstentions = [verdict for verdict in judgement.verdicts if verdict.met is None]
        self._counts.append((abstained(judgement), max(1, len(judgement.verdicts))))
        if abstentions:
            self._last_failure = abstentions[-1].reason
        elif abstained(judgement):
            self._last_failure = self.last_error
        self._seen += 1
        self._judged += judgement.reward is not None

    def check(self, judge: str, causes: Mapping[str, int]) -> None:
        """Checks the limit.

        Args:
            judge: The judge's name, for the error.
            causes: Number of abstained verdicts in the run so far, by cause.

        Raises:
            AbstentionLimit: the judge abstains too often; the message lists the causes.
        """
        abstained = sum(bad for bad, _ in self._counts)
        total = sum(count for _, count in self._counts)
        full = len(self._counts) == self.answers
        if full and total and abstained / total > self.limit:
            self._counts.clear()  # a resumed run, perhaps with a better judge, starts with an empty window
            listed = ", ".join(f"{cause} {count}" for cause, count in causes.items())
            raise AbstentionLimit(
                f"the judge {judge} abstained on {abstained} of the last {total} "
                f"verdicts; module.judge_runner.max_abstention allows a share of {self.limit}. "
                f"Causes in the whole run: {listed}. "
                f"Last failure: {self._last_failure or 'a verdict with met=None'}"
            )

    def check_any(self, judge: str, causes: Mapping[str, int]) -> None:
        """Checks that some answer of the run has a reward.

        Args:
            judge: The judge's name, for the error.
            causes: Number of abstained verdicts in the run so far, by cause.

        Raises:
            AbstentionLimit: there were answers, and none could be judged.
        """
        if self._seen and not self._judged:
            listed = ", ".join(f"{cause} {count}" for cause, count in causes.items()) or "no verdicts"
            raise AbstentionLimit(
                f"the judge {judge} could judge none of the run's {self._seen} answers, so the run has no "
                f"result. Causes: {listed}. "
                f"Last failure: {self._last_failure or 'no criterion with a positive weight was judged'}"
            )

    def way_back(self) -> Callable[[], None]:
        """Returns a function that goes back to the present state, should a batch fail. A window that the
        limit has emptied by then stays empty."""
        counts, others = tuple(self._counts), (self._last_failure, self._seen, self._judged)

        def go_back() -> None:
            if self._counts:
                self._counts = deque(counts, maxlen=self.answers)
            self._last_failure, self._seen, self._judged = others

        return go_back

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts that a resumed run continues from."""
        return {
            "window": list(self._counts),
            "failure": self._last_failure,
            "seen": self._seen,
            "judged": self._judged,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores them."""
        self._counts.extend(state["window"])
        self._last_failure = state["failure"]
        self._seen += state["seen"]
        self._judged += state["judged"]
