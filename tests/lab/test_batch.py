"""Batches that are a tensor, and batches that are a mapping of tensors."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from xferbench.core.errors import UserError
from xferbench.lab.data import batch
from xferbench.lab.models import backbones

PLAIN = torch.arange(12.0).view(4, 3)
TOKENS = {"ids": torch.arange(8).view(4, 2), "mask": torch.ones(4, 2, dtype=torch.bool)}


def is_equal(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    return torch.equal(first, second)


@pytest.mark.parametrize("original", [PLAIN, TOKENS], ids=["tensor", "mapping"])
def test_a_copy_is_equal_and_has_its_own_memory(original):
    copy = batch.copy_batch(original)
    assert is_equal(copy, original)
    copied_tensor, original_tensor = (copy["ids"], original["ids"]) if original is TOKENS else (copy, original)
    assert copied_tensor.data_ptr() != original_tensor.data_ptr()


@pytest.mark.parametrize("original", [PLAIN, TOKENS], ids=["tensor", "mapping"])
def test_zeros_have_the_requested_shape(original):
    assert (
        len({batch.example_shape(original), batch.example_shape(batch.map_tensors(lambda tensor: tensor[:2], original))}) == 1
    )
    blank = batch.zeros(batch.example_shape(original), 4, "cpu")
    assert is_equal(blank, batch.map_tensors(torch.zeros_like, original))


class Reader(nn.Module):
    """A network that averages the unmasked tokens and applies two layers."""

    def __init__(self):
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, text):
        weight = text["mask"].float()[..., None]
        return self.head(self.body((self.words(text["ids"]) * weight).sum(1) / weight.sum(1).clamp(min=1)).relu())


def test_a_network_with_mapping_inputs_has_a_layout():
    layout = backbones.layer_layout(Reader(), batch.example_shape(TOKENS))
    assert (layout.head, layout.classes, [group.name for group in layout.groups]) == ("head", 3, ["words", "body"])


def test_the_error_for_an_unsupported_shape_names_it():
    with pytest.raises(UserError, match="3 × 24 × 40"):
        backbones.layer_layout(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), (3, 24, 40))
