"""A fake sampler that answers from a script, for tests, demos and debugging a judge. It ignores weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from herl.errors import SamplerError
from herl.sampler import Sampler
from herl.sampler.answer import ends_by_stop, finished_answer
from herl.types import Rollout, SampleRequest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ScriptedSampler(Sampler):
    """Gives answer i of a task the i-th text of its script, starting over when the texts run out.

    Args:
        attempts: Texts by task id.
        revisions: Texts by task id, for requests that revise an attempt.
    """

    live = True

    def __init__(
        self,
        attempts: Mapping[str, Sequence[str]],
        revisions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.attempts = attempts
        self.revisions = revisions or {}
        self.version = 0

    def start(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keeps the tokenizer."""
        self._tokenizer = tokenizer

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Records the version."""
        self.version = version

    def generate(self, requests: Sequence[SampleRequest]) -> Iterator[Rollout]:
        """Yields the scripted answers, ended by the end token or a stop string, with log-probs of 0.

        Raises:
            SamplerError: the script has no text for a task.
        """
        for request in requests:
            plain = request.parent_id is None and not request.told
            script = self.attempts if plain else self.revisions
            texts = script.get(request.task_id)
            if not texts:
                raise SamplerError(
                    f"scripted sampler: expected a text for task '{request.task_id}', "
                    f"got a script for the tasks {sorted(script)}"
                )
            for index in request.indices:
                yield self._rollout(request, index, texts[index % len(texts)])

    def _rollout(self, request: SampleRequest, index: int, text: str) -> Rollout:
        end = self._tokenizer.eos_token_id
        ids = [*self._tokenizer.encode(text, add_special_tokens=False), end]
        kept = ids[: request.sampling.max_new_tokens]
        if stop := request.sampling.stop:
            ends = (n for n in range(1, len(kept)) if ends_by_stop(self._tokenizer, kept[:n], stop))
            kept = kept[: next(ends, len(kept))]
        return finished_answer(
            request,
            index,
            kept,
            [0.0] * len(kept),
            tokenizer=self._tokenizer,
            end_ids=frozenset([end]),
            version=self.version,
        )
