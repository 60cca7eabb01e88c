"""Curves in a CSV file outlive the process that wrote them."""

import lightning as L
import pandas
import torch

from herl.loggers import CsvFile


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch):
        self.log("train/reward", float(self.trainer.global_step))
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(folder, steps, resume=None):
    trainer = L.Trainer(
        max_steps=steps, logger=CsvFile(str(folder)), log_every_n_steps=1, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(1, 1)), ckpt_path=resume)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return folder / f"{steps}.ckpt"


def test_a_resumed_run_keeps_its_earlier_rows(tmp_path):
    first = fit(tmp_path, 2)
    second = fit(tmp_path, 5, first)
    fit(tmp_path, 6, second)
    names = ("metrics-1.csv", "metrics-2.csv", "metrics.csv")
    steps = [pandas.read_csv(tmp_path / "csv" / name)["step"].tolist() for name in names]
    assert steps == [[0, 1], [2, 3, 4], [5]]
