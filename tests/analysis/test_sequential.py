"""The group-sequential loop: a decided contrast stays decided, and a crash is a hypothesis that no data decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xferbench.analysis import sequential
from xferbench.analysis.estimates import UNDECIDED, ContrastEstimate
from xferbench.core.reason import Code, because

LOOKS, ALPHA = (3, 5), 0.05


def make_estimate(p_fail=1.0, p_pass=1.0, **changes):
    estimate = replace(UNDECIDED, harm=0.0, low=0.0, high=0.0, p_fail=p_fail, p_pass=p_pass)
    fields = {"estimate": estimate, "exposed": True, "difference": np.zeros((1, 1)), "groups": np.empty(0)}
    return ContrastEstimate(**(fields | changes))


def run_looks(**cases):
    """Run the looks for contrasts that have the same estimate at every look."""
    looks_observed = []

    def observe(look, judgements):
        looks_observed.append(look)
        is_open = {name for name in cases if name not in judgements or judgements[name].is_open}
        return dict(judgements) | {
            name: sequential.add_look(judgements.get(name), cases[name], tuple(range(look))) for name in is_open
        }

    return sequential.run_looks(LOOKS, ALPHA, observe), looks_observed


def test_a_decided_contrast_keeps_the_estimate_of_its_look():
    decisions, looks_observed = run_looks(passes=make_estimate(p_pass=1e-6), open=make_estimate(p_fail=0.2, p_pass=0.2))
    assert looks_observed == [3, 5]
    assert (decisions["passes"].verdict, len(decisions["passes"].seeds), decisions["passes"].p_pass) == ("PASS", 3, (1e-6,))
    assert (decisions["open"].verdict, len(decisions["open"].seeds)) == ("INCONCLUSIVE", 5)


def test_only_exposed_or_crashed_contrasts_are_hypotheses():
    decisions, _ = run_looks(
        equal=make_estimate(exposed=False),
        crash=make_estimate(p_pass=0.0, error=because(Code.TEXT, text="Boom")),
        tested=make_estimate(p_pass=1e-6),
    )
    assert {name: judgement.verdict for name, judgement in decisions.items()} == {
        "equal": "PASS",
        "crash": "ERROR",
        "tested": "PASS",
    }
    assert {judgement.hypotheses for judgement in decisions.values()} == {2}


def test_the_loop_ends_without_a_new_look():
    assert sequential.run_looks(LOOKS, ALPHA, lambda *_: None) == {}
