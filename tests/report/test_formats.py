from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from factory import make_comparison, make_findings, make_outcome, make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from xferbench.core.run import Finding, SampleImages
from xferbench.core.sections import from_flat, replace_flat
from xferbench.report import comparison_text, console, files, format, github, html, junit, markdown

HOSTILE = "a|b\n<script>alert(1)</script> $x^{$ \x1b[31m [red]x[/red] `c` ::error::d, 100% \x00"


@pytest.fixture(scope="module")
def run():
    return make_run()


def make_finding(verdict, plugin="p", **fields):
    return from_flat(Finding, {"id": f"{plugin}/harm", "plugin": plugin, "contrast": "harm", "verdict": verdict} | fields)


@pytest.fixture(scope="module")
def run_with_each_verdict(run):
    """Return a run with each verdict."""
    verdicts = ("INCONCLUSIVE", "ERROR", "SKIPPED", "INFO")
    extra = [make_finding(verdict, plugin=f"p-{verdict.lower()}", reason=f"because {verdict}") for verdict in verdicts]
    return replace(run, findings=(*run.findings, *extra))


@pytest.fixture(scope="module")
def hostile_run(run):
    """Return a run with hostile text in every field."""
    remedy = {"text": HOSTILE, "patch": ["```", HOSTILE], "verified": False}
    finding_with_names = replace_flat(
        run.findings[0], id=HOSTILE, plugin=HOSTILE, contrast=HOSTILE, variant=HOSTILE, reason=HOSTILE, remedy=remedy
    )
    suite = {**run.suite, "name": HOSTILE, "path": HOSTILE.replace("\x00", "")}
    return replace(
        run, suite=suite, findings=(finding_with_names, make_finding("INFO", plugin=HOSTILE, reason=HOSTILE)), notes=(HOSTILE,)
    )


def test_junit_has_a_suite_for_each_plugin_and_a_case_for_each_finding(run_with_each_verdict):
    root = ET.fromstring(junit.render(run_with_each_verdict).encode())
    assert [suite.get("name") for suite in root][:2] == ["batchnorm-drift", "p-error"]
    assert [case.get("name") for case in root.iter("testcase")] != []
    assert {case.get("name") for case in root.iter("testcase")} == {finding.id for finding in run_with_each_verdict.findings}
    assert [root.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["7", "2", "1", "2"]
    assert sum(int(suite.get("tests")) for suite in root) == 7


@pytest.mark.parametrize(
    ("verdict", "children"),
    [
        ("FAIL", ["properties", "failure"]),
        ("ERROR", ["properties", "error"]),
        ("SKIPPED", ["properties", "skipped"]),
        ("INCONCLUSIVE", ["properties", "skipped"]),
        ("PASS", ["properties"]),
        ("INFO", ["properties"]),
    ],
)
def test_a_verdict_is_a_junit_result(run, verdict, children):
    root = ET.fromstring(junit.render(replace(run, findings=(make_finding(verdict, reason="why"),))))
    (case,) = root.iter("testcase")
    assert [child.tag for child in case] == children
    assert all(child.get("message") == f"{verdict}: why" for child in case[1:])


def test_numbers_are_junit_properties(run):
    (case, *_) = ET.fromstring(junit.render(run)).iter("testcase")
    properties = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
    assert float(properties["harm"]) == pytest.approx(run.findings[0].estimate.harm, rel=1e-4)
    assert properties["control"] == "detected"
    assert "accuracy.scratch" in properties


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=[]), max_size=60))
def test_junit_always_parses(text):
    failure = make_finding("FAIL", plugin=text or "p", reason=text, remedy={"text": text, "patch": [text]})
    ET.fromstring(junit.render(make_run_of(failure)).encode("utf-8", "replace"))


def make_run_of(*findings):
    return replace(SMALL, findings=findings)


SMALL = make_run(seeds=2, examples=20)


def table_rows(summary):
    return [line for line in summary.splitlines() if line.startswith("|")]


def test_the_summary_has_a_row_for_each_verdict_with_its_numbers(run_with_each_verdict):
    head, _, *rows = table_rows(markdown.render(run_with_each_verdict))
    assert head.startswith("| Check | Verdict | Harm, points of accuracy | Control | Benefit retained | Subject | Cured |")
    assert "| **FAIL** |" in rows[0]
    assert "ghost-batch detected +" in rows[0]
    assert "class-order detected +" in rows[0]
    assert "shown to repair this pipeline" in rows[0]
    assert [re.search(r"\*\*(\w+)\*\*", row)[1] for row in rows[:5]] == ["FAIL", "ERROR", "INCONCLUSIVE", "PASS", "SKIPPED"]


def test_the_summary_shows_the_patch(run):
    assert '```toml\n[recipe]\nbatchnorm = "eval"    # was train\n```\n' in markdown.render(run)


def test_hostile_names_do_not_break_the_summary(hostile_run):
    summary = markdown.render(hostile_run)
    columns = [len(re.findall(r"(?<!\\)\|", row)) for row in table_rows(summary)]
    assert columns == [11, 11, 11, 5, 5, 5]
    outside = re.sub(r"(?ms)^(`{4,}).*?^\1$", "", summary)
    assert "<script>" not in outside
    assert "```" not in outside
    assert outside.count("$") == outside.count("<span>$</span>")
    assert "\x1b" not in summary
    assert "\x00" not in summary


def test_notes_are_listed(run):
    summary = markdown.render(run)
    assert summary.endswith("- verdicts are conditional on this one pretrained checkpoint\n")


def test_verdicts_that_need_attention_have_an_annotation(run_with_each_verdict):
    commands = github.workflow_commands(run_with_each_verdict)
    levels = [(command.split()[0], re.search(r"title=(\w+)", command)[1]) for command in commands]
    assert levels == [("::error", "FAIL"), ("::error", "ERROR"), ("::warning", "INCONCLUSIVE")]


def test_an_annotation_is_at_the_line_that_the_patch_changes(run, tmp_path):
    path = tmp_path / "suites" / "mine.toml"
    path.parent.mkdir()
    path.write_text('schema = 1\nplugins = ["all"]\n[recipe]\nlr = 0.01\nbatchnorm = "train"\n')
    run_in_folder = replace(run, suite={**run.suite, "path": str(path)})
    assert github.workflow_commands(run_in_folder, str(tmp_path))[0].startswith(
        "::error file=suites/mine.toml,line=5,title=FAIL%3A batchnorm-drift::harm +"
    )
    path.write_text('schema = 1\n\nplugins = ["negative-transfer", "batchnorm-drift"]\n')
    assert ",line=3," in github.workflow_commands(run_in_folder)[0]
    path.unlink()
    assert ",line=1," in github.workflow_commands(run_in_folder)[0]


def test_an_annotation_is_one_line_with_githubs_escapes(hostile_run):
    (command,) = github.workflow_commands(hostile_run)
    head, message = re.fullmatch(r"::error (.*?)::(.*)", command).groups()
    assert head.count(",") == 2
    assert re.findall(r"(\w+)=", head) == ["file", "line", "title"]
    assert "%2C" in head
    assert "%3A%3Aerror%3A%3Ad" in head
    assert "100%25" in message


def test_the_summary_is_appended_to_the_summary_of_the_job(run, tmp_path, monkeypatch, capsys):
    job = tmp_path / "job.md"
    job.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(job))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setattr(html, "render", lambda *_: "")
    files.write_run(SMALL, tmp_path / "out")
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert job.read_text() == f"before\n{summary}\n"
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("::error file=")


def test_outside_github_nothing_is_published(run, tmp_path):
    stream = io.StringIO()
    github.publish(run, "summary", environ={}, stream=stream)
    assert not stream.getvalue()


def render_verdict_table(run, width, **options):
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False, **options).print(console.verdict_table(run))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_a_terminal(run_with_each_verdict, width):
    lines = render_verdict_table(run_with_each_verdict, width).splitlines()
    assert max(map(len, lines)) <= width
    head = next(line for line in lines if line.startswith("CHECK"))
    row = next(line for line in lines if line.startswith("batchnorm-drift"))
    assert len(head) == len(row) <= 80
    assert head.split() == ["CHECK", "VERDICT", "HARM", "[BOUNDS]", "KEPT", "SUBJ.", "CURED", "IND.", "SCR."]


def test_the_widest_numbers_fit_80_columns():
    numbers = {"harm": -1.0, "low": -1.0, "high": -1.0, "benefit_retained": -1.5, "margin": 0.02}
    accuracy = dict.fromkeys(("subject", "cured", "induced", "scratch"), 1.0)
    wide_run = make_run_of(
        *(make_finding("INCONCLUSIVE", plugin="x" * length, accuracy=accuracy, **numbers) for length in (10, 18, 40))
    )
    text = render_verdict_table(wide_run, 80)
    assert "[-100.0, -100.0] -150% 100.0 100.0 100.0 100.0\n" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_table_contains_verdicts_and_next_actions(run_with_each_verdict):
    text = render_verdict_table(run_with_each_verdict, 100)
    for phrase in (
        "FAIL",
        "PASS",
        "INCONCLUSIVE",
        "ERROR",
        "SKIPPED",
        "because ERROR",
        "next: keep the BatchNorm",
        'batchnorm = "eval"',
    ):
        assert phrase in text
    assert "INFO" not in text


def test_verdicts_are_coloured_on_a_terminal_only(run):
    assert "\x1b[1;31mFAIL" in render_verdict_table(run, 100, force_terminal=True, color_system="standard", _environ={})
    assert "\x1b" not in render_verdict_table(run, 100)


def test_names_are_neither_markup_nor_escapes_in_the_table(hostile_run):
    text = render_verdict_table(hostile_run, 100)
    assert "[red]x[/red]" in text
    assert "\x1b" not in text


NAMES = (
    "<script>alert(1)</script>",
    "$x$",
    "a|b\nc",
    "=1+1",
    "@x",
    "a\rb",
    '"q",',
    "[bold]b[/bold]",
    "::error::x",
    "\x1b[31m",
    "]]>",
    "&amp;",
)


def run_with_name_everywhere(run, name):
    """Return a run with a name for its dataset, class, plugin and variant, and in a crash and a note."""
    image = SampleImages(
        role="target", title=f"{name}, as is", arms=(name,), images=np.zeros((1, 2, 2, 3), np.uint8), labels=(name,)
    )
    cell = replace(run.cells[0], plugin=name, variant=name, recipe=name)
    crash = make_finding("ERROR", plugin=name, variant=name, reason=f"no file in folder:/data/{name}", control="missed")
    return replace(
        run,
        suite={**run.suite, "target": f"folder:/data/{name}"},
        findings=(crash,),
        cells=(cell,),
        arms={},
        samples=(image,),
        notes=(f"left out: {name}",),
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_harmless_in_every_output(name, capsys, tmp_path):
    run_with_name = run_with_name_everywhere(SMALL, name)
    page = html.render(run_with_name, {})
    assert not re.search(r"<script|<b>b|\x1b", page)
    summary = markdown.render(run_with_name)
    assert "<script" not in summary
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in table_rows(summary)} == {11}
    (case,) = ET.fromstring(junit.render(run_with_name)).iter("testcase")
    assert case.get("classname") == format.one_line(name)
    (row,) = csv.DictReader(io.StringIO(files.records_csv(run_with_name.cells), newline=""))
    assert (row["plugin"], row["variant"], row["recipe"]) == (name, name, name)
    (command,) = github.workflow_commands(run_with_name)
    assert len(command.splitlines()) == 1
    assert command.startswith("::error file=")
    console.print_run(run_with_name)
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert format.one_line(name) in " ".join(output.split())
    files.write_run(run_with_name, tmp_path)
    assert files.read_run(tmp_path).samples[0].labels == (name,)


def test_a_run_without_findings_is_valid_in_every_format(run):
    empty = make_run_of()
    assert "There is no verdict." in render_verdict_table(empty, 80)
    assert "There is no verdict." in markdown.render(empty)
    assert ET.fromstring(junit.render(empty)).get("tests") == "0"
    assert github.workflow_commands(empty) == []


def test_progress_without_a_terminal_is_one_line_for_each_stage(capsys):
    class Progress:
        def __init__(self, stage):
            self.stage, self.done, self.running, self.total, self.reused, self.left = stage, 0, 1, 2, 3, 61.0

    with console.live_display() as show_progress:
        for stage in ("tuning [bold]", "tuning [bold]", "look 1"):
            show_progress(Progress(stage))
    out, err = capsys.readouterr()
    assert (out, err) == ("", "tuning [bold]\nlook 1\n")


def test_the_factory_makes_a_finding_for_each_variant():
    findings = make_findings("batchnorm-drift", "FAIL", [cell for cell in SMALL.cells if cell.plugin == "batchnorm-drift"])
    assert [finding.control.variant for finding in findings] == ["ghost-batch", "class-order"]


@pytest.fixture(scope="module")
def gate_run(run):
    """Return a run with a comparison that has each decision."""
    return replace(run, gate=make_comparison())


@pytest.fixture(scope="module")
def hostile_gate_run(hostile_run):
    """Return a hostile run with a hostile comparison."""
    fields = dict.fromkeys(("verdict", "accepted", "metric", "unit"), HOSTILE)
    hostile_outcome = make_outcome(f"{HOSTILE}/harm", "worse", HOSTILE, change=0.1, low=0.1, high=0.1, **fields)
    undecided = replace(hostile_outcome, id="subject", plugin="", decision="cannot tell")
    accepted = dict.fromkeys(("name", "file", "xferbench", "git", "ended"), HOSTILE)
    return replace(hostile_run, gate=make_comparison(hostile_outcome, undecided, accepted=accepted, notes=(HOSTILE,)))


def junit_cases(run):
    return {case.get("name"): case for case in ET.fromstring(junit.render(run)).iter("testcase")}


def test_the_junit_cases_of_a_gate_are_its_outcomes(gate_run):
    root = ET.fromstring(junit.render(gate_run))
    assert [suite.get("name") for suite in root][:3] == ["subject", "batchnorm-drift", "learning-rate"]
    assert list(junit_cases(gate_run)) == [outcome.id for outcome in gate_run.gate.outcomes]
    assert [root.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["8", "2", "1", "2"]


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("subject", ["failure"]),
        ("batchnorm-drift/harm", ["failure"]),
        ("learning-rate/harm", []),
        ("negative-transfer/harm", []),
        ("head-shock/harm", ["skipped"]),
        ("audit/reload/harm", ["error"]),
        ("data-leakage/harm", ["skipped"]),
        ("train-serve-skew/harm", []),
    ],
)
def test_a_decision_is_a_junit_result_and_a_known_failure_passes(gate_run, name, result):
    assert [child.tag for child in junit_cases(gate_run)[name]] == ["properties", *result]


def test_a_junit_failure_of_a_gate_has_its_figures_reason_and_patch(gate_run):
    case = junit_cases(gate_run)["batchnorm-drift/harm"]
    properties = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
    assert (properties["verdict"], properties["accepted"], properties["decision"]) == ("FAIL", "PASS", "worse")
    assert [float(properties[name]) for name in ("before", "now", "change", "low", "high", "margin")] == pytest.approx(
        [0.003, 0.06, 0.057, 0.045, 0.069, 0.02]
    )
    assert {"p_worse", "p_not_worse", "seeds", "examples"} < set(properties)
    assert case[1].get("message") == "worse: new: it passed when accepted"
    assert case[1].text.startswith("new: it passed when accepted\nkeep the BatchNorm")
    assert case[1].text.endswith('batchnorm = "eval"    # was train')
    (flipped,) = [entry for entry in junit_cases(gate_run)["subject"].iter("property") if entry.get("name") == "flipped"]
    assert flipped.get("value") == "0.14"


def test_the_summary_of_a_gate_starts_with_its_headline_and_folds_the_run(run, gate_run):
    summary = markdown.render(gate_run)
    _, sentence, baseline_line, table, notes, fold, *run_summary = summary.split("\n\n")
    assert sentence.startswith("**The gate fails: the subject's accuracy is 10.2 \\[8.9, 11.5\\] points worse than")
    assert baseline_line == "Compared with careless (xferbench 0.1.0, git 0123456789ab, ended 2026-01-02T03:05:05Z)."
    assert len(table.splitlines()) == 2 + len(gate_run.gate.outcomes)
    assert "| learning-rate | not worse | FAIL → FAIL |" in table
    assert (
        "| **worse** | PASS → FAIL | +5.7 [+4.5, +6.9] | points of accuracy | 2.0 | new: it passed when accepted<br>keep"
        in table
    )
    assert notes == "- processors differ: A then, B now"
    assert fold == "<details><summary>Verdicts of this run</summary>"
    assert run_summary[-1] == "</details>\n"
    assert "\n\n".join(run_summary[:-1]) + "\n" == markdown.render(run).partition("\n\n")[2]


def test_annotations_of_a_gate_name_outcomes_that_need_attention_and_known_failures(gate_run):
    levels = [
        (command.split()[0], re.search(r"title=([\w ]+%3A [\w/-]+)", command)[1])
        for command in github.workflow_commands(gate_run)
    ]
    assert levels == [
        ("::error", "worse%3A subject"),
        ("::error", "worse%3A batchnorm-drift"),
        ("::error", "crashed%3A audit/reload"),
        ("::warning", "cannot tell%3A head-shock"),
        ("::notice", "known%3A learning-rate"),
    ]
    (notice,) = [command for command in github.workflow_commands(gate_run) if command.startswith("::notice")]
    assert "known: the accepted run also fails" in notice


def test_a_known_failure_that_may_be_worse_is_a_warning(run):
    outcome = make_outcome("p/harm", "cannot tell", "why", verdict="FAIL", accepted="FAIL")
    (command,) = github.workflow_commands(replace(run, gate=make_comparison(outcome)))
    assert command.startswith("::warning ")
    assert command.endswith("FAIL → FAIL; known: the accepted run also fails; why")


def test_an_annotation_of_a_gate_is_at_the_recipe_the_patch_or_the_plugin(gate_run, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('schema = 1\nplugins = ["all",\n"head-shock"]\n[recipe]\nlr = 0.01\nbatchnorm = "train"\n')
    run = replace(gate_run, suite={**gate_run.suite, "path": str(path)})
    assert [re.search(r"line=(\d+)", command)[1] for command in github.workflow_commands(run)] == [
        "4",
        "6",
        "2",
        "3",
        "2",
    ]
    path.unlink()
    assert all(",line=1," in command for command in github.workflow_commands(run))
    run_from_options = replace(run, suite={**run.suite, "command": ["--after", "x"]})
    assert not any("file=" in command for command in github.workflow_commands(run_from_options))


def render_comparison_table(gate, width, **options):
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(console.comparison_table(gate, **options))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_of_a_comparison_fits_a_terminal(gate_run, width):
    long_outcome = make_outcome(
        "x" * 60 + "/harm", "cannot tell", verdict="INCONCLUSIVE", accepted="INCONCLUSIVE", change=-1.0, low=-1.0, high=-1.0
    )
    output = render_comparison_table(replace(gate_run.gate, outcomes=(*gate_run.gate.outcomes, long_outcome)), width)
    lines = output.splitlines()
    assert max(map(len, lines)) <= width
    assert "COMPARED DECISION ACCEPTED → NOW CHANGE [BOUNDS]" in " ".join(output.split())
    assert "subject worse 81.2 % → 71.0 % +10.2 [+8.9, +11.5] worse by more than the margin" in " ".join(output.split())
    assert "known: the accepted run also fails" in output
    assert "nothing to compare the images with" not in output
    assert "CHANGE in points of accuracy; above 0 is worse" in output


def test_the_terminal_shows_the_gate_above_the_run(gate_run, capsys):
    console.print_run(gate_run)
    output = capsys.readouterr().out
    assert (
        output.index("The gate fails") < output.index("COMPARED") < output.index("Transfer fails here") < output.index("CHECK")
    )
    console.print_comparison(gate_run.gate)
    output = capsys.readouterr().out
    assert output.startswith("The comparison finds something worse")
    assert "note: processors differ" in output
    assert "CHECK" not in output


def test_a_hostile_comparison_is_harmless_in_every_output(hostile_gate_run, capsys):
    summary = markdown.render(hostile_gate_run)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in table_rows(summary)[:4]} == {8}
    outside = re.sub(r"(?ms)^(`{4,}).*?^\1$", "", summary)
    assert "<script" not in outside
    assert outside.count("$") == outside.count("<span>$</span>")
    assert ET.fromstring(junit.render(hostile_gate_run)).get("failures") == "1"
    for command in github.workflow_commands(hostile_gate_run):
        head, _ = re.fullmatch(r"::(?:error|warning) (.*?)::(.*)", command).groups()
        assert re.findall(r"(\w+)=", head) == ["file", "line", "title"]
        assert head.count(",") == 2
    console.print_run(hostile_gate_run)
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "[red]x[/red]" in output
    assert "\x1b" not in summary + junit.render(hostile_gate_run)


def test_a_gate_is_rendered_equally_after_reading(gate_run, tmp_path):
    files.write_run(gate_run, tmp_path)
    reread = files.read_run(tmp_path)
    assert reread.gate == gate_run.gate
    assert junit.render(reread) == junit.render(gate_run)
    assert comparison_text.headline(reread.gate) in html.render(reread, {}).replace("&#39;", "'")


def test_the_next_action_of_an_outcome_belongs_to_its_own_verdict(gate_run):
    first, second = gate_run.findings[:2]
    run_with_mixed_verdicts = replace(gate_run, findings=(replace(first, verdict="PASS", remedy=None), second))
    assert "keep the BatchNorm" in junit_cases(run_with_mixed_verdicts)["batchnorm-drift/harm"][1].text
    other_finding = replace(second, plugin="audit/reload", contrast="logits", kind="audit", id="audit/reload-logits")
    for outcome_id in ("audit/reload/logits", "audit/reload-logits"):
        gate = make_comparison(make_outcome(outcome_id, "worse", verdict="FAIL"))
        assert "keep the BatchNorm" in junit_cases(replace(gate_run, findings=(other_finding,), gate=gate))[outcome_id][1].text
