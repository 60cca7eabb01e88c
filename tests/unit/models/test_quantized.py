"""Adapters on weights of 4 and 8 bits, against a plain model whose weights a naive version dequantizes."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from herl.errors import ConfigError
from herl.models.export import load_checkpoint, save_pretrained
from herl.models.lora import Lora, adapters_off
from herl.models.pretrained import PretrainedModel
from herl.models.quantized import BYTES, dequantized, elements, outline, quantized_layers
from herl.models.weights import named_weights, weight_shapes
from herl.update.card_needs import settings_of
from tests.support.architectures import ARCHITECTURES, SIZES
from tests.support.training import fit, module_of

pytest.importorskip("bitsandbytes")

KINDS = ("4bit", "8bit")
LORA = Lora(rank=4)
IDS = torch.tensor([[1, 87, 85, 268, 201, 417, 14]])
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
"""The sixteen values of a weight, by Appendix E of arXiv:2305.14314."""


def naive_4bit(weight):
    """The weight that 4 bits stand for, number by number."""
    state, scales = weight.quant_state, weight.quant_state.state2
    codes = [code for byte in weight.flatten().tolist() for code in (byte >> 4, byte & 15)]
    values = []
    for place, code in enumerate(codes):
        block = place // 64
        scale = scales.code[int(state.absmax[block])] * scales.absmax[block // 256] + state.offset
        values.append(NF4[code] * float(scale))
    return torch.tensor(values).reshape(state.shape)


def naive_8bit(weight):
    return torch.stack(
        [row.float() * float(scale) / 127 for row, scale in zip(weight, weight.SCB, strict=True)]
    )


NAIVE = {"4bit": naive_4bit, "8bit": naive_8bit}


def trained(**settings):
    """The tiny model with adapters that change what it says."""
    model = PretrainedModel(path="tiny", **({"lora": LORA} | settings)).load().eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def base(kind):
    """The naively dequantized weights of the tiny model, by name."""
    weights = dict(PretrainedModel(path="tiny").load().named_parameters())
    for name, parameter in PretrainedModel(path="tiny", quantization=kind).load().named_parameters():
        if not parameter.is_floating_point():
            weights[name] = NAIVE[kind](parameter)
    return {name: weight.detach() for name, weight in weights.items()}


def plain(base, **settings):
    """A model of whole weights, with the same adapters, on the naively dequantized base."""
    model = trained(**settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" not in name:
                parameter.copy_(base[name.replace("base_layer.", "")])
    return model


def logprobs(model, ids=IDS):
    return model(input_ids=ids, use_cache=False).logits.log_softmax(-1)


def test_weights_are_those_of_a_naive_version_and_close_to_the_whole_ones(kind, base):
    model = PretrainedModel(path="tiny", quantization=kind).load()
    whole = dict(PretrainedModel(path="tiny").load().named_parameters())
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if id(getattr(layer, "weight", 0)) in quantized_layers(model)
    }
    assert len(layers) == 3 * 7
    for name, layer in layers.items():
        weight = whole[f"{name}.weight"].detach()
        torch.testing.assert_close(dequantized(layer), base[f"{name}.weight"], rtol=1e-5, atol=1e-7)
        assert elements(layer.weight) == weight.numel()
        largest = weight.reshape(-1, 64).abs().amax(1) if kind == "4bit" else weight.abs().amax(1)
        gap = 0.16 if kind == "4bit" else 0.6 / 127  # half of the widest step, and rounded scales
        error = (dequantized(layer) - weight).reshape(len(largest), -1).abs().amax(1)
        assert bool((error <= gap * largest).all())
        assert float(error.max()) > 1e-4


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_log_probs_are_those_of_the_dequantized_model_sampling_or_training(kind, base, targets):
    lora = Lora(rank=4, target_modules=targets)
    policy, naive = trained(quantization=kind, lora=lora), plain(base, lora=lora)
    with torch.no_grad():
        expected = logprobs(naive)
        torch.testing.assert_close(logprobs(policy), expected, rtol=0, atol=2e-4)
        assert torch.equal(logprobs(policy.train()), logprobs(policy.eval()))
        with adapters_off(policy), adapters_off(naive):
            torch.testing.assert_close(logprobs(policy), logprobs(naive), rtol=0, atol=2e-5)
            assert float((logprobs(naive) - expected).abs().max()) > 0.1


def test_an_answer_does_not_depend_on_its_neighbors(kind):
    policy = trained(quantization=kind)
    neighbors = torch.cat([IDS, torch.randint(3, 1000, (3, 7), generator=torch.Generator().manual_seed(0))])
    with torch.no_grad():
        torch.testing.assert_close(logprobs(policy, neighbors)[:1], logprobs(policy), rtol=0, atol=5e-5)


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_of_adapters_are_those_of_the_dequantized_model(kind, base, recomputes, bf16):
    settings = {"gradient_checkpointing": recomputes}
    gradients = []
    for model in (trained(quantization=kind, **settings), plain(base, **settings)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logprobs(model.train())[0, :-1].gather(1, IDS[0, 1:, None]).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    ours, theirs = gradients
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        size = float(gradient.norm())
        assert size > 0
        assert float((ours[name] - gradient).norm()) <= (2e-2 if bf16 else 1e-5) * size, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_weight_is_not_kept_for_the_backward_pass(kind, dtype):
    policy = trained(quantization=kind, dtype=dtype)
    packed = {parameter.data_ptr() for parameter in policy.parameters()}
    shapes = {tuple(shape.shape) for shape in weight_shapes(policy).values()} - {(1024, 96), (96,)}
    kept = []

    def keep(tensor):
        if tuple(tensor.shape) in shapes and tensor.data_ptr() not in packed:
            kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs(policy.train()).sum().backward()
    assert not kept


def test_the_stream_is_the_naively_merged_model(kind, base):
    policy = trained(quantization=kind)
    own = dict(policy.named_parameters())
    expected = dict(base)
    for name in expected:
        layer = name.removesuffix(".weight")
        if (down := own.get(f"{layer}.lora_A.default.weight")) is not None:
            update = own[f"{layer}.lora_B.default.weight"] @ down
            expected[name] = base[name] + LORA.alpha / LORA.rank * update.detach()
    expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    streamed = dict(named_weights(policy))
    assert streamed.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(streamed[name], weight, rtol=1e-5, atol=1e-6)
    assert {name: one.shape for name, one in weight_shapes(policy).items()} == {
        n: t.shape for n, t in expected.items()
    }
    assert {one.dtype for _, one in named_weights(policy, torch.bfloat16)} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore:.*_pattern keys did not match:RuntimeWarning")  # peft's, for experts
@pytest.mark.parametrize("architecture", ["gpt2", "qwen3_moe"])
def test_weights_keep_the_layout_of_their_checkpoint(kind, architecture, tmp_path):
    """GPT-2 has its weights the other way around; a mixture of experts keeps its experts whole, in one tensor."""
    config = AutoConfig.for_model(architecture, **(SIZES | ARCHITECTURES[architecture]))
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    policy = PretrainedModel(path=str(tmp_path), quantization=kind, lora=Lora(rank=2)).load().eval()
    assert quantized_layers(policy)
    streamed = dict(named_weights(policy))
    assert streamed.keys() == dict(named_weights(whole)).keys()
    save_pretrained(policy, PretrainedModel(path="tiny").tokenizer(), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(logprobs(merged), logprobs(policy), rtol=0, atol=1e-5)
        assert not torch.allclose(logprobs(merged), logprobs(whole), rtol=0, atol=1e-6)


def test_sampling_leaves_the_packed_weights_alone_on_any_cpu(monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    policy = trained(quantization="4bit")
    before = [layer.weight.data.clone() for layer in quantized_layers(policy).values()]
    with torch.no_grad():
        logprobs(policy)
    after = [layer.weight.data for layer in quantized_layers(policy).values()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_state_is_the_adapters_alone_and_comes_back(kind):
    class Module(torch.nn.Module):
        def __init__(self, policy):
            super().__init__()
            self.policy = policy

    module, fresh = (
        Module(trained(quantization=kind)),
        Module(PretrainedModel(quantization=kind, lora=LORA).load().eval()),
    )
    state = module.state_dict()
    assert state.keys() == {
        f"policy.{name}" for name, p in module.policy.named_parameters() if p.requires_grad
    }
    fresh.load_state_dict(state)  # strictly
    with torch.no_grad():
        assert torch.equal(logprobs(fresh.policy), logprobs(module.policy))
    state.pop("policy.model.layers.0.self_attn.q_proj.lora_A.default.weight")
    with pytest.raises(RuntimeError, match=r"Missing key.*: \"policy.model.layers.0.self_attn.q_proj.lora_A"):
        fresh.load_state_dict(state)


def test_a_checkpoint_is_exported_as_a_whole_model_and_as_adapters(kind, tmp_path, tokenizer):
    from peft import PeftModel

    policy = trained(quantization=kind)
    weights = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
    model = PretrainedModel(quantization=kind, lora=LORA)
    torch.save({"state_dict": weights, "herl": {"settings": model.lasting()}}, tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").stat().st_size < 4 * sum(w.numel() for w in weights.values()) + 50_000
    fresh = model.load()
    load_checkpoint(fresh, tmp_path / "a.ckpt", model.lasting())
    save_pretrained(fresh, tokenizer, tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    merged = PretrainedModel(path=str(tmp_path / "merged")).load().eval()
    save_pretrained(fresh, tokenizer, tmp_path / "adapter", adapter=True)
    below = PretrainedModel(quantization=kind).load()
    on_top = PeftModel.from_pretrained(below, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(logprobs(merged), logprobs(policy), rtol=0, atol=2e-4)
        torch.testing.assert_close(logprobs(on_top), logprobs(policy), rtol=0, atol=2e-4)
    for wrong, message in (
        (
            replace(model, quantization="4bit" if kind == "8bit" else "8bit"),
            "model.quantization: expected the",
        ),
        (replace(model, quantization=None), "model.quantization: expected the checkpoint's .bit, got null"),
        (replace(model, path="tiny_tools"), "model.path: expected the checkpoint's tiny, got tiny_tools"),
    ):
        with pytest.raises(ConfigError, match=f"{message}.*Repeat the overrides of its run"):
            load_checkpoint(fresh, tmp_path / "a.ckpt", wrong.lasting())


def test_a_resumed_run_gives_the_same_numbers_and_no_other_bits(kind, tmp_path):
    def module(quantization=kind):
        return module_of(model=PretrainedModel(quantization=quantization, lora=LORA))

    def adapters(module):
        return torch.cat([p.detach().flatten() for p in module.policy.parameters() if p.requires_grad])

    whole, half, rest = module(), module(), module()
    fit(whole, tmp_path, max_epochs=2)
    path = tmp_path / "half.ckpt"
    fit(half, tmp_path, max_epochs=1).save_checkpoint(path)
    fit(rest, tmp_path, max_epochs=2, resume=str(path))
    assert torch.equal(adapters(rest), adapters(whole))
    assert not torch.equal(adapters(half), adapters(whole))
    other = "4bit" if kind == "8bit" else None
    with pytest.raises(
        ConfigError, match=f"model.quantization: expected the checkpoint's {kind}, got {other or 'null'}"
    ):
        fit(module(other), tmp_path, max_epochs=2, resume=str(path))


def test_an_outline_tells_the_memory_of_the_loaded_model(kind):
    model = PretrainedModel(quantization=kind, lora=LORA)
    module = SimpleNamespace(
        model=model,
        loss=SimpleNamespace(needs_reference=True, top_entropy_share=1.0),
        stages=SimpleNamespace(plan=SimpleNamespace(batches_ahead=0)),
    )
    policy = model.load()
    found = settings_of(module, policy, None)
    assert found == settings_of(module, model.outline(), None)
    counts = {name: (elements(p), p.is_floating_point()) for name, p in policy.named_parameters()}
    adapters = sum(n for name, (n, _) in counts.items() if ".lora_" in name)
    packed = sum(n for n, whole in counts.values() if not whole)
    total = sum(n for n, _ in counts.values())
    kept = 4 * (total - adapters - packed) + BYTES[kind] * packed
    assert found.frozen_bytes == pytest.approx(kept / (total - adapters))
    assert found.quantized_share == pytest.approx(packed / total)
    assert found.trained_share == pytest.approx(adapters / total)
    measures = settings_of(module, policy, None, trains=False)
    assert measures.frozen_bytes == pytest.approx((kept + 4 * adapters) / total)


def test_an_outline_knows_all_kinds_of_layers(kind):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=32, n_head=4, n_layer=1, vocab_size=64))
    outline(model)
    packed = [name for name, p in model.named_parameters() if p.dtype is torch.int8]
    assert len(packed) == 4, "two of attention and two of the MLP"


def test_bytes_are_those_of_the_packed_tensors():
    """Of a weight so large that the tables of its scales do not count."""
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(torch.randn(2**20), compress_statistics=True, quant_type="nf4")
    held = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert held / 2**20 == pytest.approx(BYTES["4bit"], rel=1e-6)


@pytest.mark.integration
def test_compiled_blocks_compute_the_same(kind):
    with torch.no_grad():
        expected = logprobs(trained(quantization=kind))
    found = logprobs(trained(quantization=kind, compile=True).train())
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=2e-5)


def test_whole_weights_are_never_trained_in_a_few_bits(kind, tmp_path):
    with pytest.raises(
        ConfigError, match=f"model.quantization: expected null to train all weights, got '{kind}'"
    ):
        fit(module_of(model=PretrainedModel(quantization=kind)), tmp_path)


@pytest.mark.parametrize("strategy", ["fsdp", "hsdp"])
def test_shards_are_refused(strategy):
    from herl.models.fsdp import FSDPStrategy, check_trainer

    trainer = SimpleNamespace(
        precision="32-true", state=SimpleNamespace(fn="fit"), world_size=2,
        strategy=FSDPStrategy(shards={"fsdp": "all", "hsdp": "node"}[strategy]),
    )  # fmt: skip
    with pytest.raises(
        ConfigError, match="model.quantization: expected null with strategy=fsdp or hsdp, got '4bit'"
    ):
        check_trainer(trainer, PretrainedModel(quantization="4bit", lora=LORA))


@pytest.mark.parametrize("package", ["bitsandbytes", "accelerate"])
def test_a_missing_package_is_named_with_the_extra(monkeypatch, package):
    monkeypatch.setattr("herl.models.quantized.find_spec", lambda name: None if name == package else name)
    with pytest.raises(
        ConfigError, match=rf"model.quantization=8bit needs {package}: .*pip install '.\[quantized\]'"
    ):
        PretrainedModel(quantization="8bit")


def test_a_type_that_cannot_be_dequantized_to_is_refused():
    with pytest.raises(ConfigError, match="model.dtype: expected one of float32, .* got 'float64'"):
        PretrainedModel(quantization="4bit", dtype="float64")


@pytest.mark.parametrize("asked", [None, "4bit"])
@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "mxfp4"])
def test_a_model_that_is_quantized_already_is_refused(tmp_path, method, asked):
    folder = shutil.copytree(PretrainedModel(path="tiny").source(), tmp_path / "model")
    path = folder / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": method}})
    )
    model = PretrainedModel(path=str(folder), quantization=asked, lora=LORA)
    if (method, asked) == ("mxfp4", None):
        assert model.max_tokens() == 512, "transformers loads it as whole weights"
        return
    for ask in (model.load, model.max_tokens):
        with pytest.raises(
            ConfigError, match=rf"model.path: expected a model that is not quantized.*\({method}\)"
        ):
            ask()
