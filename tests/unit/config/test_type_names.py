from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest

from herl.config.type_names import described
from herl.types import Experience


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (bool, "true or false"),
        (Any, "a value"),
        (Optional[int], "a whole number or null"),  # noqa: UP045
        (int | float | None, "a number or null"),
        (
            Literal["append", "replace_worst", "replace_random"],
            "one of append, replace_worst, replace_random",
        ),
        (Literal["a", "b"] | None, "one of a, b, null"),
        (int | Literal["auto"], "a whole number or auto"),
        (Literal["warn", False] | str | None, "warn, false, text or null"),
        (Annotated[float, "x"], "a number"),
        (Sequence[str], "a list of texts"),
        (list[bool], "a list of values, each true or false"),
        (tuple[int, ...], "a list of whole numbers"),
        (tuple[int, float], "a list of 2 values: a whole number, a number"),
        (str | Sequence[str] | None, "text, a list of texts or null"),
        (dict, "a mapping"),
        (Mapping[str, int] | None, "a mapping or null"),
        (Callable[[int], int], "a function"),
        (Experience, "an Experience"),
        (Path, "a path"),
    ],
)
def test_types_are_described_in_words(hint, words):
    assert described(hint) == words
