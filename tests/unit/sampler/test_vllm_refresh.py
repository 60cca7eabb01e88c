"""A refresh of the real vLLM engine is proven: in float32 and bfloat16, dense and with experts."""

from dataclasses import replace

import lightning as L
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

import herl.sampler.vllm
from herl import SamplerError, Sampling
from herl.callbacks import RefreshSampler
from herl.judge.rule import RuleJudge
from herl.models.pretrained import PretrainedModel
from herl.models.weights import named_weights
from herl.module import HerlModule
from herl.rollout.stages import RolloutPlan
from herl.sampler import vllm_worker
from herl.sampler.vllm import VLLMSampler
from herl.testing import check_lost_weights

pytestmark = pytest.mark.integration
DTYPES = ("float32", "bfloat16")
MODELS = ("tied head", "experts")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The tiny model, which ties its head, and a random one with experts, whose width the kernels must pad."""
    folder = tmp_path_factory.mktemp("experts")
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=1024, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48,
        decoder_sparse_step=1, mlp_only_layers=[], max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)  # otherwise all its tokens are equally likely
    model.save_pretrained(folder)
    PretrainedModel(path="tiny").tokenizer().save_pretrained(folder)
    return {"tied head": "tiny", "experts": str(folder)}


@pytest.fixture(scope="module", params=[(model, dtype) for model in MODELS for dtype in DTYPES], ids="-".join)
def run(request, paths):
    """A module after configure_model, with an engine that has taken its weights once."""
    model, dtype = PretrainedModel(path=paths[request.param[0]]), request.param[1]
    sampler = VLLMSampler(dtype=dtype, max_model_len=256, kv_cache_gib=0.1)
    module = HerlModule(
        model=model, sampler=sampler, judge=RuleJudge(), rollout=RolloutPlan(attempt=Sampling())
    )
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.policy = model.load().eval()
    sampler.start(module.policy, module.stages.tokenizer)
    refresh(module)
    yield module
    sampler.close()


def refresh(module, step=1e-6):
    """Changes every weight by about `step`, as an optimizer would, and refreshes. Returns the logged values."""
    with torch.no_grad():
        for parameter in module.policy.parameters():
            parameter.add_(step * torch.randn(parameter.shape).sign())
    recorded = {}
    module.record = recorded.update
    module.counts["optimizer_steps"] += 1
    RefreshSampler().refresh(module)
    return recorded


def engine_gets(monkeypatch, change):
    """Lets the engine load change(name, tensor) for each streamed tensor, or skip it if that is None."""
    reload = vllm_worker.reload

    def corrupted(worker, weights_iterator):
        found = ((name, change(name, tensor)) for name, tensor in weights_iterator)
        reload(worker, weights_iterator=((name, tensor) for name, tensor in found if tensor is not None))

    monkeypatch.setattr(vllm_worker, "reload", corrupted)


def part_of(module, *words):
    return [n for n, _ in named_weights(module.policy) if any(word in n for word in words)]


@pytest.mark.parametrize(
    "words", [("lm_head", "embed"), (".layers.1.",), (".mlp.",)], ids=["head", "layer", "mlp"]
)
def test_weights_that_stay_one_tiny_step_behind_are_named(run, monkeypatch, words):
    old = {name: tensor.clone() for name, tensor in named_weights(run.policy)}
    stale = part_of(run, *words)
    with monkeypatch.context() as patch:
        engine_gets(patch, lambda name, tensor: old[name] if name in stale else tensor)
        with pytest.raises(
            SamplerError, match=r"does not hold the weights of policy version \d+ after the refresh"
        ) as error:
            refresh(run, 1e-5)
    assert any(name in str(error.value) for name in stale)
    refresh(run)


def test_experts_that_are_not_taken_are_named(run, monkeypatch):
    if not part_of(run, ".experts."):
        pytest.skip("the model has none")
    with monkeypatch.context() as patch:
        engine_gets(patch, lambda name, tensor: None if ".experts." in name else tensor)
        with pytest.raises(
            SamplerError, match=r"lacks model.layers.0.mlp.experts.0.gate_proj.weight.* and 30 more"
        ):
            refresh(run, 1e-5)
    refresh(run)


def test_a_layer_that_is_not_sent_is_named(run, monkeypatch):
    sent = run.named_weights
    with monkeypatch.context() as patch:
        patch.setattr(run, "named_weights", lambda: (pair for pair in sent() if ".layers.1." not in pair[0]))
        with pytest.raises(SamplerError, match=r"lacks .*model.layers.1.self_attn.q_proj.weight"):
            refresh(run)
    refresh(run)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_another_temperature_is_told_from_rounding(run, monkeypatch, factor):
    settings = herl.sampler.vllm.sampling_params

    def other(request, *rest):
        sampling = replace(request.sampling, temperature=request.sampling.temperature * factor)
        return settings(replace(request, sampling=sampling), *rest)

    with monkeypatch.context() as patch:
        patch.setattr(herl.sampler.vllm, "sampling_params", other)
        rounded = run.stages.sampler.weights_dtype is torch.bfloat16
        said = (
            rf"temperature seems to be {'0.[89]' if factor < 1 else '1.1'}\d times"
            if rounded
            else "differ in temperature"
        )
        with pytest.raises(SamplerError, match=said):
            refresh(run)


def test_sound_refreshes_pass(run):
    exact = run.stages.sampler.weights_dtype is torch.float32
    for step in 2 * [0.0, 1e-6, 1e-5, 1e-4, 1e-3]:
        recorded = refresh(run, step)
        assert recorded["sampler/weights_proven"] == 1
        assert recorded["sampler/probe_error"] < (1e-4 if exact else 0.05)
        assert recorded["sampler/probe_temperature"] == pytest.approx(1.0, abs=1e-3 if exact else 0.02)


def test_the_engine_keeps_the_contract(run):
    sampler = run.stages.sampler
    check_lost_weights(sampler, named_weights(run.policy, sampler.weights_dtype))


def test_weights_that_the_engine_never_takes_are_found_at_the_first_refresh(paths, monkeypatch):
    policy = PretrainedModel(path=paths["experts"]).load()
    engine_gets(monkeypatch, lambda name, tensor: None if ".experts." in name else tensor)
    sampler = VLLMSampler(max_model_len=256, kv_cache_gib=0.1)
    sampler.start(policy, PretrainedModel(path="tiny").tokenizer())
    try:
        sampler.load_weights(named_weights(policy), 1)
        assert sampler.lost_weights() == [name for name, _ in named_weights(policy) if ".experts." in name]
    finally:
        sampler.close()
