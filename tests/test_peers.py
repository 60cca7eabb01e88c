"""The table against peers: each cell is one of four words, and each "yes" of herl names a test that exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "conf" / "PEERS.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TABLE.splitlines()
    if line.startswith("| ") and not line.startswith("| |")
]
WORDS = {"yes", "no", "out of scope", "not found"}


@cache
def named_in(file):
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_says_one_of_four_words_of_each():
    assert len(ROWS) > 40
    for name, herl, *peers in ROWS:
        assert len(peers) == 4, name
        assert set(peers) <= WORDS, name
        assert herl in WORDS - {"yes", "not found"} or herl.startswith("yes: `"), name
    assert len({row[0] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row[1].startswith("yes")], ids=lambda row: row[0][:30]
)
def test_every_yes_of_herl_names_a_test(row):
    file, name = re.fullmatch(r"yes: `([\w/]+\.py)::(test_\w+)`", row[1]).groups()
    assert name in named_in(file)


def test_versions_and_what_is_out_of_scope_are_said():
    for version in ("TRL 1.16.0", "verl 0.9.1", "prime-rl 0.8.0", "OpenRLHF 0.11.2"):
        assert version in TABLE
    assert [row[0] for row in ROWS if row[1] == "out of scope"] == ["Context parallel training"]
