from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from factory import make_comparison, make_outcome, make_run

from xferbench.core.run import VERDICTS, Finding, HarmEstimate, PositiveControl, Provenance, Run
from xferbench.report import notebook

RUN = make_run()
HOSTILE = "<script>alert(1)</script>\u202e\x00\" onmouseover='x'"


def make_small_run(*findings, notes=(), name="ants"):
    return Run(
        suite={"name": name}, findings=findings, cells=(), cost={}, arms={}, notes=notes, provenance=Provenance(environment={})
    )


class BalancedTags(HTMLParser):
    """The tags of a text; a tag that is not closed is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_each_contrast_has_one_row_with_its_controls_and_the_worst_is_first():
    table = notebook.notebook_table(RUN)
    assert BalancedTags(table).seen.count("tr") == 3
    assert table.index("batchnorm-drift") < table.index("negative-transfer")
    assert table.index(">FAIL<") < table.index(">PASS<")
    assert "ghost-batch detected<br>class-order detected" in table
    assert "points of accuracy" in table
    assert "verdicts are conditional on this one pretrained checkpoint" in table


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_has_a_badge(verdict):
    table = notebook.notebook_table(make_small_run(Finding(id="a/harm", plugin="a", contrast="harm", verdict=verdict)))
    assert f">{verdict}</span>" in table
    assert "–" in table


def test_names_are_never_markup():
    hostile_finding = Finding(
        id="a",
        plugin=HOSTILE,
        contrast=HOSTILE,
        verdict="FAIL",
        estimate=HarmEstimate(unit=HOSTILE),
        control=PositiveControl(variant=HOSTILE, outcome="detected"),
        reason=HOSTILE,
    )
    page = BalancedTags(notebook.notebook_table(make_small_run(hostile_finding, notes=(HOSTILE,), name=HOSTILE)))
    assert set(page.seen) <= {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "span", "br", *FOLDING_TAGS}
    assert {name for name, _ in page.attributes} == {"style"}


FOLDING_TAGS = {"details", "summary", "ul", "li"}


def test_the_table_needs_no_other_file_and_keeps_the_colors_of_the_page():
    table = notebook.notebook_table(RUN)
    assert not re.search(r"https?:|src=|url\(|<style|<script|class=|id=", table)
    assert len(re.findall("background:", table)) == len(re.findall("color:#fff", table)) == 2


def luminance(colour):
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colour", sorted(set(notebook.BADGES.values())))
def test_white_letters_are_legible_on_every_badge(colour):
    assert 1.05 / (luminance(colour) + 0.05) >= 4.5


def test_the_repr_of_a_run_is_one_line():
    assert repr(RUN) == f"<Run 'careless': 1 FAIL, 1 PASS; {len(RUN.cells)} records>"
    assert repr(make_small_run()) == "<Run 'ants': no finding; 0 records>"
    assert "\n" not in repr(make_small_run(name="a\nb"))


def test_a_run_without_findings_is_an_empty_table():
    assert BalancedTags(notebook.notebook_table(make_small_run())).seen.count("tr") == 1


def test_a_gate_has_a_headline():
    table = notebook.notebook_table(replace(RUN, gate=make_comparison()))
    assert "<p>The gate fails: the subject&#x27;s accuracy is 10.2 [8.9, 11.5] points worse" in table
    hostile_run = replace(make_small_run(), gate=make_comparison(make_outcome(f"{HOSTILE}/harm", "worse", verdict="FAIL")))
    assert "script" not in BalancedTags(notebook.notebook_table(hostile_run)).seen
    assert "gate" not in notebook.notebook_table(RUN)
