"""Whole runs with an environment: ranks and a resume change nothing."""

import subprocess

import pytest

from tests.support.runs import CONTINUES_ELSEWHERE, HERL, SMALL, curves, environment, herl_here, summary

pytestmark = CONTINUES_ELSEWHERE
QUIZ = '''
from herl.environment import Environment, Reply

class Quiz(Environment):
    """Asks once more after each sentence."""

    async def step(self, conversation, answer):
        if conversation.turn == 2:
            return None
        return Reply([{"role": "user", "content": f"And the {conversation.task.id} {answer[-4:]}?"}])
'''
PLAYS = (
    "environment._target_=quiz.Quiz",
    "+environment.max_tokens=150",
    "rollout.attempt.stop=[.]",
    "validation.sampling.stop=[.]",
)
TWO_EPOCHS = ("trainer.limit_train_batches=2", "trainer.val_check_interval=2", "module.warmup_steps=12")
SHORT = [o for o in SMALL if "limit_train" not in o and "max_epochs" not in o]
NOISE = ("time/", "throughput/", "judge/", "update/mismatch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quiz")
    (folder / "quiz.py").write_text(QUIZ)
    return folder


def play(folder, name, *overrides, small=SMALL):
    """Runs herl fit in this process; returns its curves."""
    arguments = ("fit", *small, *PLAYS, *overrides, f"hydra.run.dir={folder}/{name}")
    done = herl_here(*arguments, cwd=folder, HERL_ALLOW_TARGETS="quiz")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return curves(folder / name)


def same(got, expected):
    tags = [tag for tag in expected if not tag.startswith(NOISE)]
    assert len(tags) > 40
    for tag in tags:
        assert got[tag] == pytest.approx(expected[tag], rel=1e-4, abs=1e-6), tag


@pytest.fixture(scope="module")
def alone(folder):
    return play(folder, "alone")


def test_two_ranks_play_the_episodes_of_one(folder, alone):
    small = [one for one in SMALL if not one.startswith("experiment=")]
    command = [*HERL, "fit", "experiment=two_ranks", *small, *PLAYS, f"hydra.run.dir={folder}/two"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(HERL_ALLOW_TARGETS="quiz"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert summary(folder / "two")["processes"] == 2
    same(curves(folder / "two"), alone)
    assert sum(alone["train/reward"]) > 0
    assert sum(alone["revision/reward"]) > 0


def test_a_run_that_stops_between_epochs_goes_on_as_if_it_had_not(folder):
    whole = play(folder, "whole", *TWO_EPOCHS, "trainer.max_epochs=2", small=SHORT)
    play(folder, "half", *TWO_EPOCHS, "trainer.max_epochs=1", small=SHORT)
    resumed = f"resume={folder}/half/checkpoints/last.ckpt"
    rest = play(folder, "rest", *TWO_EPOCHS, "trainer.max_epochs=2", resumed, small=SHORT)
    for tag in ("train/reward", "revision/reward", "update/loss", "update/grad_norm"):
        assert rest[tag] == whole[tag][-2:], tag
