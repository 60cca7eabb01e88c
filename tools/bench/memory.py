"""Measures the peak memory of each rank in training, whole or sharded. Answers come from a script.

    python tools/bench/memory.py --devices 1
    python tools/bench/memory.py --devices 2 --strategy fsdp [--model smollm2-135m-instruct] [--lora]

Run it with MALLOC_MMAP_THRESHOLD_=1000000 in the environment. Otherwise glibc keeps blocks that were gathered
and freed, and the peak is that of the heap.
"""

import argparse
import logging
import resource

import lightning as L

from herl.callbacks import RefreshSampler
from herl.data import RubricDataModule
from herl.distributed import gather
from herl.judge.rule import RuleJudge
from herl.models.fsdp import FSDPStrategy
from herl.models.lora import Lora
from herl.models.pretrained import PretrainedModel
from herl.module import HerlModule
from herl.sampler.scripted import ScriptedSampler
from herl.testing import make_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--strategy", choices=("auto", "ddp", "fsdp"), default="auto")
    parser.add_argument("--lora", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    tasks = [make_task(id=f"t{i}") for i in range(4)]
    answers = {task.id: ["It eats fish.", "It is brown.", "river", "fish and river"] for task in tasks}
    module = HerlModule(
        model=PretrainedModel(path=arguments.model, lora=Lora() if arguments.lora else None),
        sampler=ScriptedSampler(answers),
        judge=RuleJudge(),
        micro_batch_tokens=512,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=arguments.devices,
        strategy=FSDPStrategy() if arguments.strategy == "fsdp" else arguments.strategy,
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[RefreshSampler()],
    )
    trainer.fit(module, RubricDataModule(tasks, prompts_per_batch=4))
    peaks = gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    if trainer.is_global_zero:
        shown = ", ".join(f"{peak:.2f}" for peak in peaks)
        print(f"{arguments.strategy} on {arguments.devices}: peak GiB by rank: {shown}")


if __name__ == "__main__":
    main()
