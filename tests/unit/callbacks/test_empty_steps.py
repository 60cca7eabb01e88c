"""A step or a validation with nothing in it is a case of every callback, metric and report."""

import lightning as L
import pytest
from lightning.pytorch.loggers import TensorBoardLogger

import herl.callbacks
from herl.callbacks import HerlCallback
from herl.data import RubricDataModule
from herl.errors import JudgeError
from herl.judge.rule import RuleJudge
from herl.judge.runner import JudgeRunner
from herl.metrics.collection import collection_counts, collection_metrics
from herl.metrics.heldout import heldout_metrics
from herl.metrics.judging import judge_metrics
from herl.metrics.rubric import rubric_metrics
from herl.metrics.throughput import throughput_metrics
from herl.rollout.collect import Collection
from herl.rollout.improve import rewards_by_round
from herl.rollout.stages import RolloutPlan
from tests.support.training import TASKS, KeepSteps, module_of

ARGUMENTS = {
    "AnswerBudget": {"answers": 1000},
    "BestCheckpoint": {"dirpath": "best"},
    "Checkpoints": {"dirpath": "checkpoints", "every_n_batches": 1},
    "Dashboard": {"every_n_batches": 1},
    "GoldJudges": {"judges": {"rule": RuleJudge()}},
    "ProgressBar": {"seconds_between_lines": 0},
    "RecordAnswers": {"folder": "records"},
}
CALLBACKS = sorted(set(herl.callbacks.__all__) - {"HerlCallback"})


class Unreadable(RuleJudge):
    """Judges one held-out answer, without which the run would end in an error, and fails on all others."""

    judged = 0

    async def judge(self, task, rollout):
        self.judged += 1
        if self.judged > 1:
            raise JudgeError("cannot be read")
        return await super().judge(task, rollout)


def lenient(judge, **more):
    return JudgeRunner(judge, max_abstention=1.0, **more)


CASES = {
    "all prompts too long": {"rollout": RolloutPlan(attempts_per_prompt=4, max_prompt_tokens=1)},
    "nothing judged": {"judge": Unreadable(), "judge_runner": lenient},
    "no revisions": {},
    "no held-out prompts": {},
}


@pytest.mark.filterwarnings("ignore:Total length of `PromptLoader` across ranks is zero")
@pytest.mark.parametrize("case", CASES)
def test_every_callback_takes_an_empty_step(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    made = [getattr(herl.callbacks, name)(**ARGUMENTS.get(name, {})) for name in CALLBACKS]
    assert all(isinstance(one, HerlCallback) for one in made)
    steps = KeepSteps()
    module = module_of(**CASES[case])
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=TensorBoardLogger(tmp_path), callbacks=[*made, steps],
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    heldout = () if case == "no held-out prompts" else TASKS
    data = RubricDataModule(TASKS, heldout, prompts_per_batch=2)
    trainer.validate(module, data, verbose=False)
    trainer.fit(module, data)
    assert len(steps.steps) == 2
    if case in ("all prompts too long", "nothing judged"):
        assert not any(step.collection.experiences for step in steps.steps)
        assert module.counts["optimizer_steps"] == 0


def test_every_metric_takes_nothing():
    nothing = Collection(groups=(), experiences=(), dropped={"prompts": 2, "revision_prompts": 0})
    counts = {"train/groups": 0.0, "hindsight/revisions": 0.0}  # not means
    assert collection_metrics(nothing) == {"train/dropped_prompts": 2.0} | counts
    assert collection_counts(nothing)["answers_sampled"] == 0
    assert rubric_metrics("train", []) == {}
    assert judge_metrics([]) == {}
    assert heldout_metrics([], revisions=2) == {}
    assert len(rewards_by_round([], 2)) == 3
    assert throughput_metrics(nothing, {})["time/step"] == 0
