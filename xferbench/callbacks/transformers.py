"""A transformers callback that runs :func:`xferbench.watch`: ``Trainer(callbacks=[Watch(recipe={"trainable": "head"})])``.

Imports transformers.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

import xferbench

if TYPE_CHECKING:
    from xferbench.lab.monitor.watch import Watch as Monitor


class Watch(TrainerCallback):
    """Monitors each training.

    The loss of a step is the mean of the ``loss`` that the model returns for its batches. If the model returns none, it is the
    loss that the Trainer logs. The Trainer does not inform callbacks of an exception, so the hooks then stay on the optimizer
    and on the model until the next training removes them.

    Args:
        options: the keyword arguments of :func:`xferbench.watch`. By default, ``max_length`` is the length at which the
            tokenizer of the Trainer (``processing_class``) last cut a text.

    Attributes:
        watch: the monitor of the last training, with its ``events`` and ``report()``.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.watch: Monitor | None = None
        self._hooks = ExitStack()
        self._losses: list[Any] = []
        self._model_returns_loss = False

    def on_train_begin(self, _args: Any, _state: Any, _control: Any, *, model: Any, optimizer: Any, **more: Any) -> None:
        """Start the monitor. The optimizer exists by now, and a checkpoint has been loaded."""
        self._hooks.close()
        self._losses, self._model_returns_loss = [], False
        tokenizer = more.get("processing_class", more.get("tokenizer"))  # the second is its name up to transformers 4.45
        self.watch = xferbench.watch(model, optimizer, **{"max_length": truncation_length(tokenizer), **self.options})
        self._hooks.enter_context(self.watch)
        self._hooks.callback(model.register_forward_hook(self._store_loss).remove)

    def _store_loss(self, model: Any, _inputs: Any, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else None
        if model.training and loss is not None and loss.numel() == 1:
            self._losses.append(loss.detach().clone())

    def on_step_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Record the loss of a step."""
        losses, self._losses = self._losses, []
        if self.watch is not None and losses:
            self._model_returns_loss = True
            self.watch.step(sum(losses) / len(losses))

    def on_log(self, _args: Any, _state: Any, _control: Any, *, logs: Any = None, **_: Any) -> None:
        """Record the logged loss, if the model returns none."""
        if self.watch is not None and not self._model_returns_loss and logs and "loss" in logs:
            self.watch.step(float(logs["loss"]))

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Run the last check, and remove the hooks of the optimizer and of the model."""
        self._hooks.close()


def truncation_length(tokenizer: Any) -> int | None:
    """Return the number of tokens at which a fast tokenizer cut the last texts that it processed, or None."""
    truncation = getattr(getattr(tokenizer, "backend_tokenizer", None), "truncation", None)
    length = truncation.get("max_length") if isinstance(truncation, dict) else None
    return length if type(length) is int and length > 0 else None
