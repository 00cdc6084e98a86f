"""The keys of the trials of every audit, as they have always been: an audit may move to another module, a key may not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_audits import AUDITS, FACTS, study

from xferbench.core.canonical import digest
from xferbench.testing import fake_lab

GOLDEN = json.loads(Path(__file__).with_name("golden_audit_keys.json").read_text(encoding="utf-8"))


def keys(audit):
    """Digests of the keys of an audit's trials, by view, where there is a budget for a scratch baseline."""
    measures = {reference: {name: 0.0} for name, reference in audit.measures.items()}
    plain = replace(audit, explain=None, plot=None)
    asked = study(plain, scratch_budget=60.0, facts=replace(FACTS, timing=replace(FACTS.timing, seconds_step=0.001)))
    step, _ = fake_lab.replay_study(asked, fake_lab.fake_lab(lambda _: 0.8, measures))
    by_view = {}
    for question in step.requests:
        by_view.setdefault(question.view, set()).add(question.trial.key)
    return {view: digest(sorted(found)) for view, found in sorted(by_view.items())}


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.id)
def test_the_keys_of_an_audits_trials_are_those_of_old(audit):
    assert keys(audit) == GOLDEN[audit.id]


def test_every_audit_is_pinned():
    assert {audit.id for audit in AUDITS} == set(GOLDEN)
