"""A judge that asks a language model, whatever it asks: it prepares, opens and releases the model."""

from __future__ import annotations

from abc import ABC
from copy import copy
from typing import Self

from herl.judge.aggregation import weighted
from herl.judge.base import Aggregation, Judge, require_rubric
from herl.judge.budget import Budget
from herl.judge.llm.chat import Chat
from herl.judge.llm.client import JudgeClient, Limits
from herl.judge.llm.reply_cache import ReplyCache
from herl.types import Task


class ChatJudge(Judge, ABC):
    """Asks through `client`. A subclass puts the questions and reads the replies.

    Args:
        chat: The judging model.
        limits: Limits on the requests to it; None for the default ones.
        cache: Stores replies; None for no cache.
        aggregation: How verdicts and weights become the reward.
    """

    def __init__(
        self,
        chat: Chat,
        limits: Limits | None = None,
        cache: ReplyCache | None = None,
        aggregation: Aggregation = weighted,
    ) -> None:
        super().__init__(aggregation)
        self.client = JudgeClient(chat, limits or Limits(), cache)

    def check_task(self, task: Task) -> None:
        """Checks that there is a rubric, which is shown to the model."""
        require_rubric(task)

    def prepare(self) -> None:
        """Prepares the model, unless replies come only from the cache."""
        self.client.prepare()

    async def start(self, budget: Budget) -> None:
        """Opens the cache and the connections."""
        await self.client.start(budget)

    async def stop(self) -> None:
        """Closes the cache and the connections."""
        await self.client.stop()

    def close(self) -> None:
        """Releases the model, if it was started here."""
        self.client.close()

    def uncached(self) -> Self:
        """Returns the same judge without its cache of replies."""
        other = copy(self)
        other.client = self.client.uncached()
        return other
