"""herl explain KEY, and the help of a verb: what the comments in conf/ say, on 80 columns.

herl explain judge                           a group: its choices
herl explain judge=llm                       a choice: its keys
herl explain rollout.attempts_per_prompt     a key: its meaning, its default, who else sets it
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence

from herl.config import aliases
from herl.config.comments import ConfFile, Entry, read_files
from herl.display.terminal import say
from herl.errors import ConfigError, did_you_mean

WIDTH = 80
COMMON = (
    "model.path",
    "data.train.path",
    "rollout.attempts_per_prompt",
    "rollout.attempt.max_new_tokens",
    "data.prompts_per_batch",
    "optimizer.lr",
    "module.updates_per_batch",
    "module.micro_batch_tokens",
    "trainer.max_epochs",
    "trainer.devices",
    "callbacks.answer_budget.answers",
    "seed",
)
"""Keys that most runs set, for the help of a verb."""
USE_BENCHMARKS = ("test", "improve")
"""Verbs with the group `benchmark`."""


def explain(arguments: Sequence[str]) -> None:
    """Prints what each argument means: a key, a group or a choice.

    Raises:
        ConfigError: there is no such key, group or choice.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        say("usage: herl explain KEY | GROUP | GROUP=CHOICE ...\n\nGroups:")
        _print(_table(*zip(*Book().groups_in_words(), strict=True)))
        return
    book = Book()
    for place, word in enumerate(arguments):
        if place:
            say("")
        _print(book.explained(word))


def verb_help(verb: str) -> None:
    """Prints a verb's usage, its keys, the groups with their choices, and the keys that most runs set."""
    _print(Book().of_verb(verb))


class Book:
    """All that the files in conf/ say."""

    def __init__(self) -> None:
        self.files = read_files()
        self.groups: dict[str, dict[str, ConfFile]] = {}
        for file in self.files:
            if file.group:
                self.groups.setdefault(file.group, {})[file.choice] = file
        self.verbs = {file.choice: file for file in self.files if not file.group}
        inner = [file.chooses.items() for file in self.files if file.group and not file.extends]
        self.chosen = dict(one for items in inner for one in items if one[0] in self.groups and "/" in one[0])
        self.chosen |= self._chosen(self.verbs["base"])
        self.places: dict[str, list[tuple[ConfFile, Entry]]] = {}
        for file in self.files:
            for entry in file.entries:
                self.places.setdefault(entry.key, []).append((file, entry))

    def explained(self, word: str) -> Iterator[str]:
        """Yields the lines about a key, a group or a choice.

        Raises:
            ConfigError: there is no such thing.
        """
        name, equals, choice = word.lstrip("+~").partition("=")
        read = [] if name in self.groups else list(aliases.explained(name))
        for line, _ in read:
            yield from _wrapped(line, "")
        if read and name not in self.places:
            for key in dict.fromkeys(key for _, key in read if key):
                yield from self._group(key) if key in self.groups else self._key(key)
            return
        group = name if name in self.groups else name.replace(".", "/")
        head, _, tail = name.rpartition(".")
        if equals and group in self.groups:
            yield from self._choice(group, choice)
        elif tail in self.groups.get(head, {}) and name not in self.places:  # callbacks.alarms
            yield from self._choice(head, tail)
        elif group in self.groups:
            yield from self._group(group)
        else:
            yield from self._key(self._found(name))

    def groups_in_words(self) -> Iterator[tuple[str, str]]:
        """Yields each group with its choices; the default has a star."""
        first = [group for group in self.verbs["base"].chooses if group in self.groups]
        for group in dict.fromkeys([*first, *self.chosen, *self.groups]):
            if group in self.groups:
                default = self.chosen.get(group, "").split(",")
                named = [f"{name}*" if name in default else name for name in self.groups[group]]
                yield group, ", ".join(named)

    def of_verb(self, verb: str) -> Iterator[str]:
        """Yields the help of a verb."""
        file = self.verbs[verb]
        yield from _wrapped(file.about, "")
        yield f"\nusage: herl {verb} [key=value ...] [group=choice ...] [Hydra options]"
        own = [entry for one in self._lineage(file) for entry in one.entries if "." not in entry.key]
        own = list({entry.key: entry for entry in own if entry.value or entry.comment}.values())
        if own:
            yield f"\nKeys of herl {verb}"
            yield from _table([_setting(one) for one in own], [one.comment for one in own])
        if self._runs_a_model(file):
            listed = dict(self.groups_in_words())
            if verb not in USE_BENCHMARKS:
                del listed["benchmark"]
            heading = "Groups, with their choices; * is the default"
            if verb == "fit":
                heading += ".\nName data and model, or an experiment"
                listed |= {name: listed[name].replace("*", "") for name in ("data", "model")}
            yield f"\n{heading}"
            yield from _table(*zip(*listed.items(), strict=True))
            yield "\nKeys that most runs set"
            common = [(key, *self._default(key)) for key in COMMON]
            yield from _table([f"{key}={value}" for key, value, _ in common], [said for _, _, said in common])
        yield ""
        options = (
            f"herl explain KEY, GROUP or GROUP=CHOICE says more. `herl {verb} ... --cfg job` prints the "
            "whole configuration, `-m key=1,2` runs a sweep, `--config-dir FOLDER` adds your "
            "components, and "
            f"`herl {verb} --hydra-help` lists Hydra's other options."
        )
        yield from _wrapped(options, "")

    def _runs_a_model(self, file: ConfFile) -> bool:
        return self.verbs["base"] in self._lineage(file)

    def _chosen(self, file: ConfFile) -> dict[str, str]:
        """The default choice of every group: those of base.yaml, and of the files that it chooses."""
        found: dict[str, str] = {}
        for group, choice in file.chooses.items():
            found[group] = choice
            if (chosen := self.groups.get(group, {}).get(choice)) is not None:
                found |= self._chosen(chosen)
        return found

    def _lineage(self, file: ConfFile) -> list[ConfFile]:
        """A file and those it extends, the file itself last."""
        siblings = self.groups.get(file.group) or self.verbs
        before = [one for name in file.extends if name in siblings for one in self._lineage(siblings[name])]
        return [*before, file]

    def _group(self, group: str) -> Iterator[str]:
        choices, default = self.groups[group], self.chosen.get(group, "")
        usual = f", {default} by default" if default else ""
        yield f"{group}=CHOICE: one of {len(choices)}{usual}"
        yield from _table(list(choices), [_first_sentence(file.about) for file in choices.values()])
        inner = [name for name in self.groups if name.startswith(f"{group}/")]
        yield from (f"There is a group inside: herl explain {name}" for name in inner)
        yield f"The keys of one: herl explain {group}={default or next(iter(choices))}"

    def _choice(self, group: str, choice: str) -> Iterator[str]:
        if choice not in self.groups[group]:
            known = self.groups[group]
            raise ConfigError(
                f"{group}={choice}: expected one of {', '.join(known)}.{did_you_mean(choice, known)}"
            )
        file = self.groups[group][choice]
        yield f"{group}={choice}  ({file.path})"
        yield from _wrapped(file.about, "  ")
        if file.chooses:
            yield from _wrapped(
                "It chooses " + ", ".join(f"{k}={v}" for k, v in file.chooses.items()) + ".", "  "
            )
        entries = {entry.key: entry for one in self._lineage(file) for entry in one.entries}
        shown = [entry for entry in entries.values() if entry.value]
        if shown:
            yield ""
            words = [entry.comment or self._comment(entry) for entry in shown]
            yield from _table([_setting(entry) for entry in shown], words)

    def _key(self, key: str) -> Iterator[str]:
        places = self._ordered(key)
        inner = [name for name in self.places if name.startswith(f"{key}.")]
        yield key
        comment = next((entry.comment for _, entry in places if entry.comment), "")
        if not comment and not inner:
            comment = self._comment(places[0][1])
        yield from _wrapped(comment, "  ")
        for file, entry in places:
            if entry.value:
                own = f": {entry.comment}" if entry.comment not in ("", comment) else ""
                value = "must be set" if entry.value == "???" else entry.value
                line = f"{value} {self._condition(file)} ({file.path}:{entry.line}){own}"
                yield from _wrapped(line, "  ")
        if inner:
            yield "  Its keys:"
            keys = [name for name in inner if any(entry.value for _, entry in self.places[name])]
            yield from _table(
                [f"{name}={self._default(name)[0]}" for name in keys],
                [self._default(name)[1] for name in keys],
            )

    def _found(self, key: str) -> str:
        """The full name of a key that may be given in part, such as lr or module.judge.mode.

        Raises:
            ConfigError: no key has that name, or several have.
        """
        if key in self.places:
            return key
        first, _, rest = key.removeprefix("module.").partition(".")
        if key.startswith("module.") and f"{first}.{rest}" in self.places:
            return f"{first}.{rest}"  # the module's parts are the groups of the same names
        ending = [name for name in self.places if name.endswith(f".{key}")]
        if len(ending) == 1:
            return ending[0]
        if ending:
            raise ConfigError(f"{key}: expected one key, got the end of {len(ending)}: {', '.join(ending)}")
        known = [*self.places, *self.groups, *{name.rpartition(".")[2] for name in self.places}]
        raise ConfigError(
            f"unknown key or group '{key}'.{did_you_mean(key, known)} `herl explain` lists the groups"
        )

    def _ordered(self, key: str) -> list[tuple[ConfFile, Entry]]:
        """Where a key is set: the default first, then other choices, then algorithms and experiments."""

        def rank(place: tuple[ConfFile, Entry]) -> int:
            presets = place[0].group in ("algorithm", "experiment")
            return 2 if presets else int(not self._is_default(place[0]))

        return sorted(self.places[key], key=rank)

    def _is_default(self, file: ConfFile) -> bool:
        default = self.groups.get(file.group, {}).get(self.chosen.get(file.group, ""))
        return not file.group or (default is not None and file in self._lineage(default))

    def _condition(self, file: ConfFile) -> str:
        """When a file's values hold."""
        if not file.group:
            return "by default" if file.choice in ("base", "run") else f"by default in herl {file.choice}"
        if self._is_default(file) and file.group not in ("algorithm", "experiment"):
            return "by default"
        usual = ", the default" if self.chosen.get(file.group) == file.choice else ""
        return f"with {file.group}={file.choice}{usual}"

    def _default(self, key: str) -> tuple[str, str]:
        """A key's default with its comment."""
        places = self._ordered(key)
        value = next((entry.value for _, entry in places if entry.value), "")
        comment = next((entry.comment for _, entry in places if entry.comment), "")
        return value, comment or self._comment(places[0][1])

    def _comment(self, entry: Entry) -> str:
        """What other files say about the key, or which key it takes its value from."""
        for _, other in self._ordered(entry.key):
            if other.comment:
                return other.comment
        if entry.value.startswith("${") and entry.value.endswith("}") and entry.value.count("$") == 1:
            return f"the same as {entry.value[2:-1]}"
        return ""


def _setting(entry: Entry) -> str:
    return f"{entry.key}={entry.value}" if entry.value else entry.key


def _first_sentence(text: str) -> str:
    whole = " ".join(itertools.takewhile(lambda line: not line.startswith("  "), text.splitlines())).rstrip(
        ":"
    )
    end = whole.find(". ")
    return whole if end < 0 else whole[: end + 1]


def _wrapped(text: str, indent: str) -> Iterator[str]:
    """Yields lines of at most 80 columns; lines that are indented, such as commands, stay whole."""
    paragraph: list[str] = []
    for line in [*text.splitlines(), "  "]:
        if line.startswith("  "):
            joined = " ".join(paragraph)
            yield from textwrap.wrap(
                joined, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
            )
            paragraph = []
            yield from [indent + line] if line.strip() else []
        else:
            paragraph.append(line)


def _table(names: Sequence[str], words: Sequence[str]) -> Iterator[str]:
    """Yields two columns; a name that is too long for the first has a line to itself."""
    width = min(max(map(len, names), default=0), 26)
    for name, said in zip(names, words, strict=True):
        gap = " " * (width + 4)
        lines = textwrap.wrap(said, WIDTH - len(gap), break_on_hyphens=False) or [""]
        if len(name) > width and said:
            yield f"  {name}"
        else:
            yield f"  {name:<{width}}  {lines.pop(0)}".rstrip()
        yield from (gap + line for line in lines)


def _print(lines: Iterator[str]) -> None:
    say("\n".join(lines))
