"""The monitor of a user's training loop, called from the hooks of the optimizers. Imports torch.

It draws no random number, writes no gradient and no weight, and removes its hooks on exit, so the training stays as it was.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from xferbench.core import loss_alarms
from xferbench.core.errors import UserError
from xferbench.lab.models import backbones
from xferbench.lab.monitor import checksums, diagnosis, events, layer_faults, user_model
from xferbench.lab.monitor.events import Event, TransferWarning
from xferbench.lab.monitor.loss_history import LossHistory
from xferbench.lab.monitor.tensor_tracker import TensorTracker
from xferbench.lab.monitor.text_inputs import TextInputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from torch import nn

    from xferbench.lab.training.expected_changes import ExpectedChanges

EARLY_STEPS = 3  # first steps; each is checked
NEVER_MOVED_STEPS = 20  # steps after which a trainable tensor must have moved
NON_FINITE_ADVICE = "clip the gradients, lower the learning rate or warm it up; inspect the inputs of this batch"


class Watch:
    """The monitor that :func:`xferbench.watch` returns.

    Attributes:
        events: the faults seen so far.
        steps: the number of optimizer steps that have begun.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        expected: Sequence[ExpectedChanges],
        *,
        head: str,
        classes: int,
        pretrained: bool,
        max_length: int | None,
        every: int,
        on_event: str,
    ) -> None:
        self.events: list[Event] = []
        self.steps = 0
        self._model, self._optimizers, self._expected = model, optimizers, expected
        self._head, self._classes, self._pretrained = head, classes, pretrained
        self._max_length, self._every, self._on_event = max_length, every, on_event
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        self.events, self.steps, self._checked_step = [], 0, 0
        self._step_counts = dict.fromkeys(map(id, self._optimizers), 0)
        self._reported: set[tuple[str, str]] = set()
        self._written_in_step: set[str] = set()
        self._written_between_steps: set[str] = set()
        self._gradient_norms: dict[str, float] = {}  # the last value seen for each tensor
        self._pending_losses: list[tuple[int, Tensor]] = []
        self._loss_history = LossHistory(self._classes)
        self._body: tuple[str, ...] = ()  # backbone tensors that train from the first step on
        with torch.no_grad():
            self._tracker = TensorTracker(self._model, self._optimizers, self._expected)
        self._texts = TextInputs(report=self._report_batch, max_length=self._max_length)
        self._hooks.callback(self._texts.hooks.close)
        self._texts.attach(self._model)
        for optimizer in self._optimizers:
            self._hooks.callback(optimizer.register_step_pre_hook(self._before_step).remove)
            self._hooks.callback(optimizer.register_step_post_hook(self._after_step).remove)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hooks.close()
        if kind is None:  # after an exception, the exception matters more, and the device may not answer
            with torch.no_grad():
                self._check(thorough=True)

    def __str__(self) -> str:
        return self.report()

    def report(self) -> str:
        """Return all events as text: step, tensor, cause and what to do."""
        return events.format_report(self.events, self.steps)

    def step(self, loss: float | Tensor) -> None:
        """Record the loss of the last step. This is optional; without it, loss jumps and head shock are not detected.

        Raises:
            UserError: if the loss is not a single number.
        """
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise UserError("watch.step: not a loss", found=f"a tensor of shape {tuple(loss.shape)}", expected="one number")
            if loss.device.type != "cpu":
                # Reading the value now would wait for the device; the next check reads it.
                self._pending_losses.append((max(self.steps, 1), loss.detach().clone()))
                return
            loss = loss.item()
        self._record_loss(max(self.steps, 1), float(loss))

    def _before_step(self, optimizer: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
        self._step_counts[id(optimizer)] += 1
        self.steps = max(self.steps, self._step_counts[id(optimizer)])
        with torch.no_grad():
            self._written_between_steps |= self._tracker.find_written()
            self._note_unfrozen(self._tracker.update_expectations(self.steps))
        self._check_texts()

    def _after_step(self, optimizer: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
        overflow = getattr(optimizer, "found_inf", None)  # a GradScaler lets a fused optimizer skip the step itself
        if overflow is not None and bool(overflow):
            return
        with torch.no_grad():
            self._written_in_step |= self._tracker.find_written()
            if self._step_counts[id(optimizer)] < self.steps or self._checked_step == self.steps:
                return
            suspects = self._tracker.suspects(self._written())
            if self.steps <= EARLY_STEPS or self.steps == loss_alarms.SHOCK_CHECK_STEP or self.steps % self._every == 0:
                self._check()
            elif suspects:
                self._check_frozen(checksums.sample_tensors({name: self._tracker.tensors[name] for name in suspects}), suspects)

    def _written(self) -> set[str]:
        return self._written_in_step | self._written_between_steps

    def _note_unfrozen(self, names: tuple[str, ...]) -> None:
        """Record tensors that have begun to train: later ones for loss jumps, those of the first step for head shock."""
        if names and self.steps > 1:
            self._loss_history.record_unfreeze(self.steps, names)
        elif self.steps == 1 and self._head and self._pretrained:
            training = (name for name in self._tracker.parameters if name in self._tracker.training)
            self._body = tuple(name for name in training if not backbones.is_within(name, [self._head]))

    def _check(self, *, thorough: bool = False) -> None:
        """Run all checks. A thorough check compares every bit of the frozen tensors."""
        pending, self._pending_losses = self._pending_losses, []
        for step, loss in pending:
            self._record_loss(step, loss.item())
        self._note_unfrozen(self._tracker.refresh(self.steps))
        sample = checksums.sample_tensors(self._tracker.tensors)
        self._check_frozen(sample, self._tracker.frozen if thorough else self._tracker.suspects(self._written()))
        if not thorough:  # outside a step, the gradients may have been cleared
            self._check_gradients()
        self._check_values(sample)
        self._check_layers()
        self._check_optimizer()
        self._check_never_moved()
        if self.steps == loss_alarms.SHOCK_CHECK_STEP:
            self._check_head_shock(sample)
        self._checked_step = self.steps

    def _check_frozen(self, sample: checksums.TensorSample, exact_names: set[str]) -> None:
        """Report the frozen tensors that moved. The step is exact if a version counter showed the write."""
        moved = self._tracker.find_moved(sample, exact_names) & self._tracker.frozen - self._tracker.reported
        written = self._written()
        since = {
            name: self.steps - 1 if name in written else self._checked_step for name in self._tracker.tensors if name in moved
        }
        parameters = [name for name in since if name in self._tracker.parameters]
        buffers = [name for name in since if name not in self._tracker.parameters]
        self._report_each("frozen-moved", {name: self._explain_frozen(name, sample) for name in parameters}, since)
        self._report_each("buffer-moved", self._explain_layers(buffers), since)
        self._tracker.reported |= moved
        self._written_in_step, self._written_between_steps = set(), set()

    def _explain_frozen(self, name: str, sample: checksums.TensorSample) -> diagnosis.Message:
        gradient_norm = 1.0 if self._tracker.parameters[name].grad is not None else None
        return diagnosis.explain_frozen(self._parameter_state(name, gradient_norm, self._tracker.decay_factor(name, sample)))

    def _parameter_state(
        self, name: str, gradient_norm: float | None, decay_factor: float | None = None
    ) -> diagnosis.ParameterState:
        tensor = self._tracker.parameters[name]
        group = self._tracker.optimizer_groups().get(id(tensor), {})
        module, flag = self._tracker.flagged_module(name)
        return diagnosis.ParameterState(
            requires_grad=tensor.requires_grad,
            flagged_module=module if flag != tensor.requires_grad else "",
            in_optimizer=bool(group),
            lr=float(group.get("lr", 1.0)),
            weight_decay=float(group.get("weight_decay", 0.0)),
            gradient_norm=gradient_norm,
            decay_factor=decay_factor,
            written_between_steps=name in self._written_between_steps,
            written_in_step=name in self._written_in_step,
            narrow_dtype=str(tensor.dtype).removeprefix("torch.") if tensor.element_size() < 4 else "",
        )

    def _explain_layers(self, names: Sequence[str]) -> dict[str, diagnosis.Message]:
        """Return one explanation for each layer, under the name of its first statistic that is not the counter."""
        by_layer: dict[str, list[str]] = {}
        for name in names:
            by_layer.setdefault(name.rpartition(".")[0], []).append(name)
        messages = {}
        for layer, buffers in by_layer.items():
            values = [name for name in buffers if not name.endswith("num_batches_tracked")]
            is_training, has_counted = self._tracker.layers[layer].training, len(values) < len(buffers)
            messages[(values or buffers)[0]] = diagnosis.explain_buffer(is_training=is_training, has_counted=has_counted)
        return messages

    def _check_texts(self) -> None:
        """Report what the batches of texts of the first steps show together, and stop to read batches afterwards."""
        if self.steps <= EARLY_STEPS and (message := self._texts.explain_labels(is_last_step=self.steps == EARLY_STEPS)):
            self._report("labels-ignored", ["labels"], message)
        if self.steps == EARLY_STEPS and (message := self._texts.explain_lengths()):
            self._report("texts-cut", ["input_ids"], message)
        if self.steps >= EARLY_STEPS:
            self._texts.hooks.close()

    def _report_batch(self, kind: str, name: str, message: diagnosis.Message) -> None:
        """Report a fault of a batch before the step that uses it."""
        self._report(kind, [name], message, step=self.steps + 1)

    def _check_values(self, sample: checksums.TensorSample) -> None:
        """Report tensors with values that are not finite."""
        broken = checksums.non_finite_tensors(sample)
        message = (
            "its values are not finite",
            "restore a checkpoint from before this step; clip the gradients or lower the learning rate",
        )
        self._report_non_finite([name for name in self._tracker.tensors if name in broken], message, max(self.steps, 1))

    def _check_gradients(self) -> None:
        """Record the norm of every gradient, and report gradients that are not finite."""
        gradients = {name: tensor.grad for name, tensor in self._tracker.parameters.items() if tensor.grad is not None}
        norms = checksums.gradient_norms(
            {name: gradient for name, gradient in gradients.items() if checksums.has_values(gradient)}
        )
        # A norm may overflow although every value is finite.
        infinite = [name for name, norm in norms.items() if not norm < float("inf")]
        broken = [name for name in infinite if not bool(gradients[name].isfinite().all())]
        self._gradient_norms |= norms
        self._report_non_finite(broken, ("its gradient is not finite", NON_FINITE_ADVICE), self.steps)

    def _report_non_finite(self, names: Sequence[str], message: diagnosis.Message, step: int) -> None:
        """Report only the first fault of this kind, because the others follow from it."""
        if names and not any(event.kind == "non-finite" for event in self.events):
            self._report("non-finite", names, message, step=step)

    def _check_layers(self) -> None:
        """Report layers whose attributes contradict their weights, or whose running statistics cannot follow the batches."""
        statistics = {name: layer for name, layer in self._tracker.layers.items() if layer.training}
        momenta = layer_faults.find_unusable_momenta(statistics, self._tracker.frozen)
        self._report_each("layer-size", layer_faults.find_wrong_sizes(self._model))
        self._report_each("batchnorm-momentum", {name: diagnosis.explain_momentum(value) for name, value in momenta.items()})

    def _check_optimizer(self) -> None:
        """Report trainable tensors that no optimizer holds."""
        groups = self._tracker.optimizer_groups()
        missing = [
            name
            for name, tensor in self._tracker.parameters.items()
            if name in self._tracker.trainable and tensor.requires_grad and id(tensor) not in groups
            # Without a recipe, a teacher network that receives no gradient is no fault.
            if not self._tracker.by_flag or tensor.grad is not None
        ]
        if missing and self.steps:
            foreign = len(groups.keys() - set(map(id, self._tracker.parameters.values())))
            self._report_each("not-held", dict.fromkeys(missing, diagnosis.explain_missing(foreign, len(groups))))

    def _check_never_moved(self) -> None:
        """Report trainable tensors that have not moved for ``NEVER_MOVED_STEPS`` steps."""
        names = self._tracker.find_never_moved(self.steps, NEVER_MOVED_STEPS)
        states = {name: self._parameter_state(name, self._gradient_norms.get(name)) for name in names}
        # Without a recipe, a rate of 0 is a way to freeze. If every tensor has it, a schedule has not begun.
        all_wait = len(states) == len(self._tracker.trainable) and not any(state.lr for state in states.values())
        if self._tracker.by_flag or all_wait:
            states = {name: state for name, state in states.items() if state.lr or not state.requires_grad}
        if self._tracker.by_flag:
            unused = {name for name, state in states.items() if state.gradient_norm is None}
            poolers = {name for name in unused if user_model.is_in_pooler(self._model, name)}
            states = {name: state for name, state in states.items() if name not in poolers}
        messages = {name: diagnosis.explain_still(state) for name, state in states.items()}
        self._report_each("never-moved", {name: message for name, message in messages.items() if message})

    def _check_head_shock(self, sample: checksums.TensorSample) -> None:
        """Report a backbone that moved far under an untrained head."""
        distance = self._tracker.distance(sample, self._body) if self._body else 0.0
        if self._loss_history.has_shocked(distance):
            percent, steps = f"{100 * distance:.0f} %", loss_alarms.SHOCK_CHECK_STEP
            cause = f"the backbone moved by {percent} of its norm in {steps} steps, while its head was untrained"
            self._report(
                "head-shock", self._body, (cause, "train the head alone first, then the rest at a lower rate"), since=0
            )

    def _record_loss(self, step: int, loss: float) -> None:
        """Record a loss, and report one that is not finite or that jumped after tensors were unfrozen."""
        if not abs(loss) < float("inf"):
            self._report_non_finite(["loss"], (f"the loss is {loss:g}", NON_FINITE_ADVICE), step)
        jump = self._loss_history.record_loss(step, loss)
        if jump:
            cause = (
                f"{len(jump.names)} tensors began to train at step {jump.unfrozen_at}; "
                f"the loss rose from {jump.loss_before:.3g} to {jump.loss_after:.3g}"
            )
            do = "use a lower learning rate with a warm-up for the unfrozen tensors; keep BatchNorm in evaluation mode"
            self._report("loss-jump", jump.names, (cause, do), step=jump.detected_at, since=jump.unfrozen_at - 1)

    def _report_each(
        self, kind: str, messages: Mapping[str, diagnosis.Message], since: Mapping[str, int] | None = None
    ) -> None:
        """Report tensors, with one event for all tensors of the same cause and time.

        Args:
            kind: the kind of the events.
            messages: the explanation for each tensor.
            since: the last step at which each tensor had no fault; by default the step of the last check.
        """
        groups: dict[tuple[diagnosis.Message, int], list[str]] = {}
        for name, message in messages.items():
            if (kind, name) not in self._reported:
                groups.setdefault((message, since[name] if since else self._checked_step), []).append(name)
        for (message, last_good_step), names in groups.items():
            self._report(kind, names, message, since=last_good_step)

    def _report(
        self, kind: str, names: Sequence[str], message: diagnosis.Message, *, step: int | None = None, since: int | None = None
    ) -> None:
        """Store an event once, and warn or raise as ``on_event`` says."""
        if (kind, names[0]) in self._reported:
            return
        self._reported |= {(kind, name) for name in names}
        step = max(self.steps, 1) if step is None else step
        cause, do = message
        event = Event(
            step=step,
            since=min(self._checked_step if since is None else since, step - 1),
            tensor=names[0],
            others=tuple(names[1:]),
            kind=kind,
            cause=cause,
            do=do,
        )
        self.events.append(event)
        if self._on_event == "raise":
            raise TransferWarning(event)
        if self._on_event == "warn":
            warnings.warn(TransferWarning(event), stacklevel=2)
