"""Batches that are a tensor, and batches that are a mapping of tensors."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from xferbench.core.errors import UserError
from xferbench.lab.data import batch
from xferbench.lab.models import backbones

PLAIN = torch.arange(12.0).view(4, 3)
WORDS = {"ids": torch.arange(8).view(4, 2), "mask": torch.ones(4, 2, dtype=torch.bool)}


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return torch.equal(one, other)


@pytest.mark.parametrize("whole", [PLAIN, WORDS], ids=["tensor", "mapping"])
def test_a_copy_is_equal_and_has_its_own_memory(whole):
    copy = batch.copy_batch(whole)
    assert same(copy, whole)
    one, own = (copy["ids"], whole["ids"]) if whole is WORDS else (copy, whole)
    assert one.data_ptr() != own.data_ptr()


@pytest.mark.parametrize("whole", [PLAIN, WORDS], ids=["tensor", "mapping"])
def test_zeros_have_the_requested_shape(whole):
    assert len({batch.example_shape(whole), batch.example_shape(batch.map_tensors(lambda tensor: tensor[:2], whole))}) == 1
    blank = batch.zeros(batch.example_shape(whole), 4, "cpu")
    assert same(blank, batch.map_tensors(torch.zeros_like, whole))


class Reader(nn.Module):
    """A network that averages the unmasked tokens and applies two layers."""

    def __init__(self):
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, text):
        weight = text["mask"].float()[..., None]
        return self.head(self.body((self.words(text["ids"]) * weight).sum(1) / weight.sum(1).clamp(min=1)).relu())


def test_a_network_with_mapping_inputs_has_a_layout():
    layout = backbones.layer_layout(Reader(), batch.example_shape(WORDS))
    assert (layout.head, layout.classes, [group.name for group in layout.groups]) == ("head", 3, ["words", "body"])


def test_the_error_for_an_unsupported_shape_names_it():
    with pytest.raises(UserError, match="3 × 24 × 40"):
        backbones.layer_layout(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), (3, 24, 40))
