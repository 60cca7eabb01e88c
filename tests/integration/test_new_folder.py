"""The commands in a folder of `herl new` run as they are written there, here with fewer answers."""

import runpy
import shlex
import sys

import pytest

from tests.support.runs import CONTINUES_ELSEWHERE, herl_here, summary

pytestmark = CONTINUES_ELSEWHERE
SMALL = (
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "data.prompts_per_batch=2",
    "rollout.attempts_per_prompt=4",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("new") / "mine"
    assert herl_here("new", place, cwd=place.parent).returncode == 0
    return place


@pytest.fixture(autouse=True)
def forget_the_module():
    yield
    sys.modules.pop("reward", None)


def test_the_reward_passes_its_own_tests(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    runpy.run_path("test_reward.py", run_name="__main__")
    assert capsys.readouterr().out.count("passed") == 4


def test_the_five_commands_run(folder):
    script = (folder / "commands.sh").read_text().splitlines()
    [allowed] = [line.split()[1].partition("=") for line in script if line.startswith("export ")]
    commands = [shlex.split(line, comments=True)[1:] for line in script if line.startswith("herl ")]
    assert [command[0] for command in commands] == ["lint", "fit", "fit", "inspect", "export"]
    said = []
    for command in commands:
        small = SMALL if command[0] == "fit" else ()
        done = herl_here(*command, *small, cwd=folder, **{allowed[0]: allowed[2]})
        assert done.returncode == 0, (command, done.stderr)
        said.append(done.stdout)
    assert "no findings" in said[0]
    assert "Describe the" in said[1], "the dry run shows prompts"
    assert summary(folder / "runs" / "first")["optimizer_steps"] > 0
    assert (folder / "my_model" / "config.json").is_file()
