from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from factory import make_comparison, make_outcome, make_run

from xferbench.core.run import VERDICTS, Finding, Run
from xferbench.report import notebook

RUN = make_run()
EVIL = "<script>alert(1)</script>\u202e\x00\" onmouseover='x'"


def make(*findings, notes=(), name="ants"):
    return Run(suite={"name": name}, environment={}, findings=findings, cells=(), cost={}, arms={}, notes=notes)


class Balanced(HTMLParser):
    """The tags that a text opens, each of them closed again."""

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


def test_each_contrast_has_one_row_with_its_controls_and_the_worst_comes_first():
    table = notebook.notebook_table(RUN)
    assert Balanced(table).seen.count("tr") == 3
    assert table.index("batchnorm-drift") < table.index("negative-transfer")
    assert table.index(">FAIL<") < table.index(">PASS<")
    assert "ghost-batch detected<br>class-order detected" in table
    assert "points of accuracy" in table
    assert "verdicts are conditional on this one pretrained checkpoint" in table


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_can_be_shown(verdict):
    table = notebook.notebook_table(make(Finding(id="a/harm", plugin="a", contrast="harm", verdict=verdict)))
    assert f">{verdict}</span>" in table
    assert "–" in table


def test_no_name_becomes_markup():
    odd = Finding(id="a", plugin=EVIL, contrast=EVIL, verdict="FAIL", variant=EVIL, control="detected", reason=EVIL, unit=EVIL)
    page = Balanced(notebook.notebook_table(make(odd, notes=(EVIL,), name=EVIL)))
    assert set(page.seen) <= {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "span", "br", *FOLDED}
    assert {name for name, _ in page.attributes} == {"style"}


FOLDED = {"details", "summary", "ul", "li"}


def test_it_needs_nothing_from_elsewhere_and_leaves_the_pages_own_colours():
    table = notebook.notebook_table(RUN)
    assert not re.search(r"https?:|src=|url\(|<style|<script|class=|id=", table)
    assert len(re.findall("background:", table)) == len(re.findall("color:#fff", table)) == 2


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colour", sorted(set(notebook.BADGES.values())))
def test_white_letters_are_legible_on_every_badge(colour):
    assert 1.05 / (luminance(colour) + 0.05) >= 4.5


def test_a_run_says_itself_in_a_line():
    assert repr(RUN) == f"<Run 'careless': 1 FAIL, 1 PASS; {len(RUN.cells)} records>"
    assert repr(make()) == "<Run 'ants': no finding; 0 records>"
    assert "\n" not in repr(make(name="a\nb"))


def test_a_run_without_findings_is_an_empty_table():
    assert Balanced(notebook.notebook_table(make())).seen.count("tr") == 1


def test_a_gate_is_said_in_a_line():
    table = notebook.notebook_table(replace(RUN, gate=make_comparison()))
    assert "<p>The gate fails: the subject&#x27;s accuracy is 10.2 [8.9, 11.5] points worse" in table
    evil = replace(make(), gate=make_comparison(make_outcome(f"{EVIL}/harm", "worse", verdict="FAIL")))
    assert "script" not in Balanced(notebook.notebook_table(evil)).seen
    assert "gate" not in notebook.notebook_table(RUN)
