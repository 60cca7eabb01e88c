"""Judges with a plain Python function, sync or async, which is called once for each answer.

It returns one number for the answer, or a verdict for each criterion of the row's rubric:

    # my_rewards.py
    def exact(task, text, solution):  # rows like {"prompt": "6 x 7?", "solution": "42"}
        return float(solution in text)

    def brief(task, text, rollout):  # rows like {"prompt": "Why?", "rubric": ["Is brief.", "Has an end."]}
        words = len(text.split())
        return {"c1": max(0.0, 1 - words / 100), "c2": rollout.finish_reason == "stop"}

    export HERL_ALLOW_TARGETS=my_rewards
    herl fit data=my.jsonl model=... judge=function judge.function=my_rewards.exact algorithm=grpo

The first two arguments are the `Task` and the answer's text. Any further argument is filled in by its name:
a column of the row, a field of its `meta`, `prompt` (the last user message), `reference`, or `rollout`.
`**columns` takes all columns, but for one named as one of the function's first two arguments: that one is in
`task.meta`.

    task.request        the last user message: "6 x 7?"
    task.messages       the whole conversation: ({"role": "user", "content": "6 x 7?"},)
    task.rubric         its criteria, each with id ("c1" if the row has no ids), text, weight and category
    task.reference      a good answer, or None
    task.meta           the row's `meta` and the columns that no field takes: {"solution": "42"}
    task.id             the row's id, or its line number
    rollout.text        the answer, the same as `text`; without the thinking before it
    rollout.thinking    that thinking, or ""
    rollout.token_ids   everything that was sampled, thinking included
    rollout.logprobs    the log-probability of each of them, in nats
    rollout.finish_reason   "stop", or the limit that cut the answer off: "length", "turns" or "seconds"
    rollout.turns       the turns before the last, with the calls and replies of an environment
    rollout.transcript  the text of all turns and replies

A number, or True and False, is the reward of the whole answer. Such a judge is holistic: it needs no rubric,
and hindsight cannot use it (algorithm=grpo). In verdicts by criterion id, True and False are verdicts, a
number in [0, 1] is a graded one, and None abstains. A `Judgement` says everything itself.

A call may take `timeout_seconds`; an answer whose call takes longer abstains. For this, a function named by
its path runs in a separate process, which also imports its module (`herl.background.worker`); what it prints
goes to stderr. Plain functions run in threads, so a slow one blocks nothing. With `timeout_seconds` null, the
function is called in this process, where a debugger works. So is a function that Python code passes in, with
the limit; but a thread that is late can only be left behind, and it hangs the run if it holds the
interpreter.

Before the run, the function is called once with a row and a made-up answer: what it raises or returns then is
seen at once, and decides whether the judge is holistic.

With `data.hidden_criteria`, the function sees only the visible criteria. If it returns the same ids for every
row, its verdicts on hidden criteria are dropped. A `Judgement` with such verdicts and a reward is refused,
since the reward may count them. Nothing is hidden from gold judges.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from numbers import Real
from typing import Any

from herl.background.loop import in_thread, run_apart
from herl.background.worker import THREADS, RaisedError, raised, shared
from herl.errors import ConfigError, DataError, JudgeError, check_above
from herl.judge.aggregation import weighted
from herl.judge.base import Aggregation, Judge, require_rubric, usable
from herl.judge.budget import Budget
from herl.targets import configured
from herl.types import Judgement, Rollout, Task, Verdict

logger = logging.getLogger(__name__)

Function = Callable[..., Any]
MADE_UP = "This is a made-up answer."
"""The answer that a function is tried on before the run."""
MAY_RETURN = """
  0.5, True                      a number: the reward of the whole answer (with algorithm=grpo)
  {"c1": True, "c2": 0.5}        verdicts by criterion id: True, False, a number in [0, 1], or None to abstain
  Judgement(rollout_id=rollout.id, verdicts=(), reward=0.5)   with `rollout` among the function's arguments"""
_holistic: dict[Function, bool] = {}
"""Functions that were named in a configuration and tried in this process -> whether they are holistic."""


class FunctionJudge(Judge):
    """Calls a function for each answer. An exception in it is reported under its name; the answer abstains.

    Args:
        function: The function, or its path such as "my_module.my_reward". It is holistic if it returns a
            number, which is known once it was called.
        met_at: Smallest value in [0, 1] at which a graded criterion counts as met.
        aggregation: How verdicts and weights become the reward.
        timeout_seconds: Longest time of a call. None for no limit; a function that is named by its path then
            runs in this process.
    """

    advice = (
        "judge=function passes each row's columns to the function by its argument names. A function that "
        "returns one number needs no rubric; one that returns verdicts does (herl/judge/function.py)"
    )

    def __init__(
        self,
        function: str | Function,
        met_at: float = 1.0,
        aggregation: Aggregation = weighted,
        timeout_seconds: float | None = 60.0,
    ) -> None:
        super().__init__(aggregation)
        check_above("judge", 0, timeout_seconds=timeout_seconds)
        self._function = configured("judge.function", function) if isinstance(function, str) else function
        if not callable(self._function):
            kind = type(self._function).__name__
            raise ConfigError(f"judge.function: expected a function, got '{function}', which is a {kind}")
        self._name = f"{self._function.__module__}.{getattr(self._function, '__qualname__', function)}"
        self._first_two, self._named, self._takes_all = _columns_of(self._function, self._name)
        self._met_at = met_at
        self._path = function if isinstance(function, str) else None
        self._seconds = timeout_seconds
        self._slots: AbstractAsyncContextManager[Any] = nullcontext()
        self._remembered = isinstance(function, str)  # so that the run does not try it again
        self._tried = self._remembered and self._function in _holistic
        self._tried_hiding = False  # a row that hides criteria was tried
        self._warned = False
        self.holistic = self._tried and _holistic[self._function]

    def check_task(self, task: Task) -> None:
        """Checks that a row has the columns that the function asks for, and a rubric if it needs one. The
        first row, and the first that hides criteria, is also tried: the function is called once, with a
        made-up answer.

        Raises:
            ConfigError: the function raised, with the line where; or it returned something unusable.
            DataError: a column or the rubric is missing.
        """
        self._arguments(task, _made_up(task))
        if not self._tried or (task.hidden and not self._tried_hiding):
            self._tried_hiding = bool(task.hidden)
            self._try(task)
        super().check_task(task)

    def _try(self, task: Task) -> None:
        rollout = _made_up(task)
        call = f"It was called once, with row '{task.id}' and the made-up answer {MADE_UP!r}, before the run."
        try:
            result = run_apart(self._call(task, rollout))
        except RaisedError as error:
            told = f"{self._name} raised {error}"
            raise ConfigError(f"judge.function: {told}\n{error.place}\n{call}") from error
        except JudgeError as error:
            raise ConfigError(f"judge.function: {error}\n{call}") from error
        try:
            judgement = self._judgement(task, rollout, result)
            if judgement.verdicts or judgement.reward is None:
                require_rubric(task)
            judgement = usable(task, judgement)  # as in the run
        except JudgeError as error:
            if error.cause == "wrong_count":
                got = [verdict.criterion_id for verdict in judgement.verdicts]
                raise ConfigError(
                    f"judge.function: {self._name}: expected one verdict for each criterion of row "
                    f"'{task.id}', {[one.id for one in task.rubric.criteria]}, got {got}. Criteria without "
                    f"an id are named c1, c2, ... in the row's order\n{call}"
                ) from error
            hint = " herl calls it for one answer at a time." if isinstance(result, list | tuple) else ""
            hint = " Does it end without a return?" if result is None else hint
            raise ConfigError(
                f"judge.function: {error}.{hint} It may return one of{MAY_RETURN}\n{call}"
            ) from error
        if not self._tried:
            self._learn(judgement)

    def _learn(self, judgement: Judgement) -> None:
        self._tried = True
        self.holistic = judgement.reward is not None and not judgement.verdicts
        if self._remembered:
            _holistic[self._function] = self.holistic

    async def start(self, budget: Budget) -> None:
        """Limits the threads in this process to as many as a worker has."""
        self._slots = asyncio.Semaphore(THREADS)

    def close(self) -> None:
        """Ends the process that calls functions, unless another judge uses it."""
        shared().rest()

    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns the function's verdicts, or its number as the reward.

        Raises:
            JudgeError: the function raised, took too long, or its result has an unexpected type or value.
        """
        try:
            result = await self._call(task, rollout)
        except RaisedError as error:
            told = f"{self._name} raised {error}"
            self._warn(f"{told}, and the answer abstains\n{error.place}")
            raise JudgeError(told, "function") from error
        except JudgeError as error:
            self._warn(f"{error}, and the answer abstains")
            raise
        judgement = self._judgement(task, rollout, result)
        if not self._tried:
            self._learn(judgement)
        return judgement

    def _warn(self, told: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("judge.function: %s", told)

    async def _call(self, task: Task, rollout: Rollout) -> Any:
        """Returns what the function returns for an answer.

        Raises:
            DataError: a column is missing.
            RaisedError: the function raised.
            JudgeError: it took too long, or ended its process.
        """
        columns = self._arguments(task, rollout)
        if task.hidden:
            task = replace(task, hidden=())  # the function must not learn them
        if self._path is None or self._seconds is None:
            return await self._called_here(task, rollout, columns)
        call = shared().call(
            self._path, self._function, (task, rollout.text), columns,
            seconds=self._seconds, key="judge.timeout_seconds",
        )  # fmt: skip
        return await asyncio.wrap_future(call)

    async def _called_here(self, task: Task, rollout: Rollout, columns: Mapping[str, Any]) -> Any:
        is_coroutine = inspect.iscoroutinefunction(self._function)
        async with nullcontext() if is_coroutine else self._slots:
            limit = asyncio.timeout(self._seconds)
            try:
                async with limit:
                    if is_coroutine:
                        return await self._function(task, rollout.text, **columns)
                    result = await in_thread(
                        lambda: self._function(task, rollout.text, **columns), "judge.function"
                    )
                    return await result if inspect.isawaitable(result) else result
            except Exception as error:  # a user's function may raise anything
                if limit.expired():
                    told = f"{self._name} took longer than judge.timeout_seconds={self._seconds:g} seconds"
                    raise JudgeError(told, "timeout") from error
                raise raised(self._function, error) from error

    def _arguments(self, task: Task, rollout: Rollout) -> dict[str, Any]:
        """The function's arguments after the first two."""
        known = {"prompt": task.request, "reference": task.reference, **task.meta, "rollout": rollout}
        for name, required in self._named.items():
            if required and name not in known:
                columns = ", ".join(map(str, task.meta)) or "none"
                raise DataError(
                    f"{name}: {self._name} has an argument of this name, but the row has no such column; its "
                    f"columns beside prompt and rubric: {columns}"
                )
        named = {name: known[name] for name in self._named if name in known}
        if not self._takes_all:
            return named
        others = {str(name): cell for name, cell in task.meta.items() if str(name) not in self._first_two}
        return others | named

    def _judgement(self, task: Task, rollout: Rollout, result: Any) -> Judgement:
        if isinstance(result, Judgement):
            return result
        if isinstance(result, Mapping):
            return self.verdict_sum(task, rollout, [self._verdict(name, v) for name, v in result.items()])
        number = _python_number(result)
        if isinstance(number, Real):
            return Judgement(rollout_id=rollout.id, verdicts=(), reward=float(number))
        got = "None" if result is None else f"{type(result).__name__} {repr(result)[:80]}"
        raise JudgeError(
            f"{self._name}: expected a number or verdicts by criterion id, got {got}", "function"
        )

    def _verdict(self, criterion_id: str, value: Any) -> Verdict:
        value = _python_number(value)
        if value is None or isinstance(value, bool):
            return Verdict(criterion_id=str(criterion_id), met=value)
        if isinstance(value, Real) and 0.0 <= (score := float(value)) <= 1.0:
            return Verdict(criterion_id=str(criterion_id), met=score >= self._met_at, score=score)
        raise JudgeError(
            f"{self._name}: expected True, False, None or a number in [0, 1] for '{criterion_id}', "
            f"got {value!r}",
            "function",
        )


def _columns_of(function: Function, name: str) -> tuple[set[str], dict[str, bool], bool]:
    """Returns the names of a function's first two arguments that a column cannot have as well; those of its
    further arguments, with whether they are required; and whether it takes any others.

    Raises:
        ConfigError: it cannot be called with a task and a text.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have none
        return set(), {}, False
    parameters = list(signature.parameters.values())
    kinds = [parameter.kind for parameter in parameters]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2 and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise ConfigError(
            f"judge.function: expected a function of a task and the text of one answer, such as "
            f"def {name.rpartition('.')[2]}(task, text, **columns), got {name}{signature}"
        )
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    named = {p.name: p.default is p.empty for p in (*positional[2:], *keywords)}
    first_two = {p.name for p in positional[:2] if p.kind is p.POSITIONAL_OR_KEYWORD}
    return first_two, named, inspect.Parameter.VAR_KEYWORD in kinds


def _made_up(task: Task) -> Rollout:
    return Rollout(
        id="trial/0", task_id=task.id, group_id="trial", prompt_ids=(), token_ids=(), logprobs=(),
        text=MADE_UP, finish_reason="stop", policy_version=0, index=0,
    )  # fmt: skip


def _python_number(value: Any) -> Any:
    """A number of NumPy, or a tensor with one element and no axes, as Python's; anything else unchanged."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
