"""GPU memory of a trainer by the formulas, without a GPU: the paper's setting fits a node with 80 GiB GPUs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from transformers import AutoModelForCausalLM, Qwen2Config

from herl.advantages import group_advantages
from herl.callbacks import RefreshSampler
from herl.config.check import check
from herl.errors import ConfigError
from herl.hindsight.revision import RevisionBuilder
from herl.judge import JudgeRunner
from herl.judge.rule import RuleJudge
from herl.models.fsdp import FSDPStrategy
from herl.models.lora import Lora
from herl.models.pretrained import PretrainedModel
from herl.rollout.stages import RolloutPlan, Stages
from herl.sampler.scripted import ScriptedSampler
from herl.sampler.vllm_arguments import share_of_card
from herl.selection import form_group
from herl.types import Sampling
from herl.update.card_needs import longest_micro_batch, run_limits
from herl.update.gpu_cost import GIB, GPUS, Settings, model_size, update_gib
from tests.support.configuration import composed


class FakeGPUs(FSDPStrategy):
    """FSDP over imaginary GPUs."""

    @property
    def root_device(self):
        return torch.device("cuda", 0)


@pytest.fixture
def qwen_7b(tmp_path):
    """A folder with the shape of Qwen2.5-7B."""
    Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=32768, tie_word_embeddings=False,
    ).save_pretrained(tmp_path)  # fmt: skip
    return PretrainedModel(path=str(tmp_path), gradient_checkpointing=True)


def stages_of(plan):
    return Stages(
        tokenizer=SimpleNamespace(all_special_tokens=[]), sampler=ScriptedSampler({}), judge_runner=JudgeRunner(RuleJudge()),
        plan=plan, selection=form_group, advantages=group_advantages,
    )  # fmt: skip


def needs(model, plan, gpus=8, reference=True, trains=True, micro_batch_tokens=8192, **strategy):
    """The GPU memory that the trainer needs."""
    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(Qwen2Config.from_pretrained(model.path))
        if model.lora is not None:
            model.lora.add_to(policy)
    module = SimpleNamespace(
        model=model,
        policy=policy,
        stages=stages_of(plan),
        loss=SimpleNamespace(needs_reference=reference, top_entropy_share=1.0),
        trainer=SimpleNamespace(
            strategy=FakeGPUs(**strategy),
            world_size=gpus,
            precision="bf16-mixed",
            callbacks=[RefreshSampler()],
        ),
        updater=SimpleNamespace(micro_batch_tokens=micro_batch_tokens),
    )
    return run_limits(module, trains=trains)


@pytest.fixture
def medicine():
    config = composed("fit", "experiment=rar_medicine")
    check(config)
    return config


def share(limits, sampler, sleeps=True):
    return share_of_card(
        limits.card, total_gib=GPUS["h100"].gib, others_gib=1.0, sleeps=sleeps, weight_bytes=2, tensor_parallel=1,
        longest_tokens=limits.longest_tokens, max_at_once=sampler.max_num_seqs,
    )  # fmt: skip


def test_the_papers_setting_fits_eight_gpus_of_80_gib(medicine, qwen_7b):
    plan = instantiate(medicine.rollout)
    limits = needs(qwen_7b, plan)
    assert (limits.longest_tokens, limits.dtype, limits.refreshed_every_batch) == (8192, torch.bfloat16, True)
    assert medicine.trainer.devices == 8
    assert medicine.model.gradient_checkpointing
    for name in ("dtype", "max_model_len", "gpu_memory_utilization", "sleep"):
        assert medicine.sampler[name] is None, f"{name} follows from the run"
    room = GPUS["h100"].gib
    assert limits.card.update_gib < 0.9 * room
    engine = share(limits, medicine.sampler) * room
    assert engine + limits.card.resident_gib < room
    keys = engine - 2 * limits.card.parameters / GIB
    answers = medicine.rollout.attempts_per_prompt * medicine.data.prompts_per_batch / 8
    assert keys > 0.5 * answers * limits.longest_tokens * limits.card.kv_bytes / GIB, (
        "half of a GPU's answers at their longest are worked on at once"
    )


def test_one_gpu_is_too_small_for_the_papers_setting(medicine, qwen_7b):
    limits = needs(qwen_7b, instantiate(medicine.rollout), gpus=1)
    with pytest.raises(ConfigError, match="GiB for an engine next to the trainer, got 0.0: .*strategy=fsdp"):
        share(limits, medicine.sampler)


def test_what_stays_while_answers_are_sampled_is_the_update_without_gradients_and_activations(
    medicine, qwen_7b
):
    plan = instantiate(medicine.rollout)
    card = needs(qwen_7b, plan, reference=False).card
    size = model_size(qwen_7b.path)
    update = update_gib(size, 8192, Settings(checkpointing=True, compiled=True), 8)
    gathered = 4 * (size.outer + 2 * size.layer) / GIB  # in bfloat16, and once more in one piece
    assert needs(
        qwen_7b, plan, reference=False, reshard_after_forward=False
    ).card.resident_gib == pytest.approx((12 * size.parameters / 8 + 4 * size.parameters) / GIB), (
        "ZeRO-2 keeps all that is gathered"
    )
    assert card.resident_gib == pytest.approx(12 * size.parameters / 8 / GIB + gathered)
    assert card.update_gib == pytest.approx(sum(update.values()))
    two = needs(qwen_7b, plan).card
    assert two.resident_gib - card.resident_gib == pytest.approx(4 * size.parameters / 8 / GIB), (
        "the reference"
    )
    assert needs(qwen_7b, plan, cpu_offload=True).card.resident_gib == pytest.approx(gathered)
    measures = needs(qwen_7b, plan, reference=False, trains=False).card
    assert measures.resident_gib == pytest.approx(4 * size.parameters / 8 / GIB + gathered), "weights alone"
    adapters = PretrainedModel(path=qwen_7b.path, lora=Lora(rank=4))
    assert needs(adapters, plan).card.resident_gib < measures.resident_gib * 1.1, "the base is the reference"


def test_the_longest_micro_batch_is_the_budget_unless_one_answer_is_longer(medicine):
    stages = stages_of(instantiate(medicine.rollout))
    assert longest_micro_batch(stages, 16384) == 16384
    assert longest_micro_batch(stages, 1024) == longest_micro_batch(stages, "auto") == 8192
    assert longest_micro_batch(stages, 10**6) == 4096 + 8 * 4096


def test_rows_are_as_long_as_the_longest_revision():
    plan = RolloutPlan(
        max_prompt_tokens=100, attempt=Sampling(max_new_tokens=10), revision=Sampling(max_new_tokens=30)
    )
    plain = stages_of(plan)
    revised = replace(plain, hindsight=RevisionBuilder())
    assert plain.longest_trained == ("rollout.attempt.max_new_tokens", 10)
    assert revised.longest_trained == ("rollout.revision.max_new_tokens", 30)
    assert [longest_micro_batch(one, "auto") for one in (plain, revised)] == [110, 130]
    longer = replace(revised, plan=replace(plan, attempt=Sampling(max_new_tokens=40)))
    assert longer.longest_trained == ("rollout.attempt.max_new_tokens", 40)
