"""Samples with transformers from the trainer's own model: no copy of the weights, no other process.

Where the trainer's model is sharded, no rank could run it alone: each then keeps a whole copy.

One prompt is computed once for all its n answers, which share its keys and values; where a model cannot do
that, each gets a copy. Answers that are finished leave the batch. Answer i of a request draws its tokens by
inverse transform from its own stream of uniform numbers, so it is the same in any batch.

Left out: beam search, penalties, paged attention. For those and for speed use a vLLM sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from herl.errors import ConfigError
from herl.sampler import Sampler
from herl.sampler.answer import end_token_ids, finished_answer
from herl.sampler.packed_linears import packed_linears
from herl.sampler.prompt_cache import PromptCache, last_logits, prompt_cache
from herl.seeds import derive_seed
from herl.types import Rollout, SampleRequest
from herl.weights import is_sharded


@dataclass(slots=True)
class _Answer:
    """An answer in the making."""

    request: SampleRequest
    index: int
    uniforms: np.ndarray
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class TransformersSampler(Sampler):
    """Batched sampling from the live policy.

    Args:
        batch_size: Answers sampled at the same time.
        pack_weights: Whether sampling on a CPU uses a second copy of the weights, in the layout that is
            fast for few rows (`herl.sampler.packed_linears`). It is there only while answers are sampled.
    """

    def __init__(self, batch_size: int = 128, pack_weights: bool = True) -> None:
        if batch_size < 1:
            raise ConfigError(f"sampler.batch_size: expected at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.pack_weights = pack_weights
        self.version = 0

    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keeps a reference to the live policy, or makes room for a copy of a sharded one."""
        self.live = not is_sharded(policy)
        self._policy = policy if self.live else _empty_copy(policy)
        self._tokenizer = tokenizer
        self._end_ids = end_token_ids(policy, tokenizer)
        self._new_cache: Callable[[], PromptCache] | None = None  # found out when the weights are there

    checkpoint_names = False

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Notes the version. A live policy's weights are there already: nothing of the stream is read."""
        self.version = version
        if not self.live:
            own = self._policy.state_dict()
            self._lost = dict.fromkeys(own)
            with torch.no_grad():
                for name, tensor in named_tensors:
                    own[name].copy_(tensor)
                    self._lost.pop(name, None)

    def lost_weights(self) -> list[str]:
        """Returns the weights of the copy that the stream did not have. The others are what was copied."""
        return list(self._lost)

    def generate(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        """Yields rollouts as they finish. Prompts of similar length are sampled together."""
        answers = [
            _Answer(request, index, _uniforms(request, index))
            for request in sorted(requests, key=lambda request: len(request.prompt_ids))
            for index in range(request.n)
        ]
        if not answers:
            return
        was_training = self._policy.training
        self._policy.eval()
        rows = min(self.batch_size, len(answers))
        try:
            self._new_cache = self._new_cache or prompt_cache(self._policy)
            with packed_linears(self._policy, rows) if self.pack_weights else nullcontext():
                for start in range(0, len(answers), self.batch_size):
                    yield from self._sample(answers[start : start + self.batch_size])
        finally:
            self._policy.train(was_training)

    def _sample(self, answers: list[_Answer]) -> Iterator[Rollout]:
        """Samples one batch to its end. Not a torch.no_grad generator: the mode would leak to the caller."""
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
    def _prefill(self, answers: list[_Answer]) -> tuple[torch.Tensor, PromptCache, torch.Tensor]:
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
        """Feeds the tokens just drawn, for the rows still going."""
        ids = torch.tensor(token_ids, device=mask.device)
        if keep is not None:
            rows = torch.tensor(keep, device=mask.device)
            cache.batch_select_indices(rows)
            mask, ids = mask[rows], ids[rows]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return last_logits(self._policy, ids[:, None], mask, cache), mask

    def _is_finished(self, answer: _Answer) -> bool:
        return (
            answer.token_ids[-1] in self._end_ids
            or len(answer.token_ids) >= answer.request.sampling.max_new_tokens
        )

    def _rollout(self, answer: _Answer) -> Rollout:
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
    """A whole model of the same architecture on this rank's device, its weights still to come."""
    copy: PreTrainedModel = AutoModelForCausalLM.from_config(policy.config, dtype=policy.dtype)
    copy.generation_config = policy.generation_config
    # Shards may rest on the host (offloading) and still compute on the mesh's device.
    device = next(p.device_mesh.device_type for p in policy.parameters() if isinstance(p, DTensor))
    return cast(PreTrainedModel, copy.to(device).requires_grad_(False))  # type: ignore[arg-type]


def _uniforms(request: SampleRequest, index: int) -> np.ndarray:
    """The answer's own uniform numbers, one per token, [max_new_tokens]."""
    generator = np.random.Generator(np.random.PCG64(derive_seed(request.seed, index)))
    return generator.random(request.sampling.max_new_tokens)


def _draw(logits: torch.Tensor, answers: list[_Answer]) -> tuple[list[int], list[float]]:
    """Draws a token per row. Returns ids and their log-probabilities at the sampling temperature.

    With top-p below 1 the log-probability is still the whole distribution's, as the trainer computes it.
    Greedy answers (temperature 0) get the log-probability at temperature 1.
    """
    settings = [answer.request.sampling for answer in answers]
    temperature = torch.tensor([s.temperature for s in settings], device=logits.device)
    uniform = torch.tensor(
        np.array([answer.uniforms[len(answer.token_ids)] for answer in answers]), device=logits.device
    )
    greedy = temperature == 0
    logprobs = torch.log_softmax(logits / torch.where(greedy, 1.0, temperature)[:, None], dim=-1)
    # float64: at a vocabulary of 150k the running sum in float32 is off by more than rare tokens weigh
    if any(s.top_p < 1 for s in settings):
        top_p = torch.tensor([s.top_p for s in settings], device=logits.device, dtype=torch.float64)
        mass, order = logprobs.exp().sort(dim=-1, descending=True)
        running = mass.cumsum(-1, dtype=torch.float64)
        nucleus = running - mass < top_p[:, None]
        running = (mass * nucleus).cumsum(-1, dtype=torch.float64)
        place = _inverse(running, uniform)
        chosen = order.gather(1, place)[:, 0]
    else:
        chosen = _inverse(logprobs.exp().cumsum(-1, dtype=torch.float64), uniform)[:, 0]
    if any(s.temperature == 0 for s in settings):
        chosen = torch.where(greedy, logits.argmax(-1), chosen)
    return chosen.tolist(), logprobs.gather(1, chosen[:, None])[:, 0].tolist()


def _inverse(running: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first index whose running sum exceeds uniform x total, [rows, 1]."""
    target = (uniform * running[:, -1])[:, None]
    return torch.searchsorted(running, target, right=True).clamp(max=running.shape[1] - 1)
