from __future__ import annotations

import re
from dataclasses import replace

import pytest
from factory import make_run

from xferbench.core.run import Finding
from xferbench.report import checklist

INPUTS = [{"key": "target.data", "given": "folder:/home/me/ants", "digest": "d" * 64, "files": 3, "bytes": 99}]
EVIDENCE = {
    "command": "xferbench run careless",
    "begun": "2026-01-02T03:04:05Z",
    "ended": "2026-01-02T03:05:05Z",
    "inputs": INPUTS,
}


@pytest.fixture(scope="module")
def run():
    return make_run()


def answers(run):
    """Answer by question."""
    return dict(re.findall(r"(?ms)^\*\*(.+?\?)\*\*\s+(.*?)(?=\n\n\*\*|\n\n## |\Z)", checklist.render(run)))


def test_runs_and_seeds_are_counted(run):
    told = answers(run)
    assert told["How many runs is a result based on?"].startswith("5 judged seeds (0, 1, 2, 3, 4)")
    assert "verdicts may be taken at 5, 10, 20 seeds" in told["When was the number of seeds decided?"]
    assert told["How many runs failed?"] == "0 measurements crashed; 0 measurements diverged."


def test_what_crashed_or_diverged_is_counted_once_and_by_arm(run):
    first, second, *rest = run.cells
    crashed = replace(first, record=replace(first.record, error="boom"))
    diverged = replace(second, record=replace(second.record, scalars={"diverged": 1.0}))
    twice = replace(crashed, plugin="another")
    told = answers(replace(run, cells=(crashed, twice, diverged, *rest)))
    assert told["How many runs failed?"] == "1 measurements crashed (subject 1); 1 measurements diverged (subject 1)."


def test_error_bars_are_explained(run):
    told = answers(run)
    assert told["What do error bars mean?"].startswith("One-sided bounds, each at 95 %")
    assert told["What varies in them?"].startswith("Crossed random effects of seeds and test images")
    assert "bootstrap" not in told["What varies in them?"]
    balanced = answers(replace(run, suite={**run.suite, "metric": "balanced_accuracy"}))
    assert balanced["What varies in them?"].endswith("widened by a bootstrap.")
    assert told["Which difference matters?"] == "2.0 points of accuracy, fixed in the suite before the run."
    assert "at most 0.1 false FAILs" in told["How are many comparisons corrected for?"]


def test_a_search_is_told_with_its_bounds_and_what_was_chosen(run):
    weighed = [
        {"recipe": f"lr {rate:g}", "rate": rate, "validation": 0.5, "chosen": rate == 0.1} for rate in (0.1, 0.01, 0.001)
    ]
    arms = {"p": {"subject": {"recipe": "a"}, "scratch": {"weighed": weighed, "edge": "highest rate"}}}
    told = answers(replace(run, arms=arms | {"q": arms["p"]}))
    scratch = told["What was tried for scratch?"]
    assert scratch.startswith("3 recipes, rates 0.001 to 0.1; highest rate was chosen, so a better one may lie beyond.")
    assert "| lr 0.1 | 0.5 | yes |" in scratch
    assert told["What was subject?"] == "Nothing was searched: a."
    assert told["And cured?"] == checklist.MISSING
    other = answers(replace(run, arms=arms | {"q": {"subject": {"recipe": "a"}}}))
    assert "What was tried for scratch of p?" in other


def test_what_the_record_does_not_hold_is_said_to_be_missing(run):
    told = answers(run)
    for question in (
        "On which seeds were choices made?",
        "With which command?",
        "When?",
        "Which revision of the user's code?",
    ):
        assert told[question] == checklist.MISSING, question
    assert told["Which data and weights?"] == f"synthetic:near; digests: {checklist.MISSING}"
    assert told["Was the plan fixed beforehand?"] == "No plan was frozen before the run."
    bare = answers(replace(run, cost={}, environment={}, plan="", cells=(), arms={}))
    for question in ("How much was trained and measured?", "How long did it take?", "On which machine?", "Which software?"):
        assert bare[question] == checklist.MISSING, question


def test_evidence_and_a_frozen_plan_are_told_without_folders(run):
    frozen = {"hash": "f" * 64, "written": "2026-01-01T00:00:00Z", "file": "e" * 64}
    whole = replace(run, evidence=EVIDENCE, frozen=frozen, suite={**run.suite, "tuning_seeds": 3})
    told = answers(whole)
    assert told["Which data and weights?"] == f"- target.data: folder:ants, SHA-256 digest `{'d' * 64}` (files: 3; bytes: 99)"
    assert told["Was the plan fixed beforehand?"] == f"Yes, on 2026-01-01T00:00:00Z: plan `{'f' * 64}`."
    assert told["With which command?"] == "`xferbench run careless`"
    assert told["On which seeds were choices made?"] == "3 of their own, apart from the judged ones."


def test_compute_is_told(run):
    told = answers(run)
    assert told["How much was trained and measured?"].startswith("30 fits (20 run now, 10 from the store); 40 trials")
    assert told["How long did it take?"] == "5 min recorded, 5 min of it training, 20 s of it measuring."
    assert told["Which software?"] == "python 3.11, torch 2.6, numpy 1.26."


def test_what_was_not_measured_is_listed(run):
    skipped = Finding(id="p/harm", plugin="p", contrast="harm", verdict="SKIPPED", reason="no [source]")
    missed = replace(run.findings[0], id="x/harm/v", variant="v", control="missed")
    notes = ("taken on trust: the mean", "left out of the data: 3 images", "the end")
    suite = {**run.suite, "plugins": ["batchnorm-drift", "forgotten"]}
    told = answers(replace(run, findings=(skipped, missed), notes=notes, suite=suite))
    assert told["What was not asked?"] == "- p: no \\[source\\]"
    assert told["Which failures, put in on purpose, were not detected?"] == "- batchnorm-drift: v"
    assert told["Which plugins have no finding?"] == "forgotten."
    assert told["What was taken on trust?"] == "- taken on trust: the mean"
    assert told["Was anything left out of the data?"] == "- left out of the data: 3 images"
    assert told["What else was noted?"] == "- the end"


def test_an_audit_has_one_network_and_no_tuning_seeds(run):
    told = answers(replace(run, suite={**run.suite, "after": "model.pth", "tuning_seeds": 3}))
    assert told["How many runs is a result based on?"] == "One finished network, which was not trained here."
    assert told["What varies in them?"] == "Test images alone, given this one network."
    assert "one half of the test images" in told["How was the best chosen?"]


def test_no_name_is_markup(run):
    bad = "<script>x</script> `a` |b| $c$"
    page = checklist.render(
        replace(run, suite={**run.suite, "name": bad, "arch": bad}, notes=(bad,), evidence={"command": bad})
    )
    assert "<script>" not in re.sub(r"`[^`]*`", "", page)
    assert "&lt;script&gt;x&lt;/script&gt; \\`a\\` \\|b\\| <span>$</span>c<span>$</span>" in page
