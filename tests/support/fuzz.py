"""Random rows, configurations and judge replies: each must end in a valid object or a HerlError.

`run(cases)` is used by the tests with a few hundred cases and by tools/fuzz.py with many.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from herl.config.build import make
from herl.config.check import check
from herl.data.foreign import ALIASES, CRITERION_ALIASES
from herl.data.formats import Reading, task_of
from herl.data.rows import Row
from herl.errors import HerlError
from herl.judge.llm.parse import read_score, read_verdicts
from herl.judge.llm.scale import Scale
from herl.types import Task
from tests.support.configuration import composed

TEXT = st.text(max_size=30) | st.sampled_from(
    ["", "Says x.", "Essential Criteria: y", "\x00", "{}", "null", "[1"]
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "prompt", "messages", "rubric", "id", "meta", "reference", "source", "constraints", "instruction_id_list", "kwargs",
    "key", "reward_model", *(alias for names in ALIASES.values() for alias in names),
]  # fmt: skip
ITEM_FIELDS = [
    "text", "id", "weight", "title", "category", "check", "undesirable", "gate",
    *(alias for names in CRITERION_ALIASES.values() for alias in names),
]  # fmt: skip
ITEM = st.dictionaries(st.sampled_from(ITEM_FIELDS), JSON, max_size=6) | st.fixed_dictionaries(
    {"text": TEXT}, optional={"weight": SCALAR, "undesirable": st.booleans(), "id": SCALAR, "check": JSON}
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "x"]), "content": TEXT})
RUBRIC = st.lists(ITEM | TEXT, max_size=4)
ROW = (
    st.dictionaries(st.sampled_from(FIELDS) | TEXT, JSON | RUBRIC | st.lists(MESSAGE, max_size=3), max_size=6)
    | st.fixed_dictionaries(
        {"prompt": TEXT | st.lists(MESSAGE, max_size=3), "rubric": RUBRIC}, optional={"id": SCALAR}
    )
    | st.fixed_dictionaries(
        {
            "prompt": TEXT,
            "instruction_id_list": st.lists(TEXT, max_size=3),
            "kwargs": st.lists(JSON, max_size=3),
        }
    )
    | st.builds(lambda value: {"prompt": "x", "rubric": json.dumps(value)}, JSON)
    | JSON
)
CODE = "0f3a9c51"
WORD = st.sampled_from(["met", "not met", "cannot tell", "Met", 1, 0, True, None, "yes"])
VERDICT = WORD | SCALAR
REPLY = (
    st.text(max_size=80)
    | JSON.map(lambda value: json.dumps(value))
    | st.builds(
        lambda before, *words: (
            before + json.dumps({"code": CODE, "verdicts": dict(zip("12", words, strict=True))})
        ),
        TEXT,
        WORD,
        WORD,
    )
    | st.builds(
        lambda before, verdicts, after, key: before + json.dumps({key: verdicts}) + after,
        st.sampled_from(["", "<think>x</think>", "```json\n", "{", '"verdicts"']) | TEXT,
        st.dictionaries(
            st.sampled_from(["1", "2", "3", "x", ""]), VERDICT | st.fixed_dictionaries({"verdict": VERDICT})
        )
        | st.lists(st.fixed_dictionaries({"criterion": SCALAR, "verdict": VERDICT}), max_size=3)
        | JSON,
        st.sampled_from(["", "\n```", "}", "</think>"]) | TEXT,
        st.sampled_from(["verdicts", "score"]),
    )
)


def row(value: Any) -> None:
    task = task_of(Row(place="rows.jsonl:1", number=1, value=value), Reading())
    assert isinstance(task, Task)
    assert task.rubric.criteria
    assert task.messages
    ids = [criterion.id for criterion in task.rubric.criteria]
    assert len(set(ids)) == len(ids), ids


@cache
def _plain() -> str:
    return json.dumps(OmegaConf.to_container(composed(), resolve=True))


def _places(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(node, dict):
        return [path]
    return [path, *(place for name, child in node.items() for place in _places(child, (*path, name)))]


@cache
def _all_places() -> list[tuple[str, ...]]:
    return [place for place in _places(json.loads(_plain())) if place]


LIGHT = ("loss", "rollout", "hindsight", "bonus", "selection", "advantages", "callbacks")


def configuration(changes: list[tuple[int, str, Any]]) -> None:
    plain = json.loads(_plain())
    for number, what, value in changes:
        place = _all_places()[number % len(_all_places())]
        node = plain
        for name in place[:-1]:
            node = node.get(name) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            continue
        if what == "set":
            node[place[-1]] = value
        elif what == "add":
            node[f"{place[-1]}x"] = value
        else:
            node.pop(place[-1], None)
    try:
        config = OmegaConf.create(plain)
    except Exception:  # not a configuration, such as a mapping with odd keys: OmegaConf's error
        return
    check(config)
    for name in LIGHT:
        if name in config and OmegaConf.is_config(config[name]):
            make(config[name])


def reply(text: str) -> None:
    read = (
        [read_score(text, Scale.of([1, 10]), CODE)]
        if "score" in text
        else read_verdicts(text, 2, Scale.of(None), CODE)
    )
    assert all(one.value is None or 0.0 <= one.value <= 1.0 for one in read)


CHANGE = st.tuples(st.integers(0, 10**6), st.sampled_from(["set", "set", "add", "drop"]), JSON)
TARGETS: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "rows": (row, ROW),
    "configurations": (configuration, st.lists(CHANGE, min_size=1, max_size=3)),
    "replies": (reply, REPLY),
}


def run(cases: int, start: int = 0) -> dict[str, Counter[str]]:
    """Tries this many cases of each kind and returns their outcomes. Errors other than HerlError propagate."""
    return {name: _run(target, strategy, cases, start) for name, (target, strategy) in TARGETS.items()}


def _run(
    target: Callable[[Any], None], strategy: st.SearchStrategy[Any], cases: int, start: int
) -> Counter[str]:
    ended: Counter[str] = Counter()

    @seed(start)
    @settings(
        max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(strategy)
    def case(value: Any) -> None:
        try:
            target(value)
            ended["valid"] += 1
        except HerlError as error:
            ended[type(error).__name__ if str(error).strip() else "without a word"] += 1

    case()
    return ended
