"""No two runs write into one folder."""

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from herl.cli import run_folder
from herl.cli.run_folder import ClaimFolder, hold, release
from herl.distributed import is_first_process
from herl.errors import ConfigError


@pytest.fixture(autouse=True)
def released(monkeypatch):
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(run_folder.HydraConfig, "set_config", lambda self, config: None)
    yield
    release()


def config(tmp_path, *given):
    hydra = {
        "run": {"dir": str(tmp_path / "runs" / "now")},
        "sweep": {"dir": str(tmp_path / "runs" / "now_sweep")},
        "overrides": {"hydra": list(given), "task": ["seed=0,1", "algorithm=herl"]},
    }
    made = OmegaConf.create({"hydra": hydra})
    OmegaConf.set_readonly(made.hydra, True)
    return made


def test_runs_of_one_second_get_folders_of_their_own(tmp_path):
    found = []
    for _ in range(3):
        made = config(tmp_path)
        ClaimFolder().on_run_start(made)
        found.append(os.path.basename(made.hydra.run.dir))
    assert found == ["now", "now-2", "now-3"]
    for expected in ("now_sweep", "now_sweep-2"):
        made = config(tmp_path)
        ClaimFolder().on_multirun_start(made)
        assert os.path.basename(made.hydra.sweep.dir) == expected
        assert OmegaConf.to_container(made.hydra.overrides, resolve=False)["hydra"] == [
            f'hydra.sweep.dir="{made.hydra.sweep.dir}"',
            "hydra.sweep.subdir='${hydra.job.num}_${run_changes:seed}'",
        ]


def test_a_folder_that_a_run_writes_into_is_refused_until_it_ends(tmp_path, capsys):
    folder = tmp_path / "runs" / "now"
    made = config(tmp_path, f"hydra.run.dir={folder}")
    ClaimFolder().on_run_start(made)
    with pytest.raises(SystemExit) as stop:
        ClaimFolder().on_run_start(made)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert f"got {folder}, which is in use by process {os.getpid()} on " in said
    assert made.hydra.run.dir == str(folder)
    release()
    ClaimFolder().on_run_start(made)


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
    ],
)
def test_only_the_first_rank_claims_a_folder(tmp_path, monkeypatch, environment, first):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == first
    ClaimFolder().on_run_start(config(tmp_path))
    assert (tmp_path / "runs").exists() == first


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, caplog):
    def acquire(self, **_):
        raise NotImplementedError("no flock")

    monkeypatch.setattr(run_folder.FileLock, "acquire", acquire)
    hold(tmp_path)
    assert "cannot lock" in caplog.text


def test_the_error_is_clear_without_the_writers_name(tmp_path):
    hold(tmp_path)
    (tmp_path / run_folder.WRITER).unlink()
    with pytest.raises(ConfigError, match="in use by another process"):
        hold(tmp_path)


def test_a_folder_in_which_nothing_ran_is_removed_after_an_error(tmp_path):
    def started(*given, file=None, sweep=False):
        made = config(tmp_path, *given)
        claim = ClaimFolder().on_multirun_start if sweep else ClaimFolder().on_run_start
        claim(made)
        folder = Path(made.hydra.sweep.dir if sweep else made.hydra.run.dir)
        place = folder / "0_seed=0" if sweep else folder
        (place / ".hydra").mkdir(parents=True)
        (place / ".hydra" / "config.yaml").write_text("")
        if file:
            (place / file).write_text("")
        return folder

    named = started(f"hydra.run.dir={tmp_path / 'runs' / 'now'}")
    release(failed=True)
    assert (named / ".hydra").exists()
    for failed, file, sweep, stays in (
        (True, None, False, False), (True, "lint.json", False, True), (False, None, False, True),
        (True, None, True, False), (True, "summary.json", True, True),
    ):  # fmt: skip
        folder = started(file=file, sweep=sweep)
        release(failed)
        assert folder.exists() == stays, (failed, file, sweep)


def test_of_a_sweep_only_the_run_in_which_nothing_ran_is_removed(tmp_path):
    made = config(tmp_path)
    ClaimFolder().on_multirun_start(made)
    done, failed = (Path(made.hydra.sweep.dir) / name for name in ("0_seed=0", "1_seed=1"))
    for place in (done, failed):
        (place / ".hydra").mkdir(parents=True)
    (done / "summary.json").write_text("{}")
    release(failed=True)
    assert (done / "summary.json").exists()
    assert not failed.exists()


def test_a_key_in_the_configuration_is_refused_before_there_is_a_folder(tmp_path, capsys):
    for given in ((), (f"hydra.run.dir={tmp_path / 'mine'}",)):
        made = config(tmp_path, *given)
        made.judge = {"chat": {"api_key_env": "sk-hush1234"}}
        for start in (ClaimFolder().on_run_start, ClaimFolder().on_multirun_start):
            with pytest.raises(SystemExit):
                start(made)
    assert "judge.chat.api_key_env: expected the name" in (said := capsys.readouterr().err)
    assert "hush" not in said
    assert not list(tmp_path.iterdir())
