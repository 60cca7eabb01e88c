"""What is known of answers in the making, on the device: settings, uniform numbers, tokens drawn so far.

A decoding step reads and writes it without the host, which checks every few steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from herl.sampler.answer import OpenAnswer
from herl.sampler.drawing import draw
from herl.sampler.static_prompts import FlatBuffer


class AnswerSlots:
    """A row for each answer; rows without one do what others do, and nobody looks at it.

    Args:
        end_ids: Tokens that end an answer.
        device: Where everything is.
    """

    def __init__(self, end_ids: Iterable[int], device: torch.device) -> None:
        self.rows = 0
        self.columns = 0
        """Most tokens of an answer and one more, where rows write that are finished."""
        self._device = device
        self._end_ids = torch.tensor(sorted(end_ids), device=device)
        kinds = {
            "ids": torch.long,  # the newest token
            "drawn": torch.long,  # tokens so far
            "limit": torch.long,  # tokens at most
            "going": torch.bool,
            "temperature": torch.float32,
            "top_p": torch.float64,
        }
        self._by_row = {name: FlatBuffer(dtype, device) for name, dtype in kinds.items()}
        tables = {"uniforms": torch.float64, "tokens": torch.long, "logprobs": torch.float32}
        self._tables = {name: FlatBuffer(dtype, device) for name, dtype in tables.items()}

    def clear(self, columns: int) -> None:
        """Begins with no rows, and room for answers of fewer than `columns` tokens."""
        self.rows, self.columns = 0, columns

    def arrange(self, rows: torch.Tensor) -> bool:
        """Fills new rows from these, [new rows], long. Returns whether anything moved in memory."""
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
        """A view of one number per row, [rows], or of a table, [rows, columns]."""
        if name in self._by_row:
            return self._by_row[name].view(self.rows)
        return self._tables[name].view(self.rows, self.columns)

    def open(self, rows: torch.Tensor, answers: Sequence[OpenAnswer], logits: torch.Tensor) -> None:
        """Draws the first token of answers from their prompts' last logits.

        Args:
            rows: [n], long.
            answers: n, for these rows.
            logits: [n, vocabulary], float32.
        """
        settings = [answer.request.sampling for answer in answers]
        uniforms = np.zeros((len(answers), self.columns))
        for place, answer in enumerate(answers):
            uniforms[place, : len(answer.uniforms)] = answer.uniforms
        numbers = {
            "temperature": [one.temperature for one in settings],
            "top_p": [one.top_p for one in settings],
            "limit": [one.max_new_tokens for one in settings],
        }
        for name, values in numbers.items():
            whole = self[name]
            whole[rows] = torch.tensor(values, dtype=whole.dtype, device=self._device)
        self["uniforms"][rows] = torch.from_numpy(uniforms).to(self._device)
        chosen, logprobs = draw(
            logits,
            self["temperature"][rows],
            self["top_p"][rows],
            self["uniforms"][rows, 0],
            nucleus=any(one.top_p < 1 for one in settings),
            greedy=any(one.temperature == 0 for one in settings),
        )
        self["tokens"][rows, 0], self["logprobs"][rows, 0] = chosen, logprobs
        self["ids"][rows], self["drawn"][rows] = chosen, 1
        self["going"][rows] = ~self._ends(chosen, self["limit"][rows], 1)

    def draw(self, logits: torch.Tensor, *, nucleus: bool, greedy: bool) -> None:
        """Draws the next token of every row from [rows, vocabulary]. Rows that are finished keep theirs."""
        drawn, going = self["drawn"], self["going"]
        place = drawn[:, None]
        uniform = self["uniforms"].gather(1, place)[:, 0]
        chosen, logprobs = draw(
            logits, self["temperature"], self["top_p"], uniform, nucleus=nucleus, greedy=greedy
        )
        self["tokens"].scatter_(1, place, chosen[:, None])
        self["logprobs"].scatter_(1, place, logprobs[:, None])
        self["ids"].copy_(chosen)
        drawn += going
        going &= ~self._ends(chosen, self["limit"], drawn)

    def _ends(self, chosen: torch.Tensor, limit: torch.Tensor, drawn: torch.Tensor | int) -> torch.Tensor:
        return (chosen[:, None] == self._end_ids).any(-1) | (limit <= drawn)

    def look(self) -> tuple[list[int], list[bool]]:
        """Returns tokens drawn and whether it goes on, for each row. Waits for the device."""
        drawn, going = torch.stack([self["drawn"], self["going"].long()]).tolist()
        return drawn, [bool(one) for one in going]

    def read(self, rows: Sequence[int]) -> list[tuple[list[int], list[float]]]:
        """Returns token ids and log-probs of answers. Waits for the device."""
        where = torch.tensor(rows, device=self._device)
        drawn = self["drawn"][where].tolist()
        longest = max(drawn)
        tokens = self["tokens"][where, :longest].tolist()
        logprobs = self["logprobs"][where, :longest].tolist()
        return [
            (ids[:count], values[:count]) for ids, values, count in zip(tokens, logprobs, drawn, strict=True)
        ]
