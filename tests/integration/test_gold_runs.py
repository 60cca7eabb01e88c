"""A run whose judge is judged: further judges, hidden criteria, and the checkpoint that they like best."""

import pytest

from tests.support.runs import curves, herl_here, summary


def test_gold_judges_and_hidden_criteria_in_a_run(tmp_path):
    done = herl_here(
        "fit", "experiment=embedded", "trainer.max_epochs=1", "trainer.limit_train_batches=1",
        "trainer.limit_val_batches=1", "data.prompts_per_batch=4", "rollout.attempts_per_prompt=2",
        "rollout.attempt.max_new_tokens=16", "validation.val_check_interval=1", "validation.attempts=1",
        "data.hidden_criteria=0.5", "+further_judges.gold=${judge}", "+judge@further_judges.rule=rule",
        "callbacks.best_checkpoint.monitor=gold/gold/reward", "~callbacks.dashboard", "hydra.run.dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    found, facts = curves(tmp_path / "run"), summary(tmp_path / "run")
    assert found["gold/gold/reward"] == found["gold/rule/reward"]
    assert len(found["gold/gold/hidden_met"]) == len(found["gaming/gap"]) == 3, "before, during and after"
    gaps = [
        mine - gold for mine, gold in zip(found["heldout/reward"], found["gold/rule/reward"], strict=True)
    ]
    assert found["gaming/gap"] == pytest.approx(gaps, abs=1e-6)
    seen = [one["curves"]["gold/gold/reward"] for one in facts["gold"]]
    assert facts["best_monitored"] == {"gold/gold/reward": pytest.approx(max(seen[1:]), abs=1e-6)}
    assert facts["heldout_reward_before"] == pytest.approx(found["heldout/reward"][0], abs=1e-6)
