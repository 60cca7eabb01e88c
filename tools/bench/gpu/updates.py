"""Measures the speed of an update: as a share of the GPU's matrix products, over rows of many lengths, and
with shared contexts. Everything except sampling goes through HerlModule and a Lightning trainer, as in a run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from torch._dynamo.utils import counters
from workload import WORDS, gemm_gflops, median, peak_gib, reward_of, synchronize

from gpu.bench import Bench, settings
from gpu.models import folder
from herl.callbacks import HerlCallback
from herl.data import RubricDataModule
from herl.judge.function import FunctionJudge
from herl.metrics.step import Step
from herl.models.chat_template import render
from herl.models.pretrained import PretrainedModel
from herl.module import HerlModule
from herl.rollout.stages import RolloutPlan
from herl.sampler import Sampler
from herl.sampler.answer import end_token_ids, finished_answer
from herl.seeds import derive_seed
from herl.testing import make_task
from herl.types import Experience, Rollout, SampleRequest, Sampling, Task
from herl.update.batch import Packing
from herl.update.gpu_cost import Settings, model_size, update_gib

WARM_UP = 2
"""Updates that are not measured: they compile, grow the heap, and allocate AdamW's moments."""
GIB = 2**30


class RandomAnswers(Sampler):
    """Returns answers of random tokens, without computing anything.

    Args:
        shortest, longest: Tokens of an answer.
    """

    live = True

    def __init__(self, shortest: int, longest: int) -> None:
        self.shortest, self.longest = shortest, longest
        self.done = 0.0
        """When the last sampling ended, and the update began."""

    def start(self, policy: Any, tokenizer: Any) -> None:
        self.tokenizer, self.end_ids = tokenizer, end_token_ids(policy, tokenizer)

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None: ...

    def generate(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        for request in requests:
            for index in range(request.n):
                draw = np.random.default_rng(derive_seed(request.seed, index))
                tokens = draw.integers(3, len(self.tokenizer), draw.integers(self.shortest, self.longest + 1))
                yield finished_answer(
                    request, index, tokens.tolist(), [-1.0] * len(tokens), tokenizer=self.tokenizer,
                    end_ids=self.end_ids, version=0,
                )  # fmt: skip

    def sleep(self) -> None:
        synchronize()
        self.done = time.perf_counter()


@dataclass(frozen=True, kw_only=True)
class Update:
    """One rollout batch's update."""

    seconds: float
    """From the last answer to the end of the step: rows, passes, clipping, optimizer, metrics."""
    answer_tokens: int
    context_tokens: int
    """Counts each context once."""
    graphs: int
    """Graphs that torch has compiled in this process so far."""
    peak_gib: float
    """Peak memory of the device since the previous step."""
    experiences: Sequence[Experience]
    """The answers that were trained on."""


class Watch(HerlCallback):
    """Records the update of each batch."""

    def __init__(self, sampler: RandomAnswers) -> None:
        self.sampler = sampler
        self.updates: list[Update] = []

    def on_step(self, trainer: L.Trainer, module: HerlModule, step: Step) -> None:
        synchronize()
        seconds = time.perf_counter() - self.sampler.done
        experiences = step.collection.experiences
        contexts = {e.context_ids for e in experiences}
        cuda = torch.cuda.is_available()
        self.updates.append(
            Update(
                seconds=seconds,
                answer_tokens=sum(len(e.rollout.token_ids) for e in experiences),
                context_tokens=sum(map(len, contexts)),
                graphs=int(counters["stats"]["unique_graphs"]),
                peak_gib=torch.cuda.max_memory_allocated() / GIB if cuda else peak_gib(),
                experiences=experiences,
            )
        )
        if cuda:
            torch.cuda.reset_peak_memory_stats()


def tasks_behind(model: str, contexts: Sequence[int]) -> list[Task]:
    """Returns tasks whose prompts have about these numbers of tokens, under the model's template."""
    tokenizer = PretrainedModel(path=model).tokenizer()

    def length(words: Sequence[str]) -> int:
        return len(render(tokenizer, [{"role": "user", "content": " ".join(words)}]))

    draw = np.random.default_rng(0)
    frame, many = length([WORDS[0]]), list(draw.choice(WORDS, 500))
    per_word = (length(many) - frame) / len(many)
    texts = [
        " ".join(draw.choice(WORDS, max(1, round((context - frame) / per_word)))) for context in contexts
    ]
    return [make_task(id=f"t{place}", request=text) for place, text in enumerate(texts)]


def updates(
    bench: Bench,
    name: str,
    tasks: Sequence[Task],
    *,
    prompts: int,
    answers: int,
    lengths: tuple[int, int],
    packing: Packing | str = "auto",
    micro_batch_tokens: int | None = None,
) -> tuple[list[Update], HerlModule]:
    """Trains a model on random answers to these tasks, `prompts` per batch; returns each batch's update."""

    def reward(task: Task, text: str) -> float:
        return reward_of(text)

    path = folder(bench, name)
    sampler = RandomAnswers(*lengths)
    tokens = micro_batch_tokens or bench.micro_batch_tokens
    module = HerlModule(
        model=PretrainedModel(path=path),
        sampler=sampler,
        judge=FunctionJudge(reward),
        rollout=RolloutPlan(
            attempts_per_prompt=answers,
            attempt=Sampling(max_new_tokens=lengths[1]),
            max_prompt_tokens=32000 - lengths[1],
        ),
        optimizer=partial(torch.optim.AdamW, lr=1e-6, fused=True),
        updates_per_batch=1,
        packing=packing,  # type: ignore[arg-type]
        **({} if tokens is None else {"micro_batch_tokens": tokens}),
    )
    watch = Watch(sampler)
    trainer = L.Trainer(**settings(), callbacks=[watch])  # type: ignore[arg-type]
    trainer.fit(module, RubricDataModule(tasks, prompts_per_batch=prompts))
    return watch.updates, module


def share(bench: Bench, name: str, target: str) -> None:
    """Section: arithmetic of an update over its time, as a share of the rate of a large matrix product.

    The count includes the products with weights, forward and backward: those of the body for every answer
    token and for each context once, those of the head for answer tokens. It leaves out attention scores.
    """
    rate = _rate(bench)
    context, lengths = (600, (128, 384)) if bench.full else (40, (8, 24))
    groups = bench.size(8, 2)
    tasks = tasks_behind(folder(bench, name), [context] * groups * (WARM_UP + bench.size(4, 1)))
    found, module = updates(bench, name, tasks, prompts=groups, answers=groups, lengths=lengths)
    policy: Any = module.policy
    body = sum(parameter.numel() for parameter in policy.parameters())
    embeddings, head = policy.get_input_embeddings().weight, policy.get_output_embeddings().weight
    body -= embeddings.numel() + (0 if head is embeddings else head.numel())
    shares = [
        6 * (body * (update.answer_tokens + update.context_tokens) + head.numel() * update.answer_tokens)
        / update.seconds / rate
        for update in found[WARM_UP:]
    ]  # fmt: skip
    tokens = median([update.answer_tokens + update.context_tokens for update in found[WARM_UP:]])
    bench.add("products of large matrices", rate / 1e12, "TFLOP/s")
    bench.add("share of them that an update reaches", median(shares), target=target)
    bench.add("seconds of an update", median([update.seconds for update in found[WARM_UP:]]), "s")
    bench.add("tokens of an update, contexts once", tokens)
    if bench.full:
        _memory(bench, name, found[WARM_UP:], module)


def _memory(bench: Bench, name: str, found: Sequence[Update], module: HerlModule) -> None:
    """What an update takes of the card against the formulas in herl/update/gpu_cost.py."""
    peak = max(one.peak_gib for one in found)
    bench.add("peak memory of an update", peak, "GiB")
    size = model_size(folder(bench, name))
    rows = module.scorer().micro_batches(found[-1].experiences)
    row = max(row.input_ids.numel() for row in rows)
    estimate = sum(update_gib(size, row, Settings(engine="elsewhere", compiled=True), 1).values())
    bench.add("its longest row", row, "tokens")
    bench.add("herl.update.gpu_cost's estimate of it", estimate, "GiB")
    bench.add("measured over estimate, lower side", peak / estimate, target=">= 0.7")
    bench.add("measured over estimate, upper side", peak / estimate, target="<= 1.1")


def _rate(bench: Bench) -> float:
    """Returns this device's current FLOP/s, in the type that the update computes in."""
    if bench.full:
        return 1e9 * gemm_gflops(8192, 1.0, device="cuda", dtype=torch.bfloat16)
    return 1e9 * gemm_gflops(512, 0.1)


def lengths(bench: Bench) -> None:
    """Section: rows from 20 to 3001 tokens, one per step. Few graphs are compiled, and none after warm-up."""
    contexts = [777, 20, 3001, 130, 450, 61, 1024, 2047, 333, 96, 1500, 250]
    contexts = contexts if bench.full else [context // 20 + 8 for context in contexts]
    tasks = tasks_behind(folder(bench, "0.5b, 2 layers"), contexts)
    found, _ = updates(
        bench,
        "0.5b, 2 layers",
        tasks,
        prompts=1,
        answers=4,
        lengths=(5, bench.size(60, 12)),
        packing="shared",
    )
    warm = 4
    bench.add("graphs compiled in all", found[-1].graphs)
    bench.add(
        f"graphs compiled after {warm} lengths", found[-1].graphs - found[warm - 1].graphs, target="== 0",
        anywhere=True,
    )  # fmt: skip
    for update in found:
        bench.add(f"row of {update.context_tokens} + {update.answer_tokens} tokens", update.seconds, "s")


def sharing(bench: Bench) -> None:
    """Section: updates on packed rows over updates on shared ones, in groups of 8 with long prompts."""
    for context, answer, tokens, target in ((16384, 64, 17408, ">= 6"), (8192, 4096, 25600, ">= 1.5")):
        context, answer = (context, answer) if bench.full else (context // 100, answer // 100 + 4)
        tasks = tasks_behind(folder(bench, "0.5b"), [context] * bench.size(3, 2))
        seconds = {}
        for packing in ("shared", "packed"):
            found, module = updates(
                bench, "0.5b", tasks, prompts=1, answers=8, lengths=(answer, answer), packing=packing,
                micro_batch_tokens=tokens,
            )  # fmt: skip
            seconds[packing] = min(update.seconds for update in found[1:])
            del module
            if bench.full:
                torch.cuda.empty_cache()
        words = f"8 answers of {answer} after {context}"
        bench.add(f"{words}: shared", seconds["shared"], "s")
        bench.add(f"{words}: packed over shared", seconds["packed"] / seconds["shared"], "x", target)
