"""Measures the time of a step per answer, from small batches to large ones.

    python tools/bench/growth.py [--sizes 16,64,256,1024] [--answers 8] [--rounds 3] [--model tiny]

A step samples, judges, groups and updates: the embedded model with the transformers sampler and hindsight, on
synthetic requests. Its time should grow no faster than the number of answers.
"""

import time
from functools import partial

import lightning as L
import torch
from workload import arguments_of, median, report, tasks_of, write

from herl.callbacks import RefreshSampler
from herl.data import RubricDataModule
from herl.hindsight.revision import RevisionBuilder
from herl.judge.rule import RuleJudge
from herl.models.pretrained import PretrainedModel
from herl.module import HerlModule
from herl.rollout.stages import RolloutPlan
from herl.sampler.transformers import TransformersSampler
from herl.types import Sampling


def step_times(model: str, answers: int, prompts: int, steps: int) -> list[float]:
    sampling = Sampling(max_new_tokens=24)
    module = HerlModule(
        model=PretrainedModel(path=model),
        sampler=TransformersSampler(),
        judge=RuleJudge(),
        hindsight=RevisionBuilder(),
        rollout=RolloutPlan(attempts_per_prompt=answers, attempt=sampling, revision=sampling),
        optimizer=partial(torch.optim.AdamW, lr=0.0, fused=True),
        updates_per_batch=1,
        micro_batch_tokens=2048,
    )
    seconds: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, *_: object) -> None:
            self.started = time.perf_counter()

        def on_train_batch_end(self, *_: object) -> None:
            seconds.append(time.perf_counter() - self.started)

    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Watch(), RefreshSampler()],
    )
    trainer.fit(module, RubricDataModule(tasks_of(prompts * (1 + steps), 12), prompts_per_batch=prompts))
    return seconds[1:]


def main() -> None:
    arguments = arguments_of(__doc__, model="tiny", sizes="16,64,256,1024", answers=8, rounds=3)
    sizes = [int(size) for size in arguments.sizes.split(",")]
    per_answer: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(arguments.rounds):
        for size in sizes[:: 1 if turn % 2 else -1]:
            # small steps are timed several times, for about equal work at each size
            steps = max(1, min(16, 256 // size))
            times = step_times(arguments.model, arguments.answers, size // arguments.answers, steps)
            per_answer[size].append(median(times) / size)
    base = median(per_answer[sizes[-1]])
    report(
        f"{arguments.model}, {arguments.answers} answers per prompt; medians of {arguments.rounds}",
        ["answers", "ms each", "of the last", "lowest", "highest"],
        [
            [size, 1000 * median(t), median(t) / base, 1000 * min(t), 1000 * max(t)]
            for size, t in per_answer.items()
        ],
    )
    write(arguments.json, {str(size): times for size, times in per_answer.items()})


if __name__ == "__main__":
    main()
