"""The comments in conf/ are read as they were written, and every key and every file has one."""

import re
from collections import defaultdict

import pytest
import yaml

from herl.config import conf_dir
from herl.config.comments import HIDDEN, read_files

FILES = read_files()
OF_OTHERS = re.compile(r"\$\{[^}]+\}.*")
"""A value that comes from another key, which has the comment."""


def settings(node, entries, prefix):
    """The keys and values that YAML reads, down to what the file has on one line."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        if name in HIDDEN:
            continue
        if isinstance(value, dict) and not entries.get(key):
            yield from settings(value, entries, f"{key}.")
        else:
            yield key, value


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.path)
def test_each_file_is_read_as_yaml_reads_it(file):
    text = (conf_dir() / file.path.removeprefix("conf/")).read_text()
    lines, whole = text.splitlines(), yaml.safe_load(text) or {}
    entries = {entry.key: entry.value for entry in file.entries}
    first = next((name for name in whole if name not in HIDDEN), "")
    package = file.entries[0].key.removesuffix(first) if file.entries else ""
    read = {key: yaml.safe_load(value) for key, value in entries.items() if value}
    assert read == dict(settings(whole, entries, package))
    for entry in file.entries:
        line = lines[entry.line - 1]
        assert line.strip().startswith(f"{entry.key.rpartition('.')[2]}:"), (line, entry.key)
        assert "#" not in line or entry.comment == line.partition("  # ")[2].strip() or "# " in entry.value


def test_every_choice_says_what_it_is_and_every_verb_what_it_does():
    assert [file.path for file in FILES if not file.about and file.choice != "run"] == []


def test_every_setting_has_a_comment():
    """Somewhere: a file that only changes a value need not repeat it. A value taken from another key has none."""
    said = defaultdict(list)
    for file in FILES:
        for entry in file.entries:
            if entry.value:  # a mapping is explained by its keys
                said[entry.key].append(bool(entry.comment) or bool(OF_OTHERS.fullmatch(entry.value)))
    assert [key for key, comments in said.items() if not any(comments)] == []


def test_a_comment_stands_at_the_end_of_a_line_or_above_it(tmp_path):
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "mine.yaml").write_text(
        "# A judge.\n#   judge=mine\ndefaults:\n  - base\n  - override /bonus: none\n"
        "_target_: my.Judge\n\n# It is\n# low.\nlow: 1\npart:\n"
        "  name: 'a # b'  # a name\n  list: [1, 2]  # numbers\n  plain: x#y\n"
    )
    [file] = read_files(tmp_path)
    assert (file.group, file.choice, file.extends, file.chooses) == (
        "judge", "mine", ("base",), {"bonus": "none"},
    )  # fmt: skip
    assert file.about == "A judge.\n  judge=mine"
    assert [(entry.key, entry.value, entry.comment, entry.line) for entry in file.entries] == [
        ("judge.low", "1", "It is low.", 10),
        ("judge.part", "", "", 11),
        ("judge.part.name", "'a # b'", "a name", 12),
        ("judge.part.list", "[1, 2]", "numbers", 13),
        ("judge.part.plain", "x#y", "", 14),
    ]
