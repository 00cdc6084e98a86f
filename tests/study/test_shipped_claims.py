"""Claims of tutorials that are facts about PyTorch, and need no experiment."""

from __future__ import annotations

import torch
from torch import nn


def stepped(optimizer, *, zeroed):
    block, head = nn.Linear(3, 3), nn.Linear(3, 2)
    for one in block.parameters():
        one.requires_grad_(False)
        one.grad = torch.zeros_like(one) if zeroed else None
    before = [one.clone() for one in block.parameters()]
    own = optimizer([*block.parameters(), *head.parameters()], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        head.zero_grad()
        head(block(torch.ones(1, 3))).sum().backward()
        own.step()
    return all(torch.equal(was, now) for was, now in zip(before, block.parameters(), strict=True))


def test_an_optimizer_that_is_handed_a_frozen_block_changes_nothing_of_it():
    assert stepped(torch.optim.SGD, zeroed=False) and stepped(torch.optim.AdamW, zeroed=False)


def test_but_it_decays_what_still_has_a_gradient_of_zero():
    assert not stepped(torch.optim.SGD, zeroed=True) and not stepped(torch.optim.AdamW, zeroed=True)
