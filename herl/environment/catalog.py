"""The tool of `experiment=lookup`: a shop's catalog with invented figures, which no model can know."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

UNITS = {
    "weight": "kg",
    "width": "cm",
    "price": "euros",
    "stock": "pieces",
    "power": "watts",
    "warranty": "months",
}


def lookup(name: str, attribute: str) -> str:
    """Looks up a figure in the catalog.

    Args:
        name: Name of the product.
        attribute: weight, width, price, stock, power or warranty.

    Returns:
        The figure with its unit, such as "42 kg", or what the catalog does not have.
    """
    row = _rows().get(name)
    if row is None:
        return f"No {name}."
    if attribute not in UNITS:
        return f"No {attribute}. Known: {', '.join(UNITS)}."
    return f"{row[attribute]} {UNITS[attribute]}"


@cache
def _rows() -> dict[str, dict[str, str]]:
    text = files("herl").joinpath("assets", "catalog.csv").read_text(encoding="utf-8")
    return {row["name"]: row for row in csv.DictReader(text.splitlines())}
