"""Files in a --config-dir are held to herl's rules in Hydra's own settings, too."""

import sys

import pytest

import herl.cli.main as cli
from tests.support.runs import same_logging

RUNS = "_target_: builtins.open\n  file: MARK\n  mode: w"


@pytest.fixture
def herl(tmp_path, monkeypatch, capsys):
    """Runs `herl fit --cfg job --config-dir=FOLDER` with a file there; returns what it said."""

    def run(file, text, *arguments):
        path = tmp_path / "conf" / file
        path.parent.mkdir(parents=True)
        path.write_text(text.replace("MARK", str(tmp_path / "marker")))
        given = ["experiment=embedded", "hydra.run.dir=" + str(tmp_path / "run"), *arguments]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(sys, "argv", ["herl", "fit", f"--config-dir={tmp_path}/conf", *given])
        ran = []
        monkeypatch.setattr("herl.config.early.check_early", lambda *a, **k: ran.append(True) or sys.exit(0))
        with same_logging(), pytest.raises(SystemExit) as stop:
            cli.main()
        assert not (tmp_path / "marker").exists()
        return stop.value.code, ran, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("file", "text", "arguments"),
    [
        ("hydra/callbacks/own.yaml", "x:\n  " + RUNS, ["hydra/callbacks=own"]),
        ("judge/own.yaml", "# @package hydra.callbacks\nx:\n  " + RUNS, ["judge=own"]),
        ("judge/own.yaml", "# @package _global_\nhydra: {callbacks: {x: '${hidden}'}}\nhidden:\n  " + RUNS, ["judge=own"]),
        ("judge/own.yaml", "# @package _global_\nhydra: {sweeper: {params: {_target_: os.mkdir, _args_: [MARK]}}}", ["judge=own"]),
        ("hydra/job_logging/own.yaml", "version: 1\nhandlers: {x: {(): builtins.open, file: MARK, mode: w}}", ["hydra/job_logging=own"]),
        ("hydra/hydra_logging/own.yaml", "version: 1\nhandlers: {x: {class: logging.handlers.HTTPHandler, host: h, url: u}}", ["hydra/hydra_logging=own"]),
        ("hydra/job_logging/own.yaml", "version: 1\nhandlers: {x: {class: logging.StreamHandler, stream: 'ext://own.stream'}}", ["hydra/job_logging=own"]),
        ("judge/own.yaml", "# @package _global_\nhydra: {job: {env_set: {HERL_ALLOW_TARGETS: os}}}", ["judge=own"]),
        ("judge/own.yaml", "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {+hydra.job.env_set.HERL_ALLOW_TARGETS: os}}}", ["judge=own"]),
        ("hydra/job_logging/own.yaml", "version: 1\nhandlers: {x: {class: logging.FileHandler, filename: MARK}}", ["hydra/job_logging=own"]),
        ("hydra/job_logging/own.yaml", "version: 1\nhandlers: {x: {class: logging.FileHandler, filename: '${hydra.runtime.output_dir}/../MARK'}}", ["hydra/job_logging=own"]),
        ("hydra/job_logging/own.yaml", "version: 1\nhandlers: {x: '${hidden}'}", ["hydra/job_logging=own"]),
    ],
)  # fmt: skip
def test_a_file_does_not_make_hydra_run_code(herl, file, text, arguments):
    code, ran, said = herl(file, text, *arguments)
    assert (code, ran) == (2, [])
    assert "herl: error: hydra." in said
    assert "Traceback" not in said


def test_what_was_typed_counts(herl):
    code, ran, said = herl(
        "judge/own.yaml", "_target_: herl.judge.rule.RuleJudge",
        "judge=own", "hydra.job_logging.root.level=WARNING", "hydra/job_logging=default",
    )  # fmt: skip
    assert (code, ran) == (0, [True]), said
