"""Shared contexts on many architectures, with random weights, against one padded row per answer."""

import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from herl import attention
from herl.attention import blockwise_attention, shared_mask
from herl.batch import micro_batches
from herl.block_mask import SharedContext
from herl.logprobs import answer_logprobs
from herl.packing import choose_packing
from tests.naive import padded_logprobs
from tests.unit.test_batch import several
from tests.unit.test_logprobs import in_order

SMALL = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def model_of(kind, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SMALL | settings))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # weights so large that attention matters
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    attention.install(model)
    return model


ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 9},
    "qwen3-sliding": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "gemma3_text": {"sliding_window": 8},
    "olmo2": {},
    "phi3": {"partial_rotary_factor": 1.0},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3},
    "cohere": {"logit_scale": 0.25},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "smollm3": {},
}


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


def test_models_whose_attention_cannot_be_swapped_say_why(caplog):
    """Gemma 2 caps its scores and transformers gives it no sdpa by default."""
    model = model_of("gemma2")
    assert choose_packing(model, torch.device("cpu")) in ("packed", "single")
    assert "Gemma2ForCausalLM is not trained on shared rows: " in caplog.text


def test_rows_are_still_shared_where_bfloat16_rounds(policy):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert choose_packing(policy, torch.device("cpu")) == "shared"


def test_a_model_with_a_state_is_trained_one_answer_at_a_time(caplog):
    model = model_of("mamba", state_size=4)
    assert choose_packing(model, torch.device("cpu")) == "single"
    assert "MambaForCausalLM is not trained on packed rows: its log-probs deviate by" in caplog.text
    experiences = several(2)
    batches = micro_batches(experiences, max_tokens=150, aggregation="token_mean", packing="single")
    found = in_order(batches, lambda batch: answer_logprobs(model, batch, 1.0)[0])
    expected, _ = padded_logprobs(model, experiences)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


def test_a_leak_between_answers_is_noticed(policy, monkeypatch, caplog):
    """An attention that ignores the layout sees the answers before."""

    def leaking(query, key, value, contexts, *, scaling=None, **_):
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        ).transpose(1, 2)

    monkeypatch.setattr(attention, "blockwise_attention", leaking)
    assert choose_packing(policy, torch.device("cpu")) == "packed"
    assert "not trained on shared rows: its log-probs deviate by" in caplog.text


@pytest.mark.parametrize("window", [None, 6])
def test_flex_attention_by_the_block_mask_equals_the_blockwise_path(window):
    """What runs on a GPU, here without being compiled."""
    torch.manual_seed(0)
    contexts = (
        SharedContext(start=0, answers=(150, 157, 170)),
        SharedContext(start=170, answers=(175, 176, 190, 200)),
    )
    query, key, value = (torch.randn(1, heads, 200, 16) for heads in (4, 4, 4))

    class Config:
        sliding_window = window
        layer_types = None

    mask = shared_mask(contexts, Config(), torch.device("cpu"), flex=True)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that it is slow uncompiled
        expected = torch.nn.attention.flex_attention.flex_attention(query, key, value, block_mask=mask)
    found = blockwise_attention(query, key, value, contexts, sliding_window=window)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


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
