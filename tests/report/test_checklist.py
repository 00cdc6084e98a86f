from __future__ import annotations

import re
from dataclasses import replace

import pytest
from factory import make_run

from xferbench.core.reason import Code, because
from xferbench.core.run import Finding
from xferbench.core.sections import replace_flat
from xferbench.report import checklist, messages

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


def answers_of(run):
    """Return the answers by question."""
    return dict(re.findall(r"(?ms)^\*\*(.+?\?)\*\*\s+(.*?)(?=\n\n\*\*|\n\n## |\Z)", checklist.render(run)))


def test_runs_and_seeds_are_counted(run):
    answers = answers_of(run)
    assert answers["How many runs is a result based on?"].startswith("5 evaluation seeds (0, 1, 2, 3, 4)")
    assert "verdicts may be taken at 5, 10, 20 seeds" in answers["When was the number of seeds decided?"]
    assert answers["How many runs failed?"] == "0 measurements crashed; 0 measurements diverged."


def test_crashes_and_divergence_are_counted_once_and_by_arm(run):
    first, second, *rest = run.cells
    crashed = replace(first, record=replace(first.record, error="boom"))
    diverged = replace(second, record=replace(second.record, scalars={"diverged": 1.0}))
    repeated = replace(crashed, plugin="another")
    answers = answers_of(replace(run, cells=(crashed, repeated, diverged, *rest)))
    assert answers["How many runs failed?"] == "1 measurements crashed (subject 1); 1 measurements diverged (subject 1)."


def test_error_bars_are_explained(run):
    answers = answers_of(run)
    assert answers["What do error bars mean?"].startswith("One-sided bounds, each at 95 %")
    assert answers["Which sources of variation do they include?"].startswith(
        "Crossed random effects of seeds and test examples"
    )
    assert "bootstrap" not in answers["Which sources of variation do they include?"]
    balanced = answers_of(replace(run, suite={**run.suite, "metric": "balanced_accuracy"}))
    assert balanced["Which sources of variation do they include?"].endswith("widened by a bootstrap.")
    assert answers["Which difference matters?"] == "2.0 points of accuracy, fixed in the suite before the run."
    assert "At most 0.1 false FAILs" in answers["How are multiple comparisons corrected?"]


def test_a_search_is_listed_with_its_range_and_the_selected_candidate(run):
    candidates = [
        {"recipe": f"lr {rate:g}", "rate": rate, "validation": 0.5, "chosen": rate == 0.1} for rate in (0.1, 0.01, 0.001)
    ]
    arms = {"p": {"subject": {"recipe": "a"}, "scratch": {"weighed": candidates, "edge": "highest rate"}}}
    answers = answers_of(replace(run, arms=arms | {"q": arms["p"]}))
    scratch = answers["What was tried for scratch?"]
    assert scratch.startswith("3 recipes, rates 0.001 to 0.1; highest rate was selected, so a better one may lie beyond it.")
    assert "| lr 0.1 | 0.5 | yes |" in scratch
    assert answers["Which recipe was used for subject?"] == "There was no search: a."
    assert answers["Which recipe was used for cured?"] == checklist.MISSING
    answers_of_different_arms = answers_of(replace(run, arms=arms | {"q": {"subject": {"recipe": "a"}}}))
    assert "What was tried for scratch of p?" in answers_of_different_arms


def test_missing_information_is_named_as_missing(run):
    answers = answers_of(run)
    for question in (
        "On which seeds were choices made?",
        "With which command?",
        "When?",
        "Which revision of the user's code?",
    ):
        assert answers[question] == checklist.MISSING, question
    assert answers["Which data and weights?"] == f"synthetic:near; digests: {checklist.MISSING}"
    assert answers["Was the plan frozen before the run?"] == "No."
    answers_without_values = answers_of(replace_flat(run, cost={}, environment={}, plan="", cells=(), arms={}))
    for question in ("How much was trained and measured?", "How long did it take?", "On which machine?", "Which software?"):
        assert answers_without_values[question] == checklist.MISSING, question


def test_evidence_and_a_frozen_plan_are_shown_without_folders(run):
    frozen = {"hash": "f" * 64, "written": "2026-01-01T00:00:00Z", "file": "e" * 64}
    complete = replace_flat(run, evidence=EVIDENCE, frozen=frozen, suite={**run.suite, "tuning_seeds": 3})
    answers = answers_of(complete)
    assert (
        answers["Which data and weights?"] == f"- target.data: folder:ants, SHA-256 digest `{'d' * 64}` (files: 3; bytes: 99)"
    )
    assert answers["Was the plan frozen before the run?"] == f"Yes, on 2026-01-01T00:00:00Z: plan `{'f' * 64}`."
    assert answers["With which command?"] == "`xferbench run careless`"
    assert answers["On which seeds were choices made?"] == "3 tuning seeds, separate from the evaluation seeds."


def test_compute_is_shown(run):
    answers = answers_of(run)
    assert answers["How much was trained and measured?"].startswith("30 fits (20 in this run, 10 from the store); 40 trials")
    assert answers["How long did it take?"] == "5 min recorded, 5 min of it training, 20 s of it measuring."
    assert answers["Which software?"] == "python 3.11, torch 2.6, numpy 1.26."


def test_skipped_and_missing_measurements_are_listed(run):
    skipped = Finding(id="p/harm", plugin="p", contrast="harm", verdict="SKIPPED", reason="no [source]")
    missed = replace_flat(run.findings[0], id="x/harm/v", variant="v", control="missed")
    dropped = messages.write_sentence(because(Code.DROPPED_EXAMPLES, entries=("3 images",)))
    notes = ("taken on trust: the mean", dropped, "the end")
    suite = {**run.suite, "plugins": ["batchnorm-drift", "forgotten"]}
    answers = answers_of(replace(run, findings=(skipped, missed), notes=notes, suite=suite))
    assert answers["What was skipped?"] == "- p: no \\[source\\]"
    assert answers["Which injected failures were not detected?"] == "- batchnorm-drift: v"
    assert answers["Which plugins have no finding?"] == "forgotten."
    assert answers["What was taken on trust?"] == "- taken on trust: the mean"
    assert answers["Was anything left out of the data?"] == f"- {dropped}"
    assert answers["What else was noted?"] == "- the end"


def test_an_audit_has_one_network_and_no_tuning_seeds(run):
    answers = answers_of(replace(run, suite={**run.suite, "after": "model.pth", "tuning_seeds": 3}))
    assert answers["How many runs is a result based on?"] == "One finished network, which was not trained in this run."
    assert answers["Which sources of variation do they include?"] == "Test examples only, for this one network."
    assert "one half of the test examples" in answers["How was the best candidate selected?"]


def test_names_are_never_markup(run):
    hostile = "<script>x</script> `a` |b| $c$"
    page = checklist.render(
        replace_flat(
            run, suite={**run.suite, "name": hostile, "arch": hostile}, notes=(hostile,), evidence={"command": hostile}
        )
    )
    assert "<script>" not in re.sub(r"`[^`]*`", "", page)
    assert "`release_1`" in checklist.render(replace_flat(run, environment={"git": "release_1"}))
    assert "&lt;script&gt;x&lt;/script&gt; \\`a\\` \\|b\\| <span>$</span>c<span>$</span>" in page
