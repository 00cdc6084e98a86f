from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from xferbench.core import array_file


def packed(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    file.seek(0)
    return file


def test_plain_arrays_are_read_unchanged():
    arrays = {"numbers": np.arange(6.0).reshape(2, 3), "names": np.array(["a", "bc"]), "flag": np.array(True)}
    read = array_file.read_arrays(packed(**arrays))
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


@pytest.mark.parametrize("array", [np.zeros(2, complex), np.array(["2026-01-01"], "M8[D]"), np.zeros((1,) * 5)])
def test_other_arrays_are_refused(array):
    with pytest.raises(ValueError, match="an array of"):
        array_file.read_arrays(packed(array=array))


def test_an_array_must_have_the_size_that_it_claims():
    content = io.BytesIO()
    np.save(content, np.zeros(4))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", content.getvalue()[:-8])
    with pytest.raises(ValueError, match="bytes for an array of float64"):
        array_file.read_arrays(file)


def test_large_files_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr(array_file, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        array_file.read_arrays(packed(zeros=np.zeros(1000)))
