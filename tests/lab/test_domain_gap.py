"""Scores of a network's features: what is asked, what is told, and the whole of it on the small world."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import READY, make_fit, make_world
from test_measures import given

from xferbench.config import loader
from xferbench.core.interventions import HEAD_ONLY
from xferbench.core.pipeline import AuxiliaryDataset, Phase, Preprocessing
from xferbench.core.record import Record
from xferbench.core.trial import EvaluationSpec
from xferbench.plugins import domain_gap
from xferbench.runner import build_run, execute
from xferbench.study import trials
from xferbench.testing import fake_lab

FREE = {"logme", "h-score", "cka"}
DISTANCES = {"mmd2", "proxy a-distance", "frechet"}
TABLE = {
    "schema": 1,
    "name": "gap",
    "plugins": ["domain-gap"],
    "looks": [2],
    "tuning_seeds": 1,
    "backbone": {"arch": "tiny-resnet"},
    "target": {"data": "digits", "train_size": 100, "test_size": 100},
    "recipe": {"strategy": "linear-probe", "steps": 10},
    "scratch": {"lr": [3e-3], "weight_decay": [0.01], "steps": 10, "batch_size": 16},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    made = make_world(folder)
    made.source = make_npz(folder / "source.npz", train=140, side=20)
    return made


def seen(world, *, source=True, **more):
    one = make_fit(world, Phase(trainable=HEAD_ONLY, batchnorm="eval", steps=2, batch_size=8))
    domain = AuxiliaryDataset(data=world.source) if source else None
    return given(world, one, view=EvaluationSpec(preprocessing=READY, domain=domain), cache=world.cache, **more)


def test_without_a_source_and_a_head_there_are_the_scores_of_labels_alone(world):
    assert domain_gap.logme(seen(world, source=False)).keys() == FREE


def test_a_linear_probe_leaves_the_features_as_they_were(world):
    assert domain_gap.logme(seen(world))["cka"] == pytest.approx(1)


def test_with_a_source_there_are_distances_and_what_they_are_within_it(world):
    found = domain_gap.logme(seen(world))
    assert found.keys() == FREE | DISTANCES | {name + domain_gap.WITHIN for name in DISTANCES}


def test_with_a_pretrained_head_there_is_leep(world):
    anatomy = seen(world).network.anatomy
    head = {f"{anatomy.head}.weight": torch.zeros(6, anatomy.features), f"{anatomy.head}.bias": torch.zeros(6)}
    told = domain_gap.logme(seen(world, source_head=head))
    assert told["leep"] == pytest.approx(-1.386, abs=0.05), "a head that says nothing: four classes, equally many"


def test_a_target_of_other_light_is_farther_away_than_the_source_from_itself(world):
    dark = seen(world, prepared=replace(READY, scale=READY.scale / 3))
    found = domain_gap.logme(dark)
    assert all(found[name] > found[name + domain_gap.WITHIN] for name in DISTANCES)
    assert found["proxy a-distance"] > 1.5


def study(**changes):
    pipeline = replace(fake_lab.PIPELINE, **changes)
    measures = {reference: {name: 0.5, "leep": -1.0} for name, reference in domain_gap.plugin.measures.items()}
    asked = fake_lab.make_study(domain_gap.plugin, pipeline=pipeline)
    return fake_lab.run_study(
        asked, fake_lab.fake_lab(lambda trial: 0.5 if trial.model.base.init == "random" else 0.8, measures=measures)
    )


def test_it_is_a_measurement_with_the_gain_beside_the_scores_and_no_verdict():
    (told,) = study().findings
    assert (told.id, told.verdict, told.p_fail) == ("domain-gap/gain", "INFO", None)
    assert told.harm == pytest.approx(0.3, abs=0.03) and told.seeds == 3
    assert told.measures == {"subject/logme": 0.5, "leep": -1.0}
    assert told.reason == "subject − scratch in accuracy; logme 0.5, leep -1"


def test_its_measure_is_given_the_source_and_without_one_keys_are_as_they_always_were():
    measure = domain_gap.plugin.measures["logme"]
    source = Preprocessing(mean=(0.1,))
    pipeline = replace(fake_lab.PIPELINE, source=replace(fake_lab.PIPELINE.source, preprocessing=source))
    asked = trials.make_trial(pipeline, "test", 0, fake_lab.CONTEXT, measure, given="source").view
    assert (asked.domain, asked.preprocessing) == (pipeline.source, source)
    without = replace(pipeline, source=None)
    assert trials.make_trial(without, "test", 0, fake_lab.CONTEXT, measure, given="source") == trials.make_trial(
        without, "test", 0, fake_lab.CONTEXT, measure
    )


def test_a_crash_of_its_measure_is_an_error():
    measure = next(iter(domain_gap.plugin.measures.values()))

    def answer(trial):
        return Record(key=trial.key, error="Boom") if trial.view.function == measure else fake_lab.fake_lab()(trial)

    (told,) = fake_lab.run_study(fake_lab.make_study(domain_gap.plugin), answer).findings
    assert told.verdict == "ERROR" and "Boom" in told.reason


def test_the_whole_of_it_on_digits(tmp_path):
    asked = loader.parse_suite(TABLE, tmp_path / "gap.toml")
    run = build_run.build_run(execute.execute(asked, path=tmp_path / "store.sqlite"))
    (told,) = run.findings
    assert told.verdict == "INFO" and {"subject/logme", "h-score", "cka", "leep"} <= told.measures.keys()
    assert told.measures["cka"] == pytest.approx(1), "a linear probe"


def test_a_source_that_is_only_measured_against_is_not_said_to_be_unused():
    pipeline = replace(fake_lab.PIPELINE, shifted=None)
    asked = fake_lab.make_study(domain_gap.plugin, suite=replace(fake_lab.SUITE, source="synthetic:source"), pipeline=pipeline)
    measures = {reference: {name: 0.5} for name, reference in domain_gap.plugin.measures.items()}
    assert not any(
        "no plugin of this run asks for it" in note
        for note in fake_lab.run_study(asked, fake_lab.fake_lab(measures=measures)).notes
    )
