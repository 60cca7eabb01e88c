"""Measures the update with padding, with packed answers, and with one context for all its answers.

    python tools/bench/padding.py [--cases even,uneven,long] [--rounds 3] [--layers 10] [--model ...]

even: 4 x 4 answers of 48 tokens after 40 of context. uneven: 4 x 4 answers after 40, with log-normal lengths,
like a policy's, cut at 128. long: 8 answers of 64 tokens after 512. padded is the common way: contexts padded
left, answers right, the head only over the answers' columns, as many rows as the token budget allows. Time
covers forward and backward. waste is the share of computed tokens beyond the answers and one copy of each
context. Ways alternate. To save time, only the model's first --layers layers run, so the head weighs more
than in the whole model.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from workload import arguments_of, experiences_of, median, report, write

from herl.models.malloc import keep_freed_memory
from herl.models.pretrained import PretrainedModel
from herl.types import Experience
from herl.update.batch import micro_batches
from herl.update.logprobs import answer_logprobs

MAX_TOKENS = 2048  # a row holds the whole group of the long case


def uneven(count: int) -> list[int]:
    draw = random.Random(0)
    return [min(128, max(4, round(draw.lognormvariate(3.7, 0.7)))) for _ in range(count)]


CASES = {
    "even": (4, 4, 40, [48]),
    "uneven": (4, 4, 40, uneven(16)),
    "long": (1, 8, 512, [64]),
}


def padded_batches(experiences: Sequence[Experience]) -> Iterator[Sequence[Experience]]:
    width = max(len(e.context_ids) for e in experiences) + max(len(e.rollout.token_ids) for e in experiences)
    rows = max(1, MAX_TOKENS // width)
    for start in range(0, len(experiences), rows):
        yield experiences[start : start + rows]


def padded(model: torch.nn.Module, experiences: Sequence[Experience]) -> int:
    """Runs forward and backward, and returns the number of computed tokens."""
    computed = 0
    for batch in padded_batches(experiences):
        before = max(len(e.context_ids) for e in batch)
        behind = max(len(e.rollout.token_ids) for e in batch)
        ids = torch.zeros(len(batch), before + behind, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, e in enumerate(batch):
            end = before + len(e.rollout.token_ids)
            ids[row, before - len(e.context_ids) : end] = torch.tensor([*e.context_ids, *e.rollout.token_ids])
            mask[row, before - len(e.context_ids) : end] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=behind + 1,
        ).logits[:, :-1]
        logprobs = torch.log_softmax(logits, -1).gather(-1, ids[:, before:, None])[..., 0]
        weight = torch.tensor([[e.advantage] for e in batch]) * mask[:, before:]
        (logprobs * weight).sum().backward()
        computed += ids.numel()
    return computed


def rows_of(packing: str) -> Callable[[torch.nn.Module, Sequence[Experience]], int]:
    def run(model: torch.nn.Module, experiences: Sequence[Experience]) -> int:
        computed = 0
        for batch in micro_batches(
            experiences, max_tokens=MAX_TOKENS, aggregation="token_mean", packing=packing
        ):
            logprobs, _ = answer_logprobs(model, batch, 1.0)
            (logprobs * batch.advantage).sum().backward()
            computed += batch.input_ids.numel()
        return computed

    return run


WAYS = {"padded": padded, "packed": rows_of("packed"), "shared": rows_of("shared")}


def main() -> None:
    arguments = arguments_of(__doc__, cases="even,uneven,long", rounds=3, layers=10)
    keep_freed_memory()  # as a run does
    model = PretrainedModel(path=arguments.model).load().train()
    del model.base_model.layers[arguments.layers :]
    figures: dict[str, object] = {}
    table = []
    for case in arguments.cases.split(","):
        groups, answers, context, lengths = CASES[case]
        experiences = experiences_of(groups, answers, context, lengths)
        needed = groups * context + sum(len(e.rollout.token_ids) for e in experiences)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        computed = {}
        for turn in range(arguments.rounds):
            for way in list(WAYS)[:: 1 if turn % 2 else -1]:
                model.zero_grad()
                started = time.perf_counter()
                computed[way] = WAYS[way](model, experiences)
                seconds[way].append(time.perf_counter() - started)
        base = median(seconds["padded"])
        for way in WAYS:
            waste = 1 - needed / computed[way]
            table.append([case, way, median(seconds[way]), median(seconds[way]) / base, computed[way], waste])
        figures[case] = {"seconds": seconds, "tokens": computed, "needed": needed}
    report(
        f"{arguments.model}, {arguments.layers} layers, forward and backward, rows of up to "
        f"{MAX_TOKENS} tokens; medians of {arguments.rounds}",
        ["case", "way", "seconds", "of padded", "tokens", "waste"],
        table,
    )
    write(arguments.json, figures)


if __name__ == "__main__":
    main()
