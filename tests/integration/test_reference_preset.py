"""The `reference` preset, step by step, on a group worked out by hand.

One task, criteria fish (3) and river (2). Four attempts earn 0.6, 0.4, 0.6, 0; the tied best are the first
and the third, and both are revised. The placement is random: each case names the slot its key leads to.
"""

import pytest
import torch
from hydra.utils import instantiate

from herl.judge import JudgeRunner
from herl.judge.rule import RuleJudge
from herl.rollout.collect import collect
from herl.rollout.stages import Stages
from herl.sampler.scripted import ScriptedSampler
from herl.testing import make_task
from herl.update.batch import micro_batches
from herl.update.loss.base import Tokens
from tests.support.configuration import composed

ATTEMPTS = ["It eats fish.", "The river.", "fish", "It is brown."]


@pytest.fixture(scope="module")
def preset():
    config = composed("fit", "algorithm=reference", "rollout.attempts_per_prompt=4")
    names = ("hindsight", "bonus", "selection", "advantages", "loss", "rollout")
    return {name: instantiate(config[name], _convert_="all") for name in names}


def run(preset, tokenizer, revision, key):
    sampler = ScriptedSampler({"task": ATTEMPTS}, {"task": [revision]})
    sampler.start(None, tokenizer)
    with JudgeRunner(RuleJudge()) as runner:
        stages = Stages(
            tokenizer=tokenizer,
            sampler=sampler,
            judge_runner=runner,
            plan=preset["rollout"],
            selection=preset["selection"],
            advantages=preset["advantages"],
            hindsight=preset["hindsight"],
            bonus=preset["bonus"],
        )
        return collect([make_task()], stages, key)


def key_for_slot(preset, tokenizer, revision, slot):
    for number in range(100):
        [group] = run(preset, tokenizer, revision, (number,)).groups
        texts = [member.judged.rollout.text for member in group.members]
        if [i for i, text in enumerate(texts) if text != ATTEMPTS[i]] == [slot]:
            return (number,)
    raise AssertionError(f"no key leads to slot {slot}")


def test_candidates_are_those_tied_for_best(preset, tokenizer):
    [group] = run(preset, tokenizer, "fish river", (0,)).groups
    parents = [revision.rollout.parent_id for revision in group.revisions]
    assert parents == [group.attempts[0].rollout.id, group.attempts[2].rollout.id]


@pytest.mark.parametrize(
    ("slot", "totals", "advantages"),
    [
        # 0.6 + 0.05 * (1.0 - 0.6) = 0.62; mean 0.66, unbiased std sqrt(0.1864 / 3) = 0.249266
        (3, [0.62, 0.4, 0.62, 1.0], [-0.160471, -1.043060, -0.160471, 1.364001]),
        # the best attempt is overwritten: mean 0.505, unbiased std sqrt(0.5243 / 3) = 0.418051
        (0, [1.0, 0.4, 0.62, 0.0], [1.184065, -0.251165, 0.275086, -1.207985]),
    ],
)
def test_bonus_placement_and_advantages(preset, tokenizer, slot, totals, advantages):
    key = key_for_slot(preset, tokenizer, "fish river", slot)
    [group] = run(preset, tokenizer, "fish river", key).groups
    assert [member.total for member in group.members] == pytest.approx(totals)
    assert list(group.advantages) == pytest.approx(advantages, abs=2e-5)


def test_the_revision_is_trained_under_its_hindsight_prompt(preset, tokenizer):
    collection = run(preset, tokenizer, "fish river", (0,))
    [revision] = [e for e in collection.experiences if e.origin == "hindsight"]
    assert revision.context_ids == revision.rollout.prompt_ids
    assert revision.context_ids != collection.groups[0].prompt_ids


def test_a_tie_is_accepted(preset, tokenizer):
    [group] = run(preset, tokenizer, "Only fish", (0,)).groups
    assert [member.origin for member in group.members].count("hindsight") == 1


def test_without_a_qualified_revision_the_best_attempt_is_copied_with_its_signed_bonus(preset, tokenizer):
    key = key_for_slot(preset, tokenizer, "The river.", 3)
    collection = run(preset, tokenizer, "The river.", key)
    [group] = collection.groups
    # 0.6 + 0.05 * (0.4 - 0.6) = 0.59
    assert [member.total for member in group.members] == pytest.approx([0.59, 0.4, 0.59, 0.59])
    assert group.members[3].judged.rollout.text == ATTEMPTS[0]
    assert {e.context_ids for e in collection.experiences} == {group.prompt_ids}


def test_loss_value(preset, tokenizer):
    """At ratio 1: -A per token of an attempt, -A / 2 per token of the revision (gamma 1), token mean."""
    key = key_for_slot(preset, tokenizer, "fish river", 3)
    collection = run(preset, tokenizer, "fish river", key)
    lengths = [len(e.rollout.token_ids) for e in collection.experiences]
    advantages = [-0.160471, -1.043060, -0.160471, 1.364001]
    halved = [1.0, 1.0, 1.0, 0.5]
    expected = -sum(n * a * share for n, a, share in zip(lengths, advantages, halved, strict=True)) / sum(
        lengths
    )
    [batch] = micro_batches(collection.experiences, max_tokens=10**6, aggregation="token_mean")
    logprobs = torch.full_like(batch.weight, -1.0)
    loss, _ = preset["loss"](
        Tokens(
            logprobs=logprobs,
            entropy=torch.ones_like(logprobs),
            old_logprobs=logprobs,
            sampler_logprobs=batch.sampler_logprobs,
            advantage=batch.advantage,
            weight=batch.weight,
            revision=batch.revision,
            row=batch.row,
        )
    )
    assert float(loss) == pytest.approx(expected, abs=2e-5)
