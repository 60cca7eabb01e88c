"""Stage 1: rows of public formats -> `Task`; `RubricDataModule` streams them in batches of prompts."""

from herl.data.datamodule import RubricDataModule

__all__ = ["RubricDataModule"]
