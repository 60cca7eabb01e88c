"""herl new FOLDER: a folder to start from. It runs at once, with the model that ships with herl."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from herl.display.terminal import say
from herl.errors import ConfigError
from herl.files import PART, whole_folder

USAGE = (
    "usage: herl new FOLDER\n\nWrites rows, a reward function with its test, a run and five commands into it."
)
FILES = {
    "rows.jsonl": "ten prompts, each with its rubric: put yours here",
    "heldout.jsonl": "four prompts that only measure",
    "reward.py": "the judge: a verdict for each criterion",
    "test_reward.py": "its test",
    "experiment/mine.yaml": "the run: model, data, judge and settings, with comments",
    "commands.sh": "lint, dry run, fit, inspect, export",
}


def new(arguments: Sequence[str]) -> None:
    """Writes the files, and prints what they are.

    Raises:
        ConfigError: there is not exactly one argument, or the folder is not empty.
    """
    if {"-h", "--help"} & set(arguments):
        say(USAGE)
        return
    if len(arguments) != 1:
        raise ConfigError(f"new: expected the name of a folder, got {' '.join(arguments) or 'nothing'}")
    folder = Path(arguments[0])
    if folder.exists() and (not folder.is_dir() or any(path.name != PART for path in folder.iterdir())):
        raise ConfigError(f"new: expected a new or empty folder, got '{folder}', which exists already")
    source = files("herl").joinpath("assets", "new")
    with as_file(source) as shipped, whole_folder(folder, last=("commands.sh",)) as part:
        for name in FILES:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(shipped / name, part / name)
    width = max(map(len, FILES))
    say(f"{folder}/")
    for name, about in FILES.items():
        say(f"  {name:<{width}}  {about}")
    say(f"\nTry it: bash {folder / 'commands.sh'}, or its commands one by one; a few minutes.")
