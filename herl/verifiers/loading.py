"""A name -> an environment of `verifiers`, its reward functions, and the episodes played with it."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import math
import re
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from herl.background.loop import ANYTHING, LoopThread, is_stopped
from herl.environment import Conversation
from herl.errors import ConfigError, DataError, JudgeError, did_you_mean
from herl.targets import configured
from herl.types import Criterion, Rollout, Rubric, Task
from herl.verifiers.episode import Episode, Score, bare, schemas

logger = logging.getLogger(__name__)
KEPT = 2**16
"""Episodes whose scores are kept, the newest ones."""
SPLIT, PLACE = "verifiers_split", "verifiers_row"
"""Columns that say which row of an environment a task is."""
_loaded: dict[str, Loaded] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A reward function of an environment."""

    id: str
    function: Any
    weight: float
    """0 for what `verifiers` calls a metric."""
    rubric: Any
    """The rubric of `verifiers` that it belongs to."""

    @property
    def criterion(self) -> Criterion:
        lines = (inspect.getdoc(_inner(self.function)) or "").strip().splitlines()
        text = lines[0].strip() if lines else self.id.replace("_", " ")
        return Criterion(id=self.id, text=text, weight=self.weight, undesirable=self.weight < 0)

    async def score(self, state: Any) -> Score:
        """Calls the function with what it asks for. `verifiers` itself would turn an exception into 0."""
        known = self.rubric.score_objects(state)
        parameters = inspect.signature(self.function).parameters
        if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            known = {name: value for name, value in known.items() if name in parameters}
        try:
            value = self.function(**known)
            return float(await value if inspect.isawaitable(value) else value)
        except ANYTHING as error:
            if is_stopped(error):
                raise
            return bare(error)


class Loaded:
    """An environment of `verifiers`, and the episodes that were played with it.

    Args:
        name: Its name, such as "wordle" or "owner/wordle".
        arguments: Arguments of its `load_environment`.

    Raises:
        ConfigError: the package is missing, the environment's module is not in HERL_ALLOW_TARGETS, it cannot
            be loaded, or asks for something that this adapter leaves out.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        self.name = name
        self.environment = _load(name, arguments)
        self.rewards = _rewards(name, self.environment.rubric)
        self.rubric = Rubric(criteria=tuple(one.criterion for one in self.rewards if one.weight))
        if not any(one.weight > 0 for one in self.rubric.criteria):
            raise ConfigError(f"{name}: expected a reward function with a positive weight, got none")
        self.judged = False
        """Whether a judge will ask for rewards."""
        self.thread = LoopThread("verifiers")  # one loop for episodes and rewards, which may share clients
        self._episodes: dict[str, Episode] = {}

    def rows(self, split: str) -> Any:
        """Returns the data set of a split, `train` or `eval`; None if it has no such split.

        Raises:
            ConfigError: making it failed.
        """
        environment = self.environment
        try:
            return environment.build_dataset() if split == "train" else environment.build_eval_dataset()
        except Exception as error:  # a user's function may raise anything
            raise ConfigError(
                f"data.name: making the {split} rows of '{self.name}' failed: {type(error).__name__}: {error}"
            ) from error

    def row(self, task: Task) -> dict[str, Any]:
        """Returns the environment's row that a task was made from.

        Raises:
            DataError: it was made from something else.
        """
        rows = self.rows(str(task.meta.get(SPLIT)))
        place = task.meta.get(PLACE)
        if rows is None or not isinstance(place, int) or place >= len(rows):
            raise DataError("expected a row of data=verifiers, with the environment's name and arguments")
        return dict(rows[place])

    def tools(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns the tools of a row, as chat templates take them: its own, or else the environment's.

        Raises:
            DataError: its `info` cannot be read.
        """
        info = row.get("info")
        try:
            info = json.loads(info) if isinstance(info, str) else info
            if isinstance(info, Mapping) and "tool_defs" in info:
                return schemas(info["tool_defs"] or ())
            return schemas(self.environment.tool_defs or ())
        except ValueError as error:  # of pydantic, too
            reason = " ".join(str(error).split())
            raise DataError(f"info: expected JSON, and tools as verifiers has them: {reason}") from error

    def first_tools(self) -> list[dict[str, Any]]:
        """Returns the tools of the first row that has some; none if there is no such row."""
        if self.environment.tool_defs:
            return schemas(self.environment.tool_defs)
        splits = [rows for split in ("train", "eval") if (rows := self.rows(split)) is not None]
        infos = chain.from_iterable(rows["info"] for rows in splits if "info" in rows.column_names)
        return next(filter(None, (self.tools({"info": one}) for one in infos)), [])

    # Episodes

    def begun(self, conversation: Conversation) -> Episode:
        """Returns the episode of a conversation, and begins it if this is its first answer."""
        episode = conversation.state.get("episode")
        if episode is None:
            episode = conversation.state["episode"] = self._episode(conversation.task)
            self._episodes.pop(conversation.id, None)  # of an earlier validation
            self._episodes[conversation.id] = episode
            if len(self._episodes) > KEPT:
                del self._episodes[next(iter(self._episodes))]
        assert isinstance(episode, Episode)
        return episode

    def ended(self, conversation: Conversation) -> Episode | None:
        """Returns the episode of a conversation that is over, if it ever began. It is kept for a judge."""
        if not self.judged:
            self._episodes.pop(conversation.id, None)
        episode: Episode | None = conversation.state.get("episode")
        return episode

    def cancel(self) -> None:
        """Ends the episodes that are being played."""
        self.thread.cancel_all()

    def scores(self, task: Task, rollout: Rollout) -> Future[dict[str, Score]]:
        """Returns what the reward functions say of an answer.

        An answer in one turn that was sampled elsewhere is played here, so stored ones can be judged, too.

        Raises:
            JudgeError: an answer in several turns was not played in this process.
        """
        episode = self._episodes.get(rollout.id)
        if episode is not None and episode.is_of(rollout):
            return episode.scores
        if rollout.turns:
            raise JudgeError(
                "expected an episode that was played in this process, since its state is not in the record",
                "environment",
            )
        return self.thread.submit(self._episode(task).alone(rollout))

    async def _score(self, state: Any) -> dict[str, Score]:
        """All rewards and metrics of a finished episode, computed in their order; none for no judge."""
        scores = {one.id: await one.score(state) for one in self.rewards} if self.judged else {}
        try:
            await self.environment.rubric.cleanup(state)
        except Exception as error:  # the scores are there
            logger.warning("%s: cleaning up after its rewards failed: %r", self.name, error)
        return scores

    def _episode(self, task: Task) -> Episode:
        row = self.row(task)
        return Episode(self.environment, row, self.tools(row), self._score)


def loaded(name: str, arguments: Mapping[str, Any] | None = None) -> Loaded:
    """Returns an environment, which is loaded once in a process for each name and arguments.

    Raises:
        ConfigError: as `Loaded`.
    """
    key = json.dumps([name, dict(arguments or {})], sort_keys=True, default=repr)
    if key not in _loaded:
        _loaded[key] = Loaded(name, dict(arguments or {}))
    return _loaded[key]


def _load(name: str, arguments: Mapping[str, Any]) -> Any:
    """The environment, whose module must be allowed before it is imported."""
    if not isinstance(name, str) or not re.fullmatch(r"([\w-]+/)?[A-Za-z_][\w-]*", name):
        raise ConfigError(f"data.name: expected an environment's name, such as wordle, got {name!r}")
    package = _package()
    module = name.split("/")[-1].replace("-", "_")
    load = configured("data.name", f"{module}.load_environment")
    _check_arguments(load, arguments)
    try:
        with _own_signals():
            environment = load(**arguments)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise ConfigError(f"data.name: loading '{name}' failed: {type(error).__name__}: {error}") from error
    if not isinstance(environment, package.MultiTurnEnv):
        raise ConfigError(
            f"data.name: expected an environment that inherits from MultiTurnEnv, got '{name}', a "
            f"{type(environment).__name__}"
        )
    environment.env_id = environment.env_id or name
    environment.env_args = environment.env_args or dict(arguments)
    package.Client.register(Episode)
    return environment


def _check_arguments(load: Any, arguments: Mapping[str, Any]) -> None:
    parameters = inspect.signature(load).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    for name in arguments:
        if name not in parameters:
            raise ConfigError(
                f"data.arguments.{name}: expected an argument of load_environment, one of "
                f"{', '.join(parameters) or 'none'}.{did_you_mean(name, parameters)}"
            )


def _package() -> Any:
    try:
        package = importlib.import_module("verifiers")
    except ImportError as error:
        raise ConfigError(
            f"data.name: environments of verifiers need the package (pip install 'herl[verifiers]'): {error}"
        ) from error
    if not hasattr(package, "load_environment"):
        version = getattr(package, "__version__", "another version")
        raise ConfigError(
            f"data.name: expected verifiers 0.3 (pip install 'herl[verifiers]'), got {version}, which has "
            "another interface"
        )
    return package


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps this process's answers to signals: environments set their own when they are made."""
    kept = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in kept.items():
            if handler is not None:  # not set from Python
                signal.signal(one, handler)


def _rewards(name: str, rubric: Any) -> list[Reward]:
    """The functions of a rubric, and of those that it consists of, in their order."""
    package = _package()
    own = type(rubric).score_rollout
    if own is package.RubricGroup.score_rollout:
        parts = [one for part in rubric.rubrics for one in _rewards(name, part)]
        return _unique(parts)
    if own is not package.Rubric.score_rollout:
        raise ConfigError(
            f"data.name: expected rubrics that score by their functions, but a {type(rubric).__name__} of "
            f"'{name}' has another way to score"
        )
    if rubric.has_group_rewards:
        raise ConfigError(
            f"data.name: expected functions that score one answer, but '{name}' has one that compares the "
            "answers of a group"
        )
    found = []
    for one, weight in zip(rubric.funcs, rubric.weights, strict=True):
        inner = _inner(one)
        title = str(getattr(inner, "__name__", type(inner).__name__))
        if not _is_number(weight):
            raise ConfigError(
                f"data.name: expected weights that are finite numbers, but '{name}' gives '{title}' the "
                f"weight {weight!r}"
            )
        found.append(Reward(id=title, function=one, weight=float(weight), rubric=rubric))
    return _unique(found)


def _is_number(weight: Any) -> bool:
    try:
        return math.isfinite(float(weight))
    except (TypeError, ValueError):
        return False


def _inner(function: Any) -> Any:
    """What a partial function calls: it has the name and the docstring."""
    while isinstance(function, partial):
        function = function.func
    return function


def _unique(rewards: list[Reward]) -> list[Reward]:
    """The functions with different ids: a second `check` is `check#2`."""
    seen: Counter[str] = Counter()
    found = []
    for one in rewards:
        name = one.id.partition("#")[0]
        seen[name] += 1
        found.append(replace(one, id=name if seen[name] == 1 else f"{name}#{seen[name]}"))
    return found
