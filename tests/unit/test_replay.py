"""Answers return when their prompt does."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch

from herl.errors import ConfigError
from herl.hindsight.revision import RevisionBuilder
from herl.judge import JudgeRunner
from herl.replay import NoReplay, Replay, ReplayBuffer
from herl.rollout.exchange import Numbers
from herl.selection import form_group
from herl.testing import FakeJudge, make_judged
from herl.types import Member
from herl.update.batch import split_by_group
from tests.support.made_up_episodes import an_episode
from tests.support.training import TASKS, KeepSteps, fit, module_of


def member(reward, parent_id=None, id="group/0"):
    return Member(judged=make_judged(reward, met={"fish": True}, id=id, parent_id=parent_id), reward=reward)


def keep(memory, task_id, *members):
    memory.keep(task_id, members, [m.judged for m in members if m.origin != "replay"])


def rewards(found):
    return [judged.judgement.reward for judged in found]


def test_an_accepted_revision_comes_back_once():
    memory = ReplayBuffer()
    keep(memory, "t", member(0.4), member(0.9, parent_id="group/0", id="group/0/0"))
    assert memory.recall("other", "now") == []
    [back] = memory.recall("t", "now")
    assert (back.judgement.reward, back.rollout.origin, back.rollout.parent_id) == (0.9, "replay", None)
    assert memory.recall("t", "now") == []


def test_attempts_are_kept_where_the_best_is_wanted():
    for of, expected in (("revisions", []), ("best", [0.8])):
        memory = ReplayBuffer(of=of)
        keep(memory, "t", member(0.4), member(0.8, id="group/1"))
        assert rewards(memory.recall("t", "now")) == expected


def test_the_better_ones_stay_and_uses_are_counted():
    memory = ReplayBuffer(of="best", size=2, uses=2)
    for reward in (0.5, 0.9, 0.3, 0.7):
        keep(memory, "t", member(reward))
    assert rewards(memory.recall("t", "now")) == [0.9, 0.7]
    keep(memory, "t", member(0.8))
    assert rewards(memory.recall("t", "now")) == [0.9, 0.8]
    assert rewards(memory.recall("t", "now")) == [0.8]
    endless = ReplayBuffer(of="best", uses=None)
    keep(endless, "t", member(0.5))
    assert [rewards(endless.recall("t", "now")) for _ in range(3)] == [[0.5]] * 3


def test_prompts_that_came_up_longest_ago_are_forgotten():
    memory = ReplayBuffer(of="best", max_prompts=2)
    for task_id in ("a", "b", "a", "c"):
        keep(memory, task_id, member(0.5))
    assert {task_id: rewards(memory.recall(task_id, "now")) for task_id in "abc"} == {
        "a": [0.5],
        "b": [],
        "c": [0.5],
    }


def test_what_was_recalled_is_not_kept_as_new():
    memory = ReplayBuffer(of="best")
    keep(memory, "t", member(0.9))
    [back] = memory.recall("t", "now")
    keep(memory, "t", Member(judged=back, reward=0.9), member(0.5, id="group/1"))
    assert rewards(memory.recall("t", "now")) == [0.5]


def as_exchanged(one):
    """With its tokens in arrays, as ranks exchange answers."""
    rollout = one.judged.rollout
    ids, logprobs = np.array(rollout.token_ids, np.int32), np.array(rollout.logprobs, np.float32)
    rollout = replace(rollout, token_ids=Numbers(ids), logprobs=Numbers(logprobs))
    return replace(one, judged=replace(one.judged, rollout=rollout))


@pytest.mark.parametrize("of_ranks", [False, True])
def test_the_state_goes_through_a_checkpoint_whole(tmp_path, of_ranks):
    memory = ReplayBuffer(of="best", size=2, uses=3)
    keep(memory, "t", as_exchanged(member(0.9)) if of_ranks else member(0.9))
    memory.recall("t", "now")
    state = memory.state_dict()
    torch.save(state, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)  # as a checkpoint is loaded
    other = ReplayBuffer(of="best", size=2, uses=3)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert other.recall("t", "now") == memory.recall("t", "now")


class Copied(ReplayBuffer):
    """Goes back as a buffer of a user's own does by default."""

    way_back = Replay.way_back


@pytest.mark.parametrize("kind", [ReplayBuffer, Copied])
def test_the_way_back_undoes_what_was_kept_recalled_and_forgotten(kind):
    memory = kind(of="best", size=2, uses=2, max_prompts=2)
    for task_id in ("a", "b"):
        keep(memory, task_id, member(0.9))
    memory.recall("a", "now")
    before, way_back = deepcopy(memory.state_dict()), memory.way_back()
    for _ in range(2):
        memory.recall("a", "now")
        keep(memory, "a", member(0.5))
        keep(memory, "c", member(0.1))
        assert memory.state_dict() != before
        way_back()
        assert memory.state_dict() == before
        assert list(memory.state_dict()) == list(before), "so the same prompt is forgotten next"


def test_a_state_that_shares_the_buffers_own_lists_is_copied():
    class Own(Replay):
        def __init__(self):
            self.seen = []

        def recall(self, task_id, group_id):
            return []

        def keep(self, task_id, members, answers):
            self.seen.append(task_id)

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    memory = Own()
    memory.keep("a", (), ())
    way_back = memory.way_back()
    memory.keep("b", (), ())
    way_back()
    assert memory.seen == ["a"]


def test_an_episode_comes_back_from_a_checkpoint_as_it_was(tmp_path):
    memory, episode = ReplayBuffer(of="best"), an_episode()
    judged = make_judged(0.9, met={"fish": True}, rollout=episode)
    memory.keep("t", [Member(judged=judged, reward=0.9)], [judged])
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    other = ReplayBuffer(of="best")
    other.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    [back] = other.recall("t", "now")
    assert back.rollout == replace(episode, origin="replay", group_id="now")
    assert (back.rollout.turns, back.rollout.sequence) == (episode.turns, episode.sequence)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"uses": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"replay\.(size|uses): expected"):
        ReplayBuffer(**wrong)


def test_a_remembered_revision_joins_the_group_of_a_later_epoch(tmp_path):
    answers = {task.id: ["It eats fish.", "It is brown.", "no", "nothing"] for task in TASKS}
    made = partial(
        module_of, answers, hindsight=RevisionBuilder(), optimizer=partial(torch.optim.SGD, lr=0.01)
    )
    module, without = made(replay=ReplayBuffer()), made()
    fit(without, tmp_path, max_epochs=2)
    kept = KeepSteps()
    fit(module, tmp_path, max_epochs=1, callbacks=[kept])
    assert "replay/joined" not in kept.steps[-1].metrics, "nothing to remember in the first epoch"
    module = made(replay=ReplayBuffer())
    seen = []
    real = module.stages.replay.recall
    module.stages.replay.recall = lambda *where: seen.append((where, found := real(*where))) or found

    class Forget(L.Callback):
        """From the second epoch on, revisions are worse than the replayed answers."""

        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch:
                module.stages.sampler.revisions = {task.id: ["no"] for task in TASKS}

    fit(module, tmp_path, max_epochs=2, callbacks=[Forget(), kept])
    assert [bool(found) for _, found in seen] == [False, False, True, True]
    last = kept.steps[-1].metrics
    assert last["replay/joined"] == last["replay/recalled"] == 1.0
    assert module.counts["answers_sampled"] == without.counts["answers_sampled"], "a memory costs no sampling"


def test_a_replay_belongs_to_the_group_that_it_joins(tmp_path):
    """Groups are never split between optimizer steps."""
    answers = {task.id: ["It eats fish.", "It is brown.", "no", "nothing"] for task in TASKS}
    module = module_of(
        answers, replay=ReplayBuffer(of="best", uses=None), optimizer=partial(torch.optim.SGD, lr=0.0)
    )
    module.stages = replace(module.stages, selection=partial(form_group, strict=False))
    kept = KeepSteps()
    fit(module, tmp_path, max_epochs=2, callbacks=[kept])
    experiences = kept.steps[-1].collection.experiences
    assert {e.origin for e in experiences} == {"policy", "replay"}
    parts = split_by_group(experiences, 8)
    assert len(parts) == len(TASKS)
    assert all(len({e.rollout.task_id for e in part}) == 1 for part in parts)


def test_revisions_cannot_be_kept_where_none_are_made():
    with pytest.raises(ConfigError, match="replay.of=revisions needs hindsight; use replay.of=best"):
        module_of(replay=ReplayBuffer())


def test_the_best_answer_is_kept_even_if_it_is_no_member():
    """A selection may leave it out."""
    memory = ReplayBuffer(of="best")
    memory.keep("t", [member(0.1)], [make_judged(0.9), make_judged(0.1, id="group/1")])
    assert rewards(memory.recall("t", "now")) == [0.9]


def test_nothing_is_used_up_where_no_attempt_could_be_judged(tmp_path):
    memory, (first, second) = ReplayBuffer(), TASKS
    for task in TASKS:
        keep(memory, task.id, member(0.1, parent_id="group/0", id="group/0/0"))
    answers = {first.id: ["unreadable"] * 4, second.id: ["It eats fish.", "no", "no", "no"]}
    runner = partial(JudgeRunner, max_abstention=0.9)
    module = module_of(
        answers,
        replay=memory,
        hindsight=RevisionBuilder(),
        judge=FakeJudge(fail_on="unreadable"),
        judge_runner=runner,
    )
    fit(module, tmp_path)
    assert rewards(memory.recall(first.id, "now")) == [0.1]
    assert 0.1 not in rewards(memory.recall(second.id, "now"))


def test_no_memory_keeps_nothing():
    memory = NoReplay()
    keep(memory, "t", member(0.9))
    assert (memory.recall("t", "now"), memory.state_dict()) == ([], {})
