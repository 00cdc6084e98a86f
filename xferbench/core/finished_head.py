"""The head of a finished network, as the tensors of a checkpoint describe it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLayer:
    """One layer of a head.

    Attributes:
        kind: ``linear``, ``batchnorm``, ``layernorm``, ``prelu``; or a layer without tensors, an activation or ``identity``.
        name: the name of the layer in the checkpoint; "" for a layer without tensors.
        parts: the names of its tensors, such as ``weight``.
        inputs, outputs: numbers of features.
    """

    tag: ClassVar[str] = "HeadLayer"
    kind: str
    name: str = ""
    parts: tuple[str, ...] = ()
    inputs: int = 0
    outputs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedHead:
    """A head that differs from the one of the architecture.

    Attributes:
        place: the module of the architecture that the layers replace.
        layers: the layers, from the features to the logits. The last one is linear.
        has_max_pooling: whether the features are the maximum and the average of each map, not the average only.
    """

    tag: ClassVar[str] = "FinishedHead"
    place: str
    layers: tuple[HeadLayer, ...]
    has_max_pooling: bool = False

    @property
    def outputs(self) -> int:
        """The number of outputs in the checkpoint."""
        return self.layers[-1].outputs
