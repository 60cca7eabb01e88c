"""Judges with a plain Python function, sync or async: (task, text) -> verdicts by criterion id, or a number.

    def my_reward(task, text):
        return {"food": "fish" in text, "length": len(text.split()) <= 16}

Select it with `judge=function judge.function=my_module.my_reward`. True and False are verdicts, a number in
[0, 1] is a graded verdict, and None abstains. A single number for the whole answer is a reward without
verdicts, which hindsight cannot use. Synchronous functions run in threads, so a slow one blocks nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from herl.errors import JudgeError
from herl.judge.aggregation import weighted
from herl.judge.base import Aggregation, Judge
from herl.targets import configured
from herl.types import Judgement, Rollout, Task, Verdict

Function = Callable[[Task, str], Any]


class FunctionJudge(Judge):
    """Calls a function for each answer. An exception in it is reported under its name; the answer abstains.

    Args:
        function: The function, or its path such as "my_module.my_reward". A function annotated to return a
            float or an int is holistic.
        met_at: Smallest value in [0, 1] at which a graded criterion counts as met.
        aggregation: How verdicts and weights become the reward.
    """

    def __init__(
        self, function: str | Function, met_at: float = 1.0, aggregation: Aggregation = weighted
    ) -> None:
        super().__init__(aggregation)
        self._function = configured("judge.function", function) if isinstance(function, str) else function
        self._name = f"{self._function.__module__}.{getattr(self._function, '__qualname__', function)}"
        self._met_at = met_at
        self.holistic = _return_type(self._function) in (float, int)

    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns the function's verdicts, or its number as the reward.

        Raises:
            JudgeError: the function raised, or its result has an unexpected type or value.
        """
        try:
            if inspect.iscoroutinefunction(self._function):
                result = await self._function(task, rollout.text)
            else:
                result = await asyncio.to_thread(self._function, task, rollout.text)
        except Exception as error:  # a user's function may raise anything
            raise JudgeError(f"{self._name} raised {type(error).__name__}: {error}", "function") from error
        if isinstance(result, Mapping):
            return self.verdict_sum(task, rollout, [self._verdict(name, v) for name, v in result.items()])
        if isinstance(result, int | float):
            return Judgement(rollout_id=rollout.id, verdicts=(), reward=float(result))
        raise JudgeError(
            f"{self._name}: expected a number or verdicts by criterion id, got {type(result).__name__}",
            "function",
        )

    def _verdict(self, criterion_id: str, value: Any) -> Verdict:
        if value is None or isinstance(value, bool):
            return Verdict(criterion_id=str(criterion_id), met=value)
        if isinstance(value, int | float) and 0.0 <= value <= 1.0:
            return Verdict(criterion_id=str(criterion_id), met=value >= self._met_at, score=float(value))
        raise JudgeError(
            f"{self._name}: expected True, False, None or a number in [0, 1] for '{criterion_id}', "
            f"got {value!r}",
            "function",
        )


def _return_type(function: Function) -> Any:
    """The annotated return type; None if unknown."""
    try:
        return typing.get_type_hints(function).get("return")
    except (NameError, TypeError):
        return None
