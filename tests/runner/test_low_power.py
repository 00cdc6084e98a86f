"""The warning, before anything is trained, that a test set decides hardly anything."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xferbench.core.suite import replace_rules
from xferbench.plugins import batchnorm_drift
from xferbench.runner.execute import warn_of_low_power
from xferbench.testing import fake_lab


@pytest.mark.parametrize(("test_size", "margin", "warns"), [(40, 0.02, True), (4000, 0.02, False), (150, 0.1, False)])
def test_a_run_warns_of_a_test_set_that_decides_little(test_size, margin, warns):
    suite = replace_rules(fake_lab.SUITE, margin=margin, looks=(5,))
    profile = replace(fake_lab.PROFILE, data=replace(fake_lab.PROFILE.data, test=test_size))
    stages = []
    warn_of_low_power(suite, profile, (batchnorm_drift.plugin,), lambda progress: stages.append(progress.stage))
    assert len(stages) == warns
    if warns:
        assert "40 test examples (or groups) can decide little: with 5 seeds" in stages[0]


def test_other_metrics_have_no_warning_because_their_variance_is_not_known():
    suite = replace_rules(fake_lab.SUITE, metric="nll", margin=0.001)
    stages = []
    warn_of_low_power(suite, fake_lab.PROFILE, (batchnorm_drift.plugin,), stages.append)
    assert not stages
