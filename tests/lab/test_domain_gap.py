"""Transferability scores and domain distances: the measure, its finding, and a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import PREPROCESSING, make_spec, make_workspace
from test_measures import make_measure_context

from xferbench.config import loader
from xferbench.core.interventions import BATCHNORM_EVAL, HEAD_ONLY, RANDOM
from xferbench.core.pipeline import AuxiliaryDataset, Phase
from xferbench.core.record import Record
from xferbench.core.transforms import Preprocessing
from xferbench.lab.evaluation import domain_gap as lab_domain_gap
from xferbench.plugins import domain_gap
from xferbench.runner import build_run, execute
from xferbench.study import trials
from xferbench.testing import fake_lab

LABEL_SCORES = {"logme", "h-score"}
FREE = LABEL_SCORES | {"cka"} | {name + suffix for name in LABEL_SCORES for suffix in domain_gap.PERMUTED_LABELS}
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
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    workspace = make_workspace(folder)
    workspace.source = make_npz(folder / "source.npz", train=140, side=20)
    return workspace


def make_context(workspace, *, source=True, **more):
    spec = make_spec(workspace, Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, steps=2, batch_size=8))
    domain = AuxiliaryDataset(data=workspace.source) if source else None
    return make_measure_context(workspace, spec, domain=domain, **more)


def test_without_source_and_head_only_label_scores_exist(workspace):
    assert domain_gap.logme(make_context(workspace, source=False)).keys() == FREE


def test_labels_without_a_relation_to_the_features_score_as_permuted_labels(workspace):
    context = make_context(workspace, source=False)
    above = []
    for seed in range(40):
        shuffled = np.random.default_rng(seed).permutation(context.trial.dataset.train.labels)
        train = replace(context.trial.dataset.train, labels=shuffled)
        trial = replace(context.trial, dataset=replace(context.trial.dataset, train=train))
        scores = domain_gap.logme(replace(context, trial=trial))
        mean, high = (scores["h-score" + suffix] for suffix in domain_gap.PERMUTED_LABELS)
        assert mean < high
        above.append(scores["h-score"] > high)
    assert sum(above) <= 6, "5 % of such labels exceed the greatest of 19 permutations"


def test_labels_that_the_features_determine_score_above_permuted_labels(workspace):
    context = make_context(workspace, source=False)
    train = context.trial.dataset.train
    brightness = train.images.reshape(len(train.labels), -1).mean(1)
    train = replace(train, labels=np.argsort(np.argsort(brightness)) * 4 // len(brightness))
    trial = replace(context.trial, dataset=replace(context.trial.dataset, train=train))
    scores = domain_gap.logme(replace(context, trial=trial))
    for name in LABEL_SCORES:
        assert scores[name] > scores[name + domain_gap.PERMUTED_LABELS[1]], name


def test_the_permutations_depend_on_the_seed_of_the_training_alone():
    labels = np.arange(50) % 5
    first, again, other = (lab_domain_gap.permuted_labelings(labels, seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(first[0], labels) and len(first) == 1 + lab_domain_gap.PERMUTATIONS
    assert all(np.array_equal(np.sort(row), np.sort(labels)) for row in first)


def test_a_linear_probe_does_not_change_the_features(workspace):
    assert domain_gap.logme(make_context(workspace))["cka"] == pytest.approx(1)


def test_with_a_source_there_are_distances_to_it_and_within_it(workspace):
    scores = domain_gap.logme(make_context(workspace))
    assert scores.keys() == FREE | DISTANCES | {name + domain_gap.WITHIN_SOURCE for name in DISTANCES}


def test_with_a_pretrained_head_there_is_leep(workspace):
    layout = make_context(workspace).network.layout
    head = {f"{layout.head}.weight": torch.zeros(6, layout.features), f"{layout.head}.bias": torch.zeros(6)}
    scores = domain_gap.logme(make_context(workspace, source_head=head))
    assert scores["leep"] == pytest.approx(-1.386, abs=0.05), "a constant head, and four classes of equal size"


def test_a_darker_target_is_farther_away_than_the_source_from_itself(workspace):
    context = make_context(workspace)
    darker = replace(context.train, preprocessing=replace(PREPROCESSING, scale=PREPROCESSING.scale / 3))
    scores = domain_gap.logme(replace(context, train=darker))
    assert all(scores[name] > scores[name + domain_gap.WITHIN_SOURCE] for name in DISTANCES)
    assert scores["proxy a-distance"] > 1.5


def run_study(**changes):
    pipeline = replace(fake_lab.PIPELINE, **changes)
    null = dict(zip(("leep, permuted labels", "leep, permuted labels 95 %"), (-2.0, -1.5), strict=True))
    measures = {reference: {name: 0.5, "leep": -1.0, **null} for name, reference in domain_gap.plugin.measures.items()}
    study = fake_lab.make_study(domain_gap.plugin, pipeline=pipeline)
    return fake_lab.run_study(
        study, fake_lab.fake_lab(lambda trial: 0.5 if trial.model.base.network.init == RANDOM else 0.8, measures=measures)
    )


def test_the_finding_has_gain_and_scores_without_a_verdict():
    (finding,) = run_study().findings
    assert (finding.id, finding.verdict, finding.estimate.p_fail) == ("domain-gap/gain", "INFO", None)
    assert finding.estimate.harm == pytest.approx(0.3, abs=0.03) and finding.estimate.seeds == 3
    assert finding.measures == {
        "subject/logme": 0.5,
        "leep": -1.0,
        "leep, permuted labels": -2.0,
        "leep, permuted labels 95 %": -1.5,
    }
    assert finding.reason == "subject − scratch in accuracy; logme 0.5, leep -1 (permuted labels: -2, 95 % up to -1.5)"


def test_the_measure_gets_the_source_and_without_one_the_key_is_plain():
    measure = domain_gap.plugin.measures["logme"]
    source = Preprocessing(mean=(0.1,))
    pipeline = replace(
        fake_lab.PIPELINE,
        data=replace(fake_lab.PIPELINE.data, source=replace(fake_lab.PIPELINE.data.source, preprocessing=source)),
    )
    view = trials.make_trial(pipeline, "test", 0, fake_lab.CONTEXT, measure, domain="source").view
    assert (view.domain, view.preprocessing) == (pipeline.data.source, source)
    without = replace(pipeline, data=replace(pipeline.data, source=None))
    assert trials.make_trial(without, "test", 0, fake_lab.CONTEXT, measure, domain="source") == trials.make_trial(
        without, "test", 0, fake_lab.CONTEXT, measure
    )


def test_a_crash_of_the_measure_is_an_error():
    measure = next(iter(domain_gap.plugin.measures.values()))

    def compute_record(trial):
        return Record(key=trial.key, error="Boom") if trial.view.function == measure else fake_lab.fake_lab()(trial)

    (finding,) = fake_lab.run_study(fake_lab.make_study(domain_gap.plugin), compute_record).findings
    assert finding.verdict == "ERROR" and "Boom" in finding.reason


def test_a_run_on_digits(tmp_path):
    suite = loader.parse_suite(TABLE, tmp_path / "gap.toml")
    run = build_run.build_run(execute.execute(suite, path=tmp_path / "store.sqlite"))
    (finding,) = run.findings
    assert finding.verdict == "INFO" and {"subject/logme", "h-score", "cka", "leep"} <= finding.measures.keys()
    assert finding.measures["cka"] == pytest.approx(1), "a linear probe"


def test_a_source_that_only_the_measure_uses_has_no_note():
    pipeline = replace(fake_lab.PIPELINE, data=replace(fake_lab.PIPELINE.data, shifted=None))
    study = fake_lab.make_study(
        domain_gap.plugin,
        suite=replace(fake_lab.SUITE, data=replace(fake_lab.SUITE.data, source="synthetic:source")),
        pipeline=pipeline,
    )
    measures = {reference: {name: 0.5} for name, reference in domain_gap.plugin.measures.items()}
    assert not any(
        "no plugin of this run asks for it" in note
        for note in fake_lab.run_study(study, fake_lab.fake_lab(measures=measures)).notes
    )
