"""Measures how well the update uses the machine: its arithmetic rate over that of a large matrix product.

    python tools/bench/update.py [--groups 4] [--answers 4] [--context 40] [--tokens 48] [--rounds 3]
    python tools/bench/update.py --groups 1 --answers 8 --context 512 --tokens 64 --micro-batch-tokens 2048

A round is a complete optimizer step (rows, forward, backward, clipping, AdamW) between two measurements of
the limit. Operations are those of a pass over the step's tokens, each context once: matrix products by
torch's counter, without masked attention scores.
"""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode
from workload import arguments_of, experiences_of, gemm_gflops, median, report, write

from herl.models.malloc import keep_freed_memory
from herl.models.pretrained import PretrainedModel
from herl.update.loss.policy import PolicyLoss
from herl.update.scorer import Scorer


def main() -> None:
    arguments = arguments_of(
        __doc__, groups=4, answers=4, context=40, tokens=48, rounds=3, micro_batch_tokens=512
    )
    keep_freed_memory()  # as a run does
    policy = PretrainedModel(path=arguments.model).load().train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    experiences = experiences_of(arguments.groups, arguments.answers, arguments.context, arguments.tokens)
    scorer = Scorer(
        policy=policy,
        reference=None,
        loss=PolicyLoss(),
        temperature=1.0,
        max_tokens=arguments.micro_batch_tokens,
        packing="shared",
        device=torch.device("cpu"),
    )

    def step() -> None:
        for batch in scorer.micro_batches(experiences):
            scorer.compute_loss(batch)[0].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    products = counter.get_flop_counts()["Global"]
    operations = sum(count for name, count in products.items() if "attention" not in str(name))
    operations += 3 * attention_operations(policy, arguments)
    rounds = []
    for _ in range(arguments.rounds):
        before = gemm_gflops()
        started = time.perf_counter()
        step()
        seconds = time.perf_counter() - started
        rounds.append((seconds, operations / seconds / 1e9, (before + gemm_gflops()) / 2))
    rows = [[*figures, figures[1] / figures[2]] for figures in rounds]
    rows.append([median([row[i] for row in rows]) for i in range(4)])
    report(
        f"{arguments.model}, {arguments.groups} x {arguments.answers} answers of {arguments.tokens} tokens "
        f"after {arguments.context}: {operations / 1e9:.0f} GFLOP; last row: medians",
        ["seconds", "GFLOP/s", "limit", "share"],
        rows,
    )
    write(arguments.json, {"gflop": operations / 1e9, "rounds": rounds, "share": rows[-1][3]})


def attention_operations(policy: torch.nn.Module, arguments: object) -> float:
    """Counts the operations of scores and weighted sums in a forward pass, for pairs of visible tokens."""
    config = policy.config
    groups, answers, context, tokens = (
        getattr(arguments, name) for name in ("groups", "answers", "context", "tokens")
    )
    pairs = context * (context + 1) / 2 + answers * (tokens * context + tokens * (tokens + 1) / 2)
    return float(groups * pairs * 4 * config.hidden_size * config.num_hidden_layers)


if __name__ == "__main__":
    main()
