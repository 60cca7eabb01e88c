"""Builds revision prompts: the request, the criteria a draft met and missed, and optionally the draft.

The wording is in `rewrite.txt` and, with the draft, in `revision.txt`. It never forbids adding facts, since a
rubric may ask for facts that the draft lacks. Fields are filled in one pass, so braces in a model's text stay
text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from herl import prompt_text
from herl.errors import check_at_least, check_keywords_at_least
from herl.hindsight import HindsightBuilder
from herl.hindsight.candidates import top_k
from herl.hindsight.wording import Style, heaviest, listed
from herl.types import Hindsight, Judged, Message, Task
from herl.types.answer import TIE


class Candidates(Protocol):
    """Which of a group's judged attempts are revised (`herl.hindsight.candidates`)."""

    def __call__(self, task: Task, group: Sequence[Judged]) -> list[Judged]:
        """Returns some of the attempts. Each of them has a reward."""
        ...


ONE_BEST: Candidates = partial(top_k, k=1)

NO_DRAFT = "(The draft ended before it gave an answer.)"

_FIELDS, _OPTIONAL = {"request"}, {"draft", "met", "missed"}


class RevisionBuilder(HindsightBuilder):
    """Revises some attempts of every group whose best attempt is not perfect yet.

    Args:
        candidates: Chooses the attempts to revise (`herl.hindsight.candidates`).
        perfect: Smallest reward at which a group's best attempt needs no hindsight.
        draft: Whether the shipped prompt shows the draft, as HeRL (arXiv:2603.20046) does. Without it,
            revisions were better and the policy learned faster on the embedded task
            (tools/study/RESULTS.md). Ignored if `template` is set.
        template: Text with the field {request} and any of {draft}, {met} and {missed}; None for the shipped
            prompt.
        style: How criteria are listed (`herl.hindsight.wording`).
        max_missed: Maximum number of missed criteria in the prompt, those of the largest weights; None for
            all.
        weights: Whether the prompt shows the criteria's weights.
    """

    def __init__(
        self,
        candidates: Candidates = ONE_BEST,
        perfect: float = 1.0,
        draft: bool = False,
        template: str | None = None,
        style: Style = "bullets",
        max_missed: int | None = None,
        weights: bool = True,
    ) -> None:
        check_at_least("hindsight", 1, max_missed=max_missed)
        check_keywords_at_least("hindsight.candidates", 1, candidates, "k", "max_candidates")
        self.candidates = candidates
        self.perfect = perfect
        self.style = style
        self.max_missed = max_missed
        self.weights = weights
        shipped = prompt_text.load("herl.hindsight", "revision.txt" if draft else "rewrite.txt")
        self.template = (template or shipped).strip()
        prompt_text.check("hindsight.template", self.template, _FIELDS, _OPTIONAL)

    def build(self, task: Task, group: Sequence[Judged]) -> list[Hindsight]:
        """Returns a revision prompt for each candidate that missed a criterion."""
        judged = [attempt for attempt in group if attempt.has_reward]
        if not judged or max(attempt.reward for attempt in judged) >= self.perfect - TIE:
            return []
        hindsights = [self._hindsight(task, attempt) for attempt in self.candidates(task, judged)]
        return [hindsight for hindsight in hindsights if hindsight.missed]

    def _hindsight(self, task: Task, judged: Judged) -> Hindsight:
        verdicts = {verdict.criterion_id: verdict.met for verdict in judged.judgement.verdicts}
        pairs = [(criterion, verdicts.get(criterion.id)) for criterion in task.rubric.criteria]
        met = tuple(c for c, verdict in pairs if verdict is not None and c.good(verdict))
        missed = heaviest(
            [c for c, verdict in pairs if verdict is not None and not c.good(verdict)], self.max_missed
        )
        content = prompt_text.fill(
            self.template,
            {
                "request": task.request,
                "draft": judged.rollout.transcript if judged.rollout.has_answer else NO_DRAFT,
                "met": listed(met, self.style, self.weights),
                "missed": listed(missed, self.style, self.weights),
            },
        )
        revised: Message = {"role": "user", "content": content}
        return Hindsight(
            parent=judged.rollout,
            messages=(*task.messages[:-1], revised),
            met=met,
            missed=missed,
        )
