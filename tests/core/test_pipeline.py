from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xferbench.core.canonical import canonical, digest
from xferbench.core.interventions import BATCHNORM_EVAL, HEAD_ONLY, PRETRAINED, RANDOM_HEAD, Head, RestoreBatchNorm
from xferbench.core.pipeline import Data, Phase, Preprocessing, Recipe, ScratchGrid, WeightsFile
from xferbench.core.trial import ComputeContext, EvaluationSpec, ModelSpec, TrainingSpec, Trial

FIT = TrainingSpec(
    arch="tiny-resnet",
    init=PRETRAINED,
    start=WeightsFile(digest="ab" * 32, path="/one/place.safetensors"),
    head=RANDOM_HEAD,
    phases=(Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, lr=1e-2), Phase(lr=1e-3, head_lr=3e-3, steps=75)),
    data=Data(digest="cd" * 32, spec="folder:/one/place"),
    train_size=200,
    preprocessing=Preprocessing(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    seed=3,
)
TRIAL = Trial(
    model=ModelSpec(base=FIT, edits=(RestoreBatchNorm(),)),
    view=EvaluationSpec(limit=1000, preprocessing=Preprocessing()),
    context=ComputeContext(device="cpu", torch="2.6", lab=1),
)


@dataclass(frozen=True, kw_only=True)
class Noun:
    tag: ClassVar[str] = "Noun"
    number: float = 1.0
    later: str = field(default="as before", metadata={"added": True})


def test_the_canonical_form_is_what_stores_were_written_with():
    """A change here makes every record in every store unreachable: raise the lab's version instead, if numbers changed."""
    assert digest(FIT) == "9cd39041faaca5e93145658f985f67a3c489486620b522a98db9c3d44a0b24a8"
    assert TRIAL.key == "dec438e6e72cf5ba656fcebbf03c7ecd04d05f5449d47815b34ffb2911a85c37"


def test_a_key_is_the_same_in_another_process():
    code = "from test_pipeline import TRIAL; print(TRIAL.key)"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=__file__.rpartition("/")[0], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == TRIAL.key


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (1.0, 1.0000001), (0.1 + 0.2, 0.3), (1e-3, 0.001), (10**6, 1e6), (0.0, -0.0)]
)
def test_numbers_that_agree_to_six_digits_are_one_content(one, other):
    assert json.dumps(canonical(one)) == json.dumps(canonical(other))


def test_numbers_that_differ_in_the_sixth_digit_are_two():
    assert digest(1.00001) != digest(1.0)
    assert digest(1) != digest(True), "a flag is no number"
    assert digest("1") != digest(1)


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_rounding_a_number_again_changes_nothing(value):
    assert canonical(canonical(value)) == canonical(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), {1, 2}, object(), b"bytes", Noun])
def test_what_has_no_canonical_form_makes_no_key(value):
    with pytest.raises(TypeError, match="no canonical form"):
        digest(replace(Noun(), number=value))


def test_a_nan_deep_inside_a_trial_makes_no_key():
    broken = replace(FIT, phases=(Phase(lr=float("nan")),))
    with pytest.raises(TypeError, match="no canonical form for nan"):
        _ = replace(TRIAL, model=ModelSpec(base=broken)).key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (FIT, replace(FIT, start=WeightsFile(digest="ab" * 32, path="/elsewhere"))),
        (FIT, replace(FIT, data=Data(digest="cd" * 32, spec="folder:/elsewhere"))),
        (Recipe(), Recipe(name="what people call it")),
    ],
)
def test_where_a_content_lies_and_what_it_is_called_are_no_content(one, other):
    assert digest(one) == digest(other)
    assert one == other


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 4},
        {"head": Head.parse("zero")},
        {"train_size": None},
        {"labels": "shuffled"},
        {"start": None},
        {"start": FIT},
        {"phases": FIT.phases[::-1]},
        {"data": Data(digest="ef" * 32)},
        {"preprocessing": replace(FIT.preprocessing, channels="bgr")},
    ],
)
def test_everything_else_about_a_fit_is_content(changed):
    assert digest(replace(FIT, **changed)) != digest(FIT)


@pytest.mark.parametrize("name", ["device", "torch", "lab"])
def test_where_a_trial_was_computed_is_part_of_its_key(name):
    assert replace(TRIAL, context=replace(TRIAL.context, **{name: "another"})).key != TRIAL.key


def test_a_field_that_was_added_later_counts_only_where_it_is_used():
    assert canonical(Noun()) == {"noun": "Noun", "number": 1}
    assert canonical(Noun(later="new")) == {"noun": "Noun", "number": 1, "later": "new"}


def test_two_nouns_with_the_same_fields_are_two_contents():
    assert digest(WeightsFile(digest="x")) != digest(Data(digest="x"))


def test_the_order_in_a_mapping_is_no_content_but_that_in_a_list_is():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert digest((1, 2)) == digest([1, 2])


@pytest.mark.parametrize("noun", [FIT, TRIAL, Phase(), ScratchGrid(), Recipe()])
def test_nouns_cannot_be_changed(noun):
    first = fields(noun)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(noun, first, None)
