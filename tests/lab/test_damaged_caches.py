"""A cached file that a power failure or a full disk has cut is made again, with the same content."""

from __future__ import annotations

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_feature_cache import compute

from xferbench.core.transforms import Preprocessing
from xferbench.data import fingerprints, leaks
from xferbench.lab.data import datasets


def cut(folder, name, size):
    """Cut all files of this name to a number of bytes; negative: by so many."""
    paths = [path for path in folder.rglob(name) if path.is_file()]
    assert paths
    for path in paths:
        os.truncate(path, min(path.stat().st_size, size) if size >= 0 else path.stat().st_size + size)


@pytest.mark.parametrize("name", ["images.npy", "rest.npz", "about.json"])
@pytest.mark.parametrize("size", [0, 60, -20])
def test_a_damaged_dataset_is_decoded_again(tmp_path, name, size):
    data = make_npz(tmp_path / "d.npz")

    def load():
        return datasets.load_dataset(data, Preprocessing(), None, tmp_path / "cache")

    images, labels = np.array(load().test.images), load().train.labels
    cut(tmp_path / "cache", name, size)
    again = load()
    assert np.array_equal(again.test.images, images) and np.array_equal(again.train.labels, labels)
    assert not [path for path in (tmp_path / "cache" / "data").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("size", [0, 100, -4])
def test_damaged_activations_are_computed_again(tmp_path, size):
    first = compute(tmp_path)
    cut(tmp_path / "features", "*.npy", size)
    assert torch.equal(compute(tmp_path), first)
    assert torch.equal(compute(tmp_path), first)


@pytest.mark.parametrize("size", [100])
def test_damaged_fingerprints_and_copies_are_computed_again(tmp_path, size):
    data = make_npz(tmp_path / "d.npz")
    first = fingerprints.dataset_fingerprints(data, "test", tmp_path)
    recall = leaks.search_recall(data, None, (), tmp_path)
    cut(tmp_path / "prints", "*.npz", size)
    again = fingerprints.dataset_fingerprints(data, "test", tmp_path)
    assert np.array_equal(again.bits, first.bits)
    counts = leaks.search_recall(data, None, (), tmp_path)
    assert all(np.array_equal(counts[name], recall[name]) for name in recall)


def test_a_full_disk_names_the_cache_folder(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("1000 requested and 12 written")  # as NumPy says it

    monkeypatch.setattr(datasets.np, "save", fail)
    with pytest.raises(OSError, match=str(tmp_path / "cache" / "data")) as error:
        datasets.load_dataset(make_npz(tmp_path / "d.npz"), Preprocessing(), None, tmp_path / "cache")
    assert "1000 requested" in str(error.value)


def test_the_time_of_an_example_is_that_of_the_processor(monkeypatch):
    """A budget is planned with this time, which the clock on the wall would lengthen on a busy machine."""
    from xferbench.lab.worker import profile

    seconds = iter([10.0, 11.0, 14.0])
    monkeypatch.setattr(profile, "process_time", lambda: next(seconds))
    monkeypatch.setattr(profile, "perf_counter", None)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    assert profile._time_batch(module, torch.rand(2, 3, 2, 2), torch.zeros(2, dtype=torch.long)) == (1.0, 3.0)
