"""The state of unfinished answers, on the device: settings, uniform numbers, tokens drawn so far.

A decoding step reads and writes it without the host, which only checks every few steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from herl.sampler.answer import OpenAnswer
from herl.sampler.drawing import draw, truncates
from herl.sampler.static_prompts import FlatBuffer


class AnswerSlots:
    """One row per answer. Rows without an answer compute like the others, but their results are unused.

    Args:
        end_ids: Tokens that end an answer.
        device: Device of all tensors.
    """

    def __init__(self, end_ids: Iterable[int], device: torch.device) -> None:
        self.rows = 0
        self.columns = 0
        """Most tokens of an answer, plus one column that finished rows write to."""
        self._device = device
        self._end_ids = torch.tensor(sorted(end_ids), device=device)
        kinds = {
            "ids": torch.long,  # the newest token
            "drawn": torch.long,  # tokens so far
            "limit": torch.long,  # most tokens
            "going": torch.bool,
            "temperature": torch.float32,
            "top_p": torch.float64,
            "top_k": torch.long,
            "min_p": torch.float64,
        }
        self._by_row = {name: FlatBuffer(dtype, device) for name, dtype in kinds.items()}
        tables = {"uniforms": torch.float64, "tokens": torch.long, "logprobs": torch.float32}
        self._tables = {name: FlatBuffer(dtype, device) for name, dtype in tables.items()}

    def clear(self, columns: int) -> None:
        """Removes all rows, and sets the room of new ones: answers of fewer than `columns` tokens."""
        self.rows, self.columns = 0, columns

    def arrange(self, rows: torch.Tensor) -> bool:
        """Fills new rows from these old ones, [new rows], long. Returns whether anything moved in memory."""
        kept = {name: self[name][rows] for name in (*self._by_row, *self._tables)} if self.rows else {}
        self.rows, moved = len(rows), False
        for buffer in self._by_row.values():
            moved |= buffer.reserve(self.rows)
        for buffer in self._tables.values():
            moved |= buffer.reserve(self.rows * self.columns)
        for name in (*self._by_row, *self._tables):
            self[name][:] = kept.get(name, 1)
        if not kept:
            self["going"][:] = False
        return moved

    def __getitem__(self, name: str) -> torch.Tensor:
        """Returns a view of one number per row, [rows], or of a table, [rows, columns]."""
        if name in self._by_row:
            return self._by_row[name].view(self.rows)
        return self._tables[name].view(self.rows, self.columns)

    def open(self, rows: torch.Tensor, answers: Sequence[OpenAnswer], logits: torch.Tensor) -> None:
        """Draws each answer's first token from its prompt's last logits.

        Args:
            rows: [n], long.
            answers: The n answers in these rows.
            logits: [n, vocabulary], float32.
        """
        settings = [answer.request.sampling for answer in answers]
        uniforms = np.zeros((len(answers), self.columns))
        for place, answer in enumerate(answers):
            uniforms[place, : len(answer.uniforms)] = answer.uniforms
        numbers = {
            "temperature": [s.temperature for s in settings],
            "top_p": [s.top_p for s in settings],
            "top_k": [s.top_k for s in settings],
            "min_p": [s.min_p for s in settings],
            "limit": [s.max_new_tokens for s in settings],
        }
        for name, values in numbers.items():
            whole = self[name]
            whole[rows] = torch.tensor(values, dtype=whole.dtype, device=self._device)
        self["uniforms"][rows] = torch.from_numpy(uniforms).to(self._device)
        chosen, logprobs = draw(
            logits,
            self["temperature"][rows],
            self["top_p"][rows],
            self["top_k"][rows],
            self["min_p"][rows],
            self["uniforms"][rows, 0],
            truncated=any(map(truncates, settings)),
            greedy=any(s.temperature == 0 for s in settings),
        )
        self["tokens"][rows, 0], self["logprobs"][rows, 0] = chosen, logprobs
        self["ids"][rows], self["drawn"][rows] = chosen, 1
        self["going"][rows] = ~self._ends(chosen, self["limit"][rows], 1)

    def draw(self, logits: torch.Tensor, *, truncated: bool, greedy: bool) -> None:
        """Draws every row's next token from logits [rows, vocabulary]. Finished rows keep their tokens."""
        drawn, going = self["drawn"], self["going"]
        place = drawn[:, None]
        uniform = self["uniforms"].gather(1, place)[:, 0]
        settings = self["temperature"], self["top_p"], self["top_k"], self["min_p"]
        chosen, logprobs = draw(logits, *settings, uniform, truncated=truncated, greedy=greedy)
        self["tokens"].scatter_(1, place, chosen[:, None])
        self["logprobs"].scatter_(1, place, logprobs[:, None])
        self["ids"].copy_(chosen)
        drawn += going
        going &= ~self._ends(chosen, self["limit"], drawn)

    def _ends(self, chosen: torch.Tensor, limit: torch.Tensor, drawn: torch.Tensor | int) -> torch.Tensor:
        return (chosen[:, None] == self._end_ids).any(-1) | (limit <= drawn)

    def look(self) -> tuple[list[int], list[bool]]:
        """Returns each row's number of tokens and whether it is unfinished. Waits for the device."""
        drawn, going = torch.stack([self["drawn"], self["going"].long()]).tolist()
        return drawn, [bool(flag) for flag in going]

    def read(self, rows: Sequence[int]) -> list[tuple[list[int], list[float]]]:
        """Returns the token ids and log-probs of these rows. Waits for the device."""
        where = torch.tensor(rows, device=self._device)
        drawn = self["drawn"][where].tolist()
        longest = max(drawn)
        tokens = self["tokens"][where, :longest].tolist()
        logprobs = self["logprobs"][where, :longest].tolist()
        return [
            (ids[:count], values[:count]) for ids, values, count in zip(tokens, logprobs, drawn, strict=True)
        ]
