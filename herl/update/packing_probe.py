"""Probes which packing modes a model supports (stage 9, once at the start of a run).

An architecture may build its own masks, carry a state from token to token, or ignore positions. Its signature
shows none of that, and a row that leaks from one answer into the next raises no error. So the model itself
computes three answers under two contexts in one row, forward and backward, with the kernel that will train
it. This answers three questions:

- Does an answer depend on its neighbors? Their tokens are replaced by others, at equal shapes, and every bit
  of its log-probs must stay. There is no tolerance: a correct row repeats exactly the same operations.
- Are its log-probs right? A row that hides the context from an answer, or gives its tokens wrong positions,
  does not leak. The log-probs are compared with those of one answer at a time, in units of the effect of the
  whole context: the distance from log-probs computed without it. Rounding is far below one such unit; a
  missing context is one unit, and so is a first token predicted from the wrong column.
- Is its gradient right? It is compared in the same way, in units of the gradient's norm.

Before that, one answer alone is compared with transformers' own forward pass in eager attention, in the same
units: what is scored and trained must be the model that it was published as.

Left out: contexts longer than MAX_CONTEXT; attention windows beyond that are trusted. In bfloat16, positions
off by one token pass if they change the model's output less than rounding does, as in a fresh random model.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.fsdp import FSDPModule

from herl.distributed import gather
from herl.errors import ConfigError
from herl.models import shared_attention
from herl.models.compiled import uncompiled
from herl.models.precision import allowed_share, rms
from herl.models.pretrained import fixed_positions
from herl.models.weights import whole
from herl.types import Rollout, SampleRequest, Sampling
from herl.update.batch import Packing, micro_batches, unjudged
from herl.update.logprobs import answer_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_CONTEXT = 8192
"""Tokens of the longest context to try."""

CONTEXTS = (344, 4)
"""Tokens of each context, before it is fitted to the model. The second is short, because a state carried over
from earlier in the row would fade in a long one. Both are even, so that no row is a multiple of 128."""

ANSWERS = ((23, 17), (13,))
"""Tokens of the answers to each context, odd in total. All in one row, 401 tokens shared or 745 packed."""

WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
"""Names under which configurations state how many tokens a layer sees."""

TOO_LITTLE = (
    "model: the GPU has too little free memory to try a row of some 700 tokens: use lora=lora, "
    "model.gradient_checkpointing=true, strategy=fsdp on more GPUs, or a smaller "
    "sampler.gpu_memory_utilization"
)

logger = logging.getLogger(__name__)


def choose_packing(model: PreTrainedModel, device: torch.device) -> Packing:
    """Returns the most economical packing that is correct for a model, and logs why it is not `shared`.

    All ranks must call it, and all get the same result. Weights, gradients, modes and random numbers are left
    unchanged. An exception rules a candidate out on all ranks; in a sharded model it must occur on all of
    them, since the others would wait for the failing rank's shard.

    Args:
        model: The policy, on `device`.
        device: Where rows are computed, under the caller's autocast.

    Raises:
        ConfigError: not even one answer at a time is computed as transformers' eager attention computes it,
            or memory ran out.
    """
    candidates: tuple[Packing, ...] = ("shared", "packed")
    with _left_as_found(model, device):
        if fault := next(filter(None, gather(_fault(model, device))), None):
            raise ConfigError(f"model.path: {type(model).__name__} cannot be trained: {fault}")
        for packing in candidates:
            if packing == "packed" or shared_attention.installed(model):
                objections = gather(_objection(model, packing, device))
                reason = next(filter(None, objections), None)
            else:
                reason = "its architecture does not use transformers' sdpa interface"
            if reason is None:
                return packing
            logger.warning("%s is not trained on %s rows: %s", type(model).__name__, packing, reason)
    return "single"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Findings:
    """The measurements of one candidate."""

    moved: float
    """Largest change of a log-prob when the tokens of the answer's neighbors change, in nats."""
    deviation: float
    """Distance of the log-probs from those of one answer at a time (root mean square), in nats."""
    context_effect: float
    """Distance between the log-probs with and without their context (root mean square), in nats."""
    gradient_error: float
    """Distance of the gradient from that of one answer at a time, as a share of its norm."""


def _fault(model: PreTrainedModel, device: torch.device) -> str | None:
    """Returns why the log-probs of an answer alone cannot be trusted, in one line; None if they can."""
    rollout = _rollouts(model.config.get_text_config())[-1]
    blind = replace(rollout, prompt_ids=rollout.prompt_ids[-1:])
    try:
        with torch.no_grad(), uncompiled():
            random_state = _random_state(device)
            [found] = _logprobs_of(model, [rollout], "single", device)
            if not torch.equal(_random_state(device), random_state):
                return "its forward pass draws random numbers in training (PhiMoE's router)"
            own = model.config._attn_implementation
            model.set_attn_implementation("eager")
            try:
                expected, without_context = (_by_transformers(model, one, device) for one in (rollout, blind))
            finally:
                model.set_attn_implementation(own)
    except torch.OutOfMemoryError as error:
        raise ConfigError(TOO_LITTLE) from error
    except Exception as error:  # an architecture may fail in any way
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    deviation, effect = rms(found - expected), rms(without_context - expected)
    if deviation <= allowed_share(device, model.dtype) * effect:
        return None
    return f"its log-probs deviate by {deviation:.2g} nats from those of transformers' eager attention"


def _by_transformers(model: PreTrainedModel, rollout: Rollout, device: torch.device) -> torch.Tensor:
    """Returns an answer's log-probs from the model's own forward pass, [answer_len]."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]], device=device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(rollout.prompt_ids) - 1 : -1].float()
    found: torch.Tensor = logits.log_softmax(-1).gather(1, ids[0, len(rollout.prompt_ids) :, None])[:, 0]
    return found.cpu()


def _random_state(device: torch.device) -> torch.Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _objection(model: PreTrainedModel, packing: Packing, device: torch.device) -> str | None:
    """Returns the reason against a packing, in one line; None if the packing is correct."""
    try:
        found = _try(model, packing, device)
    except torch.OutOfMemoryError as error:  # says nothing about the packing
        raise ConfigError(TOO_LITTLE) from error
    except Exception as error:  # any failure: one answer at a time may still work
        if isinstance(model, FSDPModule):
            model.reset_iter_state()
            _drop_unreduced_gradients(model, device)
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    allowed = allowed_share(device, model.dtype)
    if not found.deviation <= allowed * found.context_effect:  # NaN is an objection too
        return (
            f"its log-probs deviate by {found.deviation:.2g} nats from those of one answer at a time; "
            f"at most {allowed:g} of the context's effect of {found.context_effect:.2g} nats is allowed"
        )
    if found.moved != 0:
        return f"an answer's log-probs change by {found.moved:.2g} nats with the tokens of its neighbors"
    if not found.gradient_error <= allowed:
        return (
            f"its gradient deviates by {found.gradient_error:.2g} of its norm; at most {allowed:g} is allowed"
        )
    return None


def _drop_unreduced_gradients(model: PreTrainedModel, device: torch.device) -> None:
    """Runs another backward, since FSDP adds the remains of an aborted one to the next gradient."""
    [rollout, *_] = _rollouts(model.config.get_text_config())
    _logprobs_of(model, [rollout], "single", device, [torch.ones(len(rollout.token_ids))])


def _try(model: PreTrainedModel, packing: Packing, device: torch.device) -> _Findings:
    """Runs all passes before any is evaluated, so that a sharded model's ranks stay in step."""
    config = model.config.get_text_config()
    rollouts, vocabulary = _rollouts(config), config.vocab_size
    noise = torch.Generator().manual_seed(0)
    weights = [torch.randn(len(rollout.token_ids), generator=noise) for rollout in rollouts]
    for parameter in model.parameters():
        parameter.grad = None
    blind = [replace(rollout, prompt_ids=rollout.prompt_ids[-1:]) for rollout in rollouts]
    with uncompiled():  # nothing is compiled for the comparison alone
        without_context = torch.cat(_logprobs_of(model, blind, "single", device))
    beside_others = [
        _logprobs_of(model, _with_other_neighbors(rollouts, kept, packing, vocabulary), packing, device)[kept]
        for kept in range(len(rollouts))
    ]
    with uncompiled():
        expected = torch.cat(_logprobs_of(model, rollouts, "single", device, weights))
    norm = _gradient_norm(model)
    # Both gradients accumulate in place, which leaves their difference without a copy.
    found = _logprobs_of(model, rollouts, packing, device, [-weight for weight in weights])
    return _Findings(
        moved=float((torch.cat(found) - torch.cat(beside_others)).abs().max()),
        deviation=rms(torch.cat(found) - expected),
        context_effect=rms(without_context - expected),
        gradient_error=_gradient_norm(model) / norm,
    )


def _rollouts(config: Any) -> list[Rollout]:
    """Returns three answers to two contexts, of random tokens, within the positions that the model has."""
    max_positions = fixed_positions(config) or getattr(config, "max_position_embeddings", None) or MAX_CONTEXT
    windows = [window for name in WINDOWS if isinstance(window := getattr(config, name, None), int)]
    seen = max((window for window in windows if window <= MAX_CONTEXT), default=0)
    draw = random.Random(0)
    rollouts: list[Rollout] = []
    for number, (length, answers) in enumerate(zip(CONTEXTS, ANSWERS, strict=True)):
        # the first context reaches beyond the window
        room = max(max_positions - max(map(max, ANSWERS)), 2)
        length = min(length if number else max(length, seen + 10), room) // 2 * 2
        prompt_ids = tuple(draw.randrange(config.vocab_size) for _ in range(length))
        request = SampleRequest(
            task_id=str(number),
            group_id=str(number),
            prompt_ids=prompt_ids,
            n=len(answers),
            sampling=Sampling(),
            seed=0,
        )
        for index, answer_length in enumerate(answers):
            token_ids = tuple(draw.randrange(config.vocab_size) for _ in range(answer_length))
            logprobs = (0.0,) * answer_length
            rollouts.append(Rollout.answering(request, index, token_ids=token_ids, logprobs=logprobs))
    return rollouts


def _with_other_neighbors(
    rollouts: Sequence[Rollout], kept: int, packing: Packing, vocabulary: int
) -> list[Rollout]:
    """Replaces every token in the row that the kept answer must not see. Lengths do not change."""

    def other(ids: tuple[int, ...]) -> tuple[int, ...]:
        draw = random.Random(1)  # the same for the answers that share a context
        return tuple((token + draw.randrange(1, vocabulary)) % vocabulary for token in ids)

    def neighbor(rollout: Rollout) -> Rollout:
        shares = packing == "shared" and rollout.group_id == rollouts[kept].group_id
        prompt_ids = rollout.prompt_ids if shares else other(rollout.prompt_ids)
        return replace(rollout, prompt_ids=prompt_ids, token_ids=other(tuple(rollout.token_ids)))

    return [rollout if i == kept else neighbor(rollout) for i, rollout in enumerate(rollouts)]


def _logprobs_of(
    model: PreTrainedModel,
    rollouts: Sequence[Rollout],
    packing: Packing,
    device: torch.device,
    weights: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Returns the log-probs of each answer, [answer_len], in float32 on the CPU.

    Args:
        model: The policy.
        rollouts: The answers.
        packing: Whether they share a row, and how.
        device: Where rows are computed.
        weights: For each answer, [answer_len]. If given, the gradient of the weighted sum of the log-probs
            is added to the existing one.
    """
    found: dict[int, torch.Tensor] = {}
    experiences = [unjudged(rollout) for rollout in rollouts]
    for batch in micro_batches(experiences, max_tokens=2**31, aggregation="token_mean", packing=packing):
        logprobs, _ = answer_logprobs(model, batch.to(device), 1.0)
        if weights is not None:
            weight = torch.cat([weights[row] for row in batch.rows]).to(device)
            (weight * logprobs).sum().backward()
        found.update(zip(batch.rows, logprobs.detach().cpu().split(batch.answer_lengths), strict=True))
    return [found[place] for place in range(len(rollouts))]


def _logprobs(model: PreTrainedModel, packing: Packing, device: torch.device) -> torch.Tensor:
    """Returns the log-probs of all answers that are tried, [N], in float32 on the CPU."""
    return torch.cat(_logprobs_of(model, _rollouts(model.config.get_text_config()), packing, device))


def _gradient_norm(model: PreTrainedModel) -> float:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(whole(torch.nn.utils.get_total_norm(gradients)))


def _drops_out(module: torch.nn.Module) -> bool:
    """Whether a layer is random in training."""
    shares = (getattr(module, name, 0.0) for name in ("p", "dropout", "attention_dropout"))
    return any(isinstance(share, float) and share > 0.0 for share in shares)


@contextmanager
def _left_as_found(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """Within the block, the model computes with gradient but without dropout, and recomputes activations if
    it does so in training. Afterward, gradients, modes and random numbers are restored."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        dropping = any(_drops_out(module) for module, _ in modes)
        for module, _ in modes:
            # In training mode, compiled blocks are compiled here once and for all. In layers with
            # checkpointing, the mode decides only whether activations are recomputed.
            module.training = not dropping or bool(getattr(module, "gradient_checkpointing", False))
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, gradient in gradients:
                parameter.grad = gradient
