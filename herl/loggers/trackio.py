"""The logger for Trackio, which Lightning lacks: curves, settings, tables and pictures."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from herl.errors import ConfigError


class TrackioLogger(Logger):
    """Logs to a Trackio project, which `trackio show` displays. Requires the package trackio.

    A run begins with the first thing that is logged. Trackio itself ends it when the process ends, or when
    another run begins.

    Args:
        project: Runs are grouped under it.
        name: Name of the run; Trackio chooses one if it is None.
        space_id: A Hugging Face Space to log to, owner/name; None to stay on this machine. Trackio takes the
            token from Hugging Face's own login.
        private: Whether the Space is created as a private one.
        **options: Further arguments of `trackio.init`.

    Raises:
        ConfigError: trackio is not installed.
    """

    def __init__(
        self,
        project: str = "herl",
        name: str | None = None,
        space_id: str | None = None,
        private: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        try:
            from trackio import init
        except ImportError as error:
            raise ConfigError(f"logger=trackio requires trackio: pip install trackio ({error})") from error
        self._init = init
        self._project = project
        self._options = options | {"name": name, "space_id": space_id, "private": private, "embed": False}
        self._run: Any = None

    @property
    def name(self) -> str:
        """Returns the project."""
        return self._project

    @property
    def version(self) -> str | None:
        """Returns the run's name; None before something is logged, if Trackio chooses it."""
        name: str | None = self._options["name"] if self._run is None else self._run.name
        return name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Returns the `trackio.Run`, which begins with the first call."""
        if self._run is None:
            self._run = self._init(self._project, **self._options)
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Adds settings to the run's configuration; it goes out with the next metrics."""
        run = self.experiment
        run.config.update(vars(params) if isinstance(params, Namespace) else params)
        run._config_logged = False  # else settings would count only before the first metrics

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a point to each of these curves."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_table(
        self, key: str, columns: list[str], data: list[list[Any]], *, step: int | None = None
    ) -> None:
        """Shows rows under a name."""
        import trackio

        self.experiment.log({key: trackio.Table(columns=columns, data=data)}, step=step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Shows pictures, each [height, width, 3] with 8 bits per channel, under a name."""
        import trackio

        for number, image in enumerate(images):
            self.experiment.log({f"{key}_{number}" if number else key: trackio.Image(image)}, step=step)
