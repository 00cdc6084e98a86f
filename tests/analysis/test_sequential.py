"""The group-sequential loop: what is decided closes, and a crash is a hypothesis that nothing decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xferbench.analysis import sequential
from xferbench.analysis.estimates import UNDECIDED, ContrastEstimate

LOOKS, ALPHA = (3, 5), 0.05


def judged(p_fail=1.0, p_pass=1.0, **changes):
    estimate = replace(UNDECIDED, harm=0.0, low=0.0, high=0.0, p_fail=p_fail, p_pass=p_pass)
    case = {"estimate": estimate, "exposed": True, "difference": np.zeros((1, 1)), "groups": np.empty(0)}
    return ContrastEstimate(**(case | changes))


def looks(**cases):
    """The judgements of contrasts that have the same estimate at every look."""
    seen = []

    def observe(look, judgements):
        seen.append(look)
        is_open = {name for name in cases if name not in judgements or judgements[name].is_open}
        return dict(judgements) | {
            name: sequential.add_look(judgements.get(name), cases[name], tuple(range(look))) for name in is_open
        }

    return sequential.run_looks(LOOKS, ALPHA, observe), seen


def test_what_is_decided_keeps_the_numbers_of_its_look():
    found, seen = looks(passes=judged(p_pass=1e-6), open=judged(p_fail=0.2, p_pass=0.2))
    assert seen == [3, 5]
    assert (found["passes"].verdict, len(found["passes"].seeds), found["passes"].p_pass) == ("PASS", 3, (1e-6,))
    assert (found["open"].verdict, len(found["open"].seeds)) == ("INCONCLUSIVE", 5)


def test_equal_sides_are_no_hypothesis_and_a_crash_is_one():
    found, _ = looks(equal=judged(exposed=False), crash=judged(p_pass=0.0, error="Boom"), tested=judged(p_pass=1e-6))
    assert {name: judgement.verdict for name, judgement in found.items()} == {
        "equal": "PASS",
        "crash": "ERROR",
        "tested": "PASS",
    }
    assert {judgement.hypotheses for judgement in found.values()} == {2}


def test_the_loop_ends_where_nothing_more_is_observed():
    assert sequential.run_looks(LOOKS, ALPHA, lambda *_: None) == {}
