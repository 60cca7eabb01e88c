"""Samples with transformers from the trainer's own model, in its process.

If the trainer's model is sharded, no rank can run it alone, so each rank keeps a whole copy; with
`own_weights`, on a CPU, always.

A prompt is computed once for all its n answers, which share its keys and values, or get a copy each if the
model does not support sharing. Finished answers leave the batch. Answer i of a request draws its tokens by
inverse transform from its own stream of uniform numbers, so it is the same in any batch.

On a GPU, a decoding step is a CUDA graph that draws on the device (`herl.sampler.device_decoding`), for
models whose answers can share prompts. Under autocast, linear layers use copies of their weights in its type,
taken at the start of every `generate`: the sampler is never stale, and computes as the trainer does.

Answers with penalties or stop strings are sampled without recorded steps.

Left out: beam search, paged attention. Use a vLLM sampler for speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from herl.errors import ConfigError
from herl.models.pretrained import untrained
from herl.models.weights import is_sharded
from herl.sampler import RunLimits, Sampler
from herl.sampler.answer import OpenAnswer, end_token_ids, ends_by_stop, finished_answer
from herl.sampler.cast_linears import CastLinears
from herl.sampler.device_decoding import DeviceDecoder
from herl.sampler.drawing import draw, penalize, penalizes, truncates
from herl.sampler.packed_linears import packed_linears
from herl.sampler.prompt_cache import PromptCache, SharedPrompts, last_logits, prompt_cache
from herl.sampler.replays import CudaRecorder
from herl.sampler.static_prompts import serves
from herl.seeds import derive_seed
from herl.types import Rollout, SampleRequest, Sampling

KEPT = 0.1
"""Largest share of a GPU's memory that keys, values and weight copies may keep during the update."""


class TransformersSampler(Sampler):
    """Batched sampling from the live policy.

    The memory that it keeps on a GPU between batches (keys, values, weight copies) is freed during the update
    if it exceeds a tenth of the GPU's; the next batch then records its steps again.

    Args:
        batch_size: Answers sampled at the same time.
        pack_weights: Whether sampling on a CPU uses a second copy of the weights, in a layout that is fast
            for few rows (`herl.sampler.packed_linears`). It exists only while answers are sampled.
        own_weights: Whether each rank samples from a copy of the weights, as of the last refresh, instead of
            the live policy. Only on a CPU, where `rollout.batches_ahead` needs it.
    """

    checkpoint_names = False

    def __init__(self, batch_size: int = 128, pack_weights: bool = True, own_weights: bool = False) -> None:
        if batch_size < 1:
            raise ConfigError(f"sampler.batch_size: expected at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.pack_weights = pack_weights
        self.own_weights = own_weights
        self.live = not own_weights  # until `start` knows whether the policy is sharded
        self.version = 0
        self._cast = CastLinears()
        self._decoder: DeviceDecoder | None = None

    def prepare(self, limits: RunLimits) -> None:
        """Refuses a copy of the weights on a GPU, where it has no use.

        Raises:
            ConfigError: there is to be one.
        """
        if self.own_weights and limits.card is not None:
            raise ConfigError("sampler.own_weights: expected false on a GPU, got true")

    def check_ahead(self, *, device_type: str, sharded: bool) -> None:
        """Checks that the sampler keeps its own weights, and does not share a GPU with the trainer.

        Raises:
            ConfigError: says what to use instead.
        """
        if device_type != "cpu":
            raise ConfigError(
                "rollout.batches_ahead: expected 0 with sampler=transformers on a GPU, which it shares with "
                "the update, got 1: use sampler=vllm_server on separate GPUs"
            )
        if not (self.own_weights or sharded):
            raise ConfigError(
                "sampler.own_weights: expected true with rollout.batches_ahead=1, got false: the sampler "
                "would read the policy while it is updated"
            )

    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keeps a reference to the live policy, or allocates a copy."""
        self.live = not (self.own_weights or is_sharded(policy))
        self._policy = policy if self.live else _empty_copy(policy)
        self._tokenizer = tokenizer
        self._end_ids = end_token_ids(policy, tokenizer)
        self._new_cache: Callable[[], PromptCache] | None = None  # determined once there are weights
        self._on_device: bool | None = None  # likewise
        self._cast, self._decoder = CastLinears(), None

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Records the version. A live policy has the weights already, so the stream is not read."""
        self.version = version
        if not self.live:
            own = self._policy.state_dict()
            self._lost = dict.fromkeys(own)
            with torch.no_grad():
                for name, tensor in named_tensors:
                    own[name].copy_(tensor)
                    self._lost.pop(name, None)

    def lost_weights(self) -> list[str]:
        """Returns the names of the copy's weights that were missing from the stream."""
        return list(self._lost)

    def generate(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        """Yields rollouts as they finish. Prompts of similar length are sampled together."""
        answers = [
            OpenAnswer(request, index, _uniforms(request, index))
            for request in sorted(requests, key=lambda request: len(request.prompt_ids))
            for index in request.indices
        ]
        if not answers:
            return
        was_training = self._policy.training
        self._policy.eval()
        rows = min(self.batch_size, len(answers))
        try:
            with self._fast_linears(rows):
                self._new_cache = self._new_cache or prompt_cache(self._policy)
                if self._decodes_on_device([one.sampling for one in requests]):
                    yield from self._sample_on_device(answers)
                else:
                    for start in range(0, len(answers), self.batch_size):
                        yield from self._sample(answers[start : start + self.batch_size])
        finally:
            self._policy.train(was_training)

    def sleep(self) -> None:
        """Frees the memory kept on a GPU between batches, if it is a large share of the GPU's."""
        if self._decoder is None:
            return
        total = torch.cuda.get_device_properties(self._policy.device).total_memory
        if self._cast.nbytes + self._decoder.nbytes > KEPT * total:
            self.close()

    def close(self) -> None:
        """Frees the memory kept between batches. It is allocated again when needed."""
        self._decoder = None
        self._cast.clear()

    def _fast_linears(self, rows: int) -> AbstractContextManager[None]:
        if self._policy.device.type == "cuda":
            return self._cast.used(self._policy)
        return packed_linears(self._policy, rows) if self.pack_weights else nullcontext()

    def _decodes_on_device(self, settings: Iterable[Sampling]) -> bool:
        """Whether answers are sampled by recorded steps: on a GPU, if they can share prompts and each step
        needs only what the last token left."""
        if self._policy.device.type != "cuda" or any(penalizes(one) or one.stop for one in settings):
            return False
        if self._on_device is None:
            assert self._new_cache is not None
            self._on_device = isinstance(self._new_cache(), SharedPrompts) and serves(self._policy)
        return self._on_device

    def _sample_on_device(self, answers: list[OpenAnswer]) -> Iterator[Rollout]:
        if self._decoder is None:
            self._decoder = DeviceDecoder(self._policy, self._end_ids, CudaRecorder(self._policy.device))
        yield from map(self._rollout, self._decoder.sample(answers, self.batch_size))

    def _sample(self, answers: list[OpenAnswer]) -> Iterator[Rollout]:
        """Samples one batch to its end. As a torch.no_grad generator, it would leak the mode to callers."""
        logits, cache, mask = self._prefill(answers)
        while True:
            token_ids, logprobs = _draw(logits, answers)
            finished: list[int] = []
            going: list[int] = []
            for row, answer in enumerate(answers):
                answer.token_ids.append(token_ids[row])
                answer.logprobs.append(logprobs[row])
                (finished if self._is_finished(answer) else going).append(row)
            yield from (self._rollout(answers[row]) for row in finished)
            if not going:
                return
            answers = [answers[row] for row in going]
            logits, mask = self._step(cache, mask, token_ids, going if finished else None)

    @torch.no_grad()
    def _prefill(self, answers: list[OpenAnswer]) -> tuple[torch.Tensor, PromptCache, torch.Tensor]:
        """Runs each distinct prompt once, left-padded, and opens rows for its answers."""
        device = self._policy.device
        prompts = list(dict.fromkeys(answer.request.prompt_ids for answer in answers))
        row_of = {prompt: row for row, prompt in enumerate(prompts)}
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        mask = mask.to(device)
        assert self._new_cache is not None
        cache = self._new_cache()
        logits = last_logits(self._policy, ids.to(device), mask, cache)
        rows = torch.tensor([row_of[answer.request.prompt_ids] for answer in answers], device=device)
        cache.share(rows, mask)
        return logits[rows], cache, mask[rows]

    @torch.no_grad()
    def _step(
        self, cache: PromptCache, mask: torch.Tensor, token_ids: list[int], keep: list[int] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Feeds the tokens just drawn, for the unfinished rows."""
        ids = torch.tensor(token_ids, device=mask.device)
        if keep is not None:
            rows = torch.tensor(keep, device=mask.device)
            cache.batch_select_indices(rows)
            mask, ids = mask[rows], ids[rows]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return last_logits(self._policy, ids[:, None], mask, cache), mask

    def _is_finished(self, answer: OpenAnswer) -> bool:
        return (
            answer.token_ids[-1] in self._end_ids
            or len(answer.token_ids) >= answer.request.sampling.max_new_tokens
            or ends_by_stop(self._tokenizer, answer.token_ids, answer.request.sampling.stop)
        )

    def _rollout(self, answer: OpenAnswer) -> Rollout:
        return finished_answer(
            answer.request,
            answer.index,
            answer.token_ids,
            answer.logprobs,
            tokenizer=self._tokenizer,
            end_ids=self._end_ids,
            version=self.version,
        )


def _empty_copy(policy: PreTrainedModel) -> PreTrainedModel:
    """Returns an unsharded model of the same architecture on this rank's device, with weights to be filled.

    On a GPU it has the type that shards are gathered and computed in.
    """
    # With offloading, shards live on the host but compute on the mesh's device.
    meshes = (p.device_mesh.device_type for p in policy.parameters() if isinstance(p, DTensor))
    device = next(meshes, policy.device.type)
    dtype = policy.dtype if device == "cpu" else _gathered_dtype(policy)
    with isolate_rng():  # its random weights must not change what else is drawn
        copy: PreTrainedModel = untrained(policy.config, dtype)
    copy.generation_config = policy.generation_config
    return cast(PreTrainedModel, copy.to(device).requires_grad_(False))  # type: ignore[arg-type]


def _gathered_dtype(policy: PreTrainedModel) -> torch.dtype:
    """Returns the type that a sharded policy computes in: FSDP's, or else that of its parameters."""
    if not isinstance(policy, FSDPModule):
        return policy.dtype
    gathered: torch.dtype | None = policy._get_fsdp_state()._mp_policy.param_dtype
    return gathered or policy.dtype


def _uniforms(request: SampleRequest, index: int) -> np.ndarray:
    """Returns the answer's uniform numbers, one per token, [max_new_tokens]."""
    generator = np.random.Generator(np.random.PCG64(derive_seed(request.seed, index)))
    return generator.random(request.sampling.max_new_tokens)


def _draw(logits: torch.Tensor, answers: list[OpenAnswer]) -> tuple[list[int], list[float]]:
    """Draws a token per row from the row's numbers. Returns ids and log-probs."""
    settings = [answer.request.sampling for answer in answers]
    device = logits.device
    if any(map(penalizes, settings)):
        prompts, drawn = [one.request.prompt_ids for one in answers], [one.token_ids for one in answers]
        logits = penalize(logits, prompts, drawn, settings)
    chosen, logprobs = draw(
        logits,
        torch.tensor([s.temperature for s in settings], device=device),
        torch.tensor([s.top_p for s in settings], device=device, dtype=torch.float64),
        torch.tensor([s.top_k for s in settings], device=device),
        torch.tensor([s.min_p for s in settings], device=device, dtype=torch.float64),
        torch.tensor(np.array([answer.uniforms[len(answer.token_ids)] for answer in answers]), device=device),
        truncated=any(map(truncates, settings)),
        greedy=any(s.temperature == 0 for s in settings),
    )
    return chosen.tolist(), logprobs.tolist()
