"""Shared contexts on many architectures, with random weights, against one padded row per answer."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention

from herl.models import shared_attention
from herl.models.block_mask import SharedContext
from herl.models.lora import Lora
from herl.models.pretrained import PretrainedModel, blocks
from herl.models.shared_attention import shared_mask
from herl.update import logprobs
from herl.update.batch import micro_batches
from herl.update.logprobs import answer_logprobs
from herl.update.packing_probe import choose_packing
from tests.support.experiences import in_order, several
from tests.support.naive import padded_logprobs
from tests.support.small_models import ARCHITECTURES, model_of


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shared_contexts_compute_what_padded_rows_compute(name):
    model = model_of(name.split("-")[0], **ARCHITECTURES[name])
    assert choose_packing(model, torch.device("cpu")) == "shared"
    experiences = several(4)
    expected, _ = padded_logprobs(model, experiences)
    model.zero_grad()
    expected.square().mean().backward()
    naive = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    batches = micro_batches(experiences, max_tokens=150, aggregation="token_mean")
    found = in_order(batches, lambda batch: answer_logprobs(model, batch, 1.0)[0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    found.square().mean().backward()
    total = torch.cat([g.flatten() for g in naive.values()]).norm()
    wrong = torch.cat([(p.grad - naive[n]).flatten() for n, p in model.named_parameters() if n in naive])
    assert float(wrong.norm() / total) < 1e-5


def test_a_model_with_a_state_is_trained_one_answer_at_a_time(caplog):
    model = model_of("mamba", state_size=4)
    assert choose_packing(model, torch.device("cpu")) == "single"
    assert "MambaForCausalLM is not trained on packed rows: its log-probs deviate by" in caplog.text
    experiences = several(2)
    batches = micro_batches(experiences, max_tokens=150, aggregation="token_mean", packing="single")
    found = in_order(batches, lambda batch: answer_logprobs(model, batch, 1.0)[0])
    expected, _ = padded_logprobs(model, experiences)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


def dense_attention(query, key, value, *, block_mask, scale, enable_gqa, **_):
    """Flex attention with a dense mask, since torch's version has no gradient on a CPU."""
    columns = torch.arange(query.shape[2])
    seen = block_mask.mask_mod(0, 0, columns[:, None], columns)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)


@pytest.mark.parametrize("packing", ["shared", "packed"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text"])
def test_rows_of_flex_attention_compute_what_padded_rows_compute(monkeypatch, name, packing):
    """The GPU path, with another kernel and the same mask."""
    monkeypatch.setattr(logprobs, "FLEX", ("cpu",))
    monkeypatch.setattr(shared_attention, "_compiled_attention", dense_attention)
    model, experiences = model_of(name, **ARCHITECTURES[name]), several(4)
    expected, _ = padded_logprobs(model, experiences)
    naive = torch.autograd.grad(expected.square().mean(), list(model.parameters()), allow_unused=True)
    batches = micro_batches(experiences, max_tokens=300, aggregation="token_mean", packing=packing)
    found = in_order(batches, lambda batch: answer_logprobs(model, batch, 1.0)[0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    gradients = torch.autograd.grad(found.square().mean(), list(model.parameters()), allow_unused=True)
    pairs = [pair for pair in zip(gradients, naive, strict=True) if pair[1] is not None]
    wrong = torch.cat([(ours - theirs).flatten() for ours, theirs in pairs]).norm()
    assert float(wrong / torch.cat([theirs.flatten() for _, theirs in pairs]).norm()) < 1e-5


def test_flex_attention_gets_a_mask_for_each_type_of_layer():
    class Config:
        sliding_window = 4
        layer_types = ("full_attention", "sliding_attention")

    contexts = (SharedContext(start=0, answers=(6, 8)),)
    masks = shared_mask(contexts, Config(), torch.device("cpu"), flex=True)
    seen = {
        kind: [bool(masks[kind].mask_mod(0, 0, torch.tensor(7), torch.tensor(key))) for key in range(8)]
        for kind in masks
    }
    assert seen["full_attention"] == [True] * 8
    assert seen["sliding_attention"] == [False] * 4 + [True] * 4


def test_without_shared_contexts_the_model_computes_as_before(policy):
    ids = torch.randint(0, 1000, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    found = policy(input_ids=ids, attention_mask=mask).logits
    policy.set_attn_implementation("sdpa")
    assert torch.equal(found, policy(input_ids=ids, attention_mask=mask).logits)


@pytest.mark.integration
@pytest.mark.parametrize("lora", [None, Lora()], ids=["whole", "lora"])
def test_blocks_are_compiled_once_for_rows_of_all_layouts(monkeypatch, lora):
    """As on a GPU; counts the graphs that the compiler's front end would pass to its back end."""
    monkeypatch.setattr(logprobs, "FLEX", ("cpu",))
    monkeypatch.setattr(shared_attention, "_compiled_attention", dense_attention)
    model = PretrainedModel(path="tiny", lora=lora).load().train()
    for block in blocks(model):
        block.compile(dynamic=True, backend="eager")
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    for max_tokens in (90, 300, 1000, 60):
        for batch in micro_batches(several(), max_tokens=max_tokens, aggregation="token_mean"):
            answer_logprobs(model, batch, 1.0)[0].sum().backward()
            with torch.no_grad():
                answer_logprobs(model, batch, 1.0)
        graphs.append(counters["stats"]["unique_graphs"])
    # with gradient and without; the first block's input has none where embeddings are frozen
    assert graphs == [2 if lora is None else 3] * 4
