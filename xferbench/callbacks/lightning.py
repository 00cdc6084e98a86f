""":func:`xferbench.watch` as a callback of Lightning: ``Trainer(callbacks=[Watch(recipe={"trainable": "head"})])``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

import xferbench

if TYPE_CHECKING:
    from xferbench.lab.watch import Watch as Watching


class Watch(Callback):
    """Watches each fit; ``watch`` is that of the last one, with its ``events`` and ``report()``.

    Args:
        options: those of :func:`xferbench.watch`. Names begin with the attribute that holds the network in the LightningModule.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.watch: Watching | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch: optimizers are there, and a checkpoint has been loaded."""
        self.watch = xferbench.watch(pl_module, trainer.optimizers, **self.options).__enter__()

    def on_train_batch_end(self, _trainer: Any, _module: Any, outputs: Any, _batch: Any, _index: int) -> None:
        """Hand over the loss, where the training step gave one."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if self.watch is not None and loss is not None:
            self.watch.step(loss)

    def on_train_end(self, _trainer: Any, _module: Any) -> None:
        """Look a last time, and let go of the optimizers."""
        if self.watch is not None:
            self.watch.__exit__(None, None, None)

    def on_exception(self, _trainer: Any, _module: Any, exception: BaseException) -> None:
        """Let go of the optimizers."""
        if self.watch is not None:
            self.watch.__exit__(type(exception), exception, exception.__traceback__)
