"""Interventions, from their spelling in a suite to the examples that a network is trained on."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from xferbench.analysis import compatibility
from xferbench.config import interventions as config
from xferbench.config import loader, render, revive
from xferbench.core import interventions
from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.core.interventions import (
    CopiedTestImages,
    DataIntervention,
    Intervention,
    Range,
    TargetPretraining,
    as_dict,
    format_spelling,
    number,
    parse,
)
from xferbench.core.pipeline import Phase, Recipe, Selection
from xferbench.core.record import json_values
from xferbench.study import trials
from xferbench.study.study import subject_arm
from xferbench.testing import conformance, fake_lab, intervention_conforms

THIRD_PARTY = """
from __future__ import annotations
from dataclasses import dataclass, replace
from typing import ClassVar
from xferbench.core.interventions import DataIntervention, number

@dataclass(frozen=True, slots=True, kw_only=True)
class Halved(DataIntervention):
    '''Only some of the training images are there.'''
    spelling: ClassVar[str] = "halved"
    words: ClassVar[str] = "a share {share:g} of the training images"
    implementation: ClassVar[str] = "halved_kind:halve"
    share: float = number(low=0, low_open=True, high=1)

def halve(split, intervention, stream, classes):
    from xferbench.lab.data import datasets
    return datasets.take(split, slice(max(1, round(intervention.share * len(split.labels)))))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed(Intervention):
    """A kind with a default."""

    spelling: ClassVar[str] = "mixed:up"
    words: ClassVar[str] = "mixed {count} times, {share:g}"
    count: int = number(low=1, whole=True)
    share: float = number(low=0, low_open=True, high=1, default=0.5)


@pytest.fixture
def halved(tmp_path, monkeypatch):
    """Return an intervention of an installed package."""
    (tmp_path / "halved_kind.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "halved_kind", raising=False)
    entry = EntryPoint(name="halved", value="halved_kind:Halved", group=config.GROUP)
    monkeypatch.setattr(config, "entry_points", lambda **_: [entry])
    yield entry.load()
    interventions.module_source_digest.cache_clear()


def suite_table(**target):
    return {
        "schema": 1,
        "name": "ants",
        "plugins": ["all"],
        "backbone": {"arch": "tiny-resnet"},
        "target": {"data": "synthetic:near", **target},
    }


def parse_suite(**target):
    return loader.parse_suite(suite_table(**target), Path("ants.toml"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("mixed:up:3", Mixed(count=3)),
        ("mixed:up:3:0.25", Mixed(count=3, share=0.25)),
        ("mixed:up:12:1e-5", Mixed(count=12, share=1e-5)),
        ("mixed:up:3:1", Mixed(count=3, share=1.0)),
    ],
)
def test_a_parsed_intervention_prints_its_spelling(text, value):
    assert parse(text, [Mixed]) == value
    assert str(value) == text


@pytest.mark.parametrize(
    "text", ["mixed", "mixed:up", "mixed:up:0", "mixed:up:1:0", "mixed:up:1:2", "mixed:up:x", "mixed:up:1:1:1"]
)
def test_another_spelling_is_refused_with_the_form_of_the_intervention(text):
    with pytest.raises(
        ValueError, match=r"mixed:up:COUNT\[:SHARE\] with COUNT a whole number at least 1 and SHARE a number above 0"
    ):
        parse(text, [Mixed])


def test_a_parameter_out_of_its_range_is_refused():
    for count in (0, 1.5, True, float("nan")):
        with pytest.raises(ValueError, match="mixed:up: count is"):
            Mixed(count=count)


def test_a_range_contains_its_closed_bounds_and_has_a_pattern():
    assert (
        "0.5" in repr(Range(low=0, high=0.5)) and 0.5 in Range(low=0, high=0.5) and 0.5 not in Range(high=0.5, high_open=True)
    )
    assert Range(low=0, low_open=True).pattern != Range(low=0).pattern


@pytest.mark.parametrize("kind", [kind for group in interventions.GROUPS for kind in group.built_in()])
def test_every_built_in_intervention_conforms(kind):
    intervention_conforms(kind)


def test_keys_and_results_contain_the_spelling_of_an_intervention(halved):
    value = halved(share=0.5)
    assert json.loads(
        json.dumps(json_values(as_dict(replace(fake_lab.SUITE, data=replace(fake_lab.SUITE.data, interventions=(value,))))))
    )["interventions"] == ["halved:0.5"]
    assert interventions.intervention_key(value).startswith("halved:0.5 "), (
        "the source of a third-party intervention is part of the key"
    )


def test_no_interventions_leave_the_key_unchanged():
    plain = replace(fake_lab.PIPELINE, data=replace(fake_lab.PIPELINE.data, interventions=()))
    assert digest(trials.training_spec(plain, 0)) == digest(trials.training_spec(fake_lab.PIPELINE, 0))


def test_a_changed_implementation_changes_the_key_of_a_third_party_intervention(halved, tmp_path):
    before = interventions.intervention_key(halved(share=0.5))
    (tmp_path / "halved_kind.py").write_text(THIRD_PARTY + "\n# another way\n")
    interventions.module_source_digest.cache_clear()
    assert interventions.intervention_key(halved(share=0.5)) != before


def test_a_suite_accepts_an_installed_intervention(halved):
    suite = parse_suite(interventions=["halved:0.5"])
    assert suite.data.interventions == (halved(share=0.5),)
    results = json.loads(json.dumps(json_values(as_dict(suite))))
    assert revive.suite_from_results(results, Path()).data.interventions == suite.data.interventions
    assert ("interventions", "none", "['halved:0.5']") in compatibility.suite_differences(
        json_values(as_dict(parse_suite())), results
    )


def test_an_intervention_that_cannot_be_imported_is_an_error(monkeypatch):
    entry = EntryPoint(name="halved", value="no_such_module:Halved", group=config.GROUP)
    monkeypatch.setattr(config, "entry_points", lambda **_: [entry])
    with pytest.raises(UserError, match="halved cannot be imported"):
        parse_suite(interventions=["halved:0.5"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("halved:0.5", "a list of changes"),
        (["halved:2"], "halved:SHARE with SHARE a number above 0"),
        (["halved:0.5", "halved:0.2"], "once"),
        ([3], "halved:SHARE"),
    ],
)
def test_a_suite_refuses_an_invalid_list_of_interventions(halved, value, expected):
    with pytest.raises(UserError, match=r"\[target\] interventions") as error:
        parse_suite(interventions=value)
    assert expected in str(error.value)


def test_a_checkpoint_suite_refuses_interventions(halved):
    with pytest.raises(UserError, match="interventions"):
        loader.parse_suite(suite_table(interventions=["halved:0.5"]) | {"checkpoint": {"after": "a.pth"}}, Path("ants.toml"))


def test_targets_of_a_matrix_have_their_own_interventions(halved):
    targets = [
        {"name": "clean", "data": "synthetic:near"},
        {"name": "less", "data": "synthetic:near", "interventions": ["halved:0.5"]},
    ]
    table = suite_table() | {"plugins": [], "matrix": {"targets": targets, "recipes": ["linear-probe"]}}
    table["target"] = {"train_size": 100}
    clean, less = loader.parse_suite(table, Path("ants.toml")).matrix.tasks
    assert (clean.data.interventions, less.data.interventions) == ((), (halved(share=0.5),))


def test_all_arms_share_the_interventions_but_not_the_initial_model(halved):
    pipeline = replace(fake_lab.PIPELINE, data=replace(fake_lab.PIPELINE.data, interventions=(halved(share=0.5),)))
    assert trials.training_spec(pipeline, 0).data.interventions == pipeline.data.interventions
    assert (
        trials.training_spec(replace(pipeline, recipe=Recipe(init=TargetPretraining())), 0).network.start.data.interventions
        == pipeline.data.interventions
    )
    assert trials.initial_model(pipeline) == trials.initial_model(fake_lab.PIPELINE)
    assert (
        trials.training_spec(
            replace(pipeline, data=replace(pipeline.data, injected_duplicates=CopiedTestImages(share=0.1))), 0
        ).data.interventions
        == ()
    )


def test_a_patch_and_a_description_name_the_interventions(halved):
    changed = replace(fake_lab.PIPELINE, data=replace(fake_lab.PIPELINE.data, interventions=(halved(share=0.5),)))
    assert render.describe_pipeline(changed, fake_lab.PREPROCESSING).endswith("a share 0.5 of the training images")
    assert render.pipeline_patch(fake_lab.PIPELINE, changed, fake_lab.PREPROCESSING)[:2] == [
        "[target]",
        'interventions = ["halved:0.5"]',
    ]
    assert "[target]" not in render.pipeline_patch(changed, changed, fake_lab.PREPROCESSING)


def test_a_plugin_may_induce_an_intervention(halved):
    study = fake_lab.make_study(make_plugin(halved(share=0.5)))
    _, records = fake_lab.replay_study(study, fake_lab.fake_lab())
    assert records
    conformance.check_arms(make_plugin(halved(share=0.5)))


def make_plugin(value):
    """Return a plugin that induces a data intervention."""
    from factory import make_plugin as plain_plugin

    return replace(
        plain_plugin("fewer-images"),
        applies=lambda *_: "",
        cure=lambda pipeline, _: replace(pipeline, data=replace(pipeline.data, interventions=())),
        induce=lambda pipeline, _: {"changed": replace(pipeline, data=replace(pipeline.data, interventions=(value,)))},
    )


def test_a_selection_keeps_the_interventions(halved):
    pipeline = replace(fake_lab.PIPELINE, data=replace(fake_lab.PIPELINE.data, interventions=(halved(share=0.5),)))
    arm = subject_arm(replace(fake_lab.SUITE, recipe=None), pipeline)
    assert isinstance(arm, Selection)
    assert {candidate.data.interventions for candidate in arm.candidates} == {pipeline.data.interventions}


def test_interventions_change_the_training_subset_alone(halved, tmp_path):
    pytest.importorskip("torch")
    from test_loop import make_spec, make_workspace, prepare_training

    from xferbench.lab.training.examples import training_subset

    world = make_workspace(tmp_path)
    plain_fit, changed = make_spec(world), make_spec(world, interventions=(halved(share=0.5),))
    _, _, dataset = prepare_training(world, plain_fit)
    before, after = training_subset(dataset, plain_fit), training_subset(dataset, changed)
    assert len(after.labels) == len(before.labels) / 2
    assert np.array_equal(before.validation, after.validation)
    assert before.split is dataset.train, "without an intervention, no image is copied"
    assert format_spelling(halved).startswith("halved:SHARE with")


def test_groups_include_data_interventions():
    assert set(interventions.GROUPS) >= {DataIntervention}


def test_a_group_is_no_value_of_itself():
    with pytest.raises(TypeError, match="batchnorm is"):
        Phase(batchnorm=interventions.BatchNormMode())


def test_an_intermediate_group_parses_its_own_kinds_only():
    assert interventions.SourcePretraining.parse("clean-source") == interventions.CleanSource()
    with pytest.raises(ValueError, match="shuffled-source, clean-source, or cued-source"):
        interventions.SourcePretraining.parse("random")
