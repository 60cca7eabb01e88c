"""Key/value caches of fixed shape, which a CUDA graph can read and write, token after token.

    line 1   prompt [W] <── slot 1 [R] | slot 2 [R] | ...     W tokens of a prompt, padded on the left
    line 2   prompt [W] <── slot 1 [R] | slot 2 [R] | ...     room for R tokens of an answer

Every line has the same number of slots, used or not, and each slot has its own length. The states occupy the
front of flat buffers that do not move, so the same memory serves several shapes, one at a time. The
arithmetic is that of `herl.sampler.prompt_cache.SharedPrompts`, for the models that it serves.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from herl.sampler.prompt_cache import (
    CopiedPrompts,
    last_logits,
    next_logits,
    objection_to,
    trial,
    trial_tokens,
)

States = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of a layer, [prompts, heads, tokens, D]."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of all layers' states."""

    lines: int = 0
    slots: int = 0
    """Answers to the prompt of a line."""
    width: int = 0
    """Tokens of a prompt, padding included."""
    room: int = 0
    """Tokens of an answer."""

    @property
    def rows(self) -> int:
        """Answers, or slots for them, line by line."""
        return self.lines * self.slots


class FlatBuffer:
    """Memory that can be viewed in several shapes, and moves only to grow."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.flat = torch.zeros(0, dtype=dtype, device=device)

    def reserve(self, count: int) -> bool:
        """Makes room for `count` elements. Returns whether the buffer moved and lost its contents."""
        if count <= len(self.flat):
            return False
        dtype, device = self.flat.dtype, self.flat.device
        del self.flat  # so that both never exist at once
        self.flat = torch.zeros(count, dtype=dtype, device=device)
        return True

    def view(self, *shape: int) -> torch.Tensor:
        """Returns the front of the buffer in a shape."""
        return self.flat[: prod(shape)].view(shape)


class StaticPrompts(Cache):
    """Keys and values of prompts and of their answers, in fixed places.

    Args:
        layers: Number of the model's layers.
        dtype: Type of the states; scores and their softmax are float32.
        device: Device of the states.
    """

    def __init__(self, layers: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[DynamicLayer() for _ in range(layers)])
        self.shape = Shape()
        self._layers = [_Layer(dtype, device) for _ in range(layers)]
        self._lengths = FlatBuffer(torch.long, device)
        self._place: torch.Tensor  # [lines, 1, slots, 1, 1]: where this pass writes
        self._hidden: torch.Tensor  # [lines, 1, slots, 1, W + R], added to scores: -inf where hidden

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return sum(buffer.flat.nbytes for layer in self._layers for buffer in layer.buffers())

    def sizes(self, states: Sequence[States]) -> None:
        """Records the sizes of heads from (keys, values) of each layer, [prompts, heads, tokens, D]."""
        for layer, (keys, values) in zip(self._layers, states, strict=True):
            layer.heads, layer.dims = keys.shape[1], (keys.shape[3], values.shape[3])

    def arrange(self, shape: Shape, slots: torch.Tensor) -> bool:
        """Changes the shape. Returns whether anything moved in memory.

        Args:
            shape: The new shape.
            slots: [lines, slots], long: the old row that fills each new slot, from one old line per new line.
        """
        moved = False
        lines = slots[:, 0].div(max(1, self.shape.slots), rounding_mode="floor")
        for layer in self._layers:
            moved |= layer.arrange(self.shape, shape, lines, slots)
        lengths = self._lengths.view(self.shape.lines)[lines] if self.shape.lines else lines.new_zeros(0)
        moved |= self._lengths.reserve(shape.lines)
        self._lengths.view(shape.lines).zero_()[: len(lengths)] = lengths
        self.shape = shape
        return moved

    def put(self, lines: torch.Tensor, states: Sequence[States], lengths: torch.Tensor) -> None:
        """Puts prompts into lines, whose slots become empty.

        Args:
            lines: [n], long.
            states: (keys, values) of each layer, [n, heads, tokens, D], padded on the left.
            lengths: [n], long: tokens of each prompt without padding.
        """
        for layer, pair in zip(self._layers, states, strict=True):
            for prompts, own, new in zip(*layer.views(self.shape), pair, strict=True):
                padded = prompts.new_zeros(len(lines), *prompts.shape[1:])
                count = min(new.shape[2], prompts.shape[2])
                padded[:, :, prompts.shape[2] - count :] = new[:, :, new.shape[2] - count :]
                prompts[lines] = padded
                own[lines] = 0.0
        self._lengths.view(self.shape.lines)[lines] = lengths

    def begin(self, place: torch.Tensor) -> torch.Tensor:
        """Prepares a pass over one more token of each row. Returns the tokens' positions, [rows].

        Args:
            place: [rows], long: the index of the token within its answer, from 0.
        """
        shape = self.shape
        lengths = self._lengths.view(shape.lines, 1)
        place = place.view(shape.lines, shape.slots)
        self._place = place[:, None, :, None, None]
        in_prompt = torch.arange(shape.width, device=place.device) >= shape.width - lengths
        in_answer = torch.arange(shape.room, device=place.device) <= place[..., None]
        seen = torch.cat([in_prompt[:, None].expand(-1, shape.slots, -1), in_answer], dim=-1)
        hidden = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)
        self._hidden = hidden[:, None, :, None]
        return (lengths + place).flatten()

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of a model pass other than tokens and positions."""
        # transformers passes a four-dimensional mask on unchanged, and `attend` does not read it.
        any_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self._lengths.flat.device)
        return {"past_key_values": self, "attention_mask": any_mask, "prompts": self}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes a token of each answer, [rows, heads, 1, D], to the place set by `begin`."""
        shape = self.shape
        for own, states in zip(
            self._layers[layer_idx].views(shape)[1], (key_states, value_states), strict=True
        ):
            by_line = states.reshape(shape.lines, shape.slots, *states.shape[1:]).transpose(1, 2)
            own.scatter_(3, self._place.expand_as(by_line), by_line.to(own.dtype))
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns the tokens that a row has room for."""
        return self.shape.width + self.shape.room

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Returns a layer's output for the newest token of each row, [rows, 1, heads, D].

        Args:
            layer: Index of the layer.
            query: [rows, heads, 1, D].
            key, value: Those of the newest tokens, which `update` has stored already.
            scaling: Factor of the scores; None for 1 / sqrt(D).
        """
        shape, dim = self.shape, query.shape[-1]
        (keys, values), (own_keys, own_values) = self._layers[layer].views(shape)
        # [lines, shared heads, slots, heads each, D]
        grouped = query.to(keys.dtype).reshape(shape.lines, shape.slots, keys.shape[1], -1, dim)
        grouped = grouped.transpose(1, 2).contiguous()
        with torch.autocast(query.device.type, enabled=False):
            of_prompt = _scores(grouped.flatten(2, 3), keys).unflatten(2, (shape.slots, -1))
            scores = torch.cat([of_prompt, _scores(grouped, own_keys)], dim=-1)
            scale = dim**-0.5 if scaling is None else scaling
            weights = torch.add(self._hidden, scores, alpha=scale).softmax(-1).to(values.dtype)
            in_prompt, own = weights.split([shape.width, shape.room], dim=-1)
            output: torch.Tensor = own @ own_values
            output = output + (in_prompt.flatten(2, 3) @ values).view_as(output)
        return output.transpose(1, 2).reshape(shape.rows, 1, -1, output.shape[-1])


class _Layer:
    """One layer: the states of prompts, [lines, heads, W, D], and of answers, [lines, heads, slots, R, D]."""

    heads = 0
    dims = (0, 0)
    """D of keys and of values."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._prompts = (FlatBuffer(dtype, device), FlatBuffer(dtype, device))
        self._answers = (FlatBuffer(dtype, device), FlatBuffer(dtype, device))

    def buffers(self) -> list[FlatBuffer]:
        return [*self._prompts, *self._answers]

    def views(self, shape: Shape) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Returns (keys, values) of prompts and (keys, values) of answers."""
        both = [self._views(kind, shape) for kind in range(2)]
        return [prompts for prompts, _ in both], [answers for _, answers in both]

    def _views(self, kind: int, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the keys (kind 0) or values (kind 1) of prompts and of answers."""
        dim = self.dims[kind]
        return (
            self._prompts[kind].view(shape.lines, self.heads, shape.width, dim),
            self._answers[kind].view(shape.lines, self.heads, shape.slots, shape.room, dim),
        )

    def arrange(self, old: Shape, new: Shape, lines: torch.Tensor, slots: torch.Tensor) -> bool:
        """See `StaticPrompts.arrange`; `lines` is [new lines]."""
        moved = [self._arrange(kind, old, new, lines, slots) for kind in range(2)]
        return any(moved)

    def _arrange(self, kind: int, old: Shape, new: Shape, lines: torch.Tensor, slots: torch.Tensor) -> bool:
        kept: list[torch.Tensor] = []
        if old.rows:  # copied before anything is written, since old and new places overlap
            prompts, answers = self._views(kind, old)
            kept = [
                prompts[:, :, -min(old.width, new.width) :][lines],
                answers[:, :, :, : min(old.room, new.room)].transpose(1, 2).flatten(0, 1)[slots],
            ]
        count = self.heads * self.dims[kind]
        moved = self._prompts[kind].reserve(new.lines * new.width * count)
        moved |= self._answers[kind].reserve(new.rows * new.room * count)
        prompts, answers = self._views(kind, new)
        # Hidden places have weight 0, so their contents must be finite.
        prompts.zero_()
        answers.zero_()
        if kept:
            prompts[:, :, new.width - kept[0].shape[2] :] = kept[0]
            answers[:, :, :, : kept[1].shape[3]] = kept[1].transpose(1, 2)
        return moved


def _scores(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """query [..., n, D] x keys [..., m, D] -> [..., n, m] in float32, as in fused attention."""
    if query.dtype == torch.float32:
        return query @ keys.transpose(-1, -2)
    if not query.is_cuda:
        return query.float() @ keys.float().transpose(-1, -2)
    products = torch.bmm(query.flatten(0, -3), keys.flatten(0, -3).transpose(1, 2), out_dtype=torch.float32)
    return products.view(*query.shape[:-1], keys.shape[-2])


def run_prompts(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[list[States], torch.Tensor]:
    """Runs left-padded prompts, [prompts, tokens]. Returns states by layer, and logits as `last_logits`."""
    cache = CopiedPrompts(config=model.config)
    logits = last_logits(model, ids, mask, cache)
    layers = cast(list[DynamicLayer], cache.layers)
    return cast(list[States], [(layer.keys, layer.values) for layer in layers]), logits


def compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """Returns the type of a model's keys and values in fused attention."""
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype


@torch.inference_mode(False)
def serves(model: PreTrainedModel) -> bool:
    """Returns whether a model computes the same with `StaticPrompts` as without; logs the reason if not."""
    expected = trial(model, CopiedPrompts(config=model.config))
    objection = objection_to(model, lambda: _static_trial(model), expected)
    if objection:
        name = type(model).__name__
        logger.warning("%s is sampled without static caches and CUDA graphs: %s", name, objection)
    return not objection


@torch.no_grad()
def _static_trial(model: PreTrainedModel) -> torch.Tensor:
    """Computes what `trial` does, with two answers in one line, and one next to an empty slot."""
    prompts, mask, answers, _ = trial_tokens(model)
    states, _ = run_prompts(model, prompts, mask)
    cache = StaticPrompts(len(states), compute_dtype(model), model.device)
    cache.sizes(states)
    cache.arrange(Shape(2, 2, width=8, room=8), torch.zeros(2, 2, dtype=torch.long, device=model.device))
    cache.put(torch.arange(2, device=model.device), states, mask.sum(1))
    rows, found = answers[torch.tensor([0, 2, 1, 1], device=model.device)], []
    for place in range(answers.shape[1] - 1):
        positions = cache.begin(torch.full((4,), place, device=model.device))
        logits = next_logits(model, rows[:, place, None], positions[:, None], cache.arguments())
        logprobs = logits.log_softmax(-1).gather(1, rows[:, place + 1, None])[:, 0]
        found.append(logprobs[torch.tensor([0, 2, 1], device=model.device)])
    return torch.cat(found)
