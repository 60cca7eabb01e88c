"""The commands in the README and in the guides are ones that herl takes.

A command that would train, or needs a GPU, a network or a run, is composed and its settings are checked, as herl
does before it loads a model. `explain` and `--help` run. What a command does then is tested elsewhere: training by
test_cli.py and test_experiments.py, `herl new` with its five commands by test_new_folder.py.
"""

import importlib
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from herl.cli.explain import explain, verb_help
from herl.cli.fetch import THINGS
from herl.cli.main import VERBS, WITHOUT_HYDRA
from herl.cli.overrides import VALUED, for_hydra, lacking
from herl.config import conf_dir
from herl.config.check import check
from herl.environment.tools import ToolEnvironment
from herl.testing import check_environment, make_task

ROOT = Path(__file__).parents[2]
GUIDES = [
    "README.md", "conf/README.md", "herl/README.md", "herl/data/README.md", "herl/judge/README.md", "herl/callbacks/README.md",
    "herl/models/README.md", "herl/environment/README.md", "tools/README.md",
]  # fmt: skip
CONFIG_DIRS = {"my_conf": ROOT / "tests" / "plugin" / "conf", ".": ROOT / "herl" / "assets" / "new"}
"""Folders that stand for those of --config-dir."""


def commands_in(text):
    """All commands in shell blocks and in code spans, without comments and line breaks."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    lines = blocks.replace("\\\n", " ").splitlines()
    spans = re.findall(r"`([^`\n]*\bherl [^`\n]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for line in dict.fromkeys([*lines, *spans]):
        words = shlex.split(line, comments=True)
        if words:
            yield words


def arguments_of(words):
    """What follows herl in a command, or in the part of it after a pipe; None if it does not call herl."""
    for place, word in enumerate(words):
        before = words[:place]
        starts = all("=" in one for one in before) or before[-1] in ("|", "-m")
        if word == "herl" and starts and words[place + 1 :]:
            return words[place + 1 :]
    return None


def a_run(folder):
    """Just enough of a run's folder for run=."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save([], folder / ".hydra" / "overrides.yaml")
    OmegaConf.save({"hydra": {"runtime": {"config_sources": []}}}, folder / ".hydra" / "hydra.yaml")


def compose_and_check(verb, arguments):
    """Composes the configuration of a command; checks it unless the command leaves something out."""
    whole = not any("..." in word and not word.startswith("run") for word in arguments)
    for word in arguments:
        if word.startswith("run="):
            a_run(Path(word.removeprefix("run=")))
    if verb == "fit" and "..." not in arguments:
        assert not lacking(for_hydra(verb, arguments)), "herl fit would ask for data and a model"
    words = for_hydra(verb, [word for word in arguments if "..." not in word or word.startswith("run")])
    overrides, folders = [], []
    sweeps = "-m" in words
    while words:
        word = words.pop(0)
        if word in VALUED:
            value = words.pop(0)
            folders += [CONFIG_DIRS[value]] if word == "--config-dir" else []
        elif not word.startswith("-") and not word.startswith("hydra."):
            overrides.append(word.partition(",")[0] if sweeps else word)
    path = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(verb, [*path, "++output_dir=out", *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    if whole:
        check(config)


def tried(arguments):
    verb = arguments[0]
    if not arguments[1:]:
        assert verb in VERBS
    elif verb == "explain":
        explain([word for word in arguments[1:] if word.islower()])  # not KEY
    elif verb == "fetch":
        assert set("|".join(arguments[1:]).split("|")) <= set(THINGS)
    elif verb in WITHOUT_HYDRA or verb in ("--help", "-h", "VERB"):
        assert verb != "new" or len(arguments) == 2
    elif {"--help", "-h"} & set(arguments):
        verb_help(verb)
    else:
        assert verb in VERBS
        compose_and_check(verb, arguments[1:])


def with_modules_of(guide, folder, monkeypatch):
    """Writes the modules that a guide shows, so that they can be imported; returns their names."""
    found = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", (ROOT / guide).read_text(), flags=re.DOTALL)
    for name, code in found:
        (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    return [name for name, _ in found]


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_is_one_that_herl_takes(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERL_ALLOW_TARGETS", "my_plugin,reward,my_tools,my_game")
    monkeypatch.syspath_prepend(ROOT / "tests" / "plugin")
    with_modules_of("herl/environment/README.md", tmp_path, monkeypatch)
    mistakes = []
    for words in commands_in((ROOT / guide).read_text()):
        if words[0].startswith("tools/"):
            assert (ROOT / words[0]).exists(), words
        if arguments := arguments_of(words):
            try:
                tried(arguments)
            except Exception as error:
                mistakes.append(f"{shlex.join(words)}\n    {type(error).__name__}: {error}")
    assert not mistakes, "\n".join(mistakes)


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_is_short_and_its_links_lead_somewhere(guide):
    text = (ROOT / guide).read_text()
    assert len(text.splitlines()) <= 120
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or (ROOT / guide).parent.joinpath(target).exists(), target


def test_every_guide_is_tested():
    there = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("README.md")
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    }
    assert there == set(GUIDES)


def test_every_tool_is_in_the_guide_to_them():
    guide = (ROOT / "tools" / "README.md").read_text()
    tools = {
        path.name for path in (ROOT / "tools").iterdir() if path.name not in ("README.md", "__pycache__")
    }
    assert {name for name in tools if f"tools/{name}" not in guide} == set()


def test_the_function_in_the_guide_to_judges_works():
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "herl/judge/README.md").read_text(), flags=re.DOTALL)
    names = {}
    exec(code, names)
    assert names["reward"](None, "It eats fish.") == {"food": True, "length": True}


def test_the_environments_in_their_guide_work(tmp_path, monkeypatch):
    names = with_modules_of("herl/environment/README.md", tmp_path, monkeypatch)
    assert names == ["my_tools", "my_game"]
    monkeypatch.setenv("HERL_ALLOW_TARGETS", ",".join(names))
    game, otter = importlib.import_module("my_game"), {"table": {"otter": "ID-7"}, "number": "42"}
    task = replace(make_task(), meta=otter)
    replies = {text: check_environment(game.Guess(), task, text) for text in ("7", "50", "Hm.", "42")}
    assert {text: [one["content"] for one in reply] for text, reply in replies.items()} == {
        "7": ["Higher."], "50": ["Lower."], "Hm.": ["That is no number."], "42": [],
    }  # fmt: skip
    call = '<tool_call>{"name": "lookup", "arguments": {"animal": "otter"}}</tool_call>'
    [reply] = check_environment(ToolEnvironment(["my_tools.lookup"]), task, call)
    assert reply["content"] == "ID-7"
