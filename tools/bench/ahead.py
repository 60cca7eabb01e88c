"""Times training steps whose batch is drawn before the update, and beside the update on the batch before.

    python tools/bench/ahead.py [--seconds 1.0] [--batches 8]

Sampler and update are real, on the tiny model, but wait until each has taken --seconds, as if they had
separate devices. The time of a step is the wall time from one step to the next, with refresh and probe;
medians without the first and the last batch, which have nothing beside them.
"""

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning as L
from workload import arguments_of, median, report, write

from herl.callbacks import HerlCallback, RefreshSampler
from herl.data.animals import animals
from herl.judge.rule import RuleJudge
from herl.metrics.step import Step
from herl.models.pretrained import PretrainedModel
from herl.module import HerlModule
from herl.rollout.stages import RolloutPlan
from herl.sampler.transformers import TransformersSampler
from herl.types import Rollout, SampleRequest, Sampling
from herl.update.loss.policy import Mismatch, PolicyLoss
from herl.update.updater import Update


class WaitingSampler(TransformersSampler):
    """Samples from a copy of the weights, and hands the answers of a batch over after a fixed time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(own_weights=True)
        self.seconds = seconds

    def generate(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        due = time.perf_counter() + self.seconds
        answers = list(super().generate(requests))
        if requests[0].task_id != "probe":
            time.sleep(max(0.0, due - time.perf_counter()))
        yield from answers


class Times(HerlCallback):
    """Keeps the wall time between the ends of steps, and their phases."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.phases: list[Mapping[str, float]] = []
        self._last = 0.0

    def on_start(self, trainer: L.Trainer, module: HerlModule) -> None:
        self._last = time.perf_counter()

    def on_step(self, trainer: L.Trainer, module: HerlModule, step: Step) -> None:
        now = time.perf_counter()
        self.steps.append(now - self._last)
        self.phases.append(step.seconds)
        self._last = now


def wait_in(module: HerlModule, seconds: float) -> None:
    """Makes updates take a fixed time."""
    update = module.updater.update

    def waiting(*arguments: Any) -> Update:
        due = time.perf_counter() + seconds
        done = update(*arguments)
        time.sleep(max(0.0, due - time.perf_counter()))
        return done

    module.updater.update = waiting  # type: ignore[method-assign]


def run(ahead: int, seconds: float, batches: int, folder: str) -> Times:
    """Trains for some batches."""
    sampling = Sampling(max_new_tokens=8)
    module = HerlModule(
        PretrainedModel(path="tiny"),
        WaitingSampler(seconds),
        RuleJudge(),
        rollout=RolloutPlan(attempts_per_prompt=2, attempt=sampling, batches_ahead=ahead),  # type: ignore[arg-type]
        loss=PolicyLoss(mismatch=Mismatch(level="token")),
        packing="shared",
    )
    wait_in(module, seconds)
    times = Times()
    trainer = L.Trainer(
        max_epochs=1, limit_train_batches=batches, limit_val_batches=0, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[RefreshSampler(), times],
    )  # fmt: skip
    trainer.fit(module, animals(prompts_per_batch=2))
    return times


def main() -> None:
    arguments = arguments_of(__doc__, model="tiny", seconds=1.0, batches=8)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    found, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for ahead in (0, 1):
            times = run(ahead, arguments.seconds, arguments.batches, folder)
            found[ahead] = {"steps": times.steps, "phases": [dict(one) for one in times.phases]}
            inner = [dict(one) for one in times.phases[1:-1]]
            waits = [one.get("wait", 0.0) for one in inner]
            refresh = [one.get("refresh", 0.0) + one.get("probe", 0.0) for one in inner]
            rows.append([ahead, median(times.steps[1:-1]), median(waits), median(refresh)])
    report(
        f"sampler and update take {arguments.seconds:g} s each; medians of {arguments.batches - 2} steps",
        ["rollout.batches_ahead", "seconds of a step", "of them waiting", "refresh and probe"],
        rows,
    )
    write(arguments.json, found)


if __name__ == "__main__":
    main()
