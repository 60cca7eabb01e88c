"""The alarm of episodes; those of other curves are tried in tests/unit/test_module_guards.py."""

from collections import Counter
from types import SimpleNamespace

import pytest

from herl.callbacks import Alarms
from herl.report.story import ALARMS

TRAINER = SimpleNamespace(is_global_zero=True)


def steps(alarms, *metrics):
    module = SimpleNamespace(counts=Counter())
    for one in metrics:
        alarms.on_step(TRAINER, module, SimpleNamespace(metrics=one))
    return module.counts


def episodes(**shares):
    names = ("failed", "cut_by_turns", "cut_by_length", "cut_by_seconds")
    return {f"episodes/{name}": shares.get(name, 0.0) for name in names}


@pytest.mark.parametrize(
    ("largest", "key"),
    [
        ("failed", "the environment raised an error"),
        ("cut_by_turns", "raise environment.max_turns"),
        ("cut_by_length", "raise environment.max_tokens"),
        ("cut_by_seconds", "raise environment.max_seconds"),
    ],
)
def test_if_most_episodes_end_early_an_alarm_names_the_key_to_change(caplog, largest, key):
    shares = {"failed": 0.15, "cut_by_turns": 0.15} | {largest: 0.4}
    assert steps(Alarms(patience=2), *[episodes(**shares)] * 3) == {"alarms_unfinished": 1}
    [told] = caplog.messages
    assert key in told
    assert "callbacks.alarms.unfinished_above" in told
    assert "unfinished" in ALARMS


def test_half_of_them_are_not_most_and_no_environment_is_no_alarm(caplog):
    alarms = Alarms(patience=1)
    assert not steps(alarms, episodes(failed=0.25, cut_by_turns=0.25), {"train/truncated": 0.6})
    assert not steps(Alarms(patience=1, unfinished_above=None), episodes(failed=1.0))
    assert not caplog.records
