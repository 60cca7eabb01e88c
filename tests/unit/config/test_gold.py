"""Settings of gold judges that cannot work are errors before a model loads."""

import pytest
from omegaconf import OmegaConf

from herl.config.gold import check_gold, check_hidden
from herl.data.hidden import PartlyHidden
from herl.errors import ConfigError
from herl.testing import make_task


def config(judges=(), monitor="heldout/reward", hidden=0.0, **trainer):
    return OmegaConf.create(
        {
            "further_judges": {name: {"_target_": "herl.judge.rule.RuleJudge"} for name in judges},
            "callbacks": {"best_checkpoint": {"monitor": monitor}},
            "data": {"hidden_criteria": hidden},
            "trainer": {"limit_val_batches": None, **trainer},
        }
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"judges": ["rule"], "monitor": "gold/rule/reward", "hidden": 0.2},
        {"monitor": "of/mine"},
        {"limit_val_batches": 0},
        {"judges": ["rule"], "limit_val_batches": 1},
        {"judges": ["rule"], "limit_val_batches": 0, "overfit_batches": 1},
    ],
)
def test_these_can(settings):
    check_gold(config(**settings))
    check_gold(OmegaConf.create({"further_judges": {}}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judges": ["rule"], "monitor": "gold/rule/rewrd"}, "got 'gold/rule/rewrd'; there are gold/rule/reward, .*Did you mean 'gold/rule/reward'"),
        ({"judges": ["rule"], "monitor": "gaming/gap"}, "whose highest value is best, got 'gaming/gap'"),
        ({"monitor": "gold/rule/reward"}, "a run without further_judges has no such curves"),
        ({"hidden": 0.2}, "data.hidden_criteria: expected a judge that sees the hidden criteria, got none"),
        ({"hidden": 1.0, "judges": ["rule"]}, r"data.hidden_criteria: expected a share in \[0, 1\)"),
        ({"judges": ["rule"], "limit_val_batches": 0}, r"expected held-out prompts to judge, got none \(trainer.limit_val_batches=0\)"),
        ({"judges": ["rule"], "limit_val_batches": 0.0}, "expected held-out prompts to judge, got none"),
        ({"judges": ["a/b"]}, "further_judges: expected a name of letters, .* got 'a/b'"),
    ],
)  # fmt: skip
def test_these_cannot(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_gold(config(**settings))


def test_a_share_that_hides_nothing_is_an_error():
    tasks = [make_task({"fish": 1.0}, id=f"t{number}") for number in range(3)]
    with pytest.raises(ConfigError, match="none of the 3 held-out ones hides any"):
        check_hidden({"heldout": PartlyHidden(tasks, 0.9, 0)}, 0.9)
    check_hidden({"heldout": tasks}, 0.0)
