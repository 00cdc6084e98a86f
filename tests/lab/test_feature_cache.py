"""Activations of a frozen part: computed once, cached by content, and never read from a partial file."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.func import functional_call

from xferbench.core.transforms import Preprocessing
from xferbench.lab.data import preprocessing
from xferbench.lab.training import feature_cache

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(mean=(0.5,), std=(0.25,))
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (130, 3, 6, 6), np.uint8))


def make_part():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU())


def copy_tensors(part):
    return {name: tensor.detach().clone() for name, tensor in part.state_dict().items()}


def compute(cache, part=None, tensors=None, images=IMAGES, form=PREPROCESSING):
    part = part or make_part()
    return feature_cache.compute_activations(part, tensors or copy_tensors(part), images, form, CPU, cache)


def list_files(cache):
    return sorted(path.name for path in (cache / "features").iterdir())


def test_activations_equal_the_output_in_eval_mode(tmp_path):
    part = make_part().train()
    tensors = {name: tensor + 0.1 if tensor.is_floating_point() else tensor for name, tensor in copy_tensors(part).items()}
    actual = compute(tmp_path, part, tensors)
    assert part.training, "its mode is restored"
    with torch.no_grad():
        expected = functional_call(part.eval(), tensors, (preprocessing.to_tensor(IMAGES, PREPROCESSING),))
    torch.testing.assert_close(actual, expected)
    assert actual.dtype == torch.float32


def test_the_second_call_reads_the_cache(tmp_path, monkeypatch):
    first = compute(tmp_path)
    old = tmp_path / "features" / list_files(tmp_path)[0]
    os.utime(old, (0, 0))
    monkeypatch.setattr(feature_cache, "functional_call", None)
    assert torch.equal(compute(tmp_path), first)
    assert old.stat().st_mtime > 0, "what is used counts as recent"


def test_the_cache_key_depends_on_every_input(tmp_path):
    part = make_part()
    tensors = copy_tensors(part)
    other = IMAGES.clone()
    other[0, 0, 0, 0] ^= 1
    strided = make_part()
    strided[0].stride = (2, 2)
    requests = [
        {},
        *({"tensors": tensors | {name: tensor + 1}} for name, tensor in tensors.items()),
        {"images": other},
        {"images": IMAGES[:129]},
        {"images": IMAGES.permute(0, 1, 3, 2)},
        *({"form": replace(PREPROCESSING, **change)} for change in ({"mean": (0.4,)}, {"scale": 1.0}, {"channels": "bgr"})),
        {"part": strided, "tensors": tensors},
    ]
    for number, request in enumerate(requests, start=1):
        compute(tmp_path, **request)
        assert len(list_files(tmp_path)) == number, request.keys()
    compute(tmp_path, part, tensors)
    assert len(list_files(tmp_path)) == len(requests)


def test_the_cache_key_depends_on_the_version(tmp_path, monkeypatch):
    compute(tmp_path)
    monkeypatch.setattr(feature_cache, "LAB_VERSION", feature_cache.LAB_VERSION + 1)
    compute(tmp_path)
    monkeypatch.setattr(torch, "__version__", "0.0.0")
    compute(tmp_path)
    assert len(list_files(tmp_path)) == 3


def test_a_missing_tensor_is_an_error(tmp_path):
    part = make_part()
    tensors = copy_tensors(part)
    del tensors["0.weight"]
    with pytest.raises(KeyError, match="weight"):
        compute(tmp_path, part, tensors)


def test_large_activations_are_not_cached(tmp_path, monkeypatch):
    size = compute(tmp_path / "a").nbytes
    monkeypatch.setattr(feature_cache, "MAX_CACHED_BYTES", size - 1)
    assert torch.equal(compute(tmp_path / "b"), compute(tmp_path / "a"))
    assert not (tmp_path / "b").exists()


def test_a_full_disk_is_an_os_error_and_leaves_no_files(tmp_path, monkeypatch):
    def raise_full_disk(file, array):
        file.write(array.tobytes()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", raise_full_disk)
    with pytest.raises(OSError, match="No space left"):
        compute(tmp_path)
    assert list_files(tmp_path) == []


def write_until_killed(cache):
    def write_partially(file, array):
        file.write(array.tobytes()[:100])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    np.save = write_partially
    feature_cache._save(np.zeros(1000), cache / "features" / "x.npy")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child only writes and dies
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that can be killed")
def test_a_partial_file_is_never_read(tmp_path):
    process = get_context("fork").Process(target=write_until_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (leftover,) = list_files(tmp_path)
    assert leftover != "x.npy"
    assert not leftover.endswith(".npy")


def raise_in_evaluation_mode(part):
    with feature_cache.evaluation_mode(part, CPU):
        assert not any(layer.training for layer in part.modules())
        assert not torch.is_grad_enabled()
        raise RuntimeError("on purpose")


def test_evaluation_mode_restores_modes_even_after_an_exception():
    part = make_part().train()
    part[1].eval()
    with pytest.raises(RuntimeError, match="on purpose"):
        raise_in_evaluation_mode(part)
    assert [layer.training for layer in part] == [True, False, True, True]
    assert torch.is_grad_enabled()


def test_only_cuda_uses_bfloat16():
    with feature_cache.autocast(CPU):
        assert make_part()(torch.ones(2, 3, 6, 6)).dtype == torch.float32
