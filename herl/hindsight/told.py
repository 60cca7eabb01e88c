"""The rubric told: one more answer per group, with the whole rubric in its prompt.

It needs no verdicts, no draft and no second pass of sampling: the answer is sampled together with the
attempts, and trained like a revision. It is the control for hindsight: what `algorithm=herl` gains over
`algorithm=told` is what verdicts on the policy's own attempts add to reading the rubric. RuscaRL
(arXiv:2508.16949) gives rubrics to attempts in this way, and fades them out.

The wording is in `told.txt`.
"""

from __future__ import annotations

from collections.abc import Sequence

from herl import prompt_text
from herl.errors import check_at_least
from herl.hindsight import HindsightBuilder
from herl.hindsight.candidates import top_k
from herl.hindsight.wording import Style, heaviest, listed
from herl.types import Hindsight, Judged, Message, Task
from herl.types.answer import TIE


class ToldBuilder(HindsightBuilder):
    """Shows the policy the whole rubric. Works with holistic judges too.

    A task without a rubric gets no such answer. Selection, replay and loss treat the answer like a revision.
    It has no draft, so no bonus is paid for it.

    Args:
        perfect: Reward at which `herl improve` and validations need no further answer. Training does not know
            the attempts' rewards yet, and always samples the answer.
        style: How criteria are listed (`herl.hindsight.wording`).
        max_missed: Maximum number of criteria in the prompt, those of the largest weights; None for all.
        weights: Whether the prompt shows the criteria's weights.
        template: Text with the fields {request} and {rubric}; None for the shipped prompt.
    """

    needs_verdicts = False
    tells = True

    def __init__(
        self,
        perfect: float = 1.0,
        style: Style = "bullets",
        max_missed: int | None = None,
        weights: bool = True,
        template: str | None = None,
    ) -> None:
        check_at_least("hindsight", 1, max_missed=max_missed)
        self.perfect = perfect
        self.style = style
        self.max_missed = max_missed
        self.weights = weights
        self.template = (template or prompt_text.load("herl.hindsight", "told.txt")).strip()
        prompt_text.check("hindsight.template", self.template, {"request", "rubric"})

    def tell(self, task: Task) -> tuple[Message, ...] | None:
        """Returns the request with the rubric, as a conversation; None if the task has no rubric."""
        criteria = heaviest(task.rubric.criteria, self.max_missed)
        if not criteria:
            return None
        rubric = listed(criteria, self.style, self.weights)
        content = prompt_text.fill(self.template, {"request": task.request, "rubric": rubric})
        return (*task.messages[:-1], {"role": "user", "content": content})

    def build(self, task: Task, group: Sequence[Judged]) -> list[Hindsight]:
        """Returns the same prompt in place of a revision of the best attempt, for answers at test time."""
        judged = [attempt for attempt in group if attempt.has_reward]
        messages = self.tell(task)
        if messages is None or not judged:
            return []
        [best] = top_k(task, judged, k=1)
        if best.reward >= self.perfect - TIE:
            return []
        criteria = heaviest(task.rubric.criteria, self.max_missed)
        return [Hindsight(parent=best.rollout, messages=messages, met=(), missed=criteria)]
