"""Judges that teach nothing judge the answers of each validation again."""

import logging
from functools import partial

import lightning as L
import pytest
import torch

from herl.callbacks import Alarms, BestCheckpoint, GoldJudges, HerlCallback, RefreshSampler
from herl.data import RubricDataModule
from herl.errors import ConfigError, JudgeError, TrainingError
from herl.judge import Budget, JudgeRunner
from herl.judge.function import FunctionJudge
from herl.judge.rule import RuleJudge
from herl.metrics.gold import errors_by_chance
from herl.sampler.scripted import ScriptedSampler
from herl.testing import FakeJudge, make_task
from tests.support.gamed import pays_a_word
from tests.support.training import module_of, weights

TASKS = [make_task(id=f"t{number}", request=f"Describe animal {number}.") for number in range(10)]
FLATTERS = {0: 0, 2: 3, 4: 10}
"""Optimizer steps -> how many of the held-out answers flatter the judge."""


class Drifting(ScriptedSampler):
    """As if the policy learned to flatter: more answers do so the more steps it has taken."""

    def generate(self, requests):
        many = FLATTERS.get(self.version, 10)
        self.attempts = {
            task.id: [
                "It is wonderful." if place < many else "It eats fish.",
                "It lives in a river.",
                "It is brown.",
            ]
            for place, task in enumerate(TASKS)
        }
        return super().generate(requests)


class Curves(HerlCallback):
    """Keeps the curves of each validation, after other callbacks had their turn."""

    def __init__(self):
        self.seen = []

    def on_heldout(self, trainer, module, trajectories):
        self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def run(tmp_path, gold, *callbacks, epochs=2, resume=None, validate=True, heldout=10, **changes):
    module = module_of(sampler=Drifting({}), judge=FunctionJudge(pays_a_word), **changes)
    curves = Curves()
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, default_root_dir=tmp_path, enable_checkpointing=any(isinstance(one, BestCheckpoint) for one in callbacks),
        callbacks=[*([gold] if gold else []), RefreshSampler(), curves, *callbacks],
    )  # fmt: skip
    data = RubricDataModule(TASKS[:2], TASKS[:heldout], prompts_per_batch=4)
    if validate:
        trainer.validate(module, data, ckpt_path=resume, weights_only=True, verbose=False)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module, trainer, curves.seen


def test_a_judge_that_pays_a_word_is_found_out_when_more_than_noise_has_changed(tmp_path, caplog):
    gold, best = GoldJudges({"rule": RuleJudge()}), BestCheckpoint(str(tmp_path), "gold/rule/reward")
    with caplog.at_level(logging.WARNING, logger="herl"):
        module, _, (before, some, all_) = run(tmp_path, gold, Alarms(), best)
    assert before["heldout/reward"] == before["gold/rule/reward"] == pytest.approx(0.6)
    assert before["gaming/gap"] == pytest.approx(0.0)
    assert "gaming/opened" not in before
    assert some["gaming/gap"] == some["gaming/opened"] == pytest.approx(0.3)
    assert some["gaming/opened"] < errors_by_chance(10, judges=1) * some["gaming/opened_error"], (
        "three prompts of ten may be chance"
    )
    assert (all_["heldout/reward"], all_["gold/rule/reward"]) == (1.0, 0.0)
    assert (all_["gaming/opened"], all_["gaming/opened_error"]) == (1.0, 0.0)
    assert module.counts["alarms_gap"] == 1
    assert "risen 1 more than that of the gold judge 'rule' since the first validation" in caplog.text
    assert "after 4 optimizer steps and 16 answers (callbacks.alarms.gap_above)" in caplog.text
    assert float(best.best_model_score) == pytest.approx(0.42), (
        "after the first epoch; the last flatters more"
    )
    assert [one["optimizer_steps"] for one in gold.validations] == [0, 2, 4]


def test_the_limit_is_a_setting(tmp_path):
    module, _, _ = run(tmp_path, GoldJudges({"rule": RuleJudge()}), Alarms(gap_above=1.5))
    assert module.counts["alarms_gap"] == 0
    with pytest.raises(ConfigError, match="callbacks.alarms.gap_above: expected at least 0, got -1"):
        Alarms(gap_above=-1.0)


@pytest.mark.parametrize(("heldout", "alarms"), [(7, 0), (8, 1)])
def test_with_too_few_prompts_for_an_alarm_one_line_says_so_at_the_start(tmp_path, caplog, heldout, alarms):
    class Start(HerlCallback):
        def on_start(self, trainer, module):
            logging.getLogger("herl.here").warning("training starts")

    with caplog.at_level(logging.WARNING, logger="herl"):
        module, _, _ = run(
            tmp_path, GoldJudges({"rule": RuleJudge()}), Alarms(), Start(), heldout=heldout, epochs=2
        )
    assert module.counts["alarms_gap"] == alarms
    told = [one.getMessage() for one in caplog.records if one.name.startswith("herl")]
    few = [place for place, line in enumerate(told) if "needs at least 8 held-out prompts" in line]
    assert len(few) == 1 - alarms
    assert not few or (few[0] < told.index("training starts") and "a validation has 7" in told[few[0]])


def test_without_a_limit_or_gold_judges_nothing_is_said_of_few_prompts(tmp_path, caplog):
    run(tmp_path, GoldJudges({"rule": RuleJudge()}), Alarms(gap_above=None), heldout=4, epochs=1)
    run(tmp_path, None, Alarms(), heldout=4, epochs=1)
    assert "held-out prompts" not in caplog.text


def test_an_alarm_may_end_the_training(tmp_path):
    with pytest.raises(TrainingError, match="more than that of the gold judge 'rule'"):
        run(tmp_path, GoldJudges({"rule": RuleJudge()}), Alarms(stop=True))


class Unreachable(FakeJudge):
    async def judge(self, task, rollout):
        raise JudgeError("no such host", "connection")


class Unable(FakeJudge):
    def __init__(self, working=0):
        super().__init__()
        self.working = working

    async def judge(self, task, rollout):
        self.working -= 1
        if self.working < 0:
            raise ConfigError("judge.chat.api_key_env: the key is wrong")
        return await super().judge(task, rollout)


class Paid(FakeJudge):
    async def start(self, budget):
        self.budget = budget

    async def judge(self, task, rollout):
        self.budget.reserve_call()
        return await super().judge(task, rollout)


def test_gold_judges_teach_nothing_and_their_failures_stop_nothing(tmp_path, caplog):
    module, _, plain = run(tmp_path, None)
    judges = {"rule": RuleJudge(), "gone": Unreachable(), "late": Unable(working=10), "paid": Paid()}
    runner = partial(JudgeRunner, budget=Budget(calls=15), window=4)
    gold = GoldJudges(judges)
    with caplog.at_level(logging.WARNING, logger="herl"):
        judged, _, curves = run(tmp_path, gold, judge_runner=runner)
    assert torch.equal(weights(module), weights(judged))
    assert [one["heldout/reward"] for one in plain] == [one["heldout/reward"] for one in curves]
    found = {name: [f"gold/{name}/reward" in one["curves"] for one in gold.validations] for name in judges}
    assert found == {
        "rule": [True] * 3,
        "gone": [False] * 3,
        "late": [True, False, False],
        "paid": [True, False, False],  # five answers at the second: a mean over them would mislead
    }
    for name, why in (
        ("gone", "no such host"),
        ("late", "key is wrong"),
        ("paid", "budget is used up: 15 of 15 calls"),
    ):
        assert f"the gold judge '{name}' (further_judges.{name}) failed at this validation" in caplog.text
        assert why in caplog.text
    assert judged.stages.judge_runner.budget.spent("calls") == 0, "the training judge's own"


def test_a_gold_judge_that_can_never_work_is_an_error_before_the_training(tmp_path):
    with pytest.raises(ConfigError, match="the key is wrong"):
        run(tmp_path, GoldJudges({"late": Unable()}))


def test_a_resumed_run_compares_with_its_first_validation(tmp_path):
    _, trainer, _ = run(tmp_path, GoldJudges({"rule": RuleJudge()}), epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    gold = GoldJudges({"rule": RuleJudge()})
    _, _, (again, last) = run(tmp_path, gold, Alarms(), resume=tmp_path / "one.ckpt")
    assert (again["gaming/opened"], last["gaming/opened"]) == (pytest.approx(0.3), 1.0)
    assert [one["optimizer_steps"] for one in gold.validations] == [0, 2, 4]


@pytest.mark.parametrize(
    ("monitor", "steps"),
    [("gold/rul/reward", 0), ("hedlout/reward", 0), ("train/rewrd", 2)],
)
def test_a_typo_in_the_monitored_curve_is_an_error_that_lists_the_curves(tmp_path, monitor, steps):
    gold = GoldJudges({"rule": RuleJudge()})
    seen = []

    class Steps(HerlCallback):
        def on_step(self, trainer, module, step):
            seen.append(step)

    with pytest.raises(
        ConfigError, match=f"got '{monitor}', which this run does not have.*gold/rule/reward.*heldout/reward"
    ):
        run(tmp_path, gold, Steps(), BestCheckpoint(str(tmp_path), monitor))
    assert bool(seen) == bool(steps)


def test_a_curve_of_training_or_one_that_abstained_is_no_typo(tmp_path):
    run(
        tmp_path,
        GoldJudges({"gone": Unreachable()}),
        BestCheckpoint(str(tmp_path), "gold/gone/reward"),
        epochs=1,
    )
    _, trainer, _ = run(tmp_path, None, BestCheckpoint(str(tmp_path), "train/reward"), epochs=1)
    assert float(trainer.checkpoint_callback.best_model_score) > 0
