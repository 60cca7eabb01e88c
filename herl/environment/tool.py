"""One tool: a Python function with its schema, which calls are checked against, and how it is called.

A function has type hints and a docstring in Google's style; transformers makes the schema of them. Two names
of arguments are herl's own, and the policy does not see them:

    task     the row (`herl.types.Task`), e.g. for a table in task.meta
    state    a dict that belongs to the episode, empty at its start; what a failed call changed is dropped
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
from collections.abc import Callable, Mapping
from functools import cached_property, partial, wraps
from typing import Any

from herl.background.loop import ANYTHING, in_thread, is_stopped
from herl.background.worker import RaisedError, raised, shared
from herl.errors import ConfigError, JudgeError
from herl.prompt_text import valid
from herl.types import Task

OURS = ("task", "state")
"""Names of arguments that herl fills in."""
_VARIABLE = (
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
    inspect.Parameter.POSITIONAL_ONLY,
)


class ToolError(Exception):
    """A call failed.

    Args:
        kind: Why, in a word (`herl.types.ToolCall.error`).
        message: What the policy reads.
        note: What a log says, too.
    """

    def __init__(self, kind: str, message: str, note: str = "") -> None:
        super().__init__(message)
        self.kind, self.note = kind, note


class Tool:
    """A function that the policy may call.

    Args:
        function: The function.
        path: The path that names it; None if Python code passed it in, which calls it in this process.

    Raises:
        ConfigError: it cannot be a tool.
    """

    def __init__(self, function: Callable[..., Any], path: str | None) -> None:
        self.function, self._path = function, path
        self.name = str(getattr(function, "__name__", path))
        shown = path or self.name
        if not inspect.isfunction(function):
            raise ConfigError(
                f"environment.functions: expected functions, got '{shown}', a {type(function).__name__}"
            )
        if not inspect.getdoc(function):
            raise ConfigError(
                f"environment.functions: expected functions with a docstring, which tells the policy what "
                f"they do, got '{shown}' without one"
            )
        self._parameters = inspect.signature(function).parameters
        if wrong := [str(one) for one in self._parameters.values() if one.kind in _VARIABLE]:
            raise ConfigError(
                f"environment.functions: expected arguments with a name each, got '{wrong[0]}' in '{shown}'"
            )

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The function as chat templates take it: {"type": "function", "function": {...}}.

        Raises:
            ConfigError: a type hint or the description of an argument is missing, or cannot be used.
        """
        from jsonschema import Draft202012Validator, SchemaError
        from transformers.utils.chat_template_utils import get_json_schema

        try:
            schema: dict[str, Any] = get_json_schema(self._visible())
            Draft202012Validator.check_schema(self._strict(schema["function"]["parameters"]))
        except SchemaError as error:
            raise ConfigError(f"environment.functions: {self.name}: {error.message}") from error
        except Exception as error:  # transformers has its own classes, and hints may raise any
            raise ConfigError(f"environment.functions: {self.name}: {error}") from error
        return schema

    def _visible(self) -> Callable[..., Any]:
        """The function without the arguments that the policy does not see."""

        @wraps(self.function)
        def visible() -> None: ...

        hints = inspect.get_annotations(self.function)
        visible.__annotations__ = {name: hint for name, hint in hints.items() if name not in OURS}
        kept = [one for name, one in self._parameters.items() if name not in OURS]
        visible.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
        return visible

    def _strict(self, schema: Any) -> Any:
        """The schema for checks: `nullable`, which JSON schemas do not know, allows null."""
        if isinstance(schema, list):
            return [self._strict(one) for one in schema]
        if not isinstance(schema, Mapping):
            return schema
        strict = {key: self._strict(value) for key, value in schema.items() if key != "nullable"}
        return {"anyOf": [strict, {"type": "null"}]} if schema.get("nullable") is True else strict

    @cached_property
    def _validator(self) -> Any:
        from jsonschema import Draft202012Validator

        schema = self._strict(self.schema["function"]["parameters"])
        return Draft202012Validator({**schema, "additionalProperties": False})

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Checks the arguments of a call.

        Raises:
            ToolError: one is missing, unknown or of a wrong type.
        """
        try:
            wrong = next(iter(self._validator.iter_errors(dict(arguments))), None)
        except RecursionError:
            raise ToolError("arguments", f"{self.name}: the arguments are nested too deeply.") from None
        if wrong is not None:
            where = f"argument '{wrong.path[0]}': " if wrong.path else ""
            raise ToolError("arguments", f"{self.name}: {where}{_short(wrong.message)}.")

    async def call(
        self,
        arguments: Mapping[str, Any],
        task: Task,
        state: dict[str, Any],
        seconds: float | None,
        longest: int,
    ) -> str:
        """Returns what the function returns, as text.

        Args:
            arguments: Those of the policy.
            task: The row.
            state: The episode's; changed as the function changed it.
            seconds: Limit; None for no limit, and a call in this process.
            longest: Limit in characters.

        Raises:
            ToolError: the function failed.
        """
        ours: dict[str, Any] = {"task": task, "state": state}
        held = {name: value for name, value in ours.items() if name in self._parameters}
        try:
            if self._path is not None and seconds is not None:
                call = shared().call(
                    self._path, self.function, (), {**arguments, **held},
                    seconds=seconds, key="environment.timeout_seconds",
                    then=partial(_sent, longest, held.get("state")),
                )  # fmt: skip
                text, changed = await asyncio.wrap_future(call)
            else:
                if "state" in held:
                    held["state"] = copy.deepcopy(state)
                result = await self._called_here({**arguments, **held}, seconds)
                text, changed = _sent(longest, held.get("state"), result)
        except RaisedError as error:
            message = f"{self.name} raised {error.kind}: {_short(error.message)}"
            raise ToolError("raised", message, f"{error}\n{error.place}") from error
        except JudgeError as error:
            if error.cause == "timeout":
                raise ToolError("timeout", f"{self.name} took longer than {seconds:g} seconds.") from error
            raise ToolError("died", f"{self.name} ended its process.", str(error)) from error
        if text is None:
            told = f"{self.name} returned something that is neither text nor JSON."
            raise ToolError("result", told, told)
        if changed is not None:
            state.clear()
            state.update(changed)
        return str(text)

    async def _called_here(self, named: Mapping[str, Any], seconds: float | None) -> Any:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                if inspect.iscoroutinefunction(self.function):
                    return await self.function(**named)
                result = await in_thread(lambda: self.function(**named), "environment.tools")
                return await result if inspect.isawaitable(result) else result
        except ANYTHING as error:
            if is_stopped(error):
                raise
            if limit.expired():
                raise JudgeError("late", "timeout") from error
            raise raised(self.function, error) from error


def _sent(longest: int, state: Any, result: Any) -> tuple[str | None, Any]:
    """The result as text that is not too long, or None if it cannot be; and the state."""
    if not isinstance(result, str):
        try:
            result = json.dumps(result, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            return None, state
    return cut(result, longest), state


def cut(text: str, longest: int) -> str:
    """Returns a text with a note in place of what is too much.

    >>> cut("abcdef", 4)
    'abcd\\n[2 more characters are not shown]'
    """
    text = valid(text)
    if len(text) <= longest:
        return text
    return f"{text[:longest]}\n[{len(text) - longest} more characters are not shown]"


def _short(text: str) -> str:
    return cut(text, 500)
