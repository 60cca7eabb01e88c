"""The stream of weights, under checkpoint names, against the files that transformers writes and reads."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from herl.models.export import save_pretrained
from herl.models.lora import Lora
from herl.models.pretrained import PretrainedModel
from herl.models.weights import misfit, named_weights, weight_shapes

SHARED = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
KINDS = {
    "llama": {"tie_word_embeddings": True},
    "gpt_neox": {"tie_word_embeddings": False},  # other names
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},  # stacked experts on disk too
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32},
    "glm4_moe": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
        "head_dim": 16,
    },  # a buffer that stays in float32
}  # fmt: skip
IDS = torch.tensor([[1, 87, 85, 268, 201, 417, 14]])


@pytest.fixture(params=KINDS)
def made(request):
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **SHARED, **KINDS[request.param])
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def on_disk(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_the_stream_is_what_transformers_writes_and_a_tied_head(made, tmp_path):
    made.save_pretrained(tmp_path)
    expected = on_disk(tmp_path)
    if made.config.tie_word_embeddings:
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    for policy in (made, AutoModelForCausalLM.from_pretrained(tmp_path)):
        streamed = dict(named_weights(policy))
        assert streamed.keys() == expected.keys()
        assert all(torch.equal(streamed[name], tensor) for name, tensor in expected.items())
        shapes = weight_shapes(policy)
        assert {name: one.shape for name, one in shapes.items()} == {n: t.shape for n, t in expected.items()}


def test_an_export_loads_as_the_same_model(made, tokenizer, tmp_path):
    made.save_pretrained(tmp_path / "base")
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01)
    save_pretrained(policy, tokenizer, tmp_path / "exported")
    assert on_disk(tmp_path / "exported").keys() == on_disk(tmp_path / "base").keys()
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    assert torch.equal(logits(exported), logits(policy))
    assert not torch.equal(logits(exported), logits(made))


def test_casting_before_gathering_is_casting_after_bit_for_bit(made):
    as_it_is, cast = dict(named_weights(made)), dict(named_weights(made, torch.bfloat16))
    assert cast.keys() == as_it_is.keys()
    for name, tensor in cast.items():
        kept = name.endswith("e_score_correction_bias")
        assert tensor.dtype is (torch.float32 if kept else torch.bfloat16), name
        assert torch.equal(tensor, as_it_is[name].to(tensor.dtype)), name


@pytest.mark.filterwarnings("ignore:.*_pattern keys did not match:RuntimeWarning")  # peft's, for experts
def test_adapters_of_experts_are_merged_under_the_names_of_a_checkpoint(tokenizer, tmp_path):
    config = AutoConfig.for_model("qwen3_moe", **SHARED, **KINDS["qwen3_moe"])
    base = AutoModelForCausalLM.from_config(config).eval()
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    policy = PretrainedModel(path=str(tmp_path / "base"), lora=Lora(rank=4)).load().eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    streamed = dict(named_weights(policy))
    on_base = on_disk(tmp_path / "base")
    assert streamed.keys() == on_base.keys()
    assert not torch.equal(
        streamed["model.layers.1.mlp.experts.3.up_proj.weight"],
        on_base["model.layers.1.mlp.experts.3.up_proj.weight"],
    )
    save_pretrained(policy, tokenizer, tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    torch.testing.assert_close(logits(exported), logits(policy), rtol=0, atol=1e-5)
    assert float((logits(policy) - logits(base)).abs().max()) > 1e-2


def test_a_missing_weight_is_found_where_addresses_say_nothing():
    """Shards and weights on meta all have the address 0."""
    own = {name: torch.empty(2, device="meta") for name in "abc"}
    assert misfit(own, own) == ""
    assert "['c'] are missing" in misfit(own, {name: own[name] for name in "ab"})
