"""Preprocess examples in two steps: the geometry, which is applied once and stored, and the values. Imports torch.

A kind of example is a value type in :mod:`xferbench.core.transforms`, and a module with the three functions of this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.core.transforms import InputTransform, Preprocessing, Spectrogram, Tokens
from xferbench.lab.data import images, spectrograms, tokens

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    from torch import Tensor

    from xferbench.data.raw import DecodedExample
    from xferbench.lab.data.batch import Batch


IMPLEMENTATIONS: dict[type[InputTransform], ModuleType] = {
    Preprocessing: images,
    Spectrogram: spectrograms,
    Tokens: tokens,
}


def _implementation(preprocessing: InputTransform) -> ModuleType:
    """Return the module of a kind of example.

    Raises:
        TypeError: If the kind is unknown.
    """
    if type(preprocessing) not in IMPLEMENTATIONS:
        raise TypeError(type(preprocessing).__name__)
    return IMPLEMENTATIONS[type(preprocessing)]


def geometry_key(preprocessing: InputTransform) -> InputTransform:
    """Return the part of a preprocessing on which stored examples depend."""
    key: InputTransform = _implementation(preprocessing).geometry_key(preprocessing)
    return key


def apply_geometry(example: DecodedExample, preprocessing: InputTransform) -> np.ndarray:
    """Apply the geometry of a preprocessing to an example, and return the array to store.

    Raises:
        UserError: If the kind of example is not supported.
    """
    stored: np.ndarray = _implementation(preprocessing).store_example(preprocessing, example)
    return stored


def to_tensor(batch: Tensor, preprocessing: InputTransform) -> Batch:
    """Return a batch of stored examples as the input of a network: a float32 tensor, or a mapping of tensors.

    Raises:
        UserError: If the preprocessing cannot be used.
    """
    prepared: Batch = _implementation(preprocessing).prepare_batch(preprocessing, batch)
    return prepared
