"""The command line transforms its arguments before Hydra sees them."""

import os
import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from herl.cli import main as cli
from herl.cli.overrides import for_hydra, lacking
from herl.cli.own_runs import is_own, sign


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HERL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def handed_over(monkeypatch):
    """The arguments that Hydra would get from a herl command."""

    def read(*arguments):
        monkeypatch.setattr(sys, "argv", ["herl", *arguments])
        monkeypatch.setattr(cli, "_run_hydra", lambda verb: None)
        monkeypatch.setattr(cli, "lacking", lambda words: ())
        cli.main()
        return sys.argv[2:]

    return read


def a_run(folder, *overrides, config_dir=None, own=True):
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(list(overrides), folder / ".hydra" / "overrides.yaml")
    sources = [{"path": "hydra.conf", "provider": "hydra"}]
    if config_dir:
        sources.append({"path": str(config_dir), "provider": "command-line"})
    runtime = {"hydra": {"runtime": {"config_sources": sources}}}
    OmegaConf.save(runtime, folder / ".hydra" / "hydra.yaml")
    if own:
        sign(folder / ".hydra")
    return folder


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["seed=1", "--config-dir", "mine", "judge=a"], ["--config-dir", "mine", "seed=1", "judge=a"]),
        (
            ["seed=1", "-m", "loss.gamma=1,2", "--cfg", "job"],
            ["-m", "--cfg", "job", "seed=1", "loss.gamma=1,2"],
        ),
        (["--info", "seed=1"], ["--info=all", "seed=1"]),
        (["seed=1", "--info", "defaults"], ["--info", "defaults", "seed=1"]),
        (["~bonus", "-cd=a=b"], ["-cd=a=b", "~bonus"]),
    ],
)
def test_options_go_before_all_overrides(handed_over, given, expected):
    assert handed_over("fit", *given) == expected


def test_inspect_takes_a_folder_and_json(handed_over):
    assert handed_over("inspect", "--json", "runs/mine") == ["json=true", 'run="runs/mine"']
    assert handed_over("compare", "runs/a", "out=x.png", "b") == ['runs=["runs/a","b"]', "out=x.png"]
    assert handed_over("inspect", "runs/mine", "max_answers=1") == ['run="runs/mine"', "max_answers=1"]


def test_a_run_brings_its_overrides_and_its_config_dir(handed_over, tmp_path):
    plugins = tmp_path / "conf"
    plugins.mkdir()
    run = a_run(
        tmp_path / "run", "judge=mine", "judge.max_answers=3", "seed=4", "resume=auto", config_dir=plugins
    )
    own = ["judge=mine", "judge.max_answers=3", "seed=4"]
    assert handed_over("validate", f"run={run}") == [f"--config-dir={plugins}", *own, f"run={run}"]
    other = handed_over("validate", "-m", "-cd", "other", f"run={run}", "seed=0,1")
    assert other == ["-m", "-cd", "other", *own, f"run={run}", "seed=0,1"]
    assert handed_over("validate", f"run={run}", "++judge=rule")[1:] == [
        "seed=4",
        f"run={run}",
        "++judge=rule",
    ]


def test_a_config_dir_that_a_run_no_longer_finds_is_named(handed_over, tmp_path, capsys):
    run = a_run(tmp_path / "run", "judge=mine", config_dir=tmp_path / "gone")
    with pytest.raises(SystemExit):
        handed_over("validate", f"run={run}")
    assert f"run: its --config-dir {tmp_path}/gone does not exist" in capsys.readouterr().err
    assert "judge=mine" in handed_over("validate", f"run={run}", f"--config-dir={tmp_path}")


@pytest.mark.parametrize(
    "given",
    [
        "judge=rule", "++judge=rule", "data.train_size=3", "~data", "+judge@judge.judges.a=rule", "aggregation=gated",
        "module.validation_attempts=4", "rollout.heldout.temperature=1.0", "validation.attempts=4",
        "validation.sampling.temperature=0.7", "rollout.attempt.temperature=0.7",
    ],
)  # fmt: skip
def test_what_a_benchmark_would_overrule_is_refused(handed_over, capsys, given):
    with pytest.raises(SystemExit):
        handed_over("test", "benchmark=ifbench", given)
    said = capsys.readouterr().err
    assert f"error: {given}: no effect with benchmark=ifbench, which brings its own: set benchmark." in said


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("reward=my.f", "judge"),
        ("n=4", "validation.attempts"),
        ("temperature=0.7", "validation.sampling.temperature"),
    ],
)
def test_a_benchmark_overrules_short_names_too(handed_over, capsys, given, key):
    with pytest.raises(SystemExit):
        handed_over("test", "benchmark=ifbench", given)
    assert re.search(f"error: {key}=.*: no effect with benchmark=ifbench", capsys.readouterr().err)


@pytest.mark.parametrize(
    "given",
    [
        ["benchmark=none", "judge=rule"], ["benchmark='none'", "judge=rule"], ["judge=rule"],
        ["benchmark=ifbench", "benchmark.judge.strict=false", "module.validation_revisions=1"],
        ["--config-dir", "data", "benchmark=ifbench"],
        ["benchmark=muldimif", "judge@benchmark.judge=function", "benchmark.judge.function=my.f"],
    ],
)  # fmt: skip
def test_what_a_benchmark_leaves_alone_is_taken(handed_over, given):
    assert sorted(handed_over("test", *given)) == sorted(given)


def test_what_the_run_of_a_benchmark_was_trained_on_is_no_mistake(handed_over, tmp_path):
    run = a_run(tmp_path / "run", "data.regime=loose", "rollout.heldout.temperature=1.0")
    given = handed_over("test", f"run={run}", "benchmark=ifbench")
    assert given == [
        "data.regime=loose",
        "rollout.heldout.temperature=1.0",
        f"run={run}",
        "benchmark=ifbench",
    ]


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ([], ("data", "model")),
        (["seed=1"], ("data", "model")),
        (["batch_size=4"], ("data", "model")),
        (["experiment=none", "dry_run=true"], ("data", "model")),
        (["resume=auto", "hydra.run.dir=x"], ("data", "model")),
        (["data.regime=loose", "model.dtype=float32"], ("data", "model")),
        (["data=my.jsonl"], ("model",)),
        (["data.path=my.jsonl", "lora.rank=4"], ("model",)),
        (["model=Qwen/Qwen2.5-0.5B"], ("data",)),
        (["-m", "model=tiny", "seed=0,1"], ("data",)),
        (["data=my.jsonl", "model=tiny"], ()),
        (["experiment=none", "data=my.jsonl"], ()),
        (["-m", "data=a.jsonl,b.jsonl", "model_name_or_path=m"], ()),
        (["--config-dir", "mine", "data=mine", "model=tiny"], ()),
        (["++experiment='embedded'", "resume=auto"], ()),
        (["experiment=smollm2_if", "-m", "seed=0,1"], ()),
        (["--cfg", "job"], ()),
        (["--info"], ()),
        (["--config-name=mine"], ()),
    ],
)
def test_a_fit_needs_an_experiment_or_data_and_a_model(given, missing):
    assert lacking(for_hydra("fit", given)) == missing


@pytest.mark.parametrize("given", [[], ["seed=1"], ["data=my.jsonl"], ["model=tiny"]])
def test_what_is_lacking_is_said_before_hydra_makes_a_folder(monkeypatch, capsys, given):
    monkeypatch.setattr(sys, "argv", ["herl", "fit", *given])
    monkeypatch.setattr(cli, "_run_hydra", lambda verb: pytest.fail("a run started"))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2
    [named] = [
        key
        for key in ("herl fit experiment=embedded", "no model is named", "no data is named")
        if key in said
    ]
    assert ("model=tiny" in said) == (named != "herl fit experiment=embedded")
    assert len(said.splitlines()) <= 12
    assert max(map(len, said.splitlines())) <= 90


def test_a_short_name_is_announced_by_the_first_rank_only(handed_over, monkeypatch, capsys):
    assert handed_over("fit", "lr=1") == ["optimizer.lr=1"]
    assert capsys.readouterr().err == "herl: 'lr=1' is read as 'optimizer.lr=1'\n"
    monkeypatch.setenv("RANK", "1")
    assert handed_over("fit", "lr=1") == ["optimizer.lr=1"]
    assert capsys.readouterr().err == ""


def test_what_a_run_chose_decides_what_a_short_name_means(handed_over, tmp_path):
    run = a_run(tmp_path / "run", "judge=mine", "lora=mine")
    given = handed_over("validate", f"run={run}", "judge.model=b", "lora.rank=4")
    assert given == ["judge=mine", "lora=mine", f"run={run}", "judge.model=b", "model.lora.rank=4"]


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (PermissionError(13, "Permission denied", "mine"), "new: [Errno 13] Permission denied: 'mine'"),
        (
            OSError(39, "Directory not empty", "a", None, "b"),
            "new: [Errno 39] Directory not empty: 'a' -> 'b'",
        ),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_what_stops_a_verb_without_hydra_is_one_line(monkeypatch, capsys, raised, said):
    def new(arguments):
        raise raised

    monkeypatch.setattr("herl.cli.new.new", new)
    monkeypatch.setattr(sys, "argv", ["herl", "new", "mine"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == f"herl: error: {said}\n"


def test_a_reader_that_leaves_ends_the_command_without_a_word():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "herl"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "override",
    ["+hydra.callbacks.x._target_=os.system", "++hydra.job.env_set.HERL_ALLOW_TARGETS=os", "hydra/launcher=x",
     "~hydra.callbacks.claim_folder", "+judge@hydra.callbacks.x=mine", "hydra/job_logging=mine", "hydra.run.dir=/x",
     "push=evil/model", "++private=false", "out=/x", "checkpoint=/x", "run=/x", "++run=/x", "output_dir=/x",
     "+further_judges.x=1", "resume=auto", "cost.gpu=h100"],
)  # fmt: skip
def test_a_run_brings_no_setting_of_the_command_itself(handed_over, tmp_path, override):
    run = a_run(tmp_path / "run", override, "seed=4")
    assert handed_over("export", f"run={run}") == ["seed=4", f"run={run}"]


REACHES = "it may decide what is written, or where prompts and answers go"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config-dir=/x", "expected overrides, got '--config-dir=/x'"),
        ("--experimental-rerun=x.pickle", "expected overrides, got"),
        ("-m", "expected overrides, got '-m'"),
        ("seed=${oc.env:HOME}", "it may read an environment variable"),
        ("seed='${oc.env:HOME}'", "it may read an environment variable"),
        ("a={b: [{c: '${oc.env:HOME}'}]}", "it may read an environment variable"),
        ("seed='${oc.${x}:HOME}'", "it may read an environment variable"),
        ("judge.chat.base_url=${x.y}", "it may read an environment variable"),
        ("sampler.engine={hf_overrides: {}}", "it decides what code runs"),
        ("judge.chat.base_url=https://evil.example/v1", REACHES),
        ("+judge.judges.a.judge.chat={base_url: 'http://evil.example'}", REACHES),
        ("sampler.urls=['http://localhost:1','http://evil.example']", REACHES),
        ("sampler.urls.0=http://evil.example", REACHES),
        ("judge.chat.log=victim", REACHES),
        ("module.judge={cache: {path: victim}}", REACHES),
        ("logger.trackio.space_id=evil/space", REACHES),
        ("callbacks.checkpoints.dirpath=there", REACHES),
        ("judge=../../outside", REACHES),
        ("judge.chat.api_key_env=AWS_SECRET", REACHES),
        ("judge.python_modules=[subprocess]", "it decides what code runs"),
        ("sampler.engine.trust_remote_code=true", "it decides what code runs"),
        ("judge.chat.arguments=[--trust-remote-code]", "it decides what code runs"),
    ],
)
def test_what_a_run_may_not_decide_alone_is_typed_again(handed_over, tmp_path, capsys, override, message):
    run = a_run(tmp_path / "run", override, "seed=4", own=False)
    with pytest.raises(SystemExit):
        handed_over("validate", f"run={run}")
    said = capsys.readouterr().err
    assert message in said
    assert "overrides.yaml" in said
    if not override.startswith("-"):
        assert "If you trust it, add to your command: " in said
        own = override.lstrip("+")
        assert handed_over("validate", f"run={run}", own)[-1] == own


def test_a_run_that_this_user_started_brings_all_its_settings_until_someone_changes_them(
    handed_over, tmp_path, capsys, monkeypatch
):
    override = "judge.chat.base_url=https://hosted.example/v1"
    run = a_run(tmp_path / "run", override, "judge.chat.api_key_env=A_KEY")
    assert override in handed_over("validate", f"run={run}")
    assert (tmp_path / "cache" / "own_runs.key").stat().st_mode & 0o077 == 0
    path = run / ".hydra" / "overrides.yaml"
    path.write_text(path.read_text().replace("hosted", "evil"))
    with pytest.raises(SystemExit):
        handed_over("validate", f"run={run}")
    assert "https://evil.example/v1: it may decide" in capsys.readouterr().err


def test_a_run_signed_with_another_key_is_a_strangers(tmp_path, monkeypatch):
    run = a_run(tmp_path / "run", "seed=4") / ".hydra"
    monkeypatch.setenv("HERL_CACHE", str(tmp_path / "theirs"))
    sign(run)
    assert is_own(run)
    monkeypatch.setenv("HERL_CACHE", str(tmp_path / "mine"))
    assert not is_own(run)


def test_a_config_dir_that_may_be_a_strangers_is_given_again(handed_over, tmp_path, capsys):
    place = tmp_path / "conf"
    place.mkdir()
    run = a_run(tmp_path / "run", "seed=4", config_dir=place, own=False)
    with pytest.raises(SystemExit):
        handed_over("validate", f"run={run}")
    assert "may be a stranger's: give --config-dir again" in capsys.readouterr().err
    assert handed_over("validate", f"run={run}", f"--config-dir={place}")


@pytest.mark.parametrize(
    "value",
    ["judge=llm", "judge/chat=vllm", "logger=[tensorboard,csv]", "algorithm=grpo", "seed=7", "judge.criteria_per_call=3", "~bonus",
     "model.path=Qwen/Qwen3-0.6B", "data.train.path=rows.jsonl", "sampler.urls=null", "trainer.devices=2"],
)  # fmt: skip
def test_a_strangers_run_brings_what_it_computed(handed_over, tmp_path, value):
    assert value in handed_over("validate", f"run={a_run(tmp_path / 'run', value, own=False)}")


def test_a_run_brings_interpolations_as_they_were_written(handed_over, tmp_path):
    run = a_run(tmp_path / "run", "seed=${module.warmup_steps}")
    assert "seed=${module.warmup_steps}" in handed_over("validate", f"run={run}")
