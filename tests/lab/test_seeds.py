"""Random streams: one for each purpose of each seed."""

from __future__ import annotations

import random

import numpy as np
import pytest

from xferbench.lab.training import seeds

PURPOSES = (seeds.SUBSET, seeds.HEAD, seeds.ORDER, seeds.INIT, seeds.DROPOUT, seeds.LABELS)


def test_a_stream_is_the_same_each_time_and_draws_in_one_do_not_shift_another():
    first = seeds.numpy_stream(3, seeds.ORDER, 1)
    seeds.numpy_stream(3, seeds.SUBSET).random(1000)
    assert (first.random(5) == seeds.numpy_stream(3, seeds.ORDER, 1).random(5)).all()


def test_no_two_seeds_purposes_or_phases_share_a_stream():
    told = {(seed, purpose): seeds.torch_seed(seed, purpose) for seed in range(50) for purpose in PURPOSES}
    assert len(set(told.values())) == len(told)
    assert len({seeds.numpy_stream(0, seeds.ORDER, phase).integers(2**62) for phase in range(20)}) == 20


def test_a_number_is_a_seed_that_torch_takes():
    assert all(0 <= seeds.torch_seed(seed, seeds.HEAD) < 2**63 for seed in (0, 1_000_002))


def test_the_numbers_behind_a_seed_never_change():
    # They are in no key: were they to change, records of the same key would differ.
    assert seeds.numpy_stream(0, seeds.SUBSET).integers(1000, size=3).tolist() == [850, 636, 511]


def test_the_global_streams_are_seeded_within_and_put_back_after():
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
    found = []
    for value in (2**62, 2**62, 3):
        with seeds.seed_global_streams(value):
            found.append(drawn())
    assert found[0] == found[1] != found[2]
    assert drawn() == expected
