"""A Lightning callback that runs :func:`xferbench.watch`: ``Trainer(callbacks=[Watch(recipe={"trainable": "head"})])``.

Imports Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

import xferbench

if TYPE_CHECKING:
    from xferbench.lab.monitor.watch import Watch as Monitor


class Watch(Callback):
    """Monitors each fit.

    Args:
        options: the keyword arguments of :func:`xferbench.watch`. The names of modules and tensors begin with the attribute of
            the LightningModule that holds the network.

    Attributes:
        watch: the monitor of the last fit, with its ``events`` and ``report()``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.watch: Monitor | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the monitor. The optimizers exist by now, and a checkpoint has been loaded."""
        self.watch = xferbench.watch(pl_module, trainer.optimizers, **self.options).__enter__()

    def on_train_batch_end(self, _trainer: Any, _module: Any, outputs: Any, _batch: Any, _index: int) -> None:
        """Record the loss, if the training step returned one."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if self.watch is not None and loss is not None:
            self.watch.step(loss)

    def on_train_end(self, _trainer: Any, _module: Any) -> None:
        """Run the last check and remove the hooks of the optimizers."""
        if self.watch is not None:
            self.watch.__exit__(None, None, None)

    def on_exception(self, _trainer: Any, _module: Any, exception: BaseException) -> None:
        """Remove the hooks of the optimizers."""
        if self.watch is not None:
            self.watch.__exit__(type(exception), exception, exception.__traceback__)
