"""Measures how fast answers are sampled, and how long an engine takes to load weights, sleep and wake."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from workload import median, requests_of, synchronize

from gpu.bench import Bench
from gpu.models import folder
from herl.models.chat_template import render
from herl.models.pretrained import PretrainedModel
from herl.models.weights import named_weights
from herl.sampler import Sampler
from herl.sampler.transformers import TransformersSampler
from herl.sampler.vllm import VLLMSampler
from herl.sampler.vllm_arguments import sampling_params
from herl.types import SampleRequest, Sampling

GIB = 2**30


def in_process(bench: Bench) -> None:
    """Section: tokens per second of the transformers sampler, with 256 answers of a 135M model."""
    model = PretrainedModel(path=folder(bench, "135m"))
    tokenizer, policy = model.tokenizer(), model.load().to(bench.device)
    sampler = TransformersSampler()
    sampler.start(policy, tokenizer)
    requests = _requests(tokenizer, bench.size(32, 2), 8, bench.size(256, 8))

    def sampled() -> int:
        sampler.load_weights(named_weights(policy), 0)
        with bench.autocast():  # as in a training step
            return _tokens(sampler, requests)

    rates = _rates(sampled, bench.size(3, 1))
    bench.add("transformers: 256 answers of 256 tokens, 135M", median(rates), "tokens/s", ">= 5000")
    if bench.full:
        bench.add("transformers: peak memory", torch.cuda.max_memory_allocated() / GIB, "GiB")
    sampler.close()


def engine(bench: Bench, sampler: VLLMSampler, policy: Any, tokenizer: Any) -> None:
    """Measures vLLM in herl against the bare engine, then its refresh, sleep and wake, with a 0.5B model."""
    sampler.load_weights(named_weights(policy), 0)
    requests = _requests(tokenizer, bench.size(64, 2), 8, bench.size(256, 8))
    llm = sampler._llm
    asked = [(r, i) for r in requests for i in range(r.n)]
    settings = [sampling_params(request, index, sampler._end_ids) for request, index in asked]

    def bare() -> int:
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request, _ in asked]
        outputs = llm.generate(prompts, settings, use_tqdm=False)
        return sum(len(answer.token_ids) for output in outputs for answer in output.outputs)

    ways: dict[str, Callable[[], int]] = {
        "vllm in herl": lambda: _tokens(sampler, requests),
        "bare vllm": bare,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + bench.size(3, 1)):  # the first warms up
        for name, way in ways.items():
            llm.reset_prefix_cache()
            rate = _rates(way, 1, warm_up=0)[0]
            found[name] += [rate] if turn else []
    for name, rates in found.items():
        bench.add(f"{name}: 512 answers of 256 tokens, 0.5B", median(rates), "tokens/s")
    share = median(found["vllm in herl"]) / median(found["bare vllm"])
    bench.add("vllm in herl over the bare engine", share, target=">= 0.95")
    _refresh(bench, sampler, policy)


def _refresh(bench: Bench, sampler: VLLMSampler, policy: Any) -> None:
    seconds: dict[str, list[float]] = {"refresh": [], "sleep": [], "wake and refresh": []}
    freed = 0.0
    for version in range(1, 1 + bench.size(3, 1)):
        load = lambda: sampler.load_weights(named_weights(policy), version)  # noqa: E731, B023
        seconds["refresh"].append(_seconds(load))
        before = _free_gib()
        seconds["sleep"].append(_seconds(sampler.sleep))
        freed = _free_gib() - before
        seconds["wake and refresh"].append(_seconds(load))
    for name, spent in seconds.items():
        bench.add(f"vllm: {name}, 0.5B", median(spent), "s")
    bench.add("vllm: memory freed by sleep", freed, "GiB")


def _requests(tokenizer: Any, prompts: int, answers: int, new_tokens: int) -> list[SampleRequest]:
    return [
        SampleRequest(
            task_id=str(place),
            group_id=str(place),
            prompt_ids=render(tokenizer, [{"role": "user", "content": text}]),
            n=answers,
            sampling=Sampling(max_new_tokens=new_tokens),
            seed=place,
        )
        for place, text in enumerate(requests_of(prompts, 60))
    ]


def _tokens(sampler: Sampler, requests: Sequence[SampleRequest]) -> int:
    return sum(len(rollout.token_ids) for rollout in sampler.generate(requests))


def _rates(sampled: Callable[[], int], rounds: int, warm_up: int = 1) -> list[float]:
    """Returns the tokens per second of each round after the warm-up."""
    rates = []
    for _ in range(warm_up + rounds):
        started = time.perf_counter()
        count = sampled()
        synchronize()
        rates.append(count / (time.perf_counter() - started))
    return rates[warm_up:]


def _seconds(work: Callable[[], object]) -> float:
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def _free_gib() -> float:
    if not torch.cuda.is_available():
        return 0.0
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0] / GIB
