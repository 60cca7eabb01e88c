"""Adapters by peft on the tiny model."""

from contextlib import nullcontext

import pytest
import torch

from herl import ConfigError
from herl.data import RubricDataModule
from herl.models.export import save_pretrained
from herl.models.lora import Lora, adapters_off, has_adapters
from herl.models.pretrained import PretrainedModel
from herl.models.weights import named_weights
from tests.support.training import TASKS, fit, module_of

IDS = torch.tensor([[1, 87, 85, 268, 201, 417, 14]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def adapted(**changes):
    model = PretrainedModel(path="tiny", lora=Lora(rank=4, **changes)).load().eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def test_fresh_adapters_change_nothing_and_only_they_are_trained(policy):
    model = PretrainedModel(path="tiny", lora=Lora()).load().eval()
    torch.testing.assert_close(logits(model), logits(policy), rtol=0, atol=1e-6)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 3 * 7 * 2  # layers x linear layers x (A, B)
    assert all(".lora_" in name for name in trained)
    assert has_adapters(model)
    assert not has_adapters(policy)


def test_adapters_of_a_bfloat16_model_are_float32_and_take_small_steps():
    model = PretrainedModel(path="tiny", dtype="bfloat16", lora=Lora(rank=4)).load()
    types = {(".lora_" in name, parameter.dtype) for name, parameter in model.named_parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    model(input_ids=IDS).logits.float().logsumexp(-1).sum().backward()
    [adapter] = [p for n, p in model.named_parameters() if "layers.0.self_attn.q_proj.lora_A" in n]
    before = adapter.detach().clone()
    adapter.grad = torch.ones_like(adapter)
    torch.optim.SGD([adapter], lr=1e-6).step()
    moved = (adapter.detach() - before).abs()
    assert float(moved.median()) == pytest.approx(1e-6, rel=0.1)


def test_fresh_adapters_depend_on_the_seed_alone():
    def weights(seed):
        model = PretrainedModel(path="tiny", lora=Lora(), seed=seed).load()
        return torch.cat([p.flatten() for n, p in model.named_parameters() if ".lora_A" in n]).detach()

    before = torch.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_its_adapters_the_policy_is_the_reference(policy):
    model = adapted()
    assert float((logits(model) - logits(policy)).abs().max()) > 0.1
    with adapters_off(model):
        torch.testing.assert_close(logits(model), logits(policy), rtol=0, atol=1e-6)
    assert float((logits(model) - logits(policy)).abs().max()) > 0.1
    assert all(p.requires_grad for n, p in model.named_parameters() if ".lora_" in n)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], None])
def test_the_streamed_weights_are_the_merged_model_under_its_own_names(policy, targets):
    model = adapted(target_modules=targets)
    streamed = dict(named_weights(model))
    assert set(streamed) == {name for name, _ in policy.named_parameters()} | {"lm_head.weight"}
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.copy_(streamed[name])
    torch.testing.assert_close(logits(policy), logits(model), rtol=1e-4, atol=1e-4)


def test_a_skeleton_has_the_same_weights_by_name_and_ties():
    model = PretrainedModel(path="tiny", lora=Lora(rank=4))
    loaded, skeleton = model.load(), model.skeleton()
    assert [(n, p.shape, p.requires_grad) for n, p in skeleton.named_parameters()] == [
        (n, p.shape, p.requires_grad) for n, p in loaded.named_parameters()
    ]
    assert skeleton.lm_head.weight is skeleton.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "model.lora.rank: expected at least 1, got 0"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "expected layers other than the embeddings"),
        ({"target_modules": ["no_such_layer"]}, "model.lora.target_modules: .*no_such_layer"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        PretrainedModel(path="tiny", lora=Lora(**changes)).load()


def test_a_policy_is_exported_merged_and_as_adapters(tmp_path, tokenizer):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = adapted()
    save_pretrained(model, tokenizer, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == tokenizer.chat_template

    save_pretrained(model, tokenizer, tmp_path / "adapter", adapter=True)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    on_top = PeftModel.from_pretrained(PretrainedModel(path="tiny").load(), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(on_top), logits(model), rtol=1e-4, atol=1e-4)


def test_adapters_of_a_policy_without_any_are_a_clear_error(tmp_path, policy, tokenizer):
    with pytest.raises(ConfigError, match="expected a policy with adapters"):
        save_pretrained(policy, tokenizer, tmp_path, adapter=True)


def test_a_checkpoint_of_adapters_is_neither_resumed_nor_evaluated_at_another_scale(tmp_path):
    def module(alpha):
        return module_of(model=PretrainedModel(lora=Lora(rank=4, alpha=alpha)))

    trainer = fit(module(64), tmp_path)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    message = "model.lora.alpha: expected the checkpoint's 64.0, got 32.0, with which its weights would be"
    with pytest.raises(ConfigError, match=message):
        fit(module(32.0), tmp_path, max_epochs=2, resume=tmp_path / "end.ckpt")
    data = RubricDataModule(TASKS, TASKS, prompts_per_batch=2)
    for alpha in (64.0, 32.0):
        with pytest.raises(ConfigError, match=message) if alpha == 32 else nullcontext():
            trainer.validate(module(alpha), data, ckpt_path=tmp_path / "end.ckpt", weights_only=True)
