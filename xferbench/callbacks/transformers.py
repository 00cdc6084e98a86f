""":func:`xferbench.watch` as a callback of transformers: ``Trainer(callbacks=[Watch(recipe={"trainable": "head"})])``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

import xferbench

if TYPE_CHECKING:
    from xferbench.lab.watch import Watch as Watching


class Watch(TrainerCallback):
    """Watches each training; ``watch`` is that of the last one, with its ``events`` and ``report()``.

    A step's loss is the mean of what the model gives as ``loss`` for its batches; of a model that gives none, the loss that is
    logged. A training that raises leaves its hooks on its optimizer, since the Trainer tells nobody; the next one takes them
    off.

    Args:
        options: those of :func:`xferbench.watch`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.watch: Watching | None = None
        self._open = ExitStack()
        self._losses: list[Any] = []
        self._given = False

    def on_train_begin(self, _args: Any, _state: Any, _control: Any, *, model: Any, optimizer: Any, **_: Any) -> None:
        """Begin to watch: the optimizer is there, and a checkpoint has been loaded."""
        self._open.close()
        self._losses, self._given = [], False
        self.watch = xferbench.watch(model, optimizer, **self.options)
        self._open.enter_context(self.watch)
        self._open.callback(model.register_forward_hook(self._heard).remove)

    def _heard(self, model: Any, _inputs: Any, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else None
        if model.training and loss is not None and loss.numel() == 1:
            self._losses.append(loss.detach().clone())

    def on_step_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Hand over the loss of a step."""
        losses, self._losses = self._losses, []
        if self.watch is not None and losses:
            self._given = True
            self.watch.step(sum(losses) / len(losses))

    def on_log(self, _args: Any, _state: Any, _control: Any, *, logs: Any = None, **_: Any) -> None:
        """Hand over the logged loss, where the model gives none."""
        if self.watch is not None and not self._given and logs and "loss" in logs:
            self.watch.step(float(logs["loss"]))

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Look a last time, and let go of the optimizer and the model."""
        self._open.close()
