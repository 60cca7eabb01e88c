"""Judges by checks written in the data: `criterion.check = {"kind": ..., ...}`.

`herl.checks.kinds` lists the kinds.

A criterion abstains, with the reason, if its check is missing, belongs to another judge or has wrong keys
(data that is read from a file never does), or if the function of a `python` check cannot be called. It also
abstains if its check takes too long, with the cause "timeout": whoever wrote the pattern, the schema or the
function decided that. An answer that breaks its check, by JSON nested too deep or an exception in a function,
fulfills nothing: its verdict is the bad one, so no answer gains by that.

Functions are called only if a module that the configuration allows defines them: data alone must not run
code, nor what such a module imports. They run in a separate process (`herl.background.worker`).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from herl.background.worker import RaisedError, raised, shared
from herl.checks import (
    BrokenByAnswerError,
    CallsTool,
    Check,
    Instruction,
    Python,
    TooSlowError,
    read_check,
    without_nulls,
)
from herl.errors import DataError, HerlError, JudgeError, check_above
from herl.judge.aggregation import weighted
from herl.judge.base import Aggregation, Judge, Sees
from herl.targets import located
from herl.types import Criterion, Judgement, Rollout, Task, Verdict

logger = logging.getLogger(__name__)
_REMEMBERED = 4096
"""Checks that stay typed between answers; reading one costs as much as many answers."""


class RuleJudge(Judge):
    """Applies each criterion's check. Free and deterministic.

    Args:
        aggregation: How verdicts and weights become the reward.
        python_modules: Modules whose functions `python` checks may call: those that they define.
        timeout_seconds: Longest time of such a call. None for no limit; functions then run in this process.
        sees: The text that checks read of an answer in several turns: the last `answer`, or the `transcript`.
    """

    advice = (
        "judge=rule applies the checks of a rubric (herl/checks/kinds.py lists the kinds). judge=llm lets a "
        "language model judge by the criteria's texts, judge=function calls your own function, "
        "judge=instruction_following checks IFEval's instructions, judge=verifiers takes the rewards of "
        "data=verifiers, and judge=mix combines judges"
    )

    def __init__(
        self,
        aggregation: Aggregation = weighted,
        python_modules: Sequence[str] = (),
        timeout_seconds: float | None = 60.0,
        sees: Sees = "answer",
    ) -> None:
        super().__init__(aggregation)
        check_above("judge", 0, timeout_seconds=timeout_seconds)
        self._sees = sees
        self._seconds = timeout_seconds
        self._python_modules = tuple(python_modules)
        self._read: dict[str, Check | HerlError] = {}
        self._warned = False
        self._warned_of_abstention = False

    def check_task(self, task: Task) -> None:
        """Checks that a rubric has a check that this judge applies. Warns of criteria that will abstain.

        Raises:
            DataError: it has none, so every answer would abstain.
        """
        super().check_task(task)
        faults = {c.id: fault for c in task.rubric.criteria if (fault := self._fault(c)) is not None}
        if not faults:
            return
        first, fault = next(iter(faults.items()))
        if len(faults) == len(task.rubric.criteria):
            raise DataError(f"criterion '{first}' {fault}")
        if not self._warned_of_abstention:
            self._warned_of_abstention = True
            logger.warning(
                "row '%s': criterion '%s' %s. It always abstains, so the reward rests on the other criteria. "
                "Rows like this one are not reported again. %s",
                task.id,
                first,
                fault,
                self.advice,
            )

    def _fault(self, criterion: Criterion) -> str | None:
        """Why the judge would abstain on this criterion of any answer; None if it would not."""
        if not criterion.check:
            return "has no check"
        try:
            check = self._typed(criterion.check)
            if isinstance(check, Python):
                self._function(check.path)
        except HerlError as error:
            return f"has a check that cannot be applied: {error}"
        return None

    async def judge(self, task: Task, rollout: Rollout) -> Judgement:
        """Returns a verdict per criterion; criteria without a usable check abstain.

        Its usage counts the checks that this answer broke as `check_errors`.
        """
        usage: Counter[str] = Counter()
        verdicts = [await self._verdict(criterion, rollout, usage) for criterion in task.rubric.criteria]
        return self.verdict_sum(task, rollout, verdicts, {name: float(n) for name, n in usage.items()})

    async def _verdict(self, criterion: Criterion, rollout: Rollout, usage: Counter[str]) -> Verdict:
        answer = rollout.transcript if self._sees == "transcript" else rollout.text
        try:
            check = self._typed(criterion.check)
            if isinstance(check, CallsTool):
                met = check.called(rollout.calls)
            elif isinstance(check, Python):
                met = await self._called(check, answer)
            elif check.slow:  # in a thread: the loop must stay free to serve other judges and to stop
                met = await asyncio.to_thread(check.met, answer)
            else:
                met = check.met(answer)
        except BrokenByAnswerError as error:
            usage["check_errors"] += 1
            self._warn(criterion, f"{error}. Such answers count as bad (judge/check_errors)")
            return Verdict(criterion_id=criterion.id, met=criterion.unfulfilled, reason=str(error))
        except (TooSlowError, JudgeError) as error:
            cause = "timeout" if isinstance(error, TooSlowError) else error.cause
            if cause == "timeout":
                self._warn(criterion, f"{error}. Such answers abstain (judge/abstained_timeout)")
            usage["abstained_timeout" if cause == "timeout" else "abstained_check"] += 1
            return Verdict(criterion_id=criterion.id, met=None, reason=_readable(f"check failed: {error}"))
        except Exception as error:  # users' functions may raise anything
            usage["abstained_check"] += 1
            reason = _readable(f"check failed: {type(error).__name__}: {error}")
            return Verdict(criterion_id=criterion.id, met=None, reason=reason)
        return Verdict(criterion_id=criterion.id, met=met)

    def _typed(self, check: Mapping[str, Any] | None) -> Check:
        key = repr(check)
        if key not in self._read:
            if len(self._read) >= _REMEMBERED:
                self._read.clear()
            self._read[key] = _read(check)
        found = self._read[key]
        if isinstance(found, HerlError):
            raise found
        return found

    def _warn(self, criterion: Criterion, told: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("criterion '%s': %s", criterion.id, told)

    def close(self) -> None:
        """Ends the process that calls functions, unless another judge uses it."""
        shared().rest()

    async def _called(self, check: Python, answer: str) -> bool:
        """Calls a user's function.

        Raises:
            BrokenByAnswerError: the function raised what an answer may have caused.
            JudgeError: the function may not be called, took too long, or lacks a file or a package.
            TypeError: it takes other arguments.
        """
        function = self._function(check.path)
        inspect.signature(function).bind(answer, **check.arguments)
        try:
            if self._seconds is None:
                return await _called_here(function, answer, check.arguments)
            call = shared().call(
                check.path, function, (answer,), check.arguments,
                seconds=self._seconds, key="judge.timeout_seconds", then=bool,
            )  # fmt: skip
            return bool(await asyncio.wrap_future(call))
        except RaisedError as error:
            if error.of_machine:
                raise JudgeError(str(error)) from error
            file = Path(error.file).name
            reason = f"{check.path} raised {error.kind} in line {error.line} of {file}"
            raise BrokenByAnswerError(reason) from error

    def _function(self, path: str) -> Callable[..., object]:
        if path.rpartition(".")[0] not in self._python_modules:
            raise JudgeError(
                "expected a function from one of judge.python_modules "
                f"({', '.join(self._python_modules) or 'which is empty'}), got '{path}'"
            )
        function: Callable[..., object] = located("check.path", path)
        module = path.rpartition(".")[0]
        if (home := getattr(function, "__module__", None)) != module:
            raise JudgeError(
                f"'{path}' is not a function that {module} defines, but one of {home or 'no module'}. "
                "judge.python_modules allows the functions that its modules define, not what they import"
            )
        return function


def _readable(text: str) -> str:
    """Without lone surrogates, which no file could hold."""
    return text.encode(errors="replace").decode()


async def _called_here(function: Callable[..., object], answer: str, arguments: Mapping[str, Any]) -> bool:
    try:
        result = function(answer, **arguments)
        return bool(await result if inspect.isawaitable(result) else result)
    except Exception as error:  # a user's function may raise anything
        raise raised(function, error) from error


def _read(check: Mapping[str, Any] | None) -> Check | HerlError:
    try:
        found = read_check(without_nulls(check)) if check else None
    except HerlError as error:
        return error
    if not check:
        return JudgeError("the criterion has no check, which judge=rule needs; judge=llm needs none")
    if found is None or isinstance(found, Instruction):
        return JudgeError(f"the rule judge does not apply checks of the kind '{(check or {}).get('kind')}'")
    return found
