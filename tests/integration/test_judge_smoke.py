"""The embedded policy, judged by SmolLM2-135M-Instruct on a real vLLM server that herl starts."""

import subprocess

import pytest

from tests.support.runs import HERL, curves, environment, summary


@pytest.mark.nightly
def test_a_policy_is_trained_on_the_verdicts_of_a_served_model(tmp_path):
    command = [
        *HERL, "fit", "experiment=judge_smoke", "data.prompts_per_batch=1", "rollout.attempts_per_prompt=2",
        "trainer.limit_train_batches=1", "trainer.val_check_interval=1", "module.updates_per_batch=1",
        f"hydra.run.dir={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=590, env=environment())
    log = tmp_path / "judge-server.log"
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:] + log.read_text()[-2000:]
    judge = summary(tmp_path)["judge"]
    assert judge["calls"] >= 4
    assert judge["tokens"] > 200 * judge["calls"]
    found = curves(tmp_path)
    assert 0.0 <= found["train/reward"][0] <= 1.0
    assert found["train/abstained"][0] < 0.5
    assert len(list((tmp_path / "records").glob("answers-*.jsonl"))) == 1
    # the server ended with the run
    assert not subprocess.run(["pgrep", "-f", f"{tmp_path}"], capture_output=True, text=True).stdout
