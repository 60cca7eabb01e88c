"""How a revision prompt lists criteria. Pure functions, chosen by `hindsight.style` and its siblings.

A small model follows plain sentences better than bullets with weights: SmolLM2-135M meets .29 to .34 of the
criteria that it reads as sentences, and .15 of those that it reads as weighted bullets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from herl.types import Criterion

Style = Literal["bullets", "sentences"]
"""One line per criterion with a dash, or one sentence after the other."""


def listed(criteria: Sequence[Criterion], style: Style = "bullets", weights: bool = True) -> str:
    """Returns the wishes of criteria as text; "- nothing" or "Nothing." if there are no criteria.

    Args:
        criteria: In the order in which they are shown.
        style: `bullets` or `sentences`.
        weights: Whether the absolute weight follows each wish, in parentheses.

    >>> fish = Criterion(id="food", text="Says that it eats fish.", weight=3.0)
    >>> zoo = Criterion(id="advert", text="Advertises a zoo", weight=-2.0, undesirable=True)
    >>> print(listed([fish, zoo]))
    - Says that it eats fish. (3)
    - Avoid: Advertises a zoo (2)
    >>> print(listed([fish, zoo], "sentences", weights=False))
    Says that it eats fish. Avoid: Advertises a zoo.
    >>> print(listed([fish, zoo], "sentences"))
    Says that it eats fish (3). Avoid: Advertises a zoo (2).
    """
    if style == "bullets":
        return "\n".join(f"- {c.wish}{_weight(c, weights)}" for c in criteria) or "- nothing"
    return " ".join(_sentence(c.wish.strip(), _weight(c, weights)) for c in criteria) or "Nothing."


def heaviest(criteria: Sequence[Criterion], limit: int | None) -> tuple[Criterion, ...]:
    """Returns the criteria with the largest absolute weights, in their own order.

    Args:
        criteria: In the order of the rubric, which also breaks ties.
        limit: Maximum number of criteria; None for all.

    >>> weights = {"a": 2.0, "b": 1.0, "c": -3.0}
    >>> rubric = [Criterion(id=name, text=name, weight=weight) for name, weight in weights.items()]
    >>> [criterion.id for criterion in heaviest(rubric, 2)]
    ['a', 'c']
    """
    if limit is None:
        return tuple(criteria)
    chosen = sorted(range(len(criteria)), key=lambda place: -abs(criteria[place].weight))[:limit]
    return tuple(criteria[place] for place in sorted(chosen))


def _weight(criterion: Criterion, shown: bool) -> str:
    return f" ({abs(criterion.weight):g})" if shown else ""


def _sentence(wish: str, weight: str) -> str:
    """The wish with its weight before the mark that ends it."""
    end = wish[-1:] if wish[-1:] in ".!?" else ""
    return f"{wish.removesuffix(end)}{weight}{end or '.'}"
