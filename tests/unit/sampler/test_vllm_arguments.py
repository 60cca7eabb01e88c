"""A run's settings for its vLLM engine: length, dtype, memory. Uses the real engine if a CPU suffices."""

import os
from dataclasses import replace

import lightning as L
import pytest
import torch

from herl.callbacks import RefreshSampler
from herl.errors import ConfigError
from herl.judge.rule import RuleJudge
from herl.models.pretrained import PretrainedModel
from herl.module import HerlModule
from herl.rollout.stages import RolloutPlan
from herl.sampler import CardNeeds, RunLimits
from herl.sampler.vllm import VLLMSampler
from herl.sampler.vllm_arguments import (
    JUDGE_SHARE,
    MAX_SHARE,
    SPARE_GIB,
    WORKSPACE_GIB,
    local_rank,
    memory_complaint,
    run_arguments,
    share_of_card,
)
from herl.types import Sampling
from herl.update.card_needs import longest_sequence, run_limits
from herl.update.gpu_cost import GIB

MODEL = PretrainedModel(path="tiny")
ENGINE = {"max_num_seqs": 256, "tensor_parallel_size": 1}


def limits(longest=300, dtype=torch.float32, **changes):
    return RunLimits(**{"longest_tokens": longest, "dtype": dtype, "refreshed_every_batch": True} | changes)


@pytest.mark.integration
def test_the_engine_is_as_long_as_the_run_may_ask_and_computes_in_float32_on_a_cpu(policy, tokenizer):
    sampler = VLLMSampler(kv_cache_gib=0.05)
    sampler.prepare(limits(300, torch.bfloat16))
    sampler.start(policy, tokenizer)
    try:
        model = sampler._llm.llm_engine.model_config
        assert (model.max_model_len, model.dtype) == (300, torch.float32)
        assert not sampler._sleeps, "there is no memory of a GPU to free"
    finally:
        sampler.close()


@pytest.mark.integration
def test_an_engine_whose_cache_cannot_hold_one_answer_says_which_keys_to_change(policy, tokenizer):
    sampler = VLLMSampler(kv_cache_gib=1e-4)
    sampler.prepare(limits(512))
    with pytest.raises(ConfigError, match=r"does not fit in memory \(.*\): raise .* sampler.kv_cache_gib"):
        sampler.start(policy, tokenizer)


@pytest.mark.parametrize("given", [{"max_model_len": 299}, {"engine": {"max_model_len": 299}}])
def test_a_length_too_short_for_the_run_is_refused_and_any_other_wins(given):
    with pytest.raises(ConfigError, match=r"max_model_len: expected at least 300 tokens .*, got 299"):
        VLLMSampler(**given).prepare(limits(300))
    VLLMSampler(**given).prepare(limits(299))


def prepared(plan=None, callbacks=(), precision=None, **changes):
    module = HerlModule(MODEL, VLLMSampler(), RuleJudge(), rollout=plan, **changes)
    module.trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        precision=precision,
        callbacks=[*callbacks],
    )
    module.policy = MODEL.load()
    return run_limits(module)


def stages_of(plan):
    return HerlModule(MODEL, VLLMSampler(), RuleJudge(), rollout=plan).stages


def test_the_longest_sequence_is_that_of_any_kind_of_request():
    plan = RolloutPlan(
        max_prompt_tokens=100, attempt=Sampling(max_new_tokens=10), revision=Sampling(max_new_tokens=30),
        heldout=Sampling(max_new_tokens=20),
    )  # fmt: skip
    assert longest_sequence(stages_of(plan)) == 130
    assert longest_sequence(stages_of(replace(plan, heldout=Sampling(max_new_tokens=40)))) == 140
    assert prepared(plan).longest_tokens == 512, "room for a probe: as many tokens as the tiny model takes"


def test_what_the_trainer_computes_in_and_when_weights_come_is_read_from_the_trainer():
    plain = prepared(callbacks=[RefreshSampler(every_n_steps=None)])
    assert (plain.dtype, plain.refreshed_every_batch, plain.card) == (torch.float32, False, None)
    mixed = prepared(callbacks=[RefreshSampler()], precision="bf16-mixed")
    assert (mixed.dtype, mixed.refreshed_every_batch) == (torch.bfloat16, True)
    assert not prepared(callbacks=[RefreshSampler(every_n_steps=2)]).refreshed_every_batch


def test_what_is_given_wins_over_what_the_run_decides():
    found = run_arguments(limits(300), {**ENGINE, "gpu_memory_utilization": 0.3}, on_cpu=False, sleeps=True)
    assert found == {"dtype": "float32", "max_model_len": 300}
    assert run_arguments(None, ENGINE, on_cpu=True, sleeps=False) == {"dtype": "float32"}
    judge = run_arguments(None, ENGINE, on_cpu=False, sleeps=False)
    assert judge == {"dtype": "bfloat16", "gpu_memory_utilization": JUDGE_SHARE}


NEEDS = CardNeeds(parameters=GIB, kv_bytes=2**20, resident_gib=12.0, update_gib=40.0)
"""A model of 2 GiB in bfloat16; an answer of 1024 tokens keeps 1 GiB."""


def share(needs=NEEDS, **changes):
    card = {
        "total_gib": 80.0, "others_gib": 0.5, "sleeps": True, "weight_bytes": 2, "tensor_parallel": 1,
        "longest_tokens": 1024, "max_at_once": 256,
    }  # fmt: skip
    return share_of_card(needs, **(card | changes)) * 80.0


def test_an_engine_that_sleeps_leaves_room_for_weights_and_moments_and_one_that_does_not_for_the_update():
    assert share() == pytest.approx(80 - 0.5 - 12 - SPARE_GIB)
    assert share(sleeps=False) == pytest.approx(80 - 0.5 - 40 - SPARE_GIB)
    assert share(replace(NEEDS, resident_gib=0.0), others_gib=0.0) == pytest.approx(MAX_SHARE * 80)


def test_an_engine_takes_no_more_than_its_answers_can_use():
    assert share(max_at_once=16) == pytest.approx(2 + WORKSPACE_GIB + 16)
    assert share(max_at_once=16, tensor_parallel=2) == pytest.approx(1 + WORKSPACE_GIB + 8)
    assert share(max_at_once=8, weight_bytes=4) == pytest.approx(4 + WORKSPACE_GIB + 16)


def test_an_engine_without_room_is_an_error_that_says_what_to_change():
    message = (
        r"expected 6.0 GiB for an engine next to the trainer, got 0.0: of the GPU's 80.0 GiB .* about 90.0"
    )
    with pytest.raises(ConfigError, match=message + r"\. Try sampler.sleep=true"):
        share(replace(NEEDS, update_gib=90.0), sleeps=False)
    with pytest.raises(ConfigError, match=r"about 75.0, other processes use 8.0. Try strategy=fsdp on more"):
        share(replace(NEEDS, resident_gib=75.0), others_gib=8.0)


def test_errors_of_the_engine_that_are_not_about_memory_stay_as_they_are():
    assert memory_complaint(ValueError("Unknown attention backend: X")) is None
    assert "No available memory for the cache blocks" in str(
        memory_complaint(
            ValueError("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`")
        )
    )
    assert memory_complaint(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"))


@pytest.mark.parametrize(
    ("environment", "device", "expected"),
    [
        ({"LOCAL_RANK": "3"}, 0, "0"),  # SLURM shows each process one GPU
        ({"LOCAL_RANK": "0"}, 2, "2"),  # trainer.devices=[2,3]
        ({}, 1, "1"),
        ({"LOCAL_RANK": "3"}, None, "3"),  # on a CPU
        ({"SLURM_LOCALID": "5"}, None, "5"),
        ({}, None, "0"),
    ],
)
def test_an_engine_gets_the_trainers_gpu_whatever_the_launcher_calls_it(
    environment, device, expected, monkeypatch
):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: device)
    with local_rank("cpu" if device is None else "cuda"):
        assert os.environ["LOCAL_RANK"] == expected
    assert {
        name: os.environ[name] for name in ("LOCAL_RANK", "SLURM_LOCALID") if name in os.environ
    } == environment
