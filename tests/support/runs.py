"""Runs `herl fit` in real processes and reads back what it logged."""

import json
import os
import subprocess
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMALL = (
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=5",
    "trainer.limit_val_batches=1",
    "trainer.val_check_interval=5",
    "data.prompts_per_batch=7",  # uneven shares for two ranks, and for four
    "rollout.attempts_per_prompt=4",
    "rollout.attempt.max_new_tokens=24",
    "module.updates_per_batch=2",
    "module.schedule=constant",  # a decaying one depends on where the run would end
    # Adam's first step is the sign of the gradient, even where that is mere rounding: damp it
    "+optimizer.eps=1e-6",
)
HERL = (sys.executable, "-m", "herl")


def environment(**changes):
    """This process's environment for a run with one thread per process."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return inherited | {"OMP_NUM_THREADS": "1"} | changes


def fit(folder, *overrides, small=SMALL, timeout=300):
    """Runs herl fit in a folder; returns its curves."""
    command = [*HERL, "fit", *small, *overrides, f"hydra.run.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return curves(folder)


def curves(folder):
    """The values of every TensorBoard curve of a run, in order."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def summary(folder):
    return json.loads((folder / "summary.json").read_text())
