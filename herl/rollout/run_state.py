"""The state that survives a restart: counts, times, and the state of the components.

A checkpoint stores it under "herl", beside the weights and Lightning's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herl.errors import ConfigError
from herl.models.chat_template import reading_sample
from herl.models.checkpoint_file import check_same
from herl.models.pretrained import PretrainedModel
from herl.rollout.ahead import Collector
from herl.rollout.stages import Stages


def run_state(
    collector: Collector, counts: Mapping[str, int], settings: Mapping[str, str | float]
) -> dict[str, Any]:
    """Returns the state that lets a resumed run continue as if it had not stopped.

    Args:
        collector: Holds the run's components and clock, and a batch drawn ahead.
        counts: Its counts.
        settings: By key, the settings that must not change when the run is resumed.
    """
    stages, clock = collector.stages, collector.clock
    return {
        "settings": dict(settings),
        "total": clock.total(),
        "date": stages.today.started.isoformat(),
        "counts": dict(counts),
        "judge": stages.judge_runner.state_dict(),
        "replay": stages.replay.state_dict(),
        "hindsight": stages.hindsight.state_dict(),
        **({"difficulty": stages.difficulty.state_dict()} if stages.plan.skips else {}),
        "seconds": dict(clock.seconds),
        "ahead": collector.state_dict(),
        "prompt": reading_sample(stages.tokenizer),
    }


def saved_state(
    checkpoint: dict[str, Any], stages: Stages, model: PretrainedModel, *, reference: bool = False
) -> dict[str, Any]:
    """Returns the state that `run_state` put into a checkpoint.

    Args:
        checkpoint: The checkpoint as loaded by Lightning.
        stages: The components of the resumed run.
        model: Its model, before it is loaded.
        reference: Whether the module has a reference that moves, which the checkpoint must have, too.
            Otherwise the checkpoint's, if it has one, is left out.

    Raises:
        ConfigError: the tokenizer, the chat template, a setting of the model or the kind of reference
            differs, or herl did not write the checkpoint.
    """
    if "herl" not in checkpoint:
        raise ConfigError("expected a checkpoint written by herl fit, got one from another program")
    state = dict(checkpoint["herl"])
    if state["prompt"] != reading_sample(stages.tokenizer):
        raise ConfigError(
            "model: expected the checkpoint's tokenizer and chat template, got different ones from "
            f"{model.path}"
        )
    check_same(state["settings"], model.lasting())
    weights = checkpoint.get("state_dict", {})  # empty for one of shards
    moved = [name for name in weights if name.startswith("reference.")]
    if reference and weights and not moved:
        raise ConfigError(
            "loss.ref_sync_steps: expected null, since the checkpoint has no reference that moves: start a "
            "new run from its exported policy"
        )
    for name in () if reference else moved:
        del weights[name]
    stages.today.pin(state["date"])
    return state


def restore(collector: Collector, state: Mapping[str, Any], settings: Mapping[str, str | float]) -> None:
    """Restores the state from `saved_state` in a resumed run.

    Args:
        collector: Holds the components and the clock of the resumed run.
        state: The state.
        settings: Settings of the resumed run, as in `run_state`.

    Raises:
        ConfigError: a setting that gives the run's progress its meaning has changed.
        DataError: a prompt of a batch drawn ahead is no longer there.
    """
    stages, clock = collector.stages, collector.clock
    for key, now in settings.items():
        before = state["settings"].get(key, now)
        if before != now:
            raise ConfigError(
                f"{key}: expected the checkpoint's {before}, got {now}: a resumed run cannot change it. "
                "To start from the checkpoint's policy with other settings, export it and train the result"
            )
    clock.add(state["seconds"])
    clock.resume(state["total"])
    clock.lap()
    stages.judge_runner.load_state_dict(state["judge"])
    stages.replay.load_state_dict(state["replay"])
    stages.hindsight.load_state_dict(state["hindsight"])
    stages.difficulty.load_state_dict(state.get("difficulty", {}))
    collector.load_state_dict(state["ahead"])
