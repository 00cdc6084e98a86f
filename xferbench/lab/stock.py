"""The tensors of a watched model: which are to train and which to stay, how they looked, and which have moved since."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xferbench.lab import beliefs, traces

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from xferbench.lab.beliefs import Belief

BLINKS = 3  # times that a version may rise for nothing before only the regular checks look


class Stock:
    """Taken at the start and kept up with what the loop does to the model, since modules and flags may change.

    Attributes:
        parameters: by name; layers: those with running statistics; now: all tensors that can be read.
        trains, frozen: names of those that are to train, and to stay; learning: that do train and are held.
        since: the step from which a tensor is compared with how it looked then.
        gone: names of those that are to train and have moved; known: frozen ones whose movement has been told.
    """

    def __init__(
        self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], believed: Sequence[Belief], *, by_flag: bool
    ) -> None:
        self.by_flag = by_flag
        self.trains: set[str] = set()
        self.frozen: set[str] = set()
        self.learning: set[str] = set()
        self.since: dict[str, int] = {}
        self.gone: set[str] = set()
        self.known: set[str] = set()
        self._model, self._optimizers, self._believed = model, optimizers, believed
        self._marks: dict[str, tuple[Any, ...]] = {}
        self._state: tuple[object, ...] = ()
        self._base: dict[str, Tensor] = {}
        self._sums: dict[str, int] = {}
        self._versions: dict[str, int] = {}
        self._blinks: dict[str, int] = {}
        self.refresh(0)

    def refresh(self, step: int) -> tuple[str, ...]:
        """Find the tensors again, since modules may have been replaced or brought elsewhere; new ones start here."""
        self.parameters, self.layers = beliefs.parameters(self._model), beliefs.layers(self._model)
        every: dict[str, Tensor] = dict(self.parameters)
        for name, layer in self.layers.items():
            every |= beliefs.statistics(name, layer)
        self.now = {name: tensor for name, tensor in every.items() if traces.readable(tensor)}
        marks = {name: (id(one), one.dtype, one.device, one.stride()) for name, one in self.now.items()}
        if marks != self._marks:
            new = {name for name in marks if self._marks.get(name) != marks[name]}
            self._marks, self._state = marks, ()
            self._start(new, step)
        return self.settle(step)

    def _start(self, names: Iterable[str], step: int) -> None:
        """Take some tensors as they are for what they are to stay, or to leave."""
        chosen = {name: self.now[name] for name in names if name in self.now}
        if chosen:
            self._base.update(traces.sample(chosen).parts)
            self._sums.update(traces.sums(chosen))
        for name, tensor in chosen.items():
            self.since[name] = step
            self._versions[name] = tensor._version  # noqa: SLF001 - documented by torch's notes on autograd
            self.gone.discard(name)

    def settle(self, step: int) -> tuple[str, ...]:
        """Part the tensors anew, where flags, groups or belief have changed; names of those that begin to learn."""
        flags = tuple(tensor.requires_grad for tensor in self.parameters.values())
        belief = next(one for one in self._believed if max(step, 1) <= one.last)
        counts = tuple(len(group["params"]) for optimizer in self._optimizers for group in optimizer.param_groups)
        state = (flags, counts, belief)
        if state == self._state:
            return ()
        self._state = state
        before = self.trains | self.frozen
        trains = {name for name in self.parameters if self._to_train(name, belief)} & self.now.keys()
        frozen = {name for name in self.parameters if name not in trains} & self.now.keys()
        frozen |= self._statistics(belief, trains)
        # What comes to rest starts from here; what begins to train has its patience from here.
        self._start(((frozen - self.frozen) | (trains - self.trains)) & before, step)
        self.trains, self.frozen = trains, frozen
        held = self.held()
        learning = {name for name in trains if self.parameters[name].requires_grad and id(self.parameters[name]) in held}
        grown = tuple(name for name in self.parameters if name in learning - self.learning)
        self.learning = learning
        return grown

    def _to_train(self, name: str, belief: Belief) -> bool:
        if belief.trainable is not None:
            return name in belief.trainable
        return self.parameters[name].requires_grad and not self.marked(name)

    def _statistics(self, belief: Belief, trains: set[str]) -> set[str]:
        """Names of the running statistics that are to stay."""
        found: set[str] = set()
        for name, layer in self.layers.items():
            own = {f"{name}.{key}".removeprefix(".") for key, _ in layer.named_parameters(recurse=False)}
            moving = bool(own & trains) or not own if belief.moving is None else belief.moving
            found |= set() if moving else beliefs.statistics(name, layer).keys() & self.now.keys()
        return found

    def marked(self, name: str) -> str:
        """The module above a tensor on which ``requires_grad = False`` was set as a plain attribute, or ""."""
        module: Any = self._model
        path = name.split(".")
        for at in range(len(path)):
            module = beliefs.bare(getattr(module, path[at - 1]) if at else module)
            if vars(module).get("requires_grad") is False:
                return ".".join(path[:at]) or "model"
        return ""

    def held(self) -> dict[int, Mapping[str, Any]]:
        """The group of every tensor that an optimizer holds, by the tensor's identity."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        return {id(tensor): group for group in groups for tensor in group["params"]}

    def written(self) -> set[str]:
        """Frozen tensors whose version has risen since the last look, with the statistics beside them.

        Of a BatchNorm layer only the counter's version rises in training mode.
        """
        found = {name for name in self.frozen if self.now[name]._version != self._versions[name]}  # noqa: SLF001
        for name in found:
            self._versions[name] = self.now[name]._version  # noqa: SLF001
        layers = {name.rpartition(".")[0] for name in found} & self.layers.keys()
        beside = {name for layer in layers for name in beliefs.statistics(layer, self.layers[layer])}
        return found | beside & self.frozen

    def suspects(self, written: set[str]) -> set[str]:
        """Of frozen tensors that were written those that are worth a look now."""
        return {name for name in written & self.frozen - self.known if self._blinks.get(name, 0) < BLINKS}

    def moved(self, now: traces.Sample, exactly: set[str]) -> set[str]:
        """Names of the sampled tensors that are not as they were; of some, every bit is compared."""
        found = traces.moved(now, self._base)
        self.gone |= found & self.trains
        still = {name: self.now[name] for name in (exactly & self.frozen) - found}
        changed = self._changed(still)
        for name in still.keys() - changed:
            self._blinks[name] = self._blinks.get(name, 0) + 1
        return found | changed

    def never(self, step: int, patience: int) -> list[str]:
        """Names of those that have been to train for some steps without one bit of them moving."""
        held = self.held()
        late = {
            name: self.now[name]
            for name in self.parameters
            if name in self.trains - self.gone and step - self.since[name] >= patience
            if id(self.now[name]) in held or not self.now[name].requires_grad
        }
        self.gone |= self._changed(late)
        return [name for name in late if name not in self.gone]

    def _changed(self, tensors: Mapping[str, Tensor]) -> set[str]:
        sums = traces.sums(tensors)
        return {name for name in sums if sums[name] != self._sums[name]}

    def shrunk(self, name: str, now: traces.Sample) -> float | None:
        """As :func:`xferbench.lab.traces.shrunk`, since it was last still."""
        return traces.shrunk(now.parts[name], self._base[name])

    def way(self, now: traces.Sample, names: Sequence[str]) -> float:
        """As :func:`xferbench.lab.traces.distance`, since they began to train."""
        return traces.distance(now.parts, self._base, {name: self.now[name].numel() for name in names})
