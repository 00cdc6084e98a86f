"""What many plugins ask alike."""

from __future__ import annotations

from dataclasses import replace

from xferbench import asking
from xferbench.design import Phase, Recipe
from xferbench.fake import FACTS, PIPELINE

SCRATCH = replace(PIPELINE, recipe=Recipe(init="random"))


def test_what_is_about_pretraining_is_asked_where_something_pretrained_is_adapted():
    for asked in (asking.adapted, asking.batchnorm, asking.source, lambda *given: asking.several(*given, "to choose")):
        assert asked(PIPELINE, FACTS) == ""
        assert asked(SCRATCH, FACTS) == "nothing pretrained is adapted"
    assert asking.always(SCRATCH, FACTS) == ""


def test_what_is_lacking_is_said():
    assert asking.batchnorm(PIPELINE, replace(FACTS, batchnorm=())) == "the backbone has no BatchNorm layer"
    assert "no [source]" in asking.source(PIPELINE, replace(FACTS, source=()))
    assert asking.source(PIPELINE, replace(FACTS, source=(), no_source="because")) == "because"
    single = replace(PIPELINE, recipe=Recipe(phases=(Phase(steps=1),)))
    assert asking.several(single, FACTS, "to choose") == "a single step leaves none to choose"
    assert "[backbone]" in asking.recorded(PIPELINE, replace(FACTS, recorded=False)) and not asking.recorded(PIPELINE, FACTS)


def test_a_difference_is_what_the_first_has_more():
    found = asking.judged("harm", ("scratch", "test"), ("subject", "test"), "why", metric="nll", margin=0.1)
    assert found.weights == {("scratch", "test"): 1.0, ("subject", "test"): -1.0}
    assert (found.kind, found.metric, found.margin, found.meaning) == ("paired", "nll", 0.1, "why")
    assert asking.measured("gain", ("subject", "test"), ("scratch", "test")).kind == "info"


def test_an_invariant_is_of_the_subject_and_of_the_measure_with_its_name():
    assert asking.exact("copies", "none").weights == {("subject", "copies"): 1.0}
    assert asking.exact("harm", "it stays", measure="integrity").weights == {("subject", "integrity"): 1.0}
