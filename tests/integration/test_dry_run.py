"""A dry run."""

import json
import logging

import pytest

from herl.cli.commands import validate
from herl.dry_run.estimate import _batches, _validations
from herl.dry_run.trial import dry_run
from herl.errors import ConfigError
from herl.update.schedule import limited
from tests.support.configuration import composed
from tests.support.runs import herl_here


def test_a_dry_run_shows_prompts_and_estimates_and_writes_nothing_but_its_report(tmp_path):
    done = herl_here(
        "fit", "experiment=embedded", "dry_run=true", "rollout.attempt.max_new_tokens=32", "cost.gpu=h100", "cost.price=2",
        f"hydra.run.dir={tmp_path}/run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".hydra", ".lock", "dry_run.json"]
    report = json.loads((tmp_path / "run" / "dry_run.json").read_text())
    assert report["prompts"] == {"train": 288, "heldout": 72}
    assert report["prompt"].startswith("<|im_start|>user\n")
    assert "It misses:" in report["revision_prompt"]
    assert "Draft:" not in report["revision_prompt"]
    assert 50 < report["batches"] < 65  # 8 192 answers: 8 attempts and a revision for each of 16 prompts
    assert report["answers"] >= 8192
    assert report["validations"] == 2 + report["batches"] // 6
    assert {"sample", "revise", "update", "validate", "total"} <= set(report["run_seconds"])
    assert report["run_seconds"]["total"] == pytest.approx(
        sum(spent for name, spent in report["run_seconds"].items() if name != "total"), abs=0.5
    )
    assert report["longest_update"]["tokens"] == 512 - 32 + 8 * 32
    assert report["uplift"]["groups"] == 64
    assert " one answer with it beats the best attempt in " in " ".join(done.stdout.split())
    gpus = report["gpus"]
    assert (gpus["gpu"], gpus["devices"], gpus["parameters"], gpus["fits"]) == ("h100", 8, 430_752, True)
    assert gpus["run_hours"] == pytest.approx(
        sum(gpus["batch_seconds"].values()) * report["batches"] / 3600, abs=1e-3
    )
    assert gpus["price"] == pytest.approx(2 * gpus["gpu_hours"], abs=0.02)
    assert set(gpus["batch_seconds"]) == {"refresh", "sample", "judge", "exchange", "plan", "update"}
    assert 0.0 < gpus["engines_idle"] < 1.0
    assert gpus["host_gib"] > 0.0
    assert gpus["says"].startswith(f"{gpus['binds']} binds (")
    assert "0.00 billion parameters on 8 x h100" in done.stdout
    assert gpus["says"] in done.stdout.splitlines()
    assert max(map(len, done.stdout.split("parameters on 8 x h100")[1].splitlines()[:20])) < 80
    assert report["memory_gib"]["memory_gib"] > 0.1
    assert "It misses:" in done.stdout
    assert f"{report['batches']} batches" in done.stdout
    assert "herl: batch 1 of 4: " in done.stderr
    assert not set("━│┃") & set(done.stdout), "a pipe gets plain lines"


def test_one_batch_is_enough_to_try_and_gold_judges_are_counted(tmp_path, monkeypatch, capsys):
    (tmp_path / "paid_judge.py").write_text(
        "from herl import Judgement, Verdict\n"
        "def paid(task, text, rollout):\n"
        "    verdicts = tuple(Verdict(criterion_id=one.id, met=True) for one in task.rubric.criteria)\n"
        "    usage = {'calls': 1.0, 'tokens': 10.0, 'cost': 0.5}\n"
        "    return Judgement(rollout_id=rollout.id, verdicts=verdicts, reward=1.0, usage=usage)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HERL_ALLOW_TARGETS", "paid_judge")
    gold = [
        part
        for name in ("one", "two")
        for part in (
            f"+judge@further_judges.{name}=function",
            f"further_judges.{name}.function=paid_judge.paid",
            f"further_judges.{name}.timeout_seconds=null",
        )
    ]
    report = dry_run(
        composed(
            "fit",
            "dry_run=true",
            "data.prompts_per_batch=288",
            "rollout.attempts_per_prompt=2",
            "rollout.attempt.max_new_tokens=8",
            "validation.attempts=1",
            *gold,
            output_dir=tmp_path,
        )
    )
    assert report["prompts"]["train"] == 288
    assert report["longest_update"]["seconds"] > 0
    assert report["memory_gib"]["memory_gib"] > 0
    answers = 2 * 72 * report["validations"]
    assert (
        report["judge"]
        == report["gold_judges"]
        == {"calls": answers, "tokens": 10 * answers, "cost": 0.5 * answers}
    )
    assert f"of this, gold judges: calls {answers}, " in capsys.readouterr().out


def test_nothing_untrusted_is_made_to_see_how_long_a_run_is(tmp_path):
    touched = tmp_path / "touched"
    config = composed(
        "fit",
        "dry_run=true",
        f"+callbacks.x={{_target_: pathlib.Path.touch, self: {touched}}}",
        output_dir=tmp_path,
    )
    with pytest.raises(ConfigError, match=r"callbacks.x._target_: expected an object from herl"):
        dry_run(config)
    config = composed(
        "validate", "+further_judges.x={_target_: os.mkdir, path: " + str(touched) + "}", output_dir=tmp_path
    )
    with pytest.raises(ConfigError, match=r"further_judges.x._target_: expected an object from herl"):
        validate(config)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("overrides", "batches", "validations"),
    [
        ((), 57, 9),
        (("callbacks.answer_budget.answers=null",), 180, 30),
        (("callbacks.answer_budget.tokens=20000",), 10, 1),
        (("callbacks.answer_budget.answers=null", "trainer.max_steps=60"), 15, 2),
        (("experiment=none",), 18, 1),
        (("experiment=none", "trainer.max_epochs=3", "trainer.val_check_interval=0.5"), 54, 6),
        (("experiment=none", "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2"), 72, 2),
    ],
)
def test_the_length_of_a_run_is_that_of_the_limit_it_meets_first(overrides, batches, validations):
    config = composed("fit", *overrides)
    assert _batches(config, 18, 144.0, 2000.0) == batches
    assert _validations(config, batches, 18) == validations


def test_limits_are_batches_or_shares_of_them():
    assert [limited(limit, 18) for limit in (None, 5, 50, 0.5, 1.0)] == [18, 5, 18, 9, 18]


def test_a_command_in_this_process_leaves_loggers_as_they_were(tmp_path):
    """Or tests that read INFO lines would depend on which tests ran before them."""

    def state():
        loggers = [logging.getLogger(name) for name in ("", "herl", "lightning.pytorch")]
        return [(logger.level, list(logger.handlers), logger.disabled) for logger in loggers]

    before = state()
    done = herl_here(
        "fit",
        "experiment=embedded",
        "rollout.attempt.max_new_tokens=512",
        f"hydra.run.dir={tmp_path}",
        cwd=tmp_path,
    )
    assert "expected less than 512" in done.stderr, "the command has configured its logging"
    assert state() == before
