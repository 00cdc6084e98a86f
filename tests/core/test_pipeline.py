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
from xferbench.core.pipeline import Data, Phase, Recipe, ScratchGrid, WeightsFile
from xferbench.core.sections import replace_flat
from xferbench.core.transforms import Preprocessing
from xferbench.core.trial import (
    ComputeContext,
    EvaluationSpec,
    InitialNetwork,
    ModelSpec,
    TrainingData,
    TrainingProcedure,
    TrainingSpec,
    Trial,
)

SPEC = TrainingSpec(
    network=InitialNetwork(
        arch="tiny-resnet",
        init=PRETRAINED,
        start=WeightsFile(digest="ab" * 32, path="/one/place.safetensors"),
        head=RANDOM_HEAD,
    ),
    data=TrainingData(
        dataset=Data(digest="cd" * 32, spec="folder:/one/place"),
        train_size=200,
        preprocessing=Preprocessing(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ),
    procedure=TrainingProcedure(
        phases=(Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, lr=1e-2), Phase(lr=1e-3, head_lr=3e-3, steps=75))
    ),
    seed=3,
)
TRIAL = Trial(
    model=ModelSpec(base=SPEC, edits=(RestoreBatchNorm(),)),
    view=EvaluationSpec(limit=1000, preprocessing=Preprocessing()),
    context=ComputeContext(device="cpu", torch="2.6", lab=1),
)


@dataclass(frozen=True, kw_only=True)
class Tagged:
    tag: ClassVar[str] = "Noun"
    number: float = 1.0
    later: str = field(default="as before", metadata={"added": True})


def test_keys_equal_those_in_existing_stores():
    """A change of a key makes every stored record unreachable; if numbers change, raise the version of the lab instead."""
    assert digest(SPEC) == "9cd39041faaca5e93145658f985f67a3c489486620b522a98db9c3d44a0b24a8"
    assert TRIAL.key == "dec438e6e72cf5ba656fcebbf03c7ecd04d05f5449d47815b34ffb2911a85c37"


def test_a_key_is_equal_in_another_process():
    code = "from test_pipeline import TRIAL; print(TRIAL.key)"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=__file__.rpartition("/")[0], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == TRIAL.key


@pytest.mark.parametrize(
    ("left", "right"), [(1, 1.0), (1.0, 1.0000001), (0.1 + 0.2, 0.3), (1e-3, 0.001), (10**6, 1e6), (0.0, -0.0)]
)
def test_numbers_that_agree_to_six_digits_are_equal(left, right):
    assert json.dumps(canonical(left)) == json.dumps(canonical(right))


def test_numbers_that_differ_in_the_sixth_digit_are_different():
    assert digest(1.00001) != digest(1.0)
    assert digest(1) != digest(True), "a Boolean is not a number"
    assert digest("1") != digest(1)


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_canonical_is_idempotent(value):
    assert canonical(canonical(value)) == canonical(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), {1, 2}, object(), b"bytes", Tagged])
def test_a_value_without_a_canonical_form_has_no_key(value):
    with pytest.raises(TypeError, match="no canonical form"):
        digest(replace(Tagged(), number=value))


def test_a_nan_inside_a_trial_has_no_key():
    broken = replace_flat(SPEC, phases=(Phase(lr=float("nan")),))
    with pytest.raises(TypeError, match="no canonical form for nan"):
        _ = replace(TRIAL, model=ModelSpec(base=broken)).key


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (SPEC, replace_flat(SPEC, start=WeightsFile(digest="ab" * 32, path="/elsewhere"))),
        (SPEC, replace_flat(SPEC, data=Data(digest="cd" * 32, spec="folder:/elsewhere"))),
        (Recipe(), Recipe(name="what people call it")),
    ],
)
def test_paths_and_names_are_not_part_of_a_key(left, right):
    assert digest(left) == digest(right)
    assert left == right


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 4},
        {"head": Head.parse("zero")},
        {"train_size": None},
        {"labels": "shuffled"},
        {"start": None},
        {"start": SPEC},
        {"phases": SPEC.procedure.phases[::-1]},
        {"data": Data(digest="ef" * 32)},
        {"preprocessing": replace(SPEC.data.preprocessing, channels="bgr")},
    ],
)
def test_every_other_field_of_a_training_spec_is_part_of_its_key(changed):
    assert digest(replace_flat(SPEC, **changed)) != digest(SPEC)


@pytest.mark.parametrize("name", ["device", "torch", "lab"])
def test_the_context_of_a_trial_is_part_of_its_key(name):
    assert replace(TRIAL, context=replace(TRIAL.context, **{name: "another"})).key != TRIAL.key


def test_an_added_field_changes_the_key_only_if_it_is_set():
    assert canonical(Tagged()) == {"noun": "Noun", "number": 1}
    assert canonical(Tagged(later="new")) == {"noun": "Noun", "number": 1, "later": "new"}


def test_classes_with_equal_fields_have_different_keys():
    assert digest(WeightsFile(digest="x")) != digest(Data(digest="x"))


def test_a_key_ignores_the_order_of_a_mapping_but_not_of_a_list():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert digest((1, 2)) == digest([1, 2])


@pytest.mark.parametrize("value", [SPEC, TRIAL, Phase(), ScratchGrid(), Recipe()])
def test_values_are_frozen(value):
    first = fields(value)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(value, first, None)
