from __future__ import annotations

from dataclasses import replace

import pytest
from factory import make_comparison, make_run
from test_latex_table import check_source, rows

from xferbench.core.run import Finding
from xferbench.core.sections import replace_flat
from xferbench.report import latex

HOSTILE = "a_b & c% [x] \\end{table} $#{~^ 猫"


@pytest.fixture(scope="module")
def run():
    return make_run()


def test_a_row_has_a_finding_with_bounds_controls_and_accuracies(run):
    ((drift, transfer),) = rows(latex.render(run))
    finding = run.findings[0]
    assert drift[:2] == ["batchnorm-drift", "FAIL"]
    harm, low, high = (100 * value for value in finding.estimate.bounds)
    assert drift[2] == f"+{harm:.1f} [+{low:.1f}, +{high:.1f}]"
    assert drift[3:5] == ["2.0", "2/2"]
    assert drift[5:] == [*(f"{100 * finding.accuracy[arm]:.1f}" for arm in ("subject", "cured", "scratch")), "5"]
    assert transfer[2].startswith("$-$")
    check_source(latex.render(run))


def test_the_caption_explains_the_bounds(run):
    source = latex.render(run)
    for part in (
        "Findings of the suite careless: tiny-resnet on synthetic:near, 200 training examples",
        "Harm (in points of accuracy;",
        "one-sided 95\\% bounds in brackets, over seeds crossed with 200 test examples",
        "Candidates were selected on examples that no verdict uses",
    ):
        assert part in source
    audit_source = latex.render(replace(run, suite={**run.suite, "after": "model.pth"}))
    assert "over the 200 test examples of one finished network" in audit_source
    assert "tuning seeds" not in audit_source


def test_folders_of_the_machine_are_not_published(run):
    assert "on folder:ants," in latex.render(replace(run, suite={**run.suite, "target": "folder:/home/me/ants"}))
    assert "/home/me" not in latex.render(replace(run, suite={**run.suite, "target": "folder:/home/me/ants/"}))


def test_hostile_names_do_not_break_the_source(run):
    hostile_finding = replace_flat(run.findings[0], id=HOSTILE, plugin=HOSTILE, unit=HOSTILE, reason=HOSTILE)
    skipped = Finding(id="p/harm", plugin="[p]", contrast="harm", verdict="SKIPPED")
    suite = {**run.suite, "name": HOSTILE, "target": f"folder:{HOSTILE}"}
    source = latex.render(replace(run, suite=suite, findings=(hostile_finding, skipped), notes=(HOSTILE,)))
    check_source(source)
    assert "\\textbackslash{}end\\{table\\}" in source
    assert rows(source)[0][1] == ["{[}p{]}", "SKIPPED", "\\textendash{}", *["--"] * 6]


def test_a_gate_precedes_the_findings(run):
    source = latex.render(replace(run, gate=make_comparison()))
    check_source(source)
    outcomes, findings = rows(source)
    assert outcomes[0] == ["subject", "worse", "81.2 \\% $\\to$ 71.0 \\%", "+10.2 [+8.9, +11.5]", "2.0", "5"]
    assert len(findings) == 2
    assert source.index("The gate fails") < source.index("Findings of the suite")


def test_a_run_without_findings_is_a_comment(run):
    assert latex.render(replace(run, findings=())).endswith("% There is no verdict.\n")
