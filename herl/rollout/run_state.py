"""What a run remembers over a restart: its counts, its time, and the state of its components.

A checkpoint carries it under "herl", beside the weights and what Lightning keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herl.clock import PhaseClock
from herl.errors import ConfigError
from herl.rollout.render import reading_sample
from herl.rollout.stages import Stages

GATE = "HindsightGate"
"""In version 0.1 the hindsight gate was a callback, and Lightning kept its state under this name."""


def run_state(stages: Stages, counts: Mapping[str, int], clock: PhaseClock) -> dict[str, Any]:
    """Returns what a checkpoint must hold for a resumed run to go on as if it had not stopped."""
    return {
        "counts": dict(counts),
        "judge": stages.judge_runner.state_dict(),
        "replay": stages.replay.state_dict(),
        "hindsight": stages.hindsight.state_dict(),
        "seconds": dict(clock.seconds),
        "prompt": reading_sample(stages.tokenizer),
    }


def saved_state(checkpoint: dict[str, Any], stages: Stages, model: str) -> dict[str, Any]:
    """Returns what `run_state` put into a checkpoint, also into one of version 0.1.

    Args:
        checkpoint: As Lightning loaded it.
        stages: The components of the run that goes on.
        model: The name of its model, for errors.

    Raises:
        ConfigError: the tokenizer or its chat template is another, or herl did not write the checkpoint.
    """
    if "herl" not in checkpoint:
        raise ConfigError("expected a checkpoint written by herl fit, got another program's")
    state = dict(checkpoint["herl"])
    if state["prompt"] != reading_sample(stages.tokenizer):
        raise ConfigError(
            f"model: expected the tokenizer and chat template of the checkpoint, got others with {model}"
        )
    state.setdefault("replay", state.get("memory", {}))
    # Out of the checkpoint: Lightning would ask for the callback.
    gate = checkpoint.get("callbacks", {}).pop(GATE, {})
    state.setdefault("hindsight", gate)
    return state


def restore(stages: Stages, clock: PhaseClock, state: Mapping[str, Any]) -> None:
    """Gives a resumed run back what `saved_state` found."""
    clock.add(state["seconds"])
    clock.lap()
    stages.judge_runner.load_state_dict(state["judge"])
    stages.replay.load_state_dict(state["replay"])
    stages.hindsight.load_state_dict(state["hindsight"])
