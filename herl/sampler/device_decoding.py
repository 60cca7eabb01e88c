"""Samples without making the device wait: fixed shapes, recorded steps, and a check only every few tokens.

    waiting answers -> [prefill] -> lines of the cache -> step, step, ..., step -> look -> finished answers
                           ^                                                        |
                           +------- free lines are filled, or dropped <-------------+

A line is a prompt with some of its answers. One step feeds the newest token of every row, draws the next from
the row's uniform numbers and stores it, all on the device: the host only launches it. The tokens drawn are
those that `herl.sampler.transformers` draws on other devices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from herl.sampler.answer import OpenAnswer
from herl.sampler.answer_slots import AnswerSlots
from herl.sampler.drawing import truncates
from herl.sampler.prompt_cache import CopiedPrompts, next_logits
from herl.sampler.replays import Recorder, Replays
from herl.sampler.static_prompts import Shape, States, StaticPrompts, compute_dtype, run_prompts

LOOK = 8
"""Steps between checks for finished answers."""

MAX_SLOTS = 16
"""Most answers in a line, since a line is free only when its last answer is finished."""

MIN_ROOM = 128
"""Tokens that answers initially have room for."""

PREFILL_TOKENS = 2**15
"""Most prompt tokens in one pass, padding included."""


@dataclass(slots=True, eq=False)
class _Line:
    """A prompt and its answers, each in a slot; None for a finished answer."""

    prompt: tuple[int, ...]
    answers: list[OpenAnswer | None]
    drawn: int = 1
    """Tokens of each unfinished answer."""

    def tokens_left(self) -> int:
        """Returns how many tokens the answer with the most room can still get."""
        limits = [answer.request.sampling.max_new_tokens for answer in self.answers if answer is not None]
        return max(limits, default=0) - self.drawn

    def going(self) -> int:
        """Returns the number of unfinished answers."""
        return sum(answer is not None for answer in self.answers)


class DeviceDecoder:
    """Samples answers of one model, batch after batch.

    Args:
        model: The model that samples. Its weights may change between batches, but not move in memory.
        end_ids: Tokens that end an answer.
        recorder: Records steps; None to run every step eagerly, which draws the same tokens.
    """

    def __init__(self, model: PreTrainedModel, end_ids: frozenset[int], recorder: Recorder | None) -> None:
        self._model = model
        self._device = model.device
        self._layers = len(CopiedPrompts(config=model.config).layers)
        self._slots = AnswerSlots(end_ids, self._device)
        self._cache: StaticPrompts | None = None
        self._dtype: torch.dtype | None = None
        self._replays = Replays(recorder)
        self._weights: list[int] = []
        self._lines: list[_Line | None] = []
        self._busy = False

    @property
    def nbytes(self) -> int:
        """Bytes of memory that keys and values occupy."""
        return 0 if self._cache is None else self._cache.nbytes

    def sample(self, answers: Sequence[OpenAnswer], rows: int) -> Iterator[OpenAnswer]:
        """Yields answers as they finish, with their tokens and log-probs.

        Args:
            answers: The answers to sample.
            rows: Most answers to sample at the same time.
        """
        if self._busy:
            raise RuntimeError(
                "expected one generate() of a sampler at a time, got a second before the first ended"
            )
        self._busy = True
        try:
            self._begin(answers)
            slots, waiting = _lines(answers, min(rows, MAX_SLOTS))
            most = max(1, rows // slots)
            while waiting or any(self._lines):
                self._let_in(waiting, slots, most)
                steps = min(LOOK, max((line.tokens_left() for line in self._lines if line), default=0))
                self._advance(steps, slots, most)
                yield from self._finished()
        finally:
            self._busy = False

    # Set-up

    @torch.inference_mode(False)
    @torch.no_grad()
    def _begin(self, answers: Sequence[OpenAnswer]) -> None:
        """Clears the remains of an unfinished batch, and recordings that read memory which has moved."""
        settings = [answer.request.sampling for answer in answers]
        self._truncated = any(map(truncates, settings))
        self._greedy = any(s.temperature == 0 for s in settings)
        self._lines = []
        self._slots.clear(_step_up(max(s.max_new_tokens for s in settings) + 1, 128))
        states = [*self._model.parameters(), *self._model.buffers()]
        weights = [tensor.data_ptr() for tensor in states]
        dtype = compute_dtype(self._model)
        if dtype != self._dtype or self._cache is None:
            self._cache = StaticPrompts(self._layers, dtype, self._device)
        if weights != self._weights or dtype != self._dtype:
            self._replays.clear()
        self._weights, self._dtype = weights, dtype
        self._cache.shape = Shape()

    # Admitting answers

    @torch.inference_mode(False)
    @torch.no_grad()
    def _let_in(self, waiting: deque[_Line], slots: int, most: int) -> None:
        """Fills free lines, if there are many or no other line is in use."""
        free = most - sum(line is not None for line in self._lines)
        if not waiting or (any(self._lines) and free < max(1, most // 4)):
            return
        staying = [line for line in self._lines if line is not None]
        new = [waiting.popleft() for _ in range(min(free, len(waiting)))]
        place = len(staying)
        for count, prompts in _prefills(new):
            states, logits = self._prefill(prompts)
            if place == len(staying):
                self._arrange([*staying, *new], len(new), slots, most)
            self._open(range(place, place + count), prompts, states, logits)
            place += count

    def _prefill(self, prompts: list[tuple[int, ...]]) -> tuple[list[States], torch.Tensor]:
        """Runs prompts, left-padded. Returns each layer's keys and values, and the first tokens' logits."""
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        states, logits = run_prompts(self._model, ids.to(self._device), mask.to(self._device))
        assert self._cache is not None
        self._cache.sizes(states)
        return states, logits

    def _open(
        self, places: range, prompts: list[tuple[int, ...]], states: list[States], logits: torch.Tensor
    ) -> None:
        """Puts prompts into their lines, and draws the answers' first tokens."""
        assert self._cache is not None
        row_of = {prompt: row for row, prompt in enumerate(prompts)}
        lines = [line for line in self._lines[places.start : places.stop] if line is not None]
        owner = torch.tensor([row_of[line.prompt] for line in lines], device=self._device)
        self._cache.put(
            torch.tensor(places, device=self._device),
            [(keys[owner], values[owner]) for keys, values in states],
            torch.tensor([len(line.prompt) for line in lines], device=self._device),
        )
        rows, answers, owners = [], [], []
        for place, line in zip(places, lines, strict=True):
            for slot, answer in enumerate(line.answers):
                if answer is not None:
                    rows.append(place * self._cache.shape.slots + slot)
                    answers.append(answer)
                    owners.append(row_of[line.prompt])
        self._slots.open(
            torch.tensor(rows, device=self._device),
            answers,
            logits[torch.tensor(owners, device=self._device)],
        )

    def _arrange(self, lines: list[_Line], new: int, slots: int, most: int) -> None:
        """Fits the cache to exactly these lines; the last `new` of them are not in it yet."""
        assert self._cache is not None
        old = self._cache.shape
        if not new:
            slots = min(slots, _step_up(max(line.going() for line in lines), 1))
        longest = max(min(line.drawn + LOOK, line.drawn + line.tokens_left()) for line in lines)
        shape = Shape(
            lines=min(most, _step_up(len(lines), 1)),
            slots=slots,
            width=_step_up(max(len(line.prompt) for line in lines), 32),
            room=_step_up(longest, MIN_ROOM),
        )
        kept: list[tuple[int, _Line]] = [
            (self._lines.index(line) * old.slots, line) for line in lines[: len(lines) - new]
        ]
        source = torch.zeros(shape.lines, shape.slots, dtype=torch.long)
        for place, (first, line) in enumerate(kept):
            going = [slot for slot, answer in enumerate(line.answers) if answer is not None]
            line.answers = [line.answers[slot] for slot in going]
            line.answers += [None] * (shape.slots - len(going))
            source[place] = first
            source[place, : len(going)] = torch.tensor([first + slot for slot in going])
        source = source.to(self._device)
        moved = self._cache.arrange(shape, source)
        moved |= self._slots.arrange(source.flatten())
        if moved:
            self._replays.clear()
        for line in lines[len(lines) - new :]:
            line.answers += [None] * (shape.slots - len(line.answers))
        self._lines = [*lines, *[None] * (shape.lines - len(lines))]
        self._stop_others()

    def _stop_others(self) -> None:
        """Stops rows without an answer, and makes them write to a place that exists in any shape."""
        answered = [answer is not None for row in self._by_row() for answer in row]
        nobody = ~torch.tensor(answered, device=self._device)
        self._slots["going"].masked_fill_(nobody, False)
        self._slots["drawn"].masked_fill_(nobody, 1)

    def _by_row(self) -> Iterator[list[OpenAnswer | None]]:
        assert self._cache is not None
        nobody: list[OpenAnswer | None] = [None] * self._cache.shape.slots
        return (line.answers if line else nobody for line in self._lines)

    # Decoding

    @torch.inference_mode(False)
    @torch.no_grad()
    def _advance(self, steps: int, slots: int, most: int) -> None:
        """Draws `steps` tokens for every row."""
        going = [line for line in self._lines if line is not None]
        if not steps or not going:
            return
        assert self._cache is not None
        shape = self._cache.shape
        rows = min(most, _step_up(len(going), 1)) * min(
            slots, _step_up(max(line.going() for line in going), 1)
        )
        full = max(line.drawn for line in going) + steps - 1 > shape.room
        if full or rows <= shape.rows // 2:
            self._arrange(going, 0, slots, most)
        key = (self._cache.shape, self._slots.columns, self._truncated, self._greedy)
        step = partial(self._step, truncated=self._truncated, greedy=self._greedy)
        for _ in range(steps):
            self._replays.run(key, step)
        for line in going:
            line.drawn += steps

    def _step(self, *, truncated: bool, greedy: bool) -> None:
        """Feeds every row's newest token and draws the next. Nothing here may wait for the device."""
        assert self._cache is not None
        positions = self._cache.begin(self._slots["drawn"] - 1)
        kind = self._device.type
        # A recording must not share cached casts, which would outlive its memory.
        with torch.autocast(
            kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False
        ):
            logits = next_logits(
                self._model, self._slots["ids"][:, None], positions[:, None], self._cache.arguments()
            )
        self._slots.draw(logits, truncated=truncated, greedy=greedy)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _finished(self) -> list[OpenAnswer]:
        """Returns the answers that have finished, and frees their slots."""
        assert self._cache is not None
        width = self._cache.shape.slots
        drawn, going = self._slots.look()
        ended: dict[int, OpenAnswer] = {}
        for place, line in enumerate(self._lines):
            if line is None:
                continue
            for slot, answer in enumerate(line.answers):
                row = place * width + slot
                if answer is not None and not going[row]:
                    ended[row] = answer
                    line.answers[slot] = None
                elif answer is not None:
                    assert drawn[row] == line.drawn
            if not line.going():
                self._lines[place] = None
        if ended:
            for answer, (ids, logprobs) in zip(ended.values(), self._slots.read(list(ended)), strict=True):
                answer.token_ids, answer.logprobs = ids, logprobs
        return list(ended.values())


def _lines(answers: Sequence[OpenAnswer], most: int) -> tuple[int, deque[_Line]]:
    """Returns the slots per line, and the lines, long prompts first: later ones fit into the same places."""
    by_prompt: dict[tuple[int, ...], list[OpenAnswer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.request.prompt_ids, []).append(answer)
    counts = [len(group) for group in by_prompt.values()]
    # An empty slot costs as much as a used one, and each line costs about one slot more.
    slots = min(
        range(min(most, max(counts)), 0, -1),
        key=lambda slots: (slots + 1) * sum(-(-count // slots) for count in counts),
    )
    return slots, deque(
        _Line(prompt, list(group[start : start + slots]))
        for prompt, group in sorted(by_prompt.items(), key=lambda item: -len(item[0]))
        for start in range(0, len(group), slots)
    )


def _prefills(lines: Sequence[_Line]) -> list[tuple[int, list[tuple[int, ...]]]]:
    """Splits lines into passes: (number of lines, their distinct prompts)."""
    passes: list[tuple[int, list[tuple[int, ...]]]] = []
    for line in lines:
        count, prompts = passes[-1] if passes else (0, [])
        together = list(dict.fromkeys([*prompts, line.prompt]))
        if passes and max(map(len, together)) * len(together) <= PREFILL_TOKENS:
            passes[-1] = (count + 1, together)
        else:
            passes.append((1, [line.prompt]))
    return passes


def _step_up(count: int, least: int) -> int:
    """Rounds `count` up to a power of 2, or 3 times one, so that recordings can be reused."""
    power = max(least, 1 << (count - 1).bit_length())
    between = power // 4 * 3
    return between if between >= max(count, least) else power
