"""Tables and pictures reach the loggers that show them, and no others."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger

from herl.errors import ConfigError
from herl.loggers import Table, TrackioLogger, write_picture, write_table

TABLE = Table(columns=("place", "text", "reward"), rows=((8, "a", 0.5), (8, "b", None)))
PICTURE = np.zeros((2, 3, 3), np.uint8)


class ShowsTables(Logger):
    """Has the methods of Lightning's WandbLogger."""

    name, version = "tables", "0"

    def __init__(self):
        self.shown = []

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, params): ...

    def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
        self.shown.append((key, columns, data, step))

    def log_image(self, key, images, step=None, **kwargs):
        self.shown.append((key, [image.shape for image in images], step))


class WithoutMLflow(MLFlowLogger):
    """Lightning's class with a client that only records, since the package is not needed for this."""

    run_id = "r1"

    def __init__(self):
        self.shown = []
        self.client = SimpleNamespace(
            log_table=lambda run, data, file: self.shown.append((run, data, file)),
            log_image=lambda run, image, key, step: self.shown.append((run, image.shape, key, step)),
        )

    @property
    def experiment(self):
        return self.client


def trainer_of(*loggers, first=True):
    return SimpleNamespace(loggers=loggers, is_global_zero=first)


def test_loggers_with_tables_get_tables_and_pictures():
    wandb, mlflow = ShowsTables(), WithoutMLflow()
    write_table(trainer_of(wandb, mlflow), "heldout/answers", TABLE, 8)
    write_picture(trainer_of(wandb, mlflow), "rewards", PICTURE, 9)
    rows = [[8, "a", 0.5], [8, "b", None]]
    assert wandb.shown == [("heldout/answers", list(TABLE.columns), rows, 8), ("rewards", [(2, 3, 3)], 9)]
    columns = {"place": [8, 8], "text": ["a", "b"], "reward": [0.5, None]}
    assert mlflow.shown == [("r1", columns, "heldout/answers.json"), ("r1", (2, 3, 3), "rewards", 9)]


def test_other_loggers_other_ranks_and_empty_tables_write_nothing(tmp_path):
    others = CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tensorboard")
    write_table(trainer_of(*others), "t", TABLE, 8)
    write_picture(trainer_of(*others), "p", PICTURE, 8)
    wandb = ShowsTables()
    write_table(trainer_of(wandb, first=False), "t", TABLE, 8)
    write_picture(trainer_of(wandb, first=False), "p", PICTURE, 8)
    write_table(trainer_of(wandb), "t", Table(columns=("a",), rows=()), 8)
    assert not wandb.shown
    assert not list(tmp_path.iterdir())


FAKE = """
from types import SimpleNamespace
begun = []

def init(project, **options):
    logged = []
    run = SimpleNamespace(name="calm-river-0", config={}, _config_logged=True, logged=logged)
    run.log = lambda metrics, step=None: logged.append((metrics, step))
    begun.append((project, options, run))
    return run

def Table(columns=None, data=None):
    return ("table", columns, data)

def Image(value):
    return ("image", value.shape)
"""


def test_trackio_gets_curves_settings_tables_and_pictures_in_one_run(tmp_path, monkeypatch):
    (tmp_path / "trackio.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    logger = TrackioLogger("otters", resume="allow")
    import trackio

    assert (logger.name, logger.version, trackio.begun) == ("otters", None, [])
    logger.log_metrics({"train/reward": 0.5}, 8)
    logger.log_hyperparams({"seed": 1})
    write_table(trainer_of(logger), "heldout/answers", TABLE, 8)
    write_picture(trainer_of(logger), "rewards", PICTURE, 8)
    [(project, options, run)] = trackio.begun
    assert (project, logger.version) == ("otters", "calm-river-0")
    assert options == {"name": None, "space_id": None, "private": True, "embed": False, "resume": "allow"}
    assert (run.config, run._config_logged) == ({"seed": 1}, False)
    assert run.logged == [
        ({"train/reward": 0.5}, 8),
        ({"heldout/answers": ("table", list(TABLE.columns), [list(row) for row in TABLE.rows])}, 8),
        ({"rewards": ("image", (2, 3, 3))}, 8),
    ]


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match="logger=trackio requires trackio: pip install trackio"):
        TrackioLogger()
