"""Each kind of experiment in conf/ runs, with few and short answers of the tiny model.

The tests in `ELSEWHERE` run the others, rar_medicine excepted: it needs eight GPUs, and tests/test_conf.py composes it.
"""

import json
from pathlib import Path

import pytest

from herl.config import conf_dir
from herl.environment.catalog import lookup
from tests.support.runs import fit_here

SMALL = (
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=1",
    "data.prompts_per_batch=2",
    "rollout.attempts_per_prompt=4",
    "rollout.attempt.max_new_tokens=16",
)
TINY = ("model.path=tiny", "data.train_size=4", "data.heldout_size=2")
ELSEWHERE = {
    "embedded": "test_cli.py",
    "judge_smoke": "test_judge_smoke.py",
    "smollm2_if": "test_smollm2.py",
    "two_ranks": "test_ranks.py",
    "vllm": "test_vllm_runs.py",
}
COMPOSED = {"none", "rar_medicine"}
HERE = {"lora", "lookup", "own_function"}
FUNCTION = """
def reward(task, text):
    return {criterion.id: criterion.id == "length" for criterion in task.rubric.criteria}
"""


def test_every_experiment_is_run_somewhere():
    assert {path.stem for path in (conf_dir() / "experiment").glob("*.yaml")} == {
        *ELSEWHERE,
        *COMPOSED,
        *HERE,
    }
    for experiment, file in ELSEWHERE.items():
        assert f"experiment={experiment}" in (Path(__file__).parent / file).read_text()


def test_lora(tmp_path):
    found = fit_here(tmp_path, "experiment=lora", *TINY, "loss.kl_coef=0.1", small=SMALL)
    assert found["update/kl_to_reference"][0] == pytest.approx(0.0, abs=1e-6), "adapters start at nothing"


def test_lookup(tmp_path):
    """Episodes call the tool, what it says is no token of the policy, and records hold the turns."""
    small = (
        *SMALL[:3],
        "data.prompts_per_batch=8",
        "rollout.attempts_per_prompt=8",
        "module.log_over=tokens_sampled",
    )
    found = fit_here(tmp_path, "experiment=lookup", small=small)
    records = [
        json.loads(line) for line in (tmp_path / "records" / "answers-00000.jsonl").read_text().splitlines()
    ]
    called = [one for one in records if one.get("turns")]
    assert 4 <= len(called) < len(records)
    right = 0
    for one in called:
        for turn in one["turns"]:
            [call], [reply] = turn["calls"], turn["reply"]
            if not call["error"]:
                assert reply["content"] == lookup(**json.loads(call["arguments"]))
            right += reply["content"].split()[0] in one["text"]
        verdicts = {verdict["criterion_id"]: verdict["met"] for verdict in one["verdicts"]}
        assert verdicts["lookup"]
    assert right >= len(called) / 2, "the policy tells what it has read"
    assert {
        verdict["met"]
        for one in records
        if not one.get("turns")
        for verdict in one["verdicts"]
        if verdict["criterion_id"] == "lookup"
    } == {False}
    assert found["progress/tokens_sampled"] == [sum(one["tokens"] for one in records)]
    assert 1 < found["episodes/turns"][0] < 3


def test_a_function(tmp_path, monkeypatch):
    (tmp_path / "of_a_user.py").write_text(FUNCTION)
    monkeypatch.setenv("HERL_ALLOW_TARGETS", "of_a_user")
    function = "judge.function=of_a_user.reward"
    found = fit_here(tmp_path, "experiment=own_function", function, small=SMALL)
    assert found["train_criterion/length"] == [1.0]
