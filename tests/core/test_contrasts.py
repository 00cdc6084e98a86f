"""Constructors of contrasts."""

from __future__ import annotations

from xferbench.core.contrasts import harm, info, invariant


def test_a_difference_is_positive_if_the_first_term_is_larger():
    contrast = harm("harm", ("scratch", "test"), ("subject", "test"), "why", metric="nll", margin=0.1)
    assert contrast.weights == {("scratch", "test"): 1.0, ("subject", "test"): -1.0}
    assert (contrast.kind, contrast.metric, contrast.margin, contrast.meaning) == ("paired", "nll", 0.1, "why")
    assert info("gain", ("subject", "test"), ("scratch", "test")).kind == "info"


def test_an_invariant_weighs_the_measure_with_its_name_on_the_subject_by_default():
    assert invariant("copies", "none").weights == {("subject", "copies"): 1.0}
    assert invariant("harm", "it stays", measure="integrity").weights == {("subject", "integrity"): 1.0}
