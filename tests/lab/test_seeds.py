"""Random streams: one per purpose and seed."""

from __future__ import annotations

import random

import numpy as np
import pytest

from xferbench.lab.training import seeds

PURPOSES = (seeds.SUBSET, seeds.HEAD, seeds.ORDER, seeds.INIT, seeds.DROPOUT, seeds.LABELS)


def test_streams_are_reproducible_and_independent():
    first = seeds.numpy_stream(3, seeds.ORDER, 1)
    seeds.numpy_stream(3, seeds.SUBSET).random(1000)
    assert (first.random(5) == seeds.numpy_stream(3, seeds.ORDER, 1).random(5)).all()


def test_each_seed_purpose_and_phase_has_its_own_stream():
    torch_seeds = {(seed, purpose): seeds.torch_seed(seed, purpose) for seed in range(50) for purpose in PURPOSES}
    assert len(set(torch_seeds.values())) == len(torch_seeds)
    assert len({seeds.numpy_stream(0, seeds.ORDER, phase).integers(2**62) for phase in range(20)}) == 20


def test_torch_accepts_the_seed():
    assert all(0 <= seeds.torch_seed(seed, seeds.HEAD) < 2**63 for seed in (0, 1_000_002))


def test_the_draws_of_a_seed_never_change():
    # They are in no key: were they to change, records of the same key would differ.
    assert seeds.numpy_stream(0, seeds.SUBSET).integers(1000, size=3).tolist() == [850, 636, 511]


def test_global_streams_are_seeded_and_restored():
    torch = pytest.importorskip("torch")

    def drawn():
        return random.random(), np.random.random(), float(torch.rand(()))  # noqa: NPY002 - the global stream is meant

    def seed_all():
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002 - likewise
        torch.manual_seed(5)

    seed_all()
    expected = drawn()
    seed_all()
    actual = []
    for value in (2**62, 2**62, 3):
        with seeds.seed_global_streams(value):
            actual.append(drawn())
    assert actual[0] == actual[1] != actual[2]
    assert drawn() == expected
