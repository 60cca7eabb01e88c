"""The packing chosen for each architecture gives the same results as one answer at a time.

The right numbers come from the plain model with transformers' own eager attention, one padded row per answer.
"""

import pytest
import torch

from herl.update.batch import micro_batches
from herl.update.logprobs import answer_logprobs
from herl.update.packing_probe import choose_packing
from tests.support.architectures import ARCHITECTURES, model_of
from tests.support.experiences import in_order, several
from tests.support.naive import padded_logprobs

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
STATE = [
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "jamba",
    "lfm2",
    "mamba",
    "mamba2",
    "minimax",
    "nemotron_h",
    "qwen3_5_text",
    "qwen3_next",
    "recurrent_gemma",
    "zamba2",
]
"""Carry a state or a convolution over from one answer to the next."""
NO_POSITIONS = ["biogpt", "bloom", "falcon", "falcon-alibi", "gpt_oss", "xglm"]
"""Cannot tell the answers of a row apart by their positions."""
OWN_MASK = ["gpt_neo", "mpt"]
"""Have a mask only for rows up to their last position."""
OWN_ATTENTION = ["codegen", "doge", "gemma2", "gptj", "granite_swa", "nemotron", "stablelm", "vaultgemma"]
"""Compute attention outside transformers' interface, with custom caps, sinks or masks."""
EXPECTED = (
    dict.fromkeys(ARCHITECTURES, "shared")
    | dict.fromkeys(OWN_ATTENTION, "packed")
    | dict.fromkeys([*STATE, *NO_POSITIONS, *OWN_MASK], "single")
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_in_bfloat16_are_those_in_float32(name):
    assert choose_packing(model_of(name, torch.bfloat16), CPU) == EXPECTED[name]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_chosen_rows_compute_what_eager_attention_computes_answer_by_answer(name):
    model = model_of(name)
    packing = choose_packing(model, CPU)
    assert packing == EXPECTED[name]
    experiences = several(4)
    batches = micro_batches(experiences, max_tokens=150, aggregation="token_mean", packing=packing)
    found = in_order(batches, lambda batch: answer_logprobs(model, batch, 1.0)[0])
    found.square().mean().backward()
    gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.set_attn_implementation("eager")
    expected, _ = padded_logprobs(model, experiences)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    expected.square().mean().backward()
    total = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    wrong = [(p.grad - gradient[n]).flatten() for n, p in model.named_parameters() if p.grad is not None]
    assert float(torch.cat(wrong).norm() / total) < 1e-5
