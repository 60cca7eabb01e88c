r"""Measures a GRPO step of herl against one of TRL's GRPOTrainer: same model, prompts, answers and optimizer.

    python tools/bench/step_vs_trl.py [--prompts 4] [--answers 4] [--new-tokens 48] [--words 12] [--rounds 3]
    python tools/bench/step_vs_trl.py --prompts 1 --answers 8 --new-tokens 64 --words 400 \
        --micro-batch-tokens 2048  # long prompts: a row must hold a whole group

Install TRL with `pip install '.[bench]'`. herl samples with vLLM and, in a separate row, with transformers
like TRL. Each trainer runs in separate processes, which alternate, with two warm-up steps and then --steps
measured ones; the table shows medians over all of them. All answers have the full length, since the model's
end token is replaced by one that is hardly ever sampled. Memory is the peak of the process. Both use float32,
fused AdamW, no gradient checkpointing, no KL, no hindsight, and micro-batches of about --micro-batch-tokens
tokens. herl's step includes the refresh of the sampler and its probe.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from workload import (
    arguments_of,
    endless,
    median,
    peak_gib,
    report,
    requests_of,
    reward_of,
    synchronize,
    tasks_of,
    write,
)

WARM_UP = 2
"""Steps that are not measured: the first allocates AdamW's moments, and the heap still grows in the next."""

TRAINERS = ("herl-vllm", "herl-transformers", "trl")


def herl(
    arguments: Namespace, sampler: Any, after: Callable[[Any], None] = lambda module: None, **settings: Any
) -> dict[str, Any]:
    """Returns each measured step's seconds by phase, and tokens per step. `settings` go to L.Trainer.

    `after` is called with the trained module.
    """
    import lightning as L

    from herl.callbacks import RefreshSampler
    from herl.data import RubricDataModule
    from herl.judge.function import FunctionJudge
    from herl.models.pretrained import PretrainedModel
    from herl.module import HerlModule
    from herl.rollout.stages import RolloutPlan
    from herl.types import Sampling

    def reward(task: Any, text: str) -> float:
        return reward_of(text)

    module = HerlModule(
        model=PretrainedModel(path=arguments.model),
        sampler=sampler,
        judge=FunctionJudge(reward),
        rollout=RolloutPlan(
            attempts_per_prompt=arguments.answers,
            attempt=Sampling(max_new_tokens=arguments.new_tokens),
            max_prompt_tokens=arguments.context - arguments.new_tokens,
        ),
        optimizer=partial(torch.optim.AdamW, lr=1e-6, fused=True),
        updates_per_batch=1,
        micro_batch_tokens=arguments.micro_batch_tokens,
    )
    steps: list[dict[str, float]] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            synchronize()
            self.before, self.started = dict(module.clock.seconds), time.perf_counter()

        def on_train_batch_end(self, *_: Any) -> None:
            synchronize()
            phases = {name: s - self.before.get(name, 0.0) for name, s in module.clock.seconds.items()}
            steps.append({"step": time.perf_counter() - self.started, **phases})

    trainer = L.Trainer(**settings, callbacks=[Watch(), RefreshSampler()])
    tasks = tasks_of(arguments.prompts * (WARM_UP + arguments.steps), arguments.words)
    trainer.fit(module, RubricDataModule(tasks, prompts_per_batch=arguments.prompts))
    after(module)
    return {"steps": steps[WARM_UP:], "tokens": module.counts["tokens_sampled"] / len(steps)}


def trl(arguments: Namespace, **settings: Any) -> dict[str, Any]:
    """Returns the same for TRL. `settings` go to its GRPOConfig."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    def reward(completions: list[Any], **_: Any) -> list[float]:
        return [reward_of(completion[0]["content"]) for completion in completions]

    count = arguments.prompts * arguments.answers
    texts = requests_of(arguments.prompts * (WARM_UP + arguments.steps), arguments.words)
    prompts = [[{"role": "user", "content": text}] for text in texts]
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    ids = tokenizer.apply_chat_template(prompts[0], add_generation_prompt=True, return_dict=False)
    fitting = max(1, arguments.micro_batch_tokens // (len(ids) + arguments.new_tokens))
    rows = max(rows for rows in range(1, count + 1) if count % rows == 0 and rows <= fitting)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=arguments.model,
            reward_funcs=reward,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            args=GRPOConfig(
                output_dir=folder,
                gradient_checkpointing=False,
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=count // rows,
                num_generations=arguments.answers,
                max_completion_length=arguments.new_tokens,
                max_steps=WARM_UP + arguments.steps,
                learning_rate=1e-6,
                beta=0.0,
                shuffle_dataset=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                model_init_kwargs={"dtype": "float32"},
                **settings,
            ),
        )
        steps: list[dict[str, float]] = []
        sampling: list[float] = []
        tokens: list[int] = []
        generate = trainer._generate_and_score_completions

        def timed(*inputs: Any) -> Any:
            synchronize()
            started = time.perf_counter()
            output = generate(*inputs)
            synchronize()
            sampling.append(time.perf_counter() - started)
            tokens.append(int(output["completion_mask"].sum()))
            return output

        trainer._generate_and_score_completions = timed

        class Watch(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                synchronize()
                self.started = time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                synchronize()
                whole = time.perf_counter() - self.started
                steps.append({"step": whole, "sample": sampling[-1], "update": whole - sampling[-1]})

        trainer.add_callback(Watch())
        trainer.train()
    return {"steps": steps[WARM_UP:], "tokens": sum(tokens) / len(steps)}


def on_cpu(arguments: Namespace, kind: str) -> dict[str, Any]:
    if kind == "trl":
        return trl(arguments, use_cpu=True, bf16=False)
    if kind == "herl-vllm":
        from herl.sampler.vllm import VLLMSampler

        sampler: Any = VLLMSampler(kv_cache_gib=0.25)
    else:
        from herl.sampler.transformers import TransformersSampler

        sampler = TransformersSampler()
    return herl(
        arguments,
        sampler,
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def measured(kind: str) -> dict[str, Any]:
    """Runs this script for one trainer in a separate process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", kind]
    # No hub is needed, and tokenizers need no warning about forks.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    arguments = arguments_of(
        __doc__,
        prompts=4,
        answers=4,
        new_tokens=48,
        words=12,
        context=1024,  # most tokens of a prompt with its answer
        rounds=3,
        steps=1,
        micro_batch_tokens=512,
        only=",".join(TRAINERS),
        one="",
    )
    if arguments.one:
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as folder:
            arguments.model = endless(arguments.model, Path(folder) / "model")
            found = on_cpu(arguments, arguments.one)
        print(json.dumps(found | {"peak_gib": peak_gib()}))
        return
    kinds = arguments.only.split(",")
    rounds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for turn in range(arguments.rounds):
        for kind in kinds if turn % 2 == 0 else reversed(kinds):
            rounds[kind].append(measured(kind))
            print(kind, json.dumps(rounds[kind][-1]), file=sys.stderr, flush=True)
    figures = {}
    for kind, runs in rounds.items():
        steps = [step for run in runs for step in run["steps"]]
        phases = {name: median([step.get(name, 0.0) for step in steps]) for name in steps[0]}
        figures[kind] = phases | {
            "tokens": median([run["tokens"] for run in runs]),
            "peak_gib": median([run["peak_gib"] for run in runs]),
        }
    names = ("step", "refresh", "probe", "sample", "judge", "update", "tokens", "peak_gib")
    rows = []
    for kind in kinds:
        row = [kind, *(figures[kind].get(name, 0.0) for name in names)]
        base = figures.get("trl", figures[kind])
        rows.append(
            [*row, figures[kind]["step"] / base["step"], figures[kind]["peak_gib"] / base["peak_gib"]]
        )
    setting = f"{arguments.prompts} x {arguments.answers} answers of {arguments.new_tokens} tokens"
    report(
        f"{arguments.model}, {setting}, prompts of {arguments.words} words; seconds and GiB, medians of "
        f"{arguments.rounds * arguments.steps}",
        ["trainer", *names, "time/trl", "memory/trl"],
        rows,
    )
    write(arguments.json, {"setting": vars(arguments) | {"json": None}, "figures": figures, "rounds": rounds})


if __name__ == "__main__":
    main()
