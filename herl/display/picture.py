"""Text in pictures. matplotlib reads $...$ as a formula, and fails if it cannot; herl draws no formulas."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from herl.prompt_text import visible


@contextmanager
def literal_text() -> Iterator[None]:
    """Makes and draws figures whose texts are shown literally; a character without a glyph is a box."""
    from matplotlib import rc_context  # heavy

    with rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def label(text: str, longest: int) -> str:
    """Returns a text of a row or a judge as a label of one line, of at most `longest` characters."""
    return " ".join(visible(text[:longest]).split())[:longest]
