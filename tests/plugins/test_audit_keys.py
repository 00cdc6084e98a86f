"""Golden keys of the trials of every audit: an audit may move to another module, but its keys must not change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_audits import AUDITS, PROFILE, make_audit_study

from xferbench.core.canonical import digest
from xferbench.testing import fake_lab

GOLDEN = json.loads(Path(__file__).with_name("golden_audit_keys.json").read_text(encoding="utf-8"))


def digest_keys(audit):
    """Digests of the keys of an audit's trials, by view, where there is a budget for a scratch baseline."""
    measures = {reference: {name: 0.0} for name, reference in audit.measures.items()}
    plain = replace(audit, explain=None, plot=None)
    study = make_audit_study(
        plain, scratch_budget=60.0, profile=replace(PROFILE, timing=replace(PROFILE.timing, seconds_step=0.001))
    )
    step, _ = fake_lab.replay_study(study, fake_lab.fake_lab(lambda _: 0.8, measures))
    by_view = {}
    for request in step.requests:
        by_view.setdefault(request.view, set()).add(request.trial.key)
    return {view: digest(sorted(trial_keys)) for view, trial_keys in sorted(by_view.items())}


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_the_keys_of_the_trials_of_an_audit_stay_unchanged(audit):
    assert digest_keys(audit) == GOLDEN[audit.id]


def test_every_audit_has_golden_keys():
    assert {audit.id for audit in AUDITS} == set(GOLDEN)
