"""Hindsight at the level of tokens: the prompt under which the policy scores an attempt that it has written.

Told the criteria, the policy finds some tokens of its attempt more likely than before, and others less. That
difference becomes a part of each token's advantage (`herl.update.teaching`). It takes one forward pass, but
neither a sampled answer nor a call to the judge. The wording is in `teacher.txt`; it never shows the attempt,
which would make every token of it likely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from herl import prompt_text
from herl.errors import ConfigError, check_above, check_at_least
from herl.hindsight.wording import listed
from herl.types import Judged, Message, Task
from herl.types.answer import TIE

_FIELDS = {"request", "criteria"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """The policy that has been told the criteria, as a teacher of the policy that has not.

    The advantage of a token y_t of an attempt gains

        coef x clip(log pi(y_t | x, h) - log pi(y_t | x), -clip, clip)

    with the prompt x and the teacher's prompt h (SDPO, arXiv:2601.20802). Unclipped, the expected gradient is
    that of minus coef times the KL to the teacher, at each token. The term is added after advantages are
    scaled. Its mean is below 0, since attempts were sampled by the policy and not by the teacher. The
    rewarded advantage stays, since a teacher alone leaks what it knows, and training becomes unstable
    (RLSD, arXiv:2604.03128).

    Only attempts that are members of their group are taught: revisions and replayed answers were sampled
    under another prompt or by an older policy. Thinking is not taught, since a policy that has been told the
    criteria thinks about them. An attempt gets no term if its task has no criteria.

    Args:
        coef: Advantage per nat, for advantages of about 1; 0 for no teacher.
        clip: Largest difference of log-probs, in nats, either way.
        tell: What the prompt tells: the whole `rubric`, the same for all attempts of a group, which share its
            tokens in the pass; or the criteria that the attempt `missed`, which needs verdicts.
        center: Whether to subtract the term's mean over the answer, so that it only moves credit between
            tokens, and the answer as a whole keeps the rewarded advantage.
        perfect: Smallest reward of an attempt that needs no teacher.
        flat_groups: Whether to train on attempts of groups without signal, by the teacher alone.
        template: Text with the fields {request} and {criteria}; None for the shipped prompt.
    """

    coef: float = 0.0
    clip: float = 2.0
    tell: Literal["rubric", "missed"] = "rubric"
    center: bool = False
    perfect: float = 1.0
    flat_groups: bool = False
    template: str | None = None

    def __post_init__(self) -> None:
        check_at_least("teacher", 0, coef=self.coef)
        check_above("teacher", 0, clip=self.clip)
        if self.tell not in ("rubric", "missed"):
            raise ConfigError(f"teacher.tell: expected rubric or missed, got {self.tell}")
        if self.template is not None:
            prompt_text.check("teacher.template", self.template, _FIELDS)

    @property
    def teaches(self) -> bool:
        """Whether there is a teacher."""
        return self.coef > 0

    @property
    def needs_verdicts(self) -> bool:
        """Whether the prompt depends on the verdicts."""
        return self.teaches and self.tell == "missed"

    def prompt(self, task: Task, attempt: Judged) -> tuple[Message, ...] | None:
        """Returns the conversation under which the teacher scores an attempt; None if it gets no term.

        Args:
            task: The prompt and its rubric.
            attempt: An attempt at it. Its reward is not None.
        """
        if not self.teaches or attempt.reward >= self.perfect - TIE:
            return None
        criteria = task.rubric.criteria
        if self.tell == "missed":
            fulfilled = task.rubric.fulfilled(attempt.judgement.verdicts)
            criteria = tuple(one for one in criteria if fulfilled.get(one.id) is False)
        if not criteria:
            return None
        template = self.template or prompt_text.load("herl.hindsight", "teacher.txt")
        content = prompt_text.fill(template.strip(), {"request": task.request, "criteria": listed(criteria)})
        return (*task.messages[:-1], {"role": "user", "content": content})


NO_TEACHER = Teacher()
