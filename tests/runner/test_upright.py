"""The EXIF orientation of files in the pipeline that is studied."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xferbench.core.canonical import digest
from xferbench.core.plugin import DataProfile
from xferbench.core.transforms import Preprocessing, Spectrogram
from xferbench.runner.profile import turn_upright

DATA = DataProfile(classes=("a", "b"), train=4, validation=4, test=9, test_groups=None)
ROTATED = replace(DATA, rotated=1)


@pytest.mark.parametrize(
    ("stated", "data", "expected"),
    [("auto", ROTATED, "upright"), ("auto", DATA, "auto"), ("stored", ROTATED, "stored"), ("upright", DATA, "upright")],
)
def test_files_are_turned_upright_if_nothing_else_is_stated(stated, data, expected):
    assert turn_upright(Preprocessing(orientation=stated), data).orientation == expected


def test_spectrograms_have_no_orientation():
    assert turn_upright(Spectrogram(), ROTATED) == Spectrogram()


def test_the_key_of_a_preprocessing_without_an_orientation_stays():
    assert digest(Preprocessing()) == digest(Preprocessing(orientation="auto"))
    assert digest(Preprocessing(orientation="upright")) != digest(Preprocessing())
