"""Texts and pictures in the stores of W&B, MLflow and Trackio on this machine, where the packages are installed.

Each runs in a separate process: the packages set up threads, hooks and folders when they are imported.
"""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRITES = """
import sys
from types import SimpleNamespace
import numpy as np
from herl.loggers import Table, TrackioLogger, write_picture, write_table
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

name, folder = sys.argv[1:]
if name == "wandb":
    logger = WandbLogger(save_dir=folder, project="herl", offline=True)
elif name == "mlflow":
    logger = MLFlowLogger(tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_location=f"{folder}/artifacts")
else:
    logger = TrackioLogger("herl")
trainer = SimpleNamespace(loggers=[logger], is_global_zero=True)
for place in (8, 16):
    rows = ((place, "A <b>fish</b>.", 0.5), (place, "none", None))
    write_table(trainer, "heldout/answers", Table(columns=("answers_sampled", "answer", "reward"), rows=rows), place)
    write_picture(trainer, "rewards", np.zeros((4, 6, 3), np.uint8), place)
logger.finalize("success")
story = Table(columns=("what_happened",), rows=(("It learned.",),))
write_table(trainer, "0_story/0_what_happened", story, 16)  # as a run does after its training
if name == "wandb":
    import wandb
    wandb.finish()
if name == "trackio":
    import trackio
    trackio.finish()
"""
PLACES = {
    8: [[8, "A <b>fish</b>.", 0.5], [8, "none", None]],
    16: [[16, "A <b>fish</b>.", 0.5], [16, "none", None]],
}


def written(name, folder):
    pytest.importorskip(name)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "TRACKIO_DIR": str(folder / "trackio"), "WANDB_SILENT": "true", "WANDB_MODE": "offline",
        "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
    }  # fmt: skip
    command = [sys.executable, "-c", WRITES, name, str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "could not be written" not in done.stderr


def test_wandb_keeps_a_table_for_each_place(tmp_path):
    written("wandb", tmp_path)
    media = next((tmp_path / "wandb").glob("offline-run-*/files/media"))
    tables = [json.loads(path.read_text()) for path in sorted(media.glob("table/heldout/answers_*.json"))]
    assert [table["columns"] for table in tables] == [["answers_sampled", "answer", "reward"]] * 2
    assert {table["data"][0][0]: table["data"] for table in tables} == PLACES
    [story] = media.glob("table/0_story/*.json")
    assert json.loads(story.read_text())["data"] == [["It learned."]]
    assert len(list(media.glob("images/rewards_*.png"))) == 2


def test_mlflow_appends_the_rows_of_all_places(tmp_path):
    written("mlflow", tmp_path)
    [table] = (tmp_path / "artifacts").glob("*/artifacts/heldout/answers.json")
    found = json.loads(table.read_text())
    assert found == {"columns": ["answers_sampled", "answer", "reward"], "data": PLACES[8] + PLACES[16]}
    [story] = (tmp_path / "artifacts").glob("*/artifacts/0_story/0_what_happened.json")
    assert json.loads(story.read_text())["data"] == [["It learned."]]
    assert len(list((tmp_path / "artifacts").glob("*/artifacts/images/rewards*.png"))) == 2


def test_trackio_keeps_a_table_for_each_place(tmp_path):
    written("trackio", tmp_path)
    with sqlite3.connect(tmp_path / "trackio" / "herl.db") as store:
        logged = [
            (step, json.loads(text))
            for step, text in store.execute("SELECT step, metrics FROM metrics ORDER BY id")
        ]
    tables = {
        step: found["heldout/answers"]["_value"] for step, found in logged if "heldout/answers" in found
    }
    assert {place: [list(row.values()) for row in rows] for place, rows in tables.items()} == PLACES
    [(step, story)] = [(step, found) for step, found in logged if "0_story/0_what_happened" in found]
    assert step == 16
    assert story["0_story/0_what_happened"]["_value"] == [{"what_happened": "It learned."}]
    assert len(list((tmp_path / "trackio").rglob("*.png"))) == 2
