"""The example plug-in passes the contract checks that herl ships for users."""

import sys
from pathlib import Path

import pytest

from herl.testing import check_bonus_reward, check_hindsight_builder, check_judge


@pytest.fixture
def my_plugin(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "plugin"))
    import my_plugin

    yield my_plugin
    sys.modules.pop("my_plugin")


def test_the_example_components_keep_their_contracts(my_plugin):
    assert check_judge(my_plugin.ShortAnswerJudge(max_words=1), text="one word too many").reward == 0.0
    check_hindsight_builder(my_plugin.AskForLess())
    check_bonus_reward(my_plugin.FlatBonus())
