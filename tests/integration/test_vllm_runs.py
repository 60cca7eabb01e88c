"""herl fit with the real vLLM engine: ranks, adapters, and a real pretrained model."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from herl.models.pretrained import PretrainedModel
from herl.sampler.vllm import VLLMSampler
from tests.support.runs import SMALL, fit, summary
from tests.support.vllm_modules import module_with, probe_of

pytestmark = pytest.mark.slow
VLLM = ("sampler=vllm", "sampler.kv_cache_gib=0.25")
BATCHES = 3  # start-up of engines is most of these tests
SHORT = (*SMALL, f"trainer.limit_train_batches={BATCHES}", f"trainer.val_check_interval={BATCHES}")


@pytest.mark.nightly
def test_two_ranks_with_an_engine_each_give_the_numbers_of_one(tmp_path):
    one = fit(tmp_path / "one", *VLLM, small=SHORT)
    two = fit(tmp_path / "two", *VLLM, "strategy=fsdp", "trainer.devices=2", small=SHORT)
    for tag in ("train/reward", "revision/reward", "update/loss", "update/grad_norm"):
        assert two[tag] == pytest.approx(one[tag], rel=1e-4), tag
    for found in (one, two):
        assert len(found["update/loss"]) == BATCHES
        # before the first batch, and after each batch but the last, whose weights are never used
        assert len(found["sampler/probe_error"]) >= BATCHES
        assert max(found["sampler/probe_error"]) < 1e-3
        assert min(found["sampler/weights_proven"]) == 1
        assert max(found["update/mismatch_max"]) < 1e-3
        assert max(found["sampler/staleness"]) == 0


def test_adapters_are_merged_for_the_engine_and_switched_off_for_the_reference(tmp_path):
    embedded, *rest = SHORT
    assert embedded == "experiment=embedded"
    task = ("data=animals", "judge=rule", "model=tiny", "~data.train_size", "~data.heldout_size")
    pace = ("rollout.max_prompt_tokens=256", "optimizer.lr=1e-3", "module.warmup_steps=0")
    found = fit(
        tmp_path, *VLLM, "lora=lora", "loss.kl_coef=0.1", "loss.mismatch.level=token",
        "callbacks.refresh_sampler.every_n_steps=null", "strategy=fsdp", "trainer.devices=2",
        small=("experiment=vllm", *task, *pace, *rest),
    )  # fmt: skip
    assert max(found["sampler/probe_error"]) < 1e-3
    assert min(found["sampler/weights_proven"]) == 1
    assert found["sampler/staleness"] == [0, 2, 4], "one refresh an epoch"
    assert abs(found["update/mismatch_kl"][0]) < 1e-6 < found["update/mismatch_kl"][-1]
    assert found["update/mismatch_weight"][0] == pytest.approx(1.0, abs=1e-4)
    kl = found["update/kl_to_reference"]
    assert 0 <= kl[0] < kl[-1], "the policy starts as its reference and leaves it"
    assert summary(tmp_path)["optimizer_steps"] == 2 * BATCHES


def test_quantized_weights_are_dequantized_and_merged_for_the_engine(tmp_path):
    pytest.importorskip("bitsandbytes")
    quantized = ("lora=lora", "model.quantization=4bit", "loss.kl_coef=0.1", "optimizer.lr=1e-3")
    found = fit(tmp_path, *VLLM, *quantized, "module.warmup_steps=0", small=SHORT)
    assert max(found["sampler/probe_error"]) < 1e-5
    assert min(found["sampler/weights_proven"]) == 1
    assert max(found["update/mismatch_max"]) < 1e-3
    assert 0 <= found["update/kl_to_reference"][0] < found["update/kl_to_reference"][-1]


@pytest.mark.nightly
def test_two_ranks_share_one_engine(tmp_path):
    """The tiny model's three heads cannot be halved: a fresh one with four."""
    tokenizer = PretrainedModel(path="tiny").tokenizer()
    config = LlamaConfig(
        vocab_size=1024, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    found = fit(
        tmp_path / "run", *VLLM, f"model.path={tmp_path}/model", "sampler.tensor_parallel_size=2", "strategy=ddp",
        "trainer.devices=2", "algorithm=grpo", small=SHORT,
    )  # fmt: skip
    assert max(found["sampler/probe_error"]) < 1e-3
    assert min(found["sampler/weights_proven"]) == 1
    assert summary(tmp_path / "run")["answers_sampled"] == BATCHES * 7 * 4, (
        "each answer comes once, not from each rank"
    )


@pytest.mark.nightly
def test_smollm2_takes_new_weights_and_gives_the_trainers_logprobs():
    model = PretrainedModel(path="smollm2-135m-instruct")
    sampler = VLLMSampler(max_model_len=512, kv_cache_gib=0.25)
    policy = model.load().eval()
    sampler.start(policy, model.tokenizer())
    try:
        module = module_with(sampler, policy, temperature=0.8, scale=1e-3)
        assert probe_of(module) < 1e-3
        with torch.no_grad():
            policy.get_input_embeddings().weight.mul_(1.05)
        module.counts["optimizer_steps"] += 1
        assert probe_of(module) < 1e-3
    finally:
        sampler.close()
