from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest
from factory import make_comparison, make_outcome, make_run, outcome_numbers
from test_html import HOSTILE, Page

from xferbench.core.comparison import SUBJECT
from xferbench.core.sections import replace_flat
from xferbench.report import comparison, comparison_text, html

SMALL = make_run(seeds=2, examples=20)
AT = {"xferbench": "0.2.0", "git": "f" * 40, "device": "cpu"}


@pytest.fixture(scope="module")
def run():
    return replace_flat(SMALL, gate=make_comparison(), environment=AT, evidence={"ended": "2026-02-03T00:00:00Z"})


@pytest.fixture(scope="module")
def text(run):
    return comparison.render(run, file="B/results.json")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def page_text(page):
    return " ".join(" ".join(page.words).split())


def test_the_page_needs_no_other_file_and_no_script(page, text):
    assert not page.attributes("script")
    assert not page.attributes("link")
    references = [value for _, attributes in page.elements for name, value in attributes.items() if name in {"src", "href"}]
    assert all(value.startswith(("#", "data:")) for value in references)
    assert not re.search(r"url\((?!#)|@import", text)


def test_the_head_names_both_runs(run, page):
    content = page_text(page)
    assert comparison_text.headline(run.gate, gate=False) in content
    for phrase in (
        "careless → careless",
        "accepted.json B/results.json",
        "0.1.0 0.2.0",
        "0123456789ab ffffffffffff",
        "2026-02-03",
    ):
        assert phrase in content
    assert "device cpu" in content


def test_each_outcome_has_a_row_with_its_decision_numbers_and_reason(run, page):
    content = page_text(page)
    for outcome in run.gate.outcomes:
        assert comparison_text.outcome_name(outcome) in content
        assert comparison_text.reason_text(outcome) in content
    assert "81.2 % 71.0 % +10.2 [+8.9, +11.5] 2.0" in content
    assert "worse PASS +0.3 FAIL +6.0 +5.7 [+4.5, +6.9] 2.0 new: it passed when accepted" in content
    assert "known: the accepted run also fails" in content
    assert "processors differ" in content
    styles = [span["class"] for span in page.attributes("span") if span.get("class", "").startswith("verdict ")]
    assert styles == [
        f"verdict {comparison_text.VERDICT_STYLE[outcome.decision]}" for outcome in comparison_text.in_reading_order(run.gate)
    ]


def test_a_worse_outcome_has_the_next_action_and_patch_of_the_plugin(page):
    assert "Next: keep the BatchNorm layers" in page_text(page)
    assert 'batchnorm = "eval"' in page_text(page)


def test_a_page_without_a_comparison_has_a_note():
    assert "Nothing was compared." in page_text(Page(comparison.render(SMALL)))


def test_the_report_of_a_gate_starts_with_the_same_section(run, text):
    report = html.render(run, {})
    content = page_text(Page(report))
    assert comparison_text.headline(run.gate) in content
    assert content.index("Compared with the accepted run") < content.index("Verdicts")
    assert f'<p class="outcome">{comparison_text.headline(run.gate)}' in unescape(report)
    (picture,) = re.findall(r"<figure><h3>Changes</h3>.*?</figure>", report, re.DOTALL)
    assert picture in text


def test_the_report_without_a_gate_has_no_comparison():
    assert "accepted" not in html.render(SMALL, {})


def test_both_pages_share_their_head(run, text):
    report = html.render(run, {})
    assert (
        text.partition("<style>")[2].partition("</style>")[0] == report.partition("<style>")[2].partition("</style>")[0] != ""
    )


def test_a_gate_that_passes_has_no_alert(run):
    passing = make_comparison(make_outcome(SUBJECT, "not worse", **outcome_numbers(0.8, 0.0, now=0.8)), notes=())
    report = html.render(replace(run, gate=passing), {})
    assert "class=alert" not in report
    assert "Other differences" not in report


def test_an_outcome_missing_from_the_picture_is_in_the_table():
    nll = make_outcome("p/nll", "worse", unit="nats", metric="nll", **outcome_numbers(0.1, 0.2, now=0.3))
    comparison_of_two_units = make_comparison(*make_comparison().outcomes[:1], nll)
    content = page_text(Page(comparison.render(replace(SMALL, gate=comparison_of_two_units))))
    assert "1 change in another unit is in the table only" in content
    assert "+0.200 [+0.188, +0.212] nats" in content


def test_outcomes_without_numbers_have_no_figure():
    comparison_without_numbers = make_comparison(make_outcome("p/harm", "crashed"))
    assert not Page(comparison.render(replace(SMALL, gate=comparison_without_numbers))).attributes("svg")


def test_hostile_names_do_not_break_the_pages():
    fields = ("reason", "verdict", "accepted", "metric", "unit")
    hostile = make_outcome(f"{HOSTILE}/harm", "worse", **dict.fromkeys(fields, HOSTILE), **outcome_numbers(0.1, 0.1, now=0.2))
    subject = replace(hostile, id=SUBJECT, plugin="")
    gate = make_comparison(
        subject, hostile, notes=(HOSTILE,), accepted=dict.fromkeys(("name", "file", "xferbench", "git", "ended"), HOSTILE)
    )
    finding = replace(SMALL.findings[0], plugin=HOSTILE, contrast="harm", remedy={"text": HOSTILE, "patch": [HOSTILE]})
    run = replace_flat(SMALL, gate=gate, suite={**SMALL.suite, "name": HOSTILE}, environment={HOSTILE: HOSTILE, "git": HOSTILE})
    for text in (
        comparison.render(replace(run, findings=(finding,)), file=HOSTILE),
        html.render(replace(run, findings=(finding,)), {}),
    ):
        page = Page(text)
        assert not page.attributes("script")
        assert "<script" not in text
        assert "\x1b" not in text
        assert "alert(1)" in text


def test_figures_are_cached(run, tmp_path):
    first = comparison.render(run, tmp_path)
    assert list(tmp_path.glob("*.svg"))
    assert comparison.render(run, tmp_path) == first
