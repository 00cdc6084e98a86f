"""What a pipeline's preprocessing leaves open: the EXIF orientation of files, and the tokenizer of texts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xferbench.core.canonical import digest
from xferbench.core.plugin import DataProfile, ModelProfile, Profile
from xferbench.core.transforms import Preprocessing, Spectrogram, Tokens
from xferbench.runner.profile import complete_transform

DATA = DataProfile(classes=("a", "b"), train=4, validation=4, test=9, test_groups=None)
ROTATED = replace(DATA, rotated=1)


def profile(data, recorded):
    model = ModelProfile(parameters=1, groups=(), head="", batchnorm=())
    return Profile(model=model, data=data, preprocessing=recorded)


@pytest.mark.parametrize(
    ("stated", "data", "expected"),
    [("auto", ROTATED, "upright"), ("auto", DATA, "auto"), ("stored", ROTATED, "stored"), ("upright", DATA, "upright")],
)
def test_files_are_turned_upright_if_nothing_else_is_stated(stated, data, expected):
    assert complete_transform(Preprocessing(orientation=stated), profile(data, Preprocessing())).orientation == expected


def test_spectrograms_have_no_orientation():
    assert complete_transform(Spectrogram(), profile(ROTATED, Spectrogram())) == Spectrogram()


def test_texts_get_the_tokenizer_of_the_weights():
    recorded = Tokens(tokenizer="digest", tokenizer_path="folder", lowercase=False, max_length=40)
    completed = complete_transform(Tokens(padding="left"), profile(DATA, recorded))
    assert completed == replace(recorded, padding="left")
    assert completed.tokenizer_path == "folder"


def test_the_key_of_a_preprocessing_without_an_orientation_stays():
    assert digest(Preprocessing()) == digest(Preprocessing(orientation="auto"))
    assert digest(Preprocessing(orientation="upright")) != digest(Preprocessing())
