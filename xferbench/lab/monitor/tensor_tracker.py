"""The tensors of a monitored model: which train, which are frozen, and which have moved. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xferbench.lab.models import backbones
from xferbench.lab.monitor import checksums, user_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from xferbench.lab.training.expected_changes import ExpectedChanges

MAX_FALSE_ALARMS = 3  # rises of a version counter without a change, after which only the regular checks compare the tensor


class TensorTracker:
    """Tracks tensors from the start of the training. It follows the loop, which may replace modules or change flags.

    Attributes:
        by_flag: whether ``requires_grad`` decides what trains, because there is no recipe.
        parameters: the parameters by name.
        layers: the layers with running statistics, by name.
        tensors: all tensors whose values can be read, by name.
        trainable: the names of the tensors that should train.
        frozen: the names of the tensors that should not change.
        training: the names of the trainable tensors that require a gradient and that an optimizer holds.
        since: for each tensor, the step whose values it is compared with.
        moved: the names of the trainable tensors that have moved.
        reported: the names of the frozen tensors whose movement has been reported.
    """

    def __init__(
        self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], expected: Sequence[ExpectedChanges]
    ) -> None:
        self.by_flag = not expected
        self.trainable: set[str] = set()
        self.frozen: set[str] = set()
        self.training: set[str] = set()
        self.since: dict[str, int] = {}
        self.moved: set[str] = set()
        self.reported: set[str] = set()
        self._model, self._optimizers, self._expected = model, optimizers, expected
        self._identities: dict[str, tuple[Any, ...]] = {}
        self._state: tuple[object, ...] = ()
        self._start_samples: dict[str, Tensor] = {}
        self._start_sums: dict[str, int] = {}
        self._versions: dict[str, int] = {}
        self._false_alarms: dict[str, int] = {}
        self.refresh(0)

    def refresh(self, step: int) -> tuple[str, ...]:
        """Collect the tensors again, and return the names of those that begin to train.

        The loop may have replaced modules or moved them to another device. The comparison of a new tensor starts here.
        """
        self.parameters, self.layers = user_model.named_parameters(self._model), user_model.statistics_layers(self._model)
        tensors: dict[str, Tensor] = dict(self.parameters)
        for name, layer in self.layers.items():
            tensors |= user_model.layer_statistics(name, layer)
        self.tensors = {name: tensor for name, tensor in tensors.items() if checksums.has_values(tensor)}
        identities = {name: (id(tensor), tensor.dtype, tensor.device, tensor.stride()) for name, tensor in self.tensors.items()}
        if identities != self._identities:
            new = {name for name in identities if self._identities.get(name) != identities[name]}
            self._identities, self._state = identities, ()
            self._start_comparison(new, step)
        return self.update_expectations(step)

    def _start_comparison(self, names: Iterable[str], step: int) -> None:
        """Record the current values of some tensors; later values are compared with them."""
        chosen = {name: self.tensors[name] for name in names if name in self.tensors}
        if chosen:
            self._start_samples.update(checksums.sample_tensors(chosen).values)
            self._start_sums.update(checksums.bit_sums(chosen))
        for name, tensor in chosen.items():
            self.since[name] = step
            self._versions[name] = tensor._version  # noqa: SLF001 - documented by torch's notes on autograd
            self.moved.discard(name)

    def update_expectations(self, step: int) -> tuple[str, ...]:
        """Split the tensors into trainable and frozen ones, if flags, parameter groups or the phase have changed.

        Returns:
            The names of the tensors that begin to train.
        """
        flags = tuple(tensor.requires_grad for tensor in self.parameters.values())
        phase = next((phase for phase in reversed(self._expected) if phase.first_step <= max(step, 1)), None)
        counts = tuple(len(group["params"]) for optimizer in self._optimizers for group in optimizer.param_groups)
        state = (flags, counts, phase)
        if state == self._state:
            return ()
        self._state = state
        tracked = self.trainable | self.frozen
        trainable = {name for name in self.parameters if self._is_trainable(name, phase)} & self.tensors.keys()
        frozen = {name for name in self.parameters if name not in trainable} & self.tensors.keys()
        frozen |= self._frozen_statistics(phase, trainable)
        # A tensor that changes sides is compared with its values of this step, and waits from this step on.
        self._start_comparison(((frozen - self.frozen) | (trainable - self.trainable)) & tracked, step)
        self.trainable, self.frozen = trainable, frozen
        groups = self.optimizer_groups()
        training = {name for name in trainable if self.parameters[name].requires_grad and id(self.parameters[name]) in groups}
        unfrozen = tuple(name for name in self.parameters if name in training - self.training)
        self.training = training
        return unfrozen

    def _is_trainable(self, name: str, phase: ExpectedChanges | None) -> bool:
        if phase is not None:
            return name in phase.trainable
        module, flag = self.flagged_module(name)
        return flag if module else self.parameters[name].requires_grad

    def _frozen_statistics(self, phase: ExpectedChanges | None, trainable: set[str]) -> set[str]:
        """Return the names of the running statistics that should not change."""
        if phase is None or phase.statistics is None:
            weights = {name: _own_parameters(name, layer) for name, layer in self.layers.items()}
            frozen = [name for name, names in weights.items() if names and not names & trainable]
        else:
            frozen = [name for name in self.layers if not backbones.is_within(name, phase.statistics)]
        names = {name for layer in frozen for name in user_model.layer_statistics(layer, self.layers[layer])}
        return names & self.tensors.keys()

    def flagged_module(self, name: str) -> tuple[str, bool]:
        """Return the innermost module above a tensor on which ``requires_grad`` was set as a plain attribute, and its value.

        The name is "" if there is no such module.
        """
        module: Any = self._model
        path, found = name.split("."), ("", False)
        for depth in range(len(path)):
            module = user_model.unwrap(getattr(module, path[depth - 1]) if depth else module)
            flag = vars(module).get("requires_grad")
            if isinstance(flag, bool):
                found = ".".join(path[:depth]) or "model", flag
        return found

    def optimizer_groups(self) -> dict[int, Mapping[str, Any]]:
        """Return the parameter group of every tensor that an optimizer holds, by the ``id`` of the tensor."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        return {id(tensor): group for group in groups for tensor in group["params"]}

    def find_written(self) -> set[str]:
        """Return the frozen tensors whose version counter has risen since the last call.

        The result includes all statistics of a layer if one of them was written, because in training mode only the version of
        BatchNorm's batch counter rises.
        """
        written = {name for name in self.frozen if self.tensors[name]._version != self._versions[name]}  # noqa: SLF001
        for name in written:
            self._versions[name] = self.tensors[name]._version  # noqa: SLF001
        layers = {name.rpartition(".")[0] for name in written} & self.layers.keys()
        siblings = {name for layer in layers for name in user_model.layer_statistics(layer, self.layers[layer])}
        return written | siblings & self.frozen

    def suspects(self, written: set[str]) -> set[str]:
        """Return the written tensors that are frozen and worth a comparison now."""
        return {name for name in written & self.frozen - self.reported if self._false_alarms.get(name, 0) < MAX_FALSE_ALARMS}

    def find_moved(self, sample: checksums.TensorSample, exact_names: set[str]) -> set[str]:
        """Return the names of the sampled tensors that have moved.

        Args:
            sample: current values.
            exact_names: tensors whose bits are all compared, if they are frozen.
        """
        moved = checksums.moved_tensors(sample, self._start_samples)
        self.moved |= moved & self.trainable
        unmoved = {name: self.tensors[name] for name in (exact_names & self.frozen) - moved}
        changed = self._find_changed(unmoved)
        for name in unmoved.keys() - changed:
            self._false_alarms[name] = self._false_alarms.get(name, 0) + 1
        return moved | changed

    def find_never_moved(self, step: int, patience: int) -> list[str]:
        """Return the names of the tensors that have been trainable for ``patience`` steps without a change of one bit.

        A tensor that requires no gradient needs no patience, because it cannot move.
        """
        groups = self.optimizer_groups()
        overdue = {
            name: self.tensors[name]
            for name in self.parameters
            if name in self.trainable - self.moved
            if step - self.since[name] >= (patience if self.tensors[name].requires_grad else 1)
            if id(self.tensors[name]) in groups or not self.tensors[name].requires_grad
        }
        self.moved |= self._find_changed(overdue)
        return [name for name in overdue if name not in self.moved]

    def _find_changed(self, tensors: Mapping[str, Tensor]) -> set[str]:
        sums = checksums.bit_sums(tensors)
        return {name for name in sums if sums[name] != self._start_sums[name]}

    def decay_factor(self, name: str, sample: checksums.TensorSample) -> float | None:
        """Return :func:`xferbench.lab.monitor.checksums.decay_factor` of a tensor, since its comparison started."""
        return checksums.decay_factor(sample.values[name], self._start_samples[name])

    def distance(self, sample: checksums.TensorSample, names: Sequence[str]) -> float:
        """Return :func:`xferbench.lab.monitor.checksums.relative_distance` of some tensors, since their comparison started."""
        sizes = {name: self.tensors[name].numel() for name in names}
        return checksums.relative_distance(sample.values, self._start_samples, sizes)


def _own_parameters(name: str, layer: nn.Module) -> set[str]:
    """Return the full names of a layer's parameters, without those of layers within it."""
    return {f"{name}.{key}".removeprefix(".") for key, _ in layer.named_parameters(recurse=False)}
