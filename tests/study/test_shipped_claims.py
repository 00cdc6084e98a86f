"""Claims of the tutorials that are properties of PyTorch."""

from __future__ import annotations

import torch
from torch import nn


def is_block_unchanged_by_training(make_optimizer, *, zeroed):
    block, head = nn.Linear(3, 3), nn.Linear(3, 2)
    for parameter in block.parameters():
        parameter.requires_grad_(False)
        parameter.grad = torch.zeros_like(parameter) if zeroed else None
    before = [parameter.clone() for parameter in block.parameters()]
    optimizer = make_optimizer([*block.parameters(), *head.parameters()], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        head.zero_grad()
        head(block(torch.ones(1, 3))).sum().backward()
        optimizer.step()
    return all(torch.equal(old, new) for old, new in zip(before, block.parameters(), strict=True))


def test_an_optimizer_leaves_a_frozen_block_without_gradients_unchanged():
    assert is_block_unchanged_by_training(torch.optim.SGD, zeroed=False) and is_block_unchanged_by_training(
        torch.optim.AdamW, zeroed=False
    )


def test_an_optimizer_decays_a_frozen_block_whose_gradients_are_zero():
    assert not is_block_unchanged_by_training(torch.optim.SGD, zeroed=True) and not is_block_unchanged_by_training(
        torch.optim.AdamW, zeroed=True
    )
