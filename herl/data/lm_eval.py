"""A task of lm-evaluation-harness as rows: its YAML file says what is asked, and when an answer is right.

    lm_eval:gsm8k.yaml:train  ->  a row for each document: messages, a criterion for each filter pipeline

Tasks of the type generate_until that exact_match scores are read, without examples (num_fewshot: 0): an
answer then earns what `lm_eval --apply_chat_template --num_fewshot 0` counts for the same text, stop texts
(`until`) included. A description becomes the system message, as there. How answers are sampled is herl's
setting, not the task's. Anything else in a task is an error that names the key, since a task without it
would be another one. So is Python code (`!function`), which is never run. Templates may have the few
operations that tasks use (`herl.data.template_sandbox`). A task does name what is read: files in
`data_files`, or a data set that is fetched from the Hub.
"""

from __future__ import annotations

import ast
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jinja2
import yaml
from pydantic import BaseModel, Field, ValidationError

from herl.data.rows import HUB, LM_EVAL, Row, Rows, Table, load_dataset, read_rows
from herl.data.template_sandbox import UNFIT, TemplateSandbox, filled
from herl.errors import DataError, did_you_mean

FILES = ("json", "csv", "parquet")
"""Names that `dataset_path` has for files of the user's."""
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
MAX_FILES, MAX_BYTES = 32, 2**20
"""Files of a task with what it includes, and bytes of each."""
DEFAULT_PATTERN = r"#### (\-?[0-9\.\,]+)"
"""What its filter "regex" looks for if it is not told."""
_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxother = 3, 80, 80


class _Code:
    """The value of a key that names Python code."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """YAML's safe types, and `!function` as a value that is refused where it is used.

    Merge keys (`<<`) are then values without a type, and refused: nested ones multiply.
    """

    def flatten_mapping(self, node: Any) -> None:
        """Merges nothing."""


_Loader.add_constructor("!function", lambda loader, node: _Code())


class _Pipeline(BaseModel, strict=True):
    name: str
    filter: list[dict[str, Any]] = Field(max_length=100)


class _Generation(BaseModel, strict=True):
    until: str | Annotated[list[str], Field(max_length=100)] | None = None


Text = Annotated[str | None, Field(description="a text")]


class _Task(BaseModel, strict=True):
    """The keys of a task that are more than one fixed value."""

    dataset_path: str = Field(description="a text")
    doc_to_text: str = Field(description="a text")
    doc_to_target: str = Field(description="a text")
    description: Text = None
    dataset_name: Text = None
    dataset_kwargs: dict[str, Any] | None = Field(None, description="data_files alone")
    validation_split: Text = None
    test_split: Text = None
    metric_list: list[dict[str, Any]] | None = Field(None, max_length=100, description="exact_match alone")
    filter_list: list[_Pipeline] | None = Field(None, max_length=100, description="name and filter of each")
    generation_kwargs: _Generation | None = Field(None, description="settings, with until as a text or texts")
    fewshot_delimiter: str = Field("\n\n", description="a text")


READ = {*_Task.model_fields, "task", "training_split", "output_type", "num_fewshot", "repeats"}


class TaskRows(Rows):
    """The documents of a task as rows in the native format.

    A document has several right answers if its doc_to_target gives a list: a column that is one, or a
    template whose result reads as one. herl decides that for each document, lm-evaluation-harness for all by
    the first, so the two differ on a data set with both.

    Args:
        path: The task's YAML file.
        split: Name of a split of its data set; "" for the one that it is measured on.

    Raises:
        DataError: the task asks for something that herl does not do as lm-evaluation-harness does.
    """

    def __init__(self, path: Path, split: str = "") -> None:
        self._path = path
        self._task = _read(path, [])
        self._check()
        self._templates: dict[str, jinja2.Template] = {}
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
        asked = {"role": "user", "content": str(self._column_or_filled("doc_to_text", document))}
        return {
            "messages": [*told, asked],
            "rubric": [
                {"id": name, "text": f"Gives the right answer ({name}).", "check": {**check, "texts": target}}
                for name, check in self._pipelines.items()
            ],
            "reference": target[0],
        }

    def _target(self, document: Mapping[str, Any]) -> list[str]:
        target = self._column_or_filled("doc_to_target", document)
        if self._task["doc_to_target"] not in document and target[:1] == "[" and target[-1:] == "]":
            try:
                target = ast.literal_eval(target)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                target = [target]
        if isinstance(target, int | float):  # a column of numbers, compared as its text
            target = str(target)
        found = target if isinstance(target, list) else [target]
        if not found or not all(isinstance(one, str) and one for one in found):
            shown = _SHOWN.repr(target)
            raise DataError(
                f"doc_to_target: expected a text that is not empty, or a list of such, got {shown}"
            )
        return found

    def _column_or_filled(self, key: str, document: Mapping[str, Any]) -> Any:
        """A document's column if the key names one, else the template filled with the document."""
        return document[self._task[key]] if self._task[key] in document else self._filled(key, document)

    def _filled(self, key: str, document: Mapping[str, Any]) -> str:
        try:
            if key not in self._templates:
                self._templates[key] = TemplateSandbox().made(self._task[key])
            return filled(self._templates[key], document)
        except UNFIT as error:
            raise DataError(f"{self._path}: {key}: {type(error).__name__}: {error}") from error

    # The task

    def _check(self) -> None:
        for key, value in self._task.items():
            if key not in READ | WITHOUT_MEANING:
                raise self._refused(key, f"a task without it.{did_you_mean(key, READ)}", value)
            if isinstance(value, _Code):
                raise self._refused(key, "a template, since no code of a task is run", value)
        try:
            self._read_task = _Task.model_validate(self._task)
        except ValidationError as error:
            raise self._misshapen(error) from error
        for key, only in {"output_type": "generate_until", "num_fewshot": 0, "repeats": 1}.items():
            if (value := self._task.get(key)) not in (None, only):
                raise self._refused(key, f"{only}", value)
        kwargs = self._read_task.dataset_kwargs or {}
        if set(kwargs) - {"data_files"}:
            raise self._refused("dataset_kwargs", "data_files alone", sorted(kwargs))

    def _criteria(self) -> dict[str, dict[str, Any]]:
        """The check of each filter pipeline, without the right answers."""
        compared = self._metric()
        task = self._read_task
        given = task.generation_kwargs
        until = given.until if given and "until" in given.model_fields_set else task.fewshot_delimiter
        pipelines = task.filter_list or [_Pipeline(name="exact_match", filter=[])]
        return {
            one.name: {
                "kind": "exact_match",
                "until": [until] if isinstance(until, str) else until or [],
                "steps": [self._step(step) for step in one.filter],
                **compared,
            }
            for one in pipelines
        }

    def _metric(self) -> dict[str, Any]:
        metrics = self._read_task.metric_list or [{"metric": "exact_match"}]
        given = dict(metrics[0])
        name = given.pop("metric", None)
        if len(metrics) > 1 or name != "exact_match":
            raise self._refused("metric_list", "exact_match alone", [one.get("metric") for one in metrics])
        fixed = {"aggregation": "mean", "higher_is_better": True}
        for key, value in given.items():
            if key not in METRIC and (key not in fixed or value != fixed[key]):
                raise self._refused(f"metric_list.{key}", str(fixed.get(key, "no such argument")), value)
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
        raise self._refused("filter_list", known, dict(step) if arguments else function)

    # Its data

    def _measured(self) -> str:
        for key in ("test_split", "validation_split"):
            if self._task.get(key):
                return str(self._task[key])
        raise self._refused("test_split", f"a split, here or as in {LM_EVAL}{self._path}:train", None)

    def _data_set(self, split: str) -> Rows:
        path, name = self._task["dataset_path"], self._task.get("dataset_name")
        files = (self._read_task.dataset_kwargs or {}).get("data_files")
        if files is None:
            return Table(f"{path}:{split}", load_dataset(path, name, split=split))
        if path not in FILES:
            raise self._refused("dataset_path", f"{', '.join(FILES)} with data_files", path)
        found = files.get(split) if isinstance(files, Mapping) else files if split == "train" else None
        if not isinstance(found, str) or found.startswith((HUB, LM_EVAL)):
            raise self._refused(f"dataset_kwargs.data_files.{split}", "the path of one file", found)
        return read_rows(found)

    def _misshapen(self, error: ValidationError) -> DataError:
        fault = error.errors(include_url=False)[0]
        key, *inner = fault["loc"]
        expected = _Task.model_fields[str(key)].description or ""
        expected = "at most 100 entries" if fault["type"] == "too_long" else expected
        place = ".".join(str(one) for one in (key, *inner) if one == key or isinstance(one, int))
        got = None if fault["type"] == "missing" and not inner else fault["input"]
        return self._refused(place, expected, got)

    def _refused(self, key: str, expected: str, got: Any) -> DataError:
        shown = "!function" if isinstance(got, _Code) else "nothing" if got is None else _SHOWN.repr(got)
        return DataError(f"{self._path}: {key}: expected {expected}, got {shown}")


def _read(path: Path, files: list[Path]) -> dict[str, Any]:
    """Reads a task with what it includes; its own keys win. `files` gets each path that is read."""
    files.append(path)
    if len(files) > MAX_FILES:
        raise DataError(f"{files[0]}: include: expected at most {MAX_FILES} files, got more")
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > MAX_BYTES):
            raise ValueError(f"no file of at most {MAX_BYTES} bytes")
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a subclass of SafeLoader
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: expected a task of lm-evaluation-harness: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected the keys of a task, got {type(found).__name__}")
    task = {str(key): value for key, value in found.items()}
    included = task.pop("include", None) or []
    included = [included] if isinstance(included, str) else included
    if not isinstance(included, list) or not all(isinstance(one, str) for one in included):
        raise DataError(f"{path}: include: expected a path or a list of paths, got {_SHOWN.repr(included)}")
    for one in included:
        task = _read(path.parent / one, files) | task
    return task


def task_rows(path: str) -> Rows:
    """Returns the rows of lm_eval:TASK.yaml[:split].

    Raises:
        DataError: as `TaskRows`.
    """
    file, dot, split = path.removeprefix(LM_EVAL).rpartition(":")
    return TaskRows(Path(file), split) if dot else TaskRows(Path(split))
