"""The time of a run from its phases, and what engines are asked for."""

from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf

from herl.dry_run.estimate import Batch, Tried, _side_by_side, _validations, asked_of, whole_groups
from herl.hindsight import NoHindsight
from herl.hindsight.revision import RevisionBuilder
from herl.hindsight.told import ToldBuilder
from herl.sampler import StreamingSampler
from herl.sampler.scripted import ScriptedSampler
from herl.testing import FakeJudge, make_group, make_judged, make_rollout
from herl.update.gpu_cost import Asked

SECONDS = {"sample": 4.0, "judge": 1.0, "revise": 2.0, "update": 5.0, "refresh": 1.0}


@pytest.mark.parametrize(
    ("rollout", "update", "hidden"),
    [
        ({"batches_ahead": 1}, 5.0, 5.0),  # the update is hidden
        ({"batches_ahead": 1}, 9.0, 7.0),  # the answers are
        ({"batches_ahead": 0}, 5.0, 0.0),
        ({}, 5.0, 0.0),  # a plan of one's own
    ],
)
def test_what_happens_side_by_side_counts_once(rollout, update, hidden):
    config = OmegaConf.create({"rollout": rollout})
    assert _side_by_side(config, {**SECONDS, "update": update}) == hidden


def test_the_wait_for_an_environment_passes_beside_the_update_too():
    config = OmegaConf.create({"rollout": {"batches_ahead": 1}})
    assert _side_by_side(config, {**SECONDS, "environment": 3.0, "update": 99.0}) == 10.0


class Validated(L.LightningModule):
    """Counts its validations."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.validations = 0

    def training_step(self, batch):
        return self.layer(batch).sum()

    def validation_step(self, batch):
        self.validations += not self.trainer.sanity_checking

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize(
    ("every", "epochs", "batches"),
    [
        (4, 1, 21),
        (3, 2, 28),
        (5, 2, 15),
        (0.5, 1, 14),
        (1.0, 2, 28),
        (5, None, 21),
        (10, None, 21),
        (4, 3, 20),
    ],
)
def test_validations_are_counted_as_lightning_does(every, epochs, batches):
    settings = {"val_check_interval": every, "check_val_every_n_epoch": epochs}
    rows = torch.utils.data.DataLoader(torch.ones(7, 1))
    module = Validated()
    trainer = L.Trainer(
        **settings, max_steps=batches, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=1,
    )  # fmt: skip
    trainer.fit(module, rows, rows)
    assert _validations(OmegaConf.create({"trainer": settings}), batches, 7) == module.validations


class FakeStreamingSampler(ScriptedSampler, StreamingSampler):
    def stream(self, requests, more):
        return self.generate(requests)


def judged(tokens):
    return make_judged(0.5, rollout=make_rollout(token_ids=range(tokens)))


GROUPS = [
    replace(make_group(), attempts=(judged(3), judged(5)), revisions=(judged(2),)),
    replace(make_group(), attempts=(judged(7), judged(1)), revisions=()),
]


def stages(hindsight, sampler, judge=None):
    runner = SimpleNamespace(judge=judge or FakeJudge())
    return SimpleNamespace(hindsight=hindsight, sampler=sampler, judge_runner=runner)


@pytest.mark.parametrize(
    ("parts", "rounds", "whole"),
    [
        (
            stages(RevisionBuilder(), FakeStreamingSampler({})),
            ((Asked(answers=(3, 5), follow_ups=(2,)), Asked(answers=(7, 1))),),
            True,
        ),
        (
            stages(RevisionBuilder(), ScriptedSampler({})),
            ((Asked(answers=(3, 5)), Asked(answers=(7, 1))), (Asked(answers=(2,)),)),
            False,
        ),
        (
            stages(ToldBuilder(), FakeStreamingSampler({})),
            ((Asked(answers=(3, 5, 2)), Asked(answers=(7, 1))),),
            False,
        ),
    ],
    ids=["revised at once", "revised in a second round", "told beside the attempts"],
)
def test_engines_are_asked_for_answers_in_the_rounds_of_a_run(parts, rounds, whole):
    assert asked_of(GROUPS, parts) == rounds
    assert whole_groups(parts) == whole


class JudgesGroups(FakeJudge):
    judges_groups = True


def test_groups_stay_whole_for_revisions_at_once_and_for_judges_of_groups():
    assert not whole_groups(stages(NoHindsight(), FakeStreamingSampler({})))
    assert whole_groups(stages(NoHindsight(), FakeStreamingSampler({}), JudgesGroups()))
    shared = FakeStreamingSampler({})
    shared.ranks_per_engine = 2
    assert not whole_groups(stages(RevisionBuilder(), shared)), "its ranks cannot agree on follow-ups"


def test_without_revisions_there_is_one_round():
    plain = [replace(group, revisions=()) for group in GROUPS]
    parts = stages(NoHindsight(), FakeStreamingSampler({}))
    assert asked_of(plain, parts) == ((Asked(answers=(3, 5)), Asked(answers=(7, 1))),)


def test_the_typical_batch_has_the_answers_of_one_with_the_median_tokens():
    batches = [
        Batch(
            seconds={}, answers=1, answer_tokens=tokens, prompt_tokens=0, trained_tokens=0, usage={},
            rounds=((Asked(answers=(tokens,)),),),
        )
        for tokens in (99, 5, 3, 4)
    ]  # fmt: skip
    assert Tried(batches=batches).typical().rounds == ((Asked(answers=(4,)),),)
