"""A training loop, watched from the optimizer's hooks: what should be still is, what should move does, values are finite.

Nothing here changes the training: no random number is drawn, no gradient or weight is written, and the hooks go at the exit.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from xferbench import events
from xferbench.events import Event, TransferWarning
from xferbench.lab import alarms, backbones, causes, traces
from xferbench.lab.course import Course
from xferbench.lab.stock import Stock
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from torch import nn

    from xferbench.lab.beliefs import Belief

EARLY = 3  # the first steps are all checked
PATIENCE = 20  # steps after which what is to train must have moved
TAME = "clip gradients, lower the rate or warm it up; look at this batch's inputs"


class Watch:
    """What :func:`xferbench.watch` gives: ``events`` so far, ``steps`` begun, ``report()`` as text."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        believed: Sequence[Belief],
        *,
        head: str,
        classes: int,
        pretrained: bool,
        every: int,
        on_event: str,
    ) -> None:
        self.events: list[Event] = []
        self.steps = 0
        self._model, self._optimizers, self._believed = model, optimizers, believed
        self._head, self._classes, self._pretrained = head, classes, pretrained
        self._every, self._on_event = every, on_event
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        self.events, self.steps, self._checked = [], 0, 0
        self._counts = dict.fromkeys(map(id, self._optimizers), 0)
        self._said: set[tuple[str, str]] = set()
        self._inside: set[str] = set()
        self._outside: set[str] = set()
        self._norms: dict[str, float] = {}  # of gradients, as last seen
        self._pending: list[tuple[int, Tensor]] = []
        self._course = Course(self._classes)
        self._body: tuple[str, ...] = ()  # of the backbone, learning from the first step
        with torch.no_grad():
            by_flag = self._believed[0].trainable is None
            self._stock = Stock(self._model, self._optimizers, self._believed, by_flag=by_flag)
        for optimizer in self._optimizers:
            self._hooks.callback(optimizer.register_step_pre_hook(self._before).remove)
            self._hooks.callback(optimizer.register_step_post_hook(self._after).remove)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hooks.close()
        if kind is None:  # a loop that has failed has its own say, and perhaps no device left to ask
            with torch.no_grad():
                self._check(thorough=True)

    def __str__(self) -> str:
        return self.report()

    def report(self) -> str:
        """All events as text: step, tensor, cause, what to do."""
        return events.report(self.events, self.steps)

    def step(self, loss: float | Tensor) -> None:
        """Hand over the loss of the step last taken; not needed, but else nothing is known of jumps and head shock.

        Raises:
            Problem: for anything but one number.
        """
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise Problem("watch.step: not a loss", found=f"a tensor of shape {tuple(loss.shape)}", expected="one number")
            if loss.device.type != "cpu":
                self._pending.append((max(self.steps, 1), loss.detach().clone()))  # read at the next check, so as not to wait
                return
            loss = loss.item()
        self._heard(max(self.steps, 1), float(loss))

    def _before(self, optimizer: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
        self._counts[id(optimizer)] += 1
        self.steps = max(self.steps, self._counts[id(optimizer)])
        with torch.no_grad():
            self._outside |= self._stock.written()
            self._grown(self._stock.settle(self.steps))

    def _after(self, optimizer: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
        overflow = getattr(optimizer, "found_inf", None)  # a GradScaler leaves it to a fused optimizer to skip the step
        if overflow is not None and bool(overflow):
            return
        with torch.no_grad():
            self._inside |= self._stock.written()
            if self._counts[id(optimizer)] < self.steps or self._checked == self.steps:
                return
            suspects = self._stock.suspects(self._inside | self._outside)
            if self.steps <= EARLY or self.steps == alarms.GONE_BY or self.steps % self._every == 0:
                self._check()
            elif suspects:
                self._moved(traces.sample({name: self._stock.now[name] for name in suspects}), suspects)

    def _grown(self, names: tuple[str, ...]) -> None:
        """Heed that more tensors learn than before."""
        if names and self.steps > 1:
            self._course.unfreeze(self.steps, names)
        elif self.steps == 1 and self._head and self._pretrained:
            learning = (name for name in self._stock.parameters if name in self._stock.learning)
            self._body = tuple(name for name in learning if not backbones.within(name, [self._head]))

    def _check(self, *, thorough: bool = False) -> None:
        """All checks; thorough ones compare every bit of what is frozen."""
        pending, self._pending = self._pending, []
        for step, loss in pending:
            self._heard(step, loss.item())
        self._grown(self._stock.refresh(self.steps))
        now = traces.sample(self._stock.now)
        self._moved(now, self._stock.frozen if thorough else self._stock.suspects(self._inside | self._outside))
        if not thorough:  # between two steps gradients may have been cleared
            self._gradients()
        self._finite(now)
        self._missing()
        self._never_moved()
        if self.steps == alarms.GONE_BY:
            self._shock(now)
        self._checked = self.steps

    def _moved(self, now: traces.Sample, exactly: set[str]) -> None:
        """Tell of frozen tensors that moved; the step is known where a version has told it."""
        moved = self._stock.moved(now, exactly) & self._stock.frozen - self._stock.known
        written = self._inside | self._outside
        found = {name: self.steps - 1 if name in written else self._checked for name in self._stock.now if name in moved}
        parameters = {name: partial(self._why, name, now) for name in found if name in self._stock.parameters}
        self._tell_each("frozen-moved", parameters, found)
        self._tell_each("buffer-moved", self._layers([name for name in found if name not in parameters]), found)
        self._stock.known |= moved
        self._inside, self._outside = set(), set()

    def _why(self, name: str, now: traces.Sample) -> causes.Told:
        gradient = 1.0 if self._stock.parameters[name].grad is not None else None
        return causes.frozen(self._case(name, gradient, self._stock.shrunk(name, now)))

    def _case(self, name: str, gradient: float | None, shrunk: float | None = None) -> causes.Case:
        tensor = self._stock.parameters[name]
        group = self._stock.held().get(id(tensor), {})
        return causes.Case(
            learnt=tensor.requires_grad,
            marked=self._stock.marked(name),
            held=bool(group),
            lr=float(group.get("lr", 1.0)),
            decay=float(group.get("weight_decay", 0.0)),
            gradient=gradient,
            shrunk=shrunk,
            outside=name in self._outside,
            inside=name in self._inside,
            narrow=str(tensor.dtype).removeprefix("torch.") if tensor.element_size() < 4 else "",
        )

    def _layers(self, names: Sequence[str]) -> Mapping[str, Callable[[], causes.Told]]:
        """One entry for each layer, under the first of its statistics that is not the counter."""
        found = {}
        for layer in dict.fromkeys(name.rpartition(".")[0] for name in names):
            own = [name for name in names if name.rpartition(".")[0] == layer]
            values = [name for name in own if not name.endswith("num_batches_tracked")]
            training, counted = self._stock.layers[layer].training, len(values) < len(own)
            found[(values or own)[0]] = partial(causes.buffer, training=training, counted=counted)
        return found

    def _finite(self, now: traces.Sample) -> None:
        """Tell of values that are not finite."""
        broken = traces.broken(now)
        told = ("its values are not finite", "go back to a checkpoint from before; clip gradients or lower the rate")
        self._unfit([name for name in self._stock.now if name in broken], told, max(self.steps, 1))

    def _gradients(self) -> None:
        """Keep the norm of every gradient that there is; tell of those that are not finite."""
        grads = {name: tensor.grad for name, tensor in self._stock.parameters.items() if tensor.grad is not None}
        norms = traces.norms({name: grad for name, grad in grads.items() if traces.readable(grad)})
        odd = [name for name, norm in norms.items() if not norm < float("inf") and not bool(grads[name].isfinite().all())]
        self._norms |= norms
        self._unfit(odd, ("its gradient is not finite", TAME), self.steps)

    def _unfit(self, names: Sequence[str], told: causes.Told, step: int) -> None:
        """Tell of what is not finite first; the rest follows from it."""
        if names and not any(event.kind == "non-finite" for event in self.events):
            self._tell("non-finite", names, told, step=step)

    def _missing(self) -> None:
        """Tell of tensors that are to train and that no optimizer holds."""
        held = self._stock.held()
        found = [
            name
            for name, tensor in self._stock.parameters.items()
            if name in self._stock.trains and tensor.requires_grad and id(tensor) not in held
            # Where nobody said that it is to train, a teacher into which nothing flows is no fault.
            if not self._stock.by_flag or tensor.grad is not None
        ]
        if found and self.steps:
            strangers = len(held.keys() - set(map(id, self._stock.parameters.values())))
            self._tell_each("not-held", dict.fromkeys(found, partial(causes.missing, strangers, len(held))))

    def _never_moved(self) -> None:
        """Tell of tensors that are to train and have not moved in some twenty steps."""
        found: dict[str, causes.Told] = {}
        cases = {name: self._case(name, self._norms.get(name)) for name in self._stock.never(self.steps, PATIENCE)}
        # A rate of 0 is a way to freeze, where nobody said otherwise; and where all have it, a schedule has not begun.
        waiting = self._stock.by_flag or (len(cases) == len(self._stock.trains) and not any(one.lr for one in cases.values()))
        for name, case in cases.items():
            told = causes.still(case)
            if told and not (waiting and case.learnt and not case.lr):
                found[name] = told
        self._tell_each("never-moved", {name: partial(_same, told) for name, told in found.items()})

    def _shock(self, now: traces.Sample) -> None:
        """Tell of a backbone that a fresh head has shocked."""
        body, at = self._body, alarms.GONE_BY
        way = self._stock.way(now, body) if body else 0.0
        if self._course.shocked(way):
            cause = f"the backbone went {100 * way:.0f} % of its length in {at} steps, under a head that knew nothing yet"
            self._tell("head-shock", body, (cause, "train the head alone first, then the rest at a lower rate"), since=0)

    def _heard(self, step: int, loss: float) -> None:
        """Judge a loss, by itself and against those before an unfreezing."""
        if not abs(loss) < float("inf"):
            self._unfit(["loss"], (f"the loss is {loss:g}", TAME), step)
        jump = self._course.heard(step, loss)
        if jump:
            count = len(jump.names)
            cause = (
                f"{count} tensors began to train at step {jump.at}; the loss went from {jump.before:.3g} to {jump.after:.3g}"
            )
            do = "a lower rate for what is unfrozen, with a warm-up; leave BatchNorm in evaluation mode"
            self._tell("loss-jump", jump.names, (cause, do), step=jump.seen, since=jump.at - 1)

    def _tell_each(
        self, kind: str, found: Mapping[str, Callable[[], causes.Told]], since: Mapping[str, int] | None = None
    ) -> None:
        """Tell of tensors, those of one cause and time together."""
        groups: dict[tuple[causes.Told, int], list[str]] = {}
        for name, why in found.items():
            if (kind, name) not in self._said:
                groups.setdefault((why(), since[name] if since else self._checked), []).append(name)
        for (told, last), names in groups.items():
            self._tell(kind, names, told, since=last)

    def _tell(
        self, kind: str, names: Sequence[str], told: causes.Told, *, step: int | None = None, since: int | None = None
    ) -> None:
        """Keep an event, once, and say so as was asked."""
        if (kind, names[0]) in self._said:
            return
        self._said |= {(kind, name) for name in names}
        step = max(self.steps, 1) if step is None else step
        cause, do = told
        event = Event(
            step=step,
            since=min(self._checked if since is None else since, step - 1),
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


def _same(told: causes.Told) -> causes.Told:
    return told
