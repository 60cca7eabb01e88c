"""Key/value caches for several answers per prompt. In `SharedPrompts`, answers share their prompt's entries.

    prompt 1 [W] <── answer 1 | answer 2 | ...        each row holds only its own answer,
    prompt 2 [W] <── answer 1 | answer 2 | ...        and is written in place, token by token

Rows are sampled in lockstep: all unfinished answers are equally long, and only prompts are padded. A single
product multiplies the queries of all answers to a prompt with its keys. `SharedPrompts` is for models whose
layers see everything before a token; a trial on the model itself checks that it computes what `CopiedPrompts`
computes.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from herl.errors import SamplerError
from herl.models import shared_attention
from herl.models.compiled import uncompiled
from herl.models.precision import allowed_share, rms

ROOM = 16
"""Tokens that a full answer buffer grows by."""

logger = logging.getLogger(__name__)


class CopiedPrompts(DynamicCache):
    """The cache of transformers: a row holds a prompt and an answer.

    Args:
        config: The model's configuration.
        keyword: Name of the cache argument of the model's forward: "cache_params" without attention.
    """

    def __init__(self, config: PreTrainedConfig, keyword: str = "past_key_values") -> None:
        super().__init__(config=config)
        self._keyword = keyword
        self._opened = False

    def share(self, owner: torch.Tensor, mask: torch.Tensor) -> None:
        """Opens rows for answers; see `SharedPrompts`."""
        self.batch_select_indices(owner)
        self._opened = True

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these rows, in this order.

        Layers with other states than keys and values would select only keys and values, but every layer
        reorders all of its states.
        """
        self.reorder_cache(cast(torch.LongTensor, indices))

    def arguments(self, mask: torch.Tensor) -> dict[str, Any]:
        """Returns the arguments of a model pass other than its tokens; `mask` is [rows, tokens]."""
        if self._opened and self._keyword != "past_key_values":
            return {self._keyword: self, "attention_mask": None}  # states do not include the padding
        return {self._keyword: self, "attention_mask": mask}


class SharedPrompts(Cache):
    """Keys and values of a few prompts and of their answers.

    The first pass stores the prompts, `share` opens rows, and every later pass adds a token to each row.
    """

    def __init__(self, layers: int) -> None:
        self._layers = [_Layer() for _ in range(layers)]  # type: ignore[no-untyped-call]
        super().__init__(layers=list(self._layers))
        self._owner: torch.Tensor | None = None  # [rows]: the prompt of each
        self._hidden: torch.Tensor  # [prompts, W], added to scores: -inf at padding
        self._most: int  # answers to one prompt
        self._place: torch.Tensor  # [rows]: where each is in [prompts x most]
        self._row: torch.Tensor  # [prompts x most]: which row is there

    def share(self, owner: torch.Tensor, mask: torch.Tensor) -> None:
        """Opens rows for answers.

        Args:
            owner: [rows], long: the prompt that each row answers.
            mask: [prompts, W]: 1 for a token, 0 for padding.
        """
        self._hidden = torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, -torch.inf)
        for layer in self._layers:
            layer.open(len(owner))
        self._arrange(owner)

    def arguments(self, mask: torch.Tensor) -> dict[str, Any]:
        """Returns the arguments of a model pass other than its tokens; `mask` is [rows, tokens]."""
        if self._owner is None:
            return {"past_key_values": self, "attention_mask": mask}
        # transformers passes a four-dimensional mask on unchanged, and `attend` does not read it.
        any_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=mask.device)
        return {"past_key_values": self, "attention_mask": any_mask, "prompts": self}

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these rows, in this order, and their prompts."""
        assert self._owner is not None
        prompts, owner = self._owner[indices].unique(return_inverse=True)
        for layer in self._layers:
            layer.answers = [states[indices] for states in layer.answers]
            if len(prompts) < len(self._hidden):
                layer.batch_select_indices(prompts)
        self._hidden = self._hidden[prompts]
        self._arrange(owner)

    def _arrange(self, owner: torch.Tensor) -> None:
        """Gives each row a place next to the other answers to its prompt: [prompts, most answers]."""
        counts = owner.bincount(minlength=len(self._hidden))
        self._owner, self._most = owner, int(counts.max())
        order = owner.argsort(stable=True)
        sorted_owner = owner[order]
        rank = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[sorted_owner]
        self._place = torch.empty_like(order)
        self._place[order] = sorted_owner * self._most + rank
        self._row = order.new_zeros(len(self._hidden) * self._most)
        self._row[self._place] = torch.arange(len(owner), device=owner.device)  # unused places read row 0

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Returns a layer's output for the newest token of each row, [rows, 1, heads, D].

        Args:
            layer: Index of the layer.
            query: [rows, heads, 1, D].
            key, value: Those of the answers, [rows, key/value heads, tokens, D].
            scaling: Factor of the scores; None for 1 / sqrt(D).
        """
        keys, values = self._layers[layer].prompts()
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        grouped = (query * scale).reshape(len(query), key.shape[1], -1, query.shape[-1])
        prompt_scores = self._by_row(self._by_prompt(grouped) @ keys.transpose(-1, -2))
        prompt_scores = prompt_scores + self._hidden[self._owner][:, None, None]
        scores = torch.cat([prompt_scores, grouped @ key.transpose(-1, -2)], dim=-1)
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        prompt_weights, weights = weights.split([keys.shape[2], key.shape[2]], dim=-1)
        output: torch.Tensor = weights @ value + self._by_row(self._by_prompt(prompt_weights) @ values)
        return output.flatten(1, 2)[:, None]

    def _by_prompt(self, of_rows: torch.Tensor) -> torch.Tensor:
        """[rows, shared heads, heads each, X] -> [prompts, shared heads, most answers x heads each, X]."""
        by_prompt: torch.Tensor = of_rows[self._row].unflatten(0, (-1, self._most))
        return by_prompt.transpose(1, 2).flatten(2, 3)

    def _by_row(self, of_prompts: torch.Tensor) -> torch.Tensor:
        """Reverts `_by_prompt`."""
        by_answer: torch.Tensor = of_prompts.unflatten(2, (self._most, -1))
        return by_answer.transpose(1, 2).flatten(0, 1)[self._place]


class _Layer(DynamicLayer):
    """One layer: prompts, and two buffers for answers, [rows, heads, tokens + room, D]."""

    answers: Sequence[torch.Tensor] = ()
    tokens = 0

    def prompts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the prompts' keys and values, [prompts, heads, W, D] each."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def open(self, rows: int) -> None:
        """Creates empty buffers for answers; all entries so far are prompts."""
        self.answers = [
            states.new_empty(rows, states.shape[1], ROOM, states.shape[3]) for states in self.prompts()
        ]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores and returns prompts; once rows are open, stores a token per answer and returns answers."""
        if not self.answers:
            return super().update(key_states, value_states)
        self.tokens += 1
        if self.tokens > self.answers[0].shape[2]:
            self.answers = [pad(states, (0, 0, 0, ROOM)) for states in self.answers]
        for buffer, states in zip(self.answers, (key_states, value_states), strict=True):
            buffer[:, :, self.tokens - 1 : self.tokens] = states
        keys, values = (states[:, :, : self.tokens] for states in self.answers)
        return keys, values

    def get_seq_length(self) -> int:
        """Returns the tokens of a row and its prompt."""
        return int(super().get_seq_length()) + self.tokens


PromptCache = CopiedPrompts | SharedPrompts


def last_logits(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, cache: PromptCache
) -> torch.Tensor:
    """Runs a pass over new tokens and returns the logits of the last, [rows, vocabulary], in float32.

    Args:
        ids: [rows, new tokens].
        mask: [rows, tokens], covering all tokens so far.
    """
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return next_logits(model, ids, positions, cache.arguments(mask))


def next_logits(
    model: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor, arguments: dict[str, Any]
) -> torch.Tensor:
    """Runs a pass over tokens at these positions, [rows, new tokens] both; see `last_logits`."""
    with uncompiled(model):  # layers are compiled for the update only
        output = model(input_ids=ids, position_ids=positions, use_cache=True, logits_to_keep=1, **arguments)
    logits: torch.Tensor = output.logits[:, -1].float()
    return logits


def prompt_cache(model: PreTrainedModel) -> Callable[[], PromptCache]:
    """Returns a function that makes empty caches; logs the reason if answers cannot share their prompts.

    Tries the caches on the model in its current state: the weights, mode and numerics of sampling.

    Raises:
        SamplerError: the model computes something else with a cache than without.
    """
    keywords = inspect.signature(type(model).forward).parameters
    keyword = "cache_params" if "cache_params" in keywords else "past_key_values"
    copied = partial(CopiedPrompts, config=model.config, keyword=keyword)
    layers = copied().layers
    reason = "its layers do not all see everything before a token, or use another attention"
    if shared_attention.installed(model) and layers and all(type(layer) is DynamicLayer for layer in layers):
        expected, shared = trial(model, copied()), partial(SharedPrompts, len(layers))
        reason = objection_to(model, lambda: trial(model, shared()), expected)
        if not reason:
            return shared
    logger.warning(
        "answers of %s do not share their prompt's keys and values: %s", type(model).__name__, reason
    )
    _check(model, copied())
    return copied


def _check(model: PreTrainedModel, cache: CopiedPrompts) -> None:
    """Raises SamplerError unless the model computes the same with a cache as without."""
    objection = objection_to(model, lambda: trial(model, cache), _without_cache(model))
    if objection:
        raise SamplerError(
            f"sampler=transformers cannot sample from {type(model).__name__}: with a cache, {objection}. "
            "Use a vLLM sampler"
        )


def objection_to(model: PreTrainedModel, tried: Callable[[], torch.Tensor], expected: torch.Tensor) -> str:
    """Returns what is wrong with a way to compute the log-probs of `trial`: an error, or a distance from the
    expected ones that is more than rounding. "" if nothing is.

    Raises:
        torch.OutOfMemoryError: says nothing about the way.
    """
    try:
        found = tried()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an architecture may fail in any way with an unknown cache
        return f"{type(error).__name__}: {error}"
    deviation, effect = rms(found - expected), rms(_without_cache(model, prompt_tokens=1) - expected)
    allowed = allowed_share(model.device, model.dtype)
    if deviation <= allowed * effect:
        return ""
    return (
        f"log-probs deviate by {deviation:.2g} nats; at most {allowed:g} of the prompt's effect of "
        f"{effect:.2g} nats is allowed"
    )


def trial_tokens(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns random tokens: two prompts [2, 7], their mask, three answers [3, 8], and their owners [3]."""
    draw = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    prompts = torch.randint(vocabulary, (2, 7), generator=draw).to(model.device)
    answers = torch.randint(vocabulary, (3, 8), generator=draw).to(model.device)
    mask = torch.ones_like(prompts)
    mask[1, :3] = 0
    return prompts, mask, answers, torch.tensor([0, 1, 0], device=model.device)


@torch.no_grad()
def trial(model: PreTrainedModel, cache: PromptCache) -> torch.Tensor:
    """Returns the log-probs of each answer's tokens after its first, [21], computed token by token."""
    prompts, mask, answers, owner = trial_tokens(model)
    last_logits(model, prompts, mask, cache)
    cache.share(owner, mask)
    mask, found = mask[owner], []
    for place in range(answers.shape[1] - 1):
        mask = torch.cat([mask, mask.new_ones(3, 1)], dim=1)
        logits = last_logits(model, answers[:, place, None], mask, cache)
        found.append(logits.log_softmax(-1).gather(1, answers[:, place + 1, None])[:, 0])
    return torch.cat(found)


@torch.no_grad()
def _without_cache(model: PreTrainedModel, prompt_tokens: int | None = None) -> torch.Tensor:
    """Returns the log-probs of `trial`, [21], from one pass over each answer alone, without padding.

    Args:
        model: The model.
        prompt_tokens: How many of the prompt's last tokens it sees; None for all.
    """
    prompts, mask, answers, owner = trial_tokens(model)
    found = []
    for answer, prompt in zip(answers, owner.tolist(), strict=True):
        ids = torch.cat([prompts[prompt][mask[prompt] == 1][-(prompt_tokens or 0) :], answer])
        with uncompiled(model):
            logits = model(input_ids=ids[None], use_cache=False).logits[0, -len(answer) : -1].float()
        found.append(logits.log_softmax(-1).gather(1, answer[1:, None])[:, 0])
    return torch.stack(found, dim=1).flatten()
