"""A task of lm-evaluation-harness as rows: its YAML file says what is asked, and when an answer is right.

    lm_eval:gsm8k.yaml:train  ->  a row for each document: messages, a criterion for each filter pipeline

Tasks of the type generate_until that exact_match scores are read, without examples (num_fewshot: 0): an
answer then earns what `lm_eval --apply_chat_template --num_fewshot 0` counts for the same text, stop texts
(`until`) included. A description becomes the system message, as there. How answers are sampled is herl's
setting, not the task's. Anything else in a task is an error that names the key, since a task without it
would be another one. So is Python code (`!function`), which is never run; templates are filled in Jinja's
sandbox.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2.sandbox
import yaml

from herl.data.rows import LM_EVAL, Row, Rows, Table, load_dataset, read_rows
from herl.errors import DataError, did_you_mean

FILES = ("json", "csv", "parquet")
"""Names that `dataset_path` has for files of the user's."""
READ = {
    "task", "dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split",
    "test_split", "description", "doc_to_text", "doc_to_target", "output_type", "num_fewshot", "metric_list",
    "filter_list", "generation_kwargs", "repeats", "fewshot_delimiter",
}  # fmt: skip
WITHOUT_MEANING = {
    "task_alias", "tag", "group", "metadata", "fewshot_split", "fewshot_config", "target_delimiter",
    "should_decontaminate", "doc_to_decontamination_query",
}  # fmt: skip
"""Keys that change neither the prompts without examples nor the score."""
METRIC = {
    "regexes_to_ignore": "ignore_patterns", "ignore_case": "ignore_case",
    "ignore_punctuation": "ignore_punctuation", "ignore_numbers": "ignore_numbers",
}  # fmt: skip
"""Arguments of exact_match -> keys of the check."""
UNFIT = (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError)
"""What a template raises on a document that it does not fit."""
DEFAULT_PATTERN = r"#### (\-?[0-9\.\,]+)"
"""What its filter "regex" looks for if it is not told."""


class _Code:
    """The value of a key that names Python code."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """YAML's safe types, and `!function` as a value that is refused where it is used."""


_Loader.add_constructor("!function", lambda loader, node: _Code())


class TaskRows(Rows):
    """The documents of a task as rows in the native format.

    Args:
        path: The task's YAML file.
        split: Name of a split of its data set; "" for the one that it is measured on.

    Raises:
        DataError: the task asks for something that herl does not do as lm-evaluation-harness does.
    """

    def __init__(self, path: Path, split: str = "") -> None:
        self._path = path
        self._task = _read(path)
        self._check()
        self._jinja = jinja2.sandbox.ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True
        )
        self._pipelines = self._criteria()
        self._documents = self._data_set(split or self._measured())
        self.large = self._documents.large

    def __len__(self) -> int:
        return len(self._documents)

    def read(self, place: int) -> Row:
        """Returns one row. A document that a template does not fit is a `DataError` as its value."""
        row = self._documents[place]
        try:
            value = row.value if isinstance(row.value, DataError) else self._native(row.value)
        except DataError as error:
            value = DataError(f"{row.place}: {error}")
        return Row(place=row.place, number=row.number, value=value, part=row.part)

    def _native(self, document: Any) -> dict[str, Any]:
        if not isinstance(document, Mapping):
            raise DataError(f"expected an object, got {type(document).__name__}")
        described = self._filled("description", document) if self._task.get("description") else ""
        told = [{"role": "system", "content": described}] if described else []
        target = self._target(document)
        asked = {"role": "user", "content": str(self._filled("doc_to_text", document))}
        return {
            "messages": [*told, asked],
            "rubric": [
                {"id": name, "text": f"Gives the right answer ({name}).", "check": {**check, "texts": target}}
                for name, check in self._pipelines.items()
            ],
            "reference": target[0],
        }

    def _target(self, document: Mapping[str, Any]) -> list[str]:
        target = self._filled("doc_to_target", document)
        if isinstance(target, str) and target[:1] == "[" and target[-1:] == "]":
            try:
                target = ast.literal_eval(target)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                target = [target]
        found = [str(one) for one in (target if isinstance(target, list) else [target])]
        if not found or "" in found:
            raise DataError(f"doc_to_target: expected an answer that is not empty, got {found}")
        return found

    def _filled(self, key: str, document: Mapping[str, Any]) -> Any:
        """A document's column if the key names one, else the template filled with the document."""
        template = self._task[key]
        if template in document:
            return document[template]
        try:
            return self._jinja.from_string(template).render(**document)
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            AttributeError,
            LookupError,
            ArithmeticError,
        ) as error:
            raise DataError(f"{self._path}: {key}: {type(error).__name__}: {error}") from error

    # The task

    def _check(self) -> None:
        for key, value in self._task.items():
            if key not in READ | WITHOUT_MEANING:
                raise self._refused(key, f"a task without it.{did_you_mean(key, READ)}", value)
            if isinstance(value, _Code):
                raise self._refused(key, "a template, since no code of a task is run", value)
        for key in ("dataset_path", "doc_to_text", "doc_to_target"):
            if not isinstance(self._task.get(key), str):
                raise self._refused(key, "a text", self._task.get(key))
        for key, only in {"output_type": "generate_until", "num_fewshot": 0, "repeats": 1}.items():
            if (value := self._task.get(key)) not in (None, only):
                raise self._refused(key, f"{only}", value)
        kwargs = self._task.get("dataset_kwargs") or {}
        if set(kwargs) - {"data_files"}:
            raise self._refused("dataset_kwargs", "data_files alone", sorted(kwargs))

    def _criteria(self) -> dict[str, dict[str, Any]]:
        """The check of each filter pipeline, without the right answers."""
        compared = self._metric()
        generation = self._task.get("generation_kwargs") or {}
        until = generation.get("until", [self._task.get("fewshot_delimiter", "\n\n")])
        until = [until] if isinstance(until, str) else until or []
        pipelines = self._task.get("filter_list") or [{"name": "exact_match", "filter": []}]
        return {
            str(one["name"]): {
                "kind": "exact_match",
                "until": list(until),
                "steps": [self._step(step) for step in one["filter"]],
                **compared,
            }
            for one in pipelines
        }

    def _metric(self) -> dict[str, Any]:
        metrics = self._task.get("metric_list") or [{"metric": "exact_match"}]
        given = dict(metrics[0])
        name = given.pop("metric", None)
        if len(metrics) > 1 or name != "exact_match":
            raise self._refused("metric_list", "exact_match alone", [one.get("metric") for one in metrics])
        fixed = {"aggregation": "mean", "higher_is_better": True}
        for key, value in given.items():
            if key not in METRIC and (key not in fixed or value != fixed[key]):
                raise self._refused(f"metric_list.{key}", f"{fixed.get(key, 'no such argument')}", value)
        return {METRIC[key]: value for key, value in given.items() if key in METRIC and value is not None}

    def _step(self, step: Mapping[str, Any]) -> Any:
        arguments = dict(step)
        function = arguments.pop("function", None)
        if function == "regex" and set(arguments) <= {"regex_pattern", "group_select", "fallback"}:
            return {
                "find": arguments.get("regex_pattern", DEFAULT_PATTERN),
                "which": arguments.get("group_select", 0),
                "otherwise": arguments.get("fallback", "[invalid]"),
            }
        if function in ("take_first", "remove_whitespace", "lowercase", "uppercase") and not arguments:
            return function
        known = "regex, take_first, remove_whitespace, lowercase or uppercase"
        raise self._refused("filter_list", known, f"{function}{arguments or ''}")

    # Its data

    def _measured(self) -> str:
        for key in ("test_split", "validation_split"):
            if self._task.get(key):
                return str(self._task[key])
        raise self._refused("test_split", f"a split, here or as in {LM_EVAL}{self._path}:train", None)

    def _data_set(self, split: str) -> Rows:
        path, name = self._task["dataset_path"], self._task.get("dataset_name")
        files = (self._task.get("dataset_kwargs") or {}).get("data_files")
        if files is None:
            return Table(f"{path}:{split}", load_dataset(path, name, split=split))
        if path not in FILES:
            raise self._refused("dataset_path", f"{', '.join(FILES)} with data_files", path)
        found = files.get(split) if isinstance(files, Mapping) else files if split == "train" else None
        if not isinstance(found, str):
            raise self._refused(f"dataset_kwargs.data_files.{split}", "the path of one file", found)
        return read_rows(found)

    def _refused(self, key: str, expected: str, got: Any) -> DataError:
        shown = "!function" if isinstance(got, _Code) else "nothing" if got is None else f"{got!r:.80}"
        return DataError(f"{self._path}: {key}: expected {expected}, got {shown}")


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    """Reads a task with what it includes; its own keys win."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a subclass of SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: expected a task of lm-evaluation-harness: {error}") from error
    if not isinstance(found, dict) or depth > 8:
        raise DataError(
            f"{path}: expected the keys of a task, got {type(found).__name__}, {depth} files deep"
        )
    task = {str(key): value for key, value in found.items()}
    included = task.pop("include", None)
    for one in [included] if isinstance(included, str) else included or []:
        task = _read(path.parent / one, depth + 1) | task
    return task


def task_rows(path: str) -> Rows:
    """Returns the rows of lm_eval:TASK.yaml[:split].

    Raises:
        DataError: as `TaskRows`.
    """
    file, dot, split = path.removeprefix(LM_EVAL).rpartition(":")
    return TaskRows(Path(file), split) if dot else TaskRows(Path(split))
