"""Checks rows on this device: shared and packed ones against one answer at a time, and run against run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from workload import experiences_of

from gpu.bench import Bench
from gpu.models import load
from herl.testing import make_rollout
from herl.types import Experience, Rollout
from herl.update.batch import Packing
from herl.update.loss.policy import PolicyLoss
from herl.update.packing_probe import choose_packing
from herl.update.scorer import Scorer

CONTEXT = 421
"""Tokens of a context, not a multiple of any block size."""
LENGTHS = (57, 200, 1, 133, 96, 20)
"""Tokens of answers, all different, one of them a single token."""
SMALL = 20
"""Divisor of both on a CPU, where bfloat16 is slow."""


def right(bench: Bench) -> None:
    """Section: log-probs, gradients, leaks and repeats: float32 and bf16-mixed, with and without a window."""
    torch.set_float32_matmul_precision("highest")  # no TF32: float32 is the baseline
    for name in ("0.5b, 2 layers", "0.5b, 2 layers, window"):
        policy = _attentive(load(bench, name))
        context, lengths = _sizes(bench)
        experiences = experiences_of(3, 4, context, lengths, policy.config.vocab_size)
        truth = _computed(bench, policy, experiences, "single", bf16=False)
        for bf16 in (False, True):
            words = f"{'window, ' if 'window' in name else ''}{'bf16-mixed' if bf16 else 'float32'}"
            with _autocast(bench, bf16):
                chosen = choose_packing(policy, bench.device)
            bench.add(f"packing chosen, {words}", chosen, target="== shared", anywhere=True)
            single = _computed(bench, policy, experiences, "single", bf16=bf16)
            for packing in ("shared", "packed"):
                found = _computed(bench, policy, experiences, packing, bf16=bf16)
                _compare(bench, f"{packing}, {words}", found, single, truth, bf16=bf16)
                leaks = _changed_by_neighbors(bench, policy, packing, bf16=bf16)
                bench.add(
                    f"{packing}, {words}: tokens that neighbors change", leaks, target="== 0", anywhere=True
                )
            again = _computed(bench, policy, experiences, "shared", bf16=bf16)[1]
            first = _computed(bench, policy, experiences, "shared", bf16=bf16)[1]
            differing = int((again != first).sum())
            bench.add(
                f"shared, {words}: gradients that differ in two runs",
                differing,
                target="== 0",
                anywhere=True,
            )
        del policy


def _attentive(policy: torch.nn.Module) -> torch.nn.Module:
    """Scales weights up so that attention is far from uniform, as in a trained model."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.dim() > 1:
                parameter *= 2.0 if parameter.shape[-1] > 500 else 8.0
    return policy


def _sizes(bench: Bench) -> tuple[int, list[int]]:
    if bench.full:
        return CONTEXT, list(LENGTHS)
    return CONTEXT // SMALL, [max(1, length // SMALL) for length in LENGTHS]


def _autocast(bench: Bench, bf16: bool) -> torch.autocast:
    return torch.autocast(bench.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)


def scorer(bench: Bench, policy: torch.nn.Module, packing: Packing, max_tokens: int) -> Scorer:
    """Returns a scorer that computes rows of a policy as the module does."""
    return Scorer(
        policy=policy,  # type: ignore[arg-type]
        reference=None,
        loss=PolicyLoss(),
        temperature=1.0,
        max_tokens=max_tokens,
        packing=packing,
        device=bench.device,
    )


def _computed(
    bench: Bench, policy: torch.nn.Module, experiences: Sequence[Experience], packing: Packing, *, bf16: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (log-probs of all answers in order, gradient of the step's loss), both flat."""
    policy.zero_grad()
    rows = scorer(bench, policy, packing, 2048)
    with _autocast(bench, bf16):
        logprobs = rows.logprobs(experiences)
        for batch in rows.micro_batches(experiences):
            rows.compute_loss(batch)[0].backward()  # type: ignore[no-untyped-call]
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    return torch.cat([answer for answer in logprobs if answer is not None]), gradient


def _compare(
    bench: Bench,
    words: str,
    found: tuple[torch.Tensor, torch.Tensor],
    single: tuple[torch.Tensor, torch.Tensor],
    truth: tuple[torch.Tensor, torch.Tensor],
    *,
    bf16: bool,
) -> None:
    """Reports relative norms of differences, and in bf16 a row's error to float32 over a single answer's."""
    for name, got, alone, exact in zip(("log-probs", "gradient"), found, single, truth, strict=True):
        target = {"log-probs": "<= 5e-3", "gradient": "<= 3e-2"}[name] if bf16 else "<= 1e-5"
        bench.add(f"{words}: {name} off single answers", _off(got, alone), target=target, anywhere=True)
        if bf16:
            ratio = _off(got, exact) / _off(alone, exact)
            bench.add(
                f"{words}: {name}, error to float32 over a single answer's", ratio, target="<= 1.5",
                anywhere=True,
            )  # fmt: skip


def _off(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def _changed_by_neighbors(bench: Bench, policy: torch.nn.Module, packing: Packing, *, bf16: bool) -> int:
    """Counts the tokens of one answer whose log-prob changes by any bit when everything that the answer must
    not see is replaced by other tokens of the same lengths."""
    vocabulary, watched = policy.config.vocab_size, 1
    context, lengths = _sizes(bench)
    draw = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(3, vocabulary, (count,), generator=draw).tolist()

    contexts = [some(context), some(context)]
    answers = [[some(length) for length in lengths[:4]] for _ in contexts]
    before = _row(contexts, answers)
    contexts[1] = some(context)
    answers = [
        [kept if (group, place) == (0, watched) else some(len(kept)) for place, kept in enumerate(texts)]
        for group, texts in enumerate(answers)
    ]
    rows = scorer(bench, policy, packing, 2**31)
    start = sum(lengths[:watched])
    tokens = slice(start, start + lengths[watched])
    with _autocast(bench, bf16):
        first, second = (rows.own_logprobs(row)[tokens] for row in (before, _row(contexts, answers)))
    return int((first != second).sum())


def _row(contexts: Sequence[list[int]], answers: Sequence[Sequence[list[int]]]) -> list[Rollout]:
    return [
        make_rollout(id=f"{group}/{place}", group_id=str(group), prompt_ids=context, token_ids=tokens)
        for group, (context, texts) in enumerate(zip(contexts, answers, strict=True))
        for place, tokens in enumerate(texts)
    ]
