"""What is said where the package `verifiers` is missing or has another interface."""

import asyncio
import gc
import sys
import weakref
from types import ModuleType

import pytest

from herl.errors import ConfigError
from herl.verifiers.episode import Episode
from herl.verifiers.loading import Reward, loaded


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, r"pip install 'herl\[verifiers\]'"),
        (ModuleType("verifiers"), "expected verifiers 0.3 .* got another"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_imported(monkeypatch, found, message):
    monkeypatch.setitem(sys.modules, "verifiers", found)
    with pytest.raises(ConfigError, match=message):
        loaded("wordle")


class FakeState(dict):
    """The state of an episode, whose end can be seen."""


class FakePackage:
    """An environment whose episodes end at once, and a rubric with their state."""

    async def rollout(self, row, client, model, sampling_args):
        return FakeState(error=None)

    def score_objects(self, state):
        return {"state": state}


def _fails(state):
    try:
        raise KeyError("first")
    except KeyError as error:
        raise ValueError("no") from error


def test_what_is_kept_of_an_episode_does_not_hold_its_state():
    states = []

    async def played():
        async def score(state):
            states.append(weakref.ref(state))
            return {"a": await Reward(id="a", function=_fails, weight=1.0, rubric=FakePackage()).score(state)}

        row = {"prompt": [{"role": "user", "content": "?"}]}
        episode = Episode(FakePackage(), row, [{"type": "function"}], score)
        await episode.finish("an answer", 1)
        return episode

    episode = asyncio.run(played())
    gc.collect()
    assert repr(episode.scores.result()["a"]) == "ValueError('no')"
    assert states[0]() is None
    assert not episode._tools
