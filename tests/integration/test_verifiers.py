"""herl fit with an environment of the package `verifiers`: a tool that the tiny model calls."""

import json
import subprocess

import pytest

from herl.environment.catalog import lookup
from tests.support.runs import CONTINUES_ELSEWHERE, HERL, curves, environment, fit_here, herl_here, summary
from tests.support.verifiers_rooms import CATALOG

pytest.importorskip("verifiers")
pytestmark = CONTINUES_ELSEWHERE
USED = (
    "data=verifiers",
    "data.name=herl-catalog",
    "environment=verifiers",
    "judge=verifiers",
    "model=tiny_tools",
)
SMALL = (
    *USED,
    "environment.format=hermes",
    "environment.max_tokens=192",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "data.prompts_per_batch=6",
    "rollout.attempts_per_prompt=6",
    "rollout.attempt.max_new_tokens=64",
)

TINY = (
    *(one for one in SMALL if not one.startswith(("trainer.max_epochs", "data.prompts", "rollout.attempt"))),
    "data.prompts_per_batch=5",  # uneven shares for two ranks
    "rollout.attempts_per_prompt=4",
    "rollout.attempt.max_new_tokens=48",
    "trainer.val_check_interval=2",
    "module.schedule=constant",
    "+optimizer.eps=1e-6",
)
"""Runs that are compared."""
NOISE = ("time/", "throughput/", "judge/", "update/mismatch", "progress/seconds")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    (tmp_path / "herl_catalog.py").write_text(CATALOG)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_run_plays_the_environments_episodes_and_learns_from_its_rewards(installed, monkeypatch):
    monkeypatch.setenv("HERL_ALLOW_TARGETS", "herl_catalog")
    found = fit_here(installed, small=SMALL)
    records = [
        json.loads(line)
        for path in sorted((installed / "records").glob("answers-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    called = [one for one in records if one.get("turns")]
    assert 4 <= len(called) < len(records)
    for one in records:
        scores = {verdict["criterion_id"]: verdict["score"] for verdict in one["verdicts"]}
        calls = [call for turn in one.get("turns", ()) for call in turn["calls"]]
        for turn in one.get("turns", ()):
            [call], [reply] = turn["calls"], turn["reply"]
            if not call["error"]:
                assert reply["content"] == lookup(**json.loads(call["arguments"]))
        assert scores["brevity"] == max(0.0, 1 - len(one["text"].split()) / 20)
        assert scores["looked_it_up"] <= len(calls)
        weighted = scores["looked_it_up"] + 3 * scores["tells_it"] + 0.5 * scores["brevity"]
        assert one["reward"] == pytest.approx(weighted / 4.5)
    assert {one["verdicts"][0]["score"] for one in records} == {0.0, 1.0}
    assert {one["origin"] for one in called} == {"policy", "hindsight"}
    assert found["progress/optimizer_steps"][-1] > 0
    assert {
        "train_criterion/looked_it_up",
        "train_criterion/tells_it",
        "train_criterion/brevity",
    } <= found.keys()
    assert "train_criterion/num_turns" not in found
    assert found["episodes/failed"] == [0.0, 0.0]


def test_an_environment_of_a_stranger_is_not_imported(installed, monkeypatch):
    monkeypatch.delenv("HERL_ALLOW_TARGETS", raising=False)
    (installed / "herl_stranger.py").write_text("raise SystemExit('imported')")
    used = [one.replace("herl-catalog", "herl-stranger") for one in USED]
    done = herl_here("lint", *used, f"hydra.run.dir={installed}", cwd=installed)
    assert done.returncode == 2
    assert "export HERL_ALLOW_TARGETS=herl_stranger" in done.stderr


def test_two_ranks_play_and_judge_the_episodes_of_one(installed, monkeypatch):
    """An episode's rewards are kept by the process that played it: the one that judges its answer."""
    monkeypatch.setenv("HERL_ALLOW_TARGETS", "herl_catalog")
    one = (*TINY, "trainer.max_epochs=1")
    (installed / "alone").mkdir()
    alone = fit_here(installed / "alone", small=one)
    command = [*HERL, "fit", *one, "strategy=ddp", "trainer.devices=2", f"hydra.run.dir={installed}/two"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment(), cwd=installed
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert summary(installed / "two")["processes"] == 2
    both = curves(installed / "two")
    tags = [tag for tag in alone if not tag.startswith(NOISE)]
    assert len(tags) > 40
    for tag in tags:
        assert both[tag] == pytest.approx(alone[tag], rel=1e-4, abs=1e-6), tag
    assert sum(alone["episodes/turns"]) > len(alone["episodes/turns"])


def test_a_run_that_stops_between_epochs_goes_on_as_if_it_had_not(installed, monkeypatch):
    monkeypatch.setenv("HERL_ALLOW_TARGETS", "herl_catalog")

    def play(name, *overrides):
        folder = installed / name
        folder.mkdir()
        one_batch = ("trainer.limit_train_batches=1", "trainer.val_check_interval=1")
        return fit_here(folder, *one_batch, *overrides, small=TINY)

    whole = play("whole", "trainer.max_epochs=2")
    play("half", "trainer.max_epochs=1")
    rest = play("rest", "trainer.max_epochs=2", f"resume={installed}/half/checkpoints/last.ckpt")
    for tag in ("train/reward", "revision/reward", "episodes/calls", "update/loss", "update/grad_norm"):
        assert rest[tag] == whole[tag][1:], tag
