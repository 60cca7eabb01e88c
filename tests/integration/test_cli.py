"""The command line, in this process if that suffices, and as users start it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from herl.models.pretrained import PretrainedModel
from tests.support import runs
from tests.support.runs import CONTINUES_ELSEWHERE, HERL, herl_here

pytestmark = CONTINUES_ELSEWHERE
PLUGIN = Path(__file__).parents[1] / "plugin"
SMALL = (
    "experiment=embedded",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "rollout.attempts_per_prompt=4",
    "module.validation_attempts=1",
)


def succeed(*arguments, cwd, **environment):
    done = herl_here(*arguments, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def summary_of(folder):
    """A summary without the entries that depend on the clock or the folder."""
    changing = ("seconds", "best_checkpoint")
    return {name: value for name, value in runs.summary(folder).items() if name not in changing}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run started the way users start it."""
    folder = tmp_path_factory.mktemp("run")
    command = [*HERL, "fit", *SMALL, "seed=3", f"hydra.run.dir={folder}/run"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "heldout reward after" in done.stdout
    return folder / "run"


def test_help_is_quick_and_loads_neither_torch_nor_hydra(tmp_path):
    code = (
        "import sys; sys.argv=['herl', '--help']; from herl.cli.main import main; main(); "
        "assert not {'torch', 'vllm', 'hydra', 'lightning'} & set(sys.modules)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    print(f"{time.perf_counter() - started:.2f} s")
    assert done.returncode == 0, done.stderr
    assert "herl fit experiment=embedded algorithm=grpo" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["fti"],
            "unknown verb 'fti'; expected one of fit, validate, test, improve, export, inspect, compare, audit, lint, explain, new, fetch. Did you mean 'fit'?",
        ),
        (
            ["fit", "experiment=embedded", "trainer.max_epoch=1"],
            "unknown key 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?",
        ),
        (
            ["fit", "experiment=embedded", "los.gamma=1"],
            "unknown key 'los.gamma'. Did you mean 'loss.gamma'?",
        ),
        (["fit", "experiment=embedded", "strategi=fsdp"], "unknown key 'strategi'. Did you mean 'strategy'?"),
        (
            [
                "fit",
                "experiment=embedded",
                "sampler=vllm",
                "trainer.limit_val_batches=1",
                "sampler.max_num_seq=4",
            ],
            "unknown key 'sampler.max_num_seq'. Did you mean 'sampler.max_num_seqs'?",
        ),
        (
            ["fit", "experiment=embedded", "algorithm=gpro"],
            "algorithm: expected one of critique, dpo, grpo, herl, paper_a, paper_b, reference, sft, told, got 'gpro'. Did you mean 'grpo'?",
        ),
        (
            ["fit", "experiment=embedded", "trainer.max_epochs=three"],
            "trainer.max_epochs: expected a whole number or null, got 'three'",
        ),
        (
            ["fit", "experiment=embedded", "loss.clip_low=wide"],
            "loss.clip_low: expected a number, got 'wide'",
        ),
        (
            ["fit", "experiment=embedded", "selection.placement=replace_best"],
            "selection.placement: expected one of append, replace_worst",
        ),
        (
            ["fit", "experiment=embedded", "+loss.gama=1"],
            "loss.gama: unknown key; expected one of surrogate, ratio_level, clip_low",
        ),
        (
            [
                "fit",
                "experiment=embedded",
                "judge._target_=herl.bonus.NoBonus",
                "~judge.aggregation",
                "~judge.python_modules",
            ],
            "module.judge: expected a Judge",
        ),
        (
            [
                "fit",
                "experiment=embedded",
                "judge._target_=os.system",
                "~judge.aggregation",
                "~judge.python_modules",
            ],
            "judge._target_: expected an object from herl, lightning, torch.optim, got 'os.system'",
        ),
        (
            ["fit", "experiment=embedded", "resume=auto"],
            "resume=auto needs hydra.run.dir=FOLDER, the same at every start",
        ),
        (
            ["fit", "experiment=embedded", "model.path=nowhere"],
            "model.path: expected a folder with a config.json",
        ),
        (["fit", "model=tiny", "data=file"], "data.train.path: expected a value, got none"),
        (
            ["fit", "model=tiny", "data=file", "data.train.path=x.jsonl", "data.heldout.path=x.jsonl"],
            "herl: error: x.jsonl: expected a file",
        ),
        (
            ["fit", "experiment=embedded", "trainer.accelerator=gpu"],
            "herl: error: trainer: No supported gpu backend found!",
        ),
        (
            ["fit", "experiment=embedded", "strategy=fsdp", "trainer.precision=16-mixed"],
            "herl: error: trainer: The `ModelParallelStrategy` does not support",
        ),
        (
            ["fit", "experiment=embedded", "rollout.attempt.max_new_tokens=512"],
            "rollout.attempt.max_new_tokens: expected less than 512 (the model's limit",
        ),
        (
            ["fit", "experiment=embedded", "validation.sampling.temperature=0"],
            "validation.attempts: expected 1 with validation.sampling.temperature=0",
        ),
        (
            ["validate", "checkpoint=no.ckpt"],
            "checkpoint: expected a checkpoint written by herl fit, got 'no.ckpt'",
        ),
        (
            ["test", "benchmark=ifbench", "rollout.heldout.max_new_tokens=8"],
            "rollout.heldout.max_new_tokens=8: no effect with benchmark=ifbench, which brings its own",
        ),
        (
            ["fit", "-m", "experiment=embedded", "trainer.devices=2", "seed=0,1"],
            "trainer.devices: expected 1 in a sweep (-m), got 2 processes",
        ),
    ],
)
def test_a_mistake_gets_a_clear_error(tmp_path, arguments, message):
    done = herl_here(*arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["fit", "experiment=embedded", "trainer.max_epoch=1"],
            1,
            "herl: error: unknown key 'trainer.max_epoch'. Did you mean",
        ),
        (
            ["fit", "experiment=embedded", "model.path=nowhere"],
            2,
            "herl: error: model.path: expected a folder with a config.json",
        ),
    ],
)
def test_a_users_process_ends_with_a_code_and_no_traceback(tmp_path, arguments, code, message):
    done = subprocess.run([*HERL, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_fit_writes_summary_config_curves_and_checkpoint(run):
    summary = runs.summary(run)
    assert summary["algorithm"] == "herl"
    assert summary["seed"] == 3
    assert 0 < summary["heldout_reward_before"] < 1
    assert 0 < summary["heldout_reward_after"] < 1
    assert summary["answers_sampled"] == 2 * 16 * 4 + summary["revisions_sampled"]
    assert 0 < summary["revisions_sampled"] <= 32
    assert summary["optimizer_steps"] == 8
    assert {"total", "sample", "judge", "revise", "update", "validate"} <= set(summary["seconds"])
    assert {"herl", "torch", "lightning", "transformers", "python"} <= set(summary["versions"])
    assert (run / "config.yaml").is_file()
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))


def test_one_seed_two_runs_bit_equal_and_another_seed_differs(run, tmp_path):
    for name, seed in (("b", 3), ("c", 4)):
        succeed("fit", *SMALL, f"seed={seed}", f"hydra.run.dir={tmp_path}/{name}", cwd=tmp_path)
    assert summary_of(run) == summary_of(tmp_path / "b")
    assert summary_of(run)["heldout_reward_after"] != summary_of(tmp_path / "c")["heldout_reward_after"]


def test_validate_measures_a_checkpoint_as_fit_left_it(run, tmp_path):
    checkpoint = run / "checkpoints" / "last.ckpt"
    arguments = [a for a in SMALL if "train_batches" not in a]
    succeed(
        "validate", *arguments, "seed=3", f"checkpoint={checkpoint}", f"hydra.run.dir={tmp_path}/v", cwd=tmp_path
    )  # fmt: skip
    after = summary_of(run)["heldout_reward_after"]
    assert summary_of(tmp_path / "v")["heldout_reward"] == after


def test_a_users_judge_hindsight_and_bonus_are_selected_by_config_dir_and_found_again_by_the_run(tmp_path):
    command = [
        *HERL, "fit", "--config-dir", str(PLUGIN / "conf"), "judge=mine", "hindsight=mine", "bonus=mine",
        "bonus.amount=0.2", *SMALL, f"hydra.run.dir={tmp_path}/run",
    ]  # fmt: skip
    trusted = {"HERL_ALLOW_TARGETS": "my_plugin"}
    done = subprocess.run(command, cwd=PLUGIN, env=os.environ | trusted, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = summary_of(tmp_path / "run")
    assert summary["revisions_sampled"] == 32
    succeed("validate", f"run={tmp_path}/run", f"hydra.run.dir={tmp_path}/v", cwd=PLUGIN, **trusted)
    assert summary_of(tmp_path / "v")["heldout_reward"] == summary["heldout_reward_after"]


@pytest.mark.parametrize("algorithm", ["grpo", "reference"])
def test_the_other_presets_run(tmp_path, algorithm):
    succeed("fit", f"algorithm={algorithm}", *SMALL, f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
    revised = summary_of(tmp_path / "run")["revisions_sampled"]
    assert (revised > 0) == (algorithm == "reference")


def test_a_slurm_job_is_put_back_into_the_queue_once_its_checkpoint_is_there(tmp_path):
    folder, asked = tmp_path / "run", tmp_path / "asked"
    command = tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\necho $@ $(readlink {folder}/checkpoints/last.ckpt) > {asked}\n")
    command.chmod(0o755)
    changed = {"PATH": f"{command.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    process = subprocess.Popen(
        [*HERL, "fit", "experiment=embedded", "trainer.max_epochs=100", f"hydra.run.dir={folder}"],
        cwd=tmp_path, env=os.environ | changed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while process.poll() is None and not (folder / "records").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGUSR1)
        out, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, error
    assert "SIGUSR1: the run stops before the next batch" in error
    assert "stopped by SIGUSR1" in " ".join(out.split())
    requeue, job, newest = asked.read_text().split()
    assert (requeue, job) == ("requeue", "77")
    assert newest == (folder / "checkpoints" / "last.ckpt").resolve().name


def test_only_fit_takes_what_a_run_starts_with(tmp_path):
    done = herl_here("validate", "resume=x", cwd=tmp_path)
    assert done.returncode == 1
    assert "unknown key 'resume'" in done.stderr
    done = herl_here("validate", "checkpoint=pyproject.toml", cwd=Path(__file__).parents[2])
    assert done.returncode == 2
    assert "checkpoint: expected a checkpoint written by herl fit, got 'pyproject.toml'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_runs_summary_is_that_of_the_whole_run(tmp_path):
    """The held-out reward before training, its example and the times begin where the run did."""
    overrides = (*SMALL, "resume=auto", f"hydra.run.dir={tmp_path / 'run'}", "optimizer.lr=0.01")
    summaries = []
    for epochs in (1, 2):
        done = herl_here("fit", *overrides, f"trainer.max_epochs={epochs}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        summaries.append(runs.summary(tmp_path / "run"))
    first, whole = summaries
    assert whole["prompts"] == 2 * first["prompts"]
    assert whole["heldout_reward_before"] == first["heldout_reward_before"]
    assert first["heldout_reward_after"] != first["heldout_reward_before"]
    assert whole["example"]["before"] == first["example"]["before"]
    assert whole["seconds"]["total"] > sum(s for phase, s in whole["seconds"].items() if phase != "total")


def test_a_template_that_refuses_a_prompt_ends_every_verb_at_the_start_and_lint_lists_it(tmp_path):
    model = shutil.copytree(PretrainedModel(path="tiny").source(), tmp_path / "model")
    path = model / "chat_template.jinja"
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    path.write_text(refusal + path.read_text())
    criterion = {"text": "Says fish.", "check": {"kind": "contains", "text": "fish"}}
    prompt = {"role": "user", "content": "Describe the otter."}
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"id": "a6", "messages": [prompt], "rubric": [criterion]},
        {"id": "a7", "messages": [system, prompt], "rubric": [criterion]},
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["data=file", f"data.train.path={data}", f"data.heldout.path={data}", f"model.path={model}"]
    for verb in (
        ["fit", "experiment=none"],
        ["fit", "experiment=none", "dry_run=true"],
        ["validate"],
        ["lint"],
    ):
        done = herl_here(*verb, *settings, "hydra.run.dir=run", cwd=tmp_path)
        assert done.returncode == 2, verb
        said = " ".join(done.stderr.split())
        if verb == ["lint"]:
            found = json.loads((tmp_path / "run" / "lint.json").read_text())
            [said, _] = [
                f"{one['where']} {one['detail']}" for one in found if one["kind"] == "unusable prompt"
            ]
        assert "a7" in said
        assert "System role not supported" in said
        assert not list(tmp_path.glob("run/**/*.ckpt"))


def test_a_batch_ahead_with_a_sampler_that_reads_the_live_policy_is_refused_before_a_model_loads(tmp_path):
    done = herl_here(
        "fit", "experiment=embedded", "rollout.batches_ahead=1", "hydra.run.dir=run", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "sampler.own_weights: expected true with rollout.batches_ahead=1, got false" in done.stderr
    assert "Loading weights" not in done.stderr
