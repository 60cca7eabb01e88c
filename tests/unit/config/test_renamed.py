import pytest

from herl.config.check import known_keys
from herl.config.renamed import CHOICES, KEYS, renamed, renamed_key
from tests.support.configuration import composed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("memory=replay", "replay=buffer"),
        ("memory=none", "replay=none"),
        ("++memory=replay", "++replay=buffer"),
        ("module.memory.most_prompts=9", "module.replay.max_prompts=9"),
        ("memory.most_prompts=9", "replay.max_prompts=9"),
        ("+memory.uses=null", "+replay.uses=null"),
        ("module.judge_desk.budget.cost=5", "module.judge_runner.budget.cost=5"),
        ("callbacks.hindsight_gate.until=0.5", "module.hindsight_gate.until=0.5"),
        ("callbacks.record_answers.most=0", "callbacks.record_answers.max_answers=0"),
        ("loss._target_='herl.loss.PolicyLoss'", "loss._target_=herl.update.loss.policy.PolicyLoss"),
        ("judge=rule", "judge=rule"),
        ("~bonus", "~bonus"),
        ("hindsight.template='a=b\n most=1'", "hindsight.template='a=b\n most=1'"),
    ],
)
def test_an_override_of_an_older_run_is_put_in_todays_names(old, new):
    assert renamed(old) == new
    assert renamed(new) == new


def test_no_name_of_today_was_renamed():
    today = {key for verb in ("fit", "test", "improve", "lint") for key in known_keys(composed(verb))}
    assert not today & set(KEYS)
    assert all(renamed_key(new) == new for new in [*KEYS.values(), *CHOICES.values()])
