"""Each kind of experiment in conf/ runs, with few and short answers of the tiny model.

smollm2_if is run by test_smollm2.py, judge_smoke by test_judge_smoke.py and embedded by test_cli.py. rar_medicine
needs eight GPUs: tests/test_conf.py composes it.
"""

import subprocess

import pytest

from herl.config import conf_dir
from tests.support.runs import HERL, curves, environment, fit_here, summary

SMALL = (
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=1",
    "data.prompts_per_batch=2",
    "rollout.attempts_per_prompt=4",
    "rollout.attempt.max_new_tokens=16",
)
TINY = ("model.path=tiny", "data.train_size=4", "data.heldout_size=2")
ELSEWHERE = {"none", "embedded", "judge_smoke", "rar_medicine", "smollm2_if"}
HERE = {"lora", "own_function", "two_ranks", "vllm"}
FUNCTION = """
def reward(task, text):
    return {criterion.id: criterion.id == "length" for criterion in task.rubric.criteria}
"""


def test_every_experiment_is_run_somewhere():
    assert {path.stem for path in (conf_dir() / "experiment").glob("*.yaml")} == ELSEWHERE | HERE


def test_lora(tmp_path):
    found = fit_here(tmp_path, "experiment=lora", *TINY, "loss.kl_coef=0.1", small=SMALL)
    assert found["update/kl_to_reference"][0] == pytest.approx(0.0, abs=1e-6), "adapters start at nothing"


def test_a_function(tmp_path, monkeypatch):
    (tmp_path / "of_a_user.py").write_text(FUNCTION)
    monkeypatch.setenv("HERL_ALLOW_TARGETS", "of_a_user")
    function = "judge.function=of_a_user.reward"
    found = fit_here(tmp_path, "experiment=own_function", function, small=SMALL)
    assert found["train_criterion/length"] == [1.0]


def started(folder, *overrides, timeout):
    """Runs herl fit in processes; returns its curves."""
    command = [*HERL, "fit", *SMALL, *overrides, f"hydra.run.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return curves(folder)


def test_two_ranks(tmp_path):
    started(tmp_path, "experiment=two_ranks", timeout=240)
    assert summary(tmp_path)["processes"] == 2


@pytest.mark.slow
def test_vllm(tmp_path):
    found = started(tmp_path, "experiment=vllm", *TINY, "sampler.kv_cache_gib=0.25", timeout=300)
    assert min(found["sampler/weights_proven"]) == 1
