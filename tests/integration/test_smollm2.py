"""The same path with a real pretrained model."""

import json
import subprocess
import sys

import pytest

from herl.models.chat_template import render
from herl.models.pretrained import PretrainedModel
from herl.sampler.transformers import TransformersSampler
from herl.types import SampleRequest, Sampling

MODEL = PretrainedModel(path="smollm2-135m-instruct")


@pytest.mark.slow
def test_the_converted_model_answers_like_a_language_model():
    tokenizer = MODEL.tokenizer()
    sampler = TransformersSampler()
    sampler.start(MODEL.load(), tokenizer)
    request = SampleRequest(
        task_id="t",
        group_id="g",
        prompt_ids=render(tokenizer, [{"role": "user", "content": "What is the capital of France?"}]),
        n=1,
        sampling=Sampling(temperature=0.0, max_new_tokens=16),
        seed=0,
    )
    [rollout] = sampler.generate([request])
    assert "Paris" in rollout.text


@pytest.mark.nightly
def test_one_batch_of_verifiable_instructions(tmp_path):
    command = [
        sys.executable, "-m", "herl", "fit", "experiment=smollm2_if", "data.train_size=2", "data.heldout_size=2",
        "rollout.attempts_per_prompt=2", "rollout.attempt.max_new_tokens=16", "~callbacks.checkpoints", "~callbacks.best_checkpoint",
        f"hydra.run.dir={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["answers_sampled"] >= 4
    assert 0 <= summary["heldout_reward_after"] <= 1
