"""The preprocessing of a pipeline whose weights have no record of theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xferbench.core.canonical import digest
from xferbench.core.pipeline import replace_data, replace_serving
from xferbench.core.transforms import Preprocessing, Spectrogram
from xferbench.plugins import input_mismatch, preprocessing_mismatch
from xferbench.testing import fake_lab

PIPELINE, PROFILE = fake_lab.PIPELINE, fake_lab.PROFILE
UNRECORDED = replace(PROFILE, recorded=False)
IMAGENET_VALUES = PROFILE.preprocessing
STATED = Preprocessing(mean=(0.1, 0.1, 0.1), std=(0.9, 0.9, 0.9))


def study_of_stated(plugin):
    """A study of a pipeline whose suite states a preprocessing for weights that have no record."""
    stated = replace_serving(replace_data(PIPELINE, train_preprocessing=STATED), preprocessing=STATED)
    return fake_lab.make_study(plugin, pipeline=stated, facts=replace(UNRECORDED, preprocessing=STATED))


def test_without_a_record_common_forms_are_tried_in_serving_and_a_few_in_training():
    cured = preprocessing_mismatch.cure(PIPELINE, replace(UNRECORDED, preprocessing=STATED))
    pairs = [(candidate.data.train_preprocessing, candidate.serving.preprocessing) for candidate in cured.candidates]
    assert pairs[0] == (STATED, STATED)
    assert (STATED, replace(STATED, channels="bgr")) in pairs
    trained = [train for train, _ in pairs if train != STATED]
    assert [train for train, serve in pairs if train == serve] == [STATED, *trained]
    assert IMAGENET_VALUES in trained
    assert len(trained) == 3, "each of them trains networks"
    spectrogram = replace(UNRECORDED, preprocessing=Spectrogram())
    assert preprocessing_mismatch.cure(PIPELINE, spectrogram).serving.preprocessing == Spectrogram()


def test_a_wrong_statement_without_a_record_fails_if_validation_finds_a_better_form():
    def accuracy(trial):
        return 0.9 if trial.model.base.data.preprocessing == trial.view.preprocessing == IMAGENET_VALUES else 0.6

    findings = fake_lab.run_study(study_of_stated(preprocessing_mismatch.plugin), fake_lab.fake_lab(accuracy)).findings
    assert {finding.verdict for finding in findings} == {"FAIL"}
    assert "train_preprocessing = { mean = [0.485" in "\n".join(findings[0].remedy["patch"])


@pytest.mark.parametrize("plugin", [preprocessing_mismatch.plugin, input_mismatch.plugin], ids=lambda plugin: plugin.id)
@settings(max_examples=15, deadline=None)
@given(scores=st.lists(st.sampled_from([0.3, 0.6, 0.79, 0.8, 0.81, 0.95]), min_size=1, max_size=8))
def test_a_statement_without_a_record_is_never_a_pass(plugin, scores):
    def accuracy(trial):
        content = digest((trial.model.base.data.preprocessing, trial.view.preprocessing))
        return scores[int(content[:8], 16) % len(scores)]

    findings = fake_lab.run_study(study_of_stated(plugin), fake_lab.fake_lab(accuracy)).findings
    assert findings
    assert not [finding.id for finding in findings if finding.verdict == "PASS"]
