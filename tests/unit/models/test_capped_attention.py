"""Models that cap their attention scores, against transformers' eager attention and the formula itself."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoConfig, AutoModelForCausalLM

from herl.models.pretrained import PretrainedModel, choose_attention
from herl.models.shared_attention import attention
from herl.sampler.transformers import _empty_copy
from herl.update.batch import micro_batches
from herl.update.logprobs import answer_logprobs
from herl.update.packing_probe import choose_packing
from tests.support.architectures import ARCHITECTURES, SIZES, model_of
from tests.support.experiences import in_order, several
from tests.support.naive import padded_logprobs

CAP = 2.0
CAPPED = ("gemma2", "vaultgemma")


@pytest.fixture(params=CAPPED)
def folder(request, tmp_path):
    """A model whose cap matters, as users find it on disk."""
    torch.manual_seed(0)
    settings = SIZES | ARCHITECTURES[request.param] | {"vocab_size": 1024, "attn_logit_softcapping": CAP}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    model.save_pretrained(tmp_path)
    return str(tmp_path)


def eager(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def test_the_cap_is_computed(folder, caplog):
    model = PretrainedModel(path=folder).load().eval()
    assert "caps its attention scores at 2: it uses transformers' eager attention" in caplog.text
    experiences = several(3)
    expected, _ = padded_logprobs(eager(folder), experiences)
    batches = micro_batches(
        experiences,
        max_tokens=300,
        aggregation="token_mean",
        packing=choose_packing(model, torch.device("cpu")),
    )
    found = in_order(batches, lambda batch: answer_logprobs(model, batch, 1.0)[0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    model.set_attn_implementation("sdpa")
    uncapped, _ = padded_logprobs(model, experiences)
    assert float((uncapped - expected).detach().abs().max()) > 0.01, "the cap matters here"


def test_a_layer_computes_the_formula(folder):
    """softmax(cap tanh(q k / (cap sqrt(8)))) v over the window, head by head."""
    layer = PretrainedModel(path=folder).load().eval().model.layers[0].self_attn
    hidden = torch.randn(1, 20, 32)
    unrotated = (torch.ones(1, 20, 8), torch.zeros(1, 20, 8))
    place = torch.arange(20)
    distance = place[:, None] - place
    allowed = (distance >= 0) & (distance < 8)
    mask = torch.zeros(20, 20).masked_fill(~allowed, -torch.inf)
    found, _ = layer(hidden_states=hidden, position_embeddings=unrotated, attention_mask=mask[None, None])
    query, key, value = (
        projection(hidden[0]).view(20, -1, 8) for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    heads = []
    for head in range(4):
        scores = query[:, head] @ key[:, head // 2].T / 8**0.5
        capped = CAP * torch.tanh(scores / CAP)
        heads.append(capped.masked_fill(~allowed, -torch.inf).softmax(-1) @ value[:, head // 2])
    torch.testing.assert_close(found[0], layer.o_proj(torch.cat(heads, dim=-1)), rtol=1e-5, atol=1e-5)


def test_every_way_to_build_the_model_keeps_the_cap(folder):
    model = PretrainedModel(path=folder)
    assert model.skeleton().config._attn_implementation == "eager"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        from herl.models.fsdp import load_sharded

        policy = load_sharded(model, init_device_mesh("cpu", (1,)))
        copy = _empty_copy(policy)
        assert policy.config._attn_implementation == copy.config._attn_implementation == "eager"
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_without_a_cap_keeps_herls_attention():
    model = model_of("gemma3_text")
    assert model.config._attn_implementation == "herl"


def test_an_attention_that_would_ignore_the_cap_refuses():
    query = torch.randn(1, 2, 4, 8)
    with pytest.raises(NotImplementedError, match="capped or have sinks"):
        attention(torch.nn.Module(), query, query, query, None, softcap=CAP)


def test_transformers_caps_scores_under_no_other_name():
    """Each model that passes a cap to its attention takes it from the key that is looked at."""
    others = {"t5gemma", "videoprism"}  # no causal language models
    passed = set()
    for file in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"):
        source = file.read_text()
        if file.parent.name not in others and re.search(r"softcap=self\.", source):
            passed.add(file.parent.name)
            assert "self.config.attn_logit_softcapping" in source, file.parent.name
    assert passed == set(CAPPED)


@pytest.mark.parametrize("name", CAPPED)
def test_lora_keeps_the_cap(name):
    pytest.importorskip("peft")
    from herl.models.lora import Lora

    model = model_of(name)
    Lora().add_to(model)
    choose_attention(model)
    assert model.config._attn_implementation == "eager"
