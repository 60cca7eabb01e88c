"""The tool of experiment=lookup."""

from herl.data.catalog import FACTS, products
from herl.environment.catalog import lookup


def test_every_figure_is_found_with_its_unit_and_what_is_missing_is_said():
    for product in products():
        found = {attribute: lookup(product.name, attribute).split() for attribute in FACTS}
        assert {attribute: figure for attribute, (figure, _) in found.items()} == product.values
    assert lookup(product.name, "weight").endswith(" kg")
    assert lookup("Nobody", "weight") == "No Nobody."
    assert lookup(product.name, "color").startswith("No color. Known: weight, width, price")
