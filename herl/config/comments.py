"""Reads what the files in conf/ say: each key's default, its comment, and the line it stands on.

`herl explain` and `herl VERB --help` print this, so that a comment in YAML is the only description of a key.
A comment ends the key's line, or stands above the key; the lines at the top of a file describe the file.
Nothing is composed here: that would take Hydra and most of a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from herl.config import conf_dir

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The same results, ten times as fast where PyYAML was built with libyaml."""
HIDDEN = ("defaults", "hydra", "_target_", "_partial_")
"""Keys that are not settings of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One key in one file.

    Args:
        key: Dotted name, as on the command line.
        value: Its value in YAML, on one line; "" for a mapping, whose keys are entries too.
        comment: What the file says about it; "" if nothing.
        line: Line number in the file, from 1.
    """

    key: str
    value: str
    comment: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfFile:
    """One file in conf/.

    Args:
        group: Config group such as `judge/chat`; "" for a verb and for files that are parts of one.
        choice: Name of the file without its ending.
        about: The comment at its top; "" if it has no comment.
        extends: Files of the same group that it starts from.
        chooses: Group -> choice, from its defaults list.
        entries: Its keys, in order.
    """

    group: str
    choice: str
    about: str
    extends: tuple[str, ...]
    chooses: dict[str, str]
    entries: tuple[Entry, ...]

    @property
    def path(self) -> str:
        """Returns its path, as in the repository."""
        return f"conf/{self.group}/{self.choice}.yaml" if self.group else f"conf/{self.choice}.yaml"


def read_files(folder: Path | None = None) -> list[ConfFile]:
    """Reads all YAML files below a folder, which is the shipped configuration by default."""
    root = folder or conf_dir()
    return [_read(path, root) for path in sorted(root.rglob("*.yaml"))]


def _read(path: Path, root: Path) -> ConfFile:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    group = path.relative_to(root).parent.as_posix().removeprefix(".")
    package, top = group.replace("/", "."), []
    for line in lines:
        if found := re.match(r"# @package (\S+)", line):
            package = found[1].replace("_global_", "")
        elif line.startswith("#"):
            top.append(line[1:].removeprefix(" ").rstrip())
        else:
            break
    lines_at_top = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    loader = LOADER(text)
    try:
        node = loader.get_single_node()
        listed = loader.construct_document(node).get("defaults", []) if node else []
    finally:
        loader.dispose()
    prefix = f"{package}." if package else ""
    return ConfFile(
        group=group,
        choice=path.stem,
        about="\n".join(top),
        extends=tuple(one for one in listed if isinstance(one, str) and one != "_self_" and "@" not in one),
        chooses={
            name: choice for one in listed if isinstance(one, dict) for name, choice in _chosen(one, group)
        },
        entries=tuple(_entries(node, prefix, lines, lines_at_top)) if node else (),
    )


def _chosen(item: dict[str, object], group: str) -> Iterator[tuple[str, str]]:
    """Yields the group and choice of an item such as `override /judge: llm`."""
    for name, choice in item.items():
        bare = name.removeprefix("override ")
        full = bare[1:] if bare.startswith("/") else f"{group}/{bare}".lstrip("/")
        yield full, ",".join(map(str, choice)) if isinstance(choice, list) else str(choice)


def _entries(node: yaml.Node, prefix: str, lines: list[str], start: int) -> Iterator[Entry]:
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        if name.value in HIDDEN:
            continue
        row = name.start_mark.line
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style
        end = name.end_mark if nested else value.end_mark
        text = "" if nested else lines[row][value.start_mark.column : value.end_mark.column]
        rest = lines[row][end.column :].partition("#")[2]
        yield Entry(
            key=prefix + name.value,
            value=text,
            comment=rest.strip() or _above(lines, row, start),
            line=row + 1,
        )
        if nested:
            yield from _entries(value, f"{prefix}{name.value}.", lines, start)


def _above(lines: list[str], row: int, start: int) -> str:
    """Returns the comment lines directly above a row, without those at the top of the file."""
    first = row
    while first > start and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(line.strip("# ") for line in lines[first:row])
