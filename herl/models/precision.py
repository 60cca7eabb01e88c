"""The arithmetic of a device: the trainer's default precision, TF32, and when results count as exact.

On CUDA a run computes in bfloat16 on float32 weights. The remaining float32 matrix products use TF32, which
rounds their inputs to 10 bits. On a CPU everything is float32: without AMX, bfloat16 is about ten times
slower there. With AMX (`lscpu | grep amx`) one thread multiplies six times as fast, but no run was measured.
"""

from __future__ import annotations

import torch
from lightning.pytorch.accelerators import CUDAAccelerator

EXACT = ("ieee", "none")
"""torch's names for float32 products with unrounded inputs; "none" is its default."""

EXACT_SHARE, ROUNDED_SHARE = 2e-4, 0.05
"""Largest distance of two correct computations of an answer's log-probs, in float32 and in lower precision,
as a share of what its whole context changes in them. Correct rows measured at most 5e-6 and 0.024 (0.04 in a
mixture of experts, where rounding sent a token to another expert). A trained model whose answers start one
position late measured 0.11."""


def default_precision(accelerator: object) -> str:
    """Returns the trainer's precision if none is configured: "bf16-mixed" on CUDA, otherwise "32-true".

    Args:
        accelerator: The trainer's `accelerator` argument.
    """
    on_cuda = accelerator in ("auto", "gpu", "cuda") and CUDAAccelerator.is_available()
    # GPUs before Ampere only emulate bfloat16.
    return "bf16-mixed" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def use_tf32(on: bool) -> None:
    """Sets whether float32 matrix products on CUDA may use TF32. Affects the whole process."""
    torch.set_float32_matmul_precision("high" if on else "highest")


def computes_exact_float32(device: torch.device, *dtypes: torch.dtype) -> bool:
    """Whether matrix products of these types on this device round as float32 does: no autocast, no TF32.

    Two correct computations of the same value then agree to about 1e-5 relative, and to 1e-2 otherwise.
    `allowed_share` says how log-probs are compared.
    """
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return (
        all(dtype == torch.float32 for dtype in dtypes)
        and not torch.is_autocast_enabled(device.type)
        and backend.matmul.fp32_precision in EXACT
    )


def allowed_share(device: torch.device, dtype: torch.dtype) -> float:
    """Returns how far two computations of an answer's log-probs may be apart (root mean square), as a share
    of the effect of their context: the distance from log-probs that are computed without it.

    A distance in nats would not do: rounding grows with the logits, which are large in trained models.
    """
    return EXACT_SHARE if computes_exact_float32(device, dtype) else ROUNDED_SHARE


def rms(deviations: torch.Tensor) -> float:
    """Returns the root mean square."""
    return float(deviations.square().mean().sqrt())
