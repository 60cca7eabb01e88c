import pytest

from herl import ConfigError
from herl.targets import MOVED, configured, moved


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("herl.loss.PolicyLoss", "herl.update.loss.policy.PolicyLoss"),
        ("herl.judge.llm.LLMJudge", "herl.judge.llm.judge.LLMJudge"),
        ("herl.likelihood.LikelihoodLoss", "herl.update.loss.sft.LikelihoodLoss"),
        ("herl.experience.RolloutPlan", "herl.rollout.stages.RolloutPlan"),
        ("herl.memory.Replay", "herl.replay.ReplayBuffer"),
        ("herl.memory.NoMemory", "herl.replay.NoReplay"),
        ("herl.judge.JudgeDesk", "herl.judge.JudgeRunner"),
    ],
)
def test_the_error_for_an_old_path_names_the_new_one(old, new):
    with pytest.raises(ConfigError, match=f"loss._target_: expected '{new}', the new path of '{old}'"):
        configured("loss._target_", old)
    configured("loss._target_", new)


def test_no_path_of_today_counts_as_moved():
    for old, new in MOVED.items():
        assert moved(f"{new}.Name") is None, old
