"""Lightning calls no teardown after an error; a module that holds threads needs it all the same."""

from __future__ import annotations

import lightning as L


class TeardownOnError(L.Callback):
    """Tears the module down when a run ends with an error, as Lightning does when it ends without."""

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        pl_module.teardown(str(trainer.state.fn))
