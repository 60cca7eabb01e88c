"""Gives each run its own folder, and locks it while the run writes into it.

A folder named by the clock is created exclusively: of two runs that start in one second, the later one gets
`-2` appended to its name. A folder that the user names may exist, since a resumed run returns to its own, but
a run is refused while another process writes into it, before anything is overwritten.

The lock is the operating system's, so it ends with its process, however that dies. On file systems without
locks, such as some cluster mounts, there is only a warning. Reading a folder needs no lock.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from herl.cli.own_runs import SIGNATURE
from herl.cli.prose import in_quotes
from herl.cli.run_name import swept
from herl.config.keys_in_settings import check_composed
from herl.distributed import is_first_process
from herl.errors import ConfigError

logger = logging.getLogger(__name__)
LOCK, WRITER = ".lock", ".writer.json"
UNUSED = {LOCK, WRITER, SIGNATURE, ".hydra", "config.yaml", "hydra.yaml", "overrides.yaml", "multirun.yaml"}
"""What a folder holds before anything has run."""
_held: list[FileLock] = []
_made: list[Path] = []
"""Folders that this process created under a name that it chose."""


class ClaimFolder(Callback):
    """Claims the folder of a run or a sweep before Hydra writes into it. Only the first rank claims one."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _claim(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _claim(config, "hydra.sweep.dir")


def _claim(config: DictConfig, key: str) -> None:
    if not is_first_process():
        return
    try:
        check_composed(config)  # before the folder, which repeats settings in its name and in its files
    except ConfigError as error:
        from herl.cli.main import fail  # Hydra turns an Exception of a callback into a warning

        fail(str(error))
    HydraConfig.instance().set_config(config)  # the folder's name may refer to Hydra's own settings
    folder = Path(str(OmegaConf.select(config, key)))
    given = OmegaConf.to_container(config.hydra.overrides.hydra)
    assert isinstance(given, list)
    if any(str(one).startswith(f"{key}=") for one in given):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            from herl.cli.main import fail  # Hydra turns an Exception of a callback into a warning

            fail(f"{key}: expected a folder that can be written, got '{folder}' ({error.strerror})")
    else:
        folder = _created(folder)
        with read_write(config.hydra), open_dict(config.hydra):
            OmegaConf.update(config, key, str(folder))
            if key == "hydra.sweep.dir":  # each job composes its configuration again
                config.hydra.overrides.hydra.append(f"{key}={in_quotes(str(folder))}")
                if not any(str(one).startswith("hydra.sweep.subdir=") for one in given):
                    config.hydra.overrides.hydra.append(_subfolders(list(config.hydra.overrides.task)))
    try:
        hold(folder)
    except ConfigError as error:  # Hydra turns an Exception of a callback into a warning
        from herl.cli.main import fail

        fail(str(error))


def _subfolders(overrides: list[str]) -> str:
    """The override by which the runs of a sweep are named after their number and what the sweep varies."""
    return "hydra.sweep.subdir='${hydra.job.num}_${run_changes:" + ",".join(swept(overrides)) + "}'"


def _created(folder: Path) -> Path:
    """Creates the folder, or the first of its names with a number that does not exist yet."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        free = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with suppress(FileExistsError):
            free.mkdir()
            _made.append(free.absolute())
            return free
    raise AssertionError


def hold(folder: Path) -> None:
    """Locks a folder for this process until `release`.

    Raises:
        ConfigError: another process writes into it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"hydra.run.dir: expected a folder that no other run writes into, got {folder}, which is in use "
            f"by {_writer(folder)}. Wait for that run, stop it, or name another folder"
        ) from error
    except (NotImplementedError, OSError) as error:
        logger.warning("cannot lock %s (%s): nothing keeps another run from writing into it", folder, error)
        return
    _held.append(lock)
    writer = {"process": os.getpid(), "host": socket.gethostname()}
    with suppress(OSError):  # for the message only
        (folder / WRITER).write_text(json.dumps(writer) + "\n", encoding="utf-8")


def release(failed: bool = False) -> None:
    """Unlocks the folders that this process holds.

    Args:
        failed: Whether the command ended with an error. If so, folders that this process created under a
            name that it chose are removed if nothing ran in them, and so are such runs of a sweep.
    """
    while _held:
        lock = _held.pop()
        with suppress(OSError):
            (Path(lock.lock_file).parent / WRITER).unlink(missing_ok=True)
        lock.release()
    while _made:
        folder = _made.pop()
        with suppress(OSError):
            for place in (*folder.iterdir(), folder) if failed else ():
                if place.is_dir() and place.name != ".hydra" and _is_unused(place):
                    shutil.rmtree(place)


def _is_unused(folder: Path) -> bool:
    """Whether a folder holds nothing but what Hydra and the lock write at the start."""
    return all(path.name in UNUSED for path in folder.rglob("*"))


def _writer(folder: Path) -> str:
    try:
        writer = json.loads((folder / WRITER).read_text(encoding="utf-8"))
        return f"process {writer['process']} on {writer['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
