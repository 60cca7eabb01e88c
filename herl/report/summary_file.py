"""The parts of summary.json that reports read, and their types. Other parts are free."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from herl.errors import DataError


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class Row(_Part):
    """A result, as `herl.evaluation.intervals.Row`."""

    name: str
    mean: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    count: int
    revisions: int = 0
    judge: str = ""


class Prompts(_Part):
    """The prompts of a validation with their rubrics, as `herl.evaluation.intervals.prompt_rewards`."""

    fingerprint: str
    rewards: list[FiniteFloat | None] | None = None


class Validation(_Part):
    """A validation of a training run."""

    answers_sampled: int
    rows: list[Row]
    heldout: Prompts | None = None


class Judge(_Part):
    """What judging cost."""

    calls: FiniteFloat = 0
    tokens: FiniteFloat = 0
    cost: FiniteFloat = 0
    cache_hits: FiniteFloat = 0
    abstained: dict[str, int] = {}


class Summary(_Part):
    """summary.json."""

    experiment: str | None = None
    algorithm: str | None = None
    seed: int | str | None = None
    answers_sampled: int = 0
    revisions_sampled: int | None = None
    optimizer_steps: int | None = None
    """None if this was no training run."""
    heldout_reward_before: FiniteFloat | None = None
    heldout_reward_after: FiniteFloat | None = None
    heldout_reward: FiniteFloat | None = None
    heldout_reward_best: FiniteFloat | None = None
    """Of the checkpoint that is kept; None if none is kept for this reward."""
    heldout_answers: int = 0
    stopped: str | None = None
    alarms: dict[str, int] = {}
    judge: Judge = Judge()
    seconds: dict[str, FiniteFloat] = {}
    validations: list[Validation] = []
    results: list[Row] = []
    heldout: list[Prompts] = Field(default=[])
    """The prompts of an evaluation: one entry for each number of revisions, in order."""


_SUMMARY = TypeAdapter(Summary)


def parsed(text: bytes, place: str) -> Summary:
    """Returns the contents of a summary.json.

    Args:
        text: The file's content.
        place: The file, for messages.

    Raises:
        DataError: it is not JSON, or a part has another type; names the file and the part.
    """
    try:
        return _SUMMARY.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        got = "" if first["type"] == "json_invalid" else f", got {first['input']!r:.60}"
        raise DataError(
            f"{place}: expected the summary that a run writes; {field}: {first['msg']}{got}"
        ) from error
