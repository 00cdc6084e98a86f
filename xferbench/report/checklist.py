"""A reproducibility checklist in Markdown, answered from the record of a run; missing information is named as missing. Pure.

The questions are those of the ML reproducibility checklist (Pineau et al. 2021, arXiv:2003.12206) and of the conferences that
adopted it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from xferbench.analysis import metrics
from xferbench.analysis.aggregate import BOOTSTRAP_REPLICATES
from xferbench.report import format, matrix_tables, tables
from xferbench.report.markdown import escape, markdown_table
from xferbench.report.messages import DROPPED_PREFIX, TRUST_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from xferbench.core.run import Run

MISSING = "*Not in the record.*"
MAX_LISTED_CANDIDATES = 40  # candidates of one search that are listed
SEARCHED_ARMS = ("subject", "cured", "scratch")
DURATIONS = {"recorded": "total", "of it training": "fit", "of it measuring": "view", "wall-clock time of this run": "wall"}
NOT_RECORDED = (
    "Licenses and consent for data and weights",
    "Energy, memory and the model of an accelerator",
    "Experiments before this run, by hand or elsewhere",
    "Whether the test examples were examined before this run",
)


def render(run: Run) -> str:
    """Return the checklist as Markdown; it ends with a line break."""
    outcome = matrix_tables.format_outcome(run) if run.matrix else tables.headline(run)
    parts = [
        f"# Reproducibility checklist: {escape(run.suite.get('name', ''))}",
        f"All answers come from the record of the run. {escape(outcome)}",
    ]
    for title, answers in (_matrix_sections(run) if run.matrix else _sections(run)).items():
        parts += [f"## {title}", *(_paragraph(question, answer or MISSING) for question, answer in answers.items())]
    return "\n\n".join([*parts, "## What the record of a run does not contain", _bullets(NOT_RECORDED)]) + "\n"


def _paragraph(question: str, answer: str) -> str:
    """Return a question with its answer; a list or a table starts below the question."""
    return f"**{question}**" + ("\n\n" if answer.startswith(("- ", "| ")) else " ") + answer


def _bullets(lines: Iterable[object]) -> str:
    """Return texts as a Markdown list; "" if there are none."""
    return "\n".join(f"- {escape(line)}" for line in lines)


def _sentence(parts: Iterable[object], separator: str = "; ") -> str:
    """Return texts as one sentence; "" if there are none."""
    text = separator.join(escape(part) for part in parts)
    return text and f"{text}."


def _sections(run: Run) -> dict[str, dict[str, str]]:
    """Return answers by question by section; an answer that is missing in the record is empty."""
    return {
        "Runs and seeds": _runs(run),
        "Metric, margin and error bars": _statistics(run),
        "Hyper-parameters and their selection": _selection(run),
        "Data and weights": _data(run),
        "Compute": _compute(run),
        "Versions and code": _versions(run),
        "Assumptions and notes": _notes(run),
        "What was not measured": _unmeasured(run),
    }


def _runs(run: Run) -> dict[str, str]:
    unique = {cell.record.key: cell for cell in run.cells}.values()
    crashed = Counter(tables.arm_name(cell) for cell in unique if cell.record.error)
    diverged = Counter(tables.arm_name(cell) for cell in unique if cell.record.scalars.get("diverged", 0.0) > 0)
    failed = _sentence([_format_counts(crashed, "crashed"), _format_counts(diverged, "diverged")])
    return (_audit_seeds() if run.suite.get("after") else _seeds(run)) | {"How many runs failed?": failed}


def _audit_seeds() -> dict[str, str]:
    """Return the answers about the seeds of an audit, which has one network."""
    return {
        "How many runs is a result based on?": "One finished network, which was not trained in this run.",
        "When was the number of seeds decided?": "There is one network.",
        "On which seeds were choices made?": "None: choices were made on one half of the test examples.",
    }


def _seeds(run: Run) -> dict[str, str]:
    seeds = sorted({cell.seed for cell in run.cells})
    used = sorted({finding.estimate.seeds for finding in run.findings if finding.estimate.seeds})
    fewer = f" Findings use the first {' or '.join(map(str, used))} of them." if len(used) > 1 else ""
    looks = ", ".join(map(str, run.suite.get("looks") or ()))
    tuning = run.suite.get("tuning_seeds")
    return {
        "How many runs is a result based on?": f"{len(seeds)} evaluation seeds ({', '.join(map(str, seeds))}), which all arms"
        f" share; arms are paired by seed.{fewer}"
        if seeds
        else "",
        "When was the number of seeds decided?": f"Before the run: verdicts may be taken at {looks} seeds, and the error rate"
        " is shared among these looks."
        if looks
        else "",
        "On which seeds were choices made?": f"{tuning} tuning seeds, separate from the evaluation seeds." if tuning else "",
    }


def _format_counts(counts: Mapping[str, int], event: str) -> str:
    """Return the number of measurements with an event, in total and by arm."""
    arms = ", ".join(f"{arm} {count}" for arm, count in counts.items())
    return f"{sum(counts.values())} measurements {event}" + (f" ({arms})" if arms else "")


def _statistics(run: Run) -> dict[str, str]:
    suite = run.suite
    metric, alpha = metrics.get_metric(str(suite["metric"])), float(suite["alpha"])
    margin = format.format_score_number(float(suite["margin"]), metric.unit)
    images = " or ".join(map(str, sorted({finding.estimate.examples for finding in run.findings if finding.estimate.examples})))
    predictions = [cell.record.predictions for cell in run.cells if cell.record.predictions is not None]
    grouped = any(len(prediction.group) for prediction in predictions)
    model = "Crossed random effects of seeds and test examples (Student's t with Satterthwaite's degrees of freedom)"
    if suite.get("after"):
        model = "Test examples only, for this one network"
    bootstrap = "" if metric.mean else "; for this metric from jackknife pseudo-values, widened by a bootstrap"
    groups = "; groups of examples are the units, each with the weight of its examples" if grouped else ""
    others = _other_metrics(run)
    return {
        "What is the metric?": _sentence([suite["metric"], *(["other contrasts: " + "; ".join(others)] if others else [])]),
        "Which difference matters?": f"{margin} {escape(format.unit_name(metric.unit))}, fixed in the suite before the run.",
        "What do error bars mean?": f"One-sided bounds, each at {format.format_confidence(alpha)}; both together are an"
        f" interval at {format.format_confidence(2 * alpha)}. They are not corrected for the number of intervals.",
        "Which sources of variation do they include?": f"{model}{bootstrap}{groups}.",
        "On how many test examples?": f"{images}{' groups or examples' if grouped else ''}." if images else "",
        "How are multiple comparisons corrected?": "FAIL is corrected by Holm's procedure over all hypotheses of the run."
        " PASS is not: that nothing has failed is wrong only if at least one PASS is wrong (intersection-union test)."
        f" The looks share alpha ({alpha:g}). At most {run.expected_false_alarms:.2g} false FAILs are expected in the whole"
        " run.",
    }


def _other_metrics(run: Run) -> list[str]:
    """Return the contrasts whose metric or margin is not that of the suite, as text."""
    return sorted(
        f"{plugin}/{contrast['name']}: {contrast['metric']}, margin {contrast['margin']:g}"
        for plugin, entry in run.provenance.plugins.items()
        for contrast in entry.get("contrasts", ())
        if (contrast["metric"], contrast["margin"]) != (run.suite["metric"], run.suite["margin"])
    )


def _selection(run: Run) -> dict[str, str]:
    """Return what was tried for the subject, its cures and the scratch baseline; each shared search is listed once."""
    searches: dict[tuple[str, str], list[str]] = {}
    recipes: dict[str, list[str]] = {name: [] for name in SEARCHED_ARMS}
    for plugin, arms in run.arms.items():
        for name in SEARCHED_ARMS:
            arm = arms.get(name) or {}
            if candidates := list(arm.get("weighed") or ()):
                text = _describe_search(candidates, str(arm.get("edge") or ""))
                searches.setdefault((name, text), []).append(plugin)
            if arm.get("recipe"):
                recipes[name].append(str(arm["recipe"]))
    answers = {
        "How was the best candidate selected?": "By the metric on one half of the test examples; verdicts use the other half."
        if run.suite.get("after")
        else "By the score on examples that no verdict uses (validation examples, unless the page of the plugin says otherwise)"
        " and on the tuning seeds; then it was frozen.",
    }
    plugin_count = sum(1 for arms in run.arms.values() if arms)
    for (name, text), plugins in searches.items():
        owners = "" if len(plugins) == plugin_count else f" of {', '.join(plugins)}"
        answers[escape(f"What was tried for {name}{owners}?")] = text
    fixed = [name for name in SEARCHED_ARMS if name not in {searched for searched, _ in searches}]
    for name in filter(recipes.get, fixed):
        answers[f"Which recipe was used for {name}?"] = f"There was no search: {_sentence(dict.fromkeys(recipes[name]))}"
    if unknown := [name for name in fixed if not recipes[name]]:
        answers[f"Which recipe was used for {' and '.join(unknown)}?"] = ""
    return answers


def _describe_search(candidates: Sequence[Mapping[str, Any]], edge: str) -> str:
    """Return the range of a search and a table of its candidates with their scores."""
    rates = sorted(rate for candidate in candidates if isinstance(rate := candidate.get("rate"), int | float))
    limits = f", rates {format.format_number(rates[0], 3)} to {format.format_number(rates[-1], 3)}" if rates else ""
    rows = [
        [
            escape(candidate.get("recipe", "")),
            format.format_number(candidate.get("validation")),
            "yes" if candidate.get("chosen") else "",
        ]
        for candidate in candidates[:MAX_LISTED_CANDIDATES]
    ]
    rest = len(candidates) - MAX_LISTED_CANDIDATES
    more = f"\n\nand {rest} more." if rest > 0 else ""
    at_edge = f"; {escape(edge)} was selected, so a better one may lie beyond it" if edge else ""
    count = f"{len(candidates)} {'recipe' if len(candidates) == 1 else 'recipes'}"
    return f"{count}{limits}{at_edge}.\n\n" + markdown_table(["Recipe", "Score", "Selected"], rows, numbers=(1,)) + more


def _data(run: Run) -> dict[str, str]:
    suite = run.suite
    inputs = [
        _describe_input(entry) + (f" (files: {entry['files']}; bytes: {entry['bytes']})" if entry.get("files") else "")
        for entry in run.provenance.evidence.get("inputs") or ()
    ]
    sizes = {"training": suite.get("train_size"), "test": suite.get("test_size")}
    limits = " and ".join(f"at most {size} {name} images" for name, size in sizes.items() if size)
    overrides = " and ".join(name for name in ("train_preprocessing", "serve_preprocessing") if suite.get(name))
    preprocessing = "As the suite specifies" if suite.get("preprocessing") else "As recorded for the weights"
    target = f"{escape(format.hide_folders(suite['target']))}; digests: {MISSING}"
    return {
        "Which data and weights?": "\n".join(f"- {line}" for line in inputs) or target,
        "Which backbone?": _sentence([suite["arch"]]),
        "How many images are used?": f"{limits.capitalize() or 'All images of the data'}.",
        "How are images prepared?": preprocessing + (f", with {escape(overrides)} of the suite" if overrides else "") + ".",
        "Was anything left out of the data?": _matching_notes(run, DROPPED_PREFIX),
    }


def _describe_input(entry: Mapping[str, Any]) -> str:
    """Return an input of the run with its digest, without the folders of the machine."""
    name = escape(format.hide_folders(str(entry["given"])))
    return f"{escape(entry['key'])}: {name}, SHA-256 digest `{escape(entry['digest'])}`"


def _compute(run: Run) -> dict[str, str]:
    cost, seconds = run.cost, run.cost.get("seconds") or {}
    hosts = {cell.record.place for cell in run.cells if cell.record.place}
    times = [f"{format.format_seconds(seconds[key])} {name}" for name, key in DURATIONS.items() if seconds.get(key) is not None]
    counts = [
        f"{count['unique']} {kind} ({count['run']} in this run, {count['reused']} from the store)"
        for kind in ("fits", "trials")
        if (count := cost.get(kind))
    ]
    return {
        "How much was trained and measured?": _sentence(counts),
        "How long did it take?": _sentence(times, ", "),
        "On which machine?": _machine(run, "device", "workers", "processor", "instructions", "platform"),
        "How many machines computed the records?": f"{len(hosts)}." if hosts else "",
    }


def _machine(run: Run, *names: str) -> str:
    environment = run.provenance.environment
    return _sentence(f"{name} {environment[name]}" for name in names if environment.get(name))


def _packages(run: Run) -> list[str]:
    return [f"{name} {version}" for name, version in (run.provenance.environment.get("packages") or {}).items()]


def _code(text: object) -> str:
    """Return a text as inline code, which a backtick would end; "" if there is none."""
    return f"`{format.one_line(text).replace('`', ' ')}`" if text else ""


def _versions(run: Run) -> dict[str, str]:
    provenance = run.provenance
    environment, evidence, plan = provenance.environment, provenance.evidence, provenance.preregistration
    software = [f"{name} {environment[name]}" for name in ("xferbench", "python") if environment.get(name)]
    began, ended = evidence.get("begun"), evidence.get("ended")
    return {
        "Which software?": _sentence([*software, *_packages(run)], ", "),
        "Which revision of the user's code?": _code(environment.get("git")),
        "With which command?": _code(evidence.get("command")),
        "When?": f"{escape(began)} to {escape(ended)}." if began and ended else "",
        "Was the plan frozen before the run?": f"Yes, on {escape(plan['written'])}: plan {_code(plan['hash'])}."
        if plan
        else "No.",
        "Which trials were run?": f"Those with the digest {_code(provenance.plan)}." if provenance.plan else "",
    }


def _notes(run: Run) -> dict[str, str]:
    others = [note for note in run.notes if not note.startswith((TRUST_PREFIX, DROPPED_PREFIX))]
    return {
        "What was taken on trust?": _matching_notes(run, TRUST_PREFIX),
        "What else was noted?": _bullets(others) or "Nothing.",
    }


def _matching_notes(run: Run, prefix: str) -> str:
    return _bullets(note for note in run.notes if note.startswith(prefix)) or "The run has no note about it."


def _unmeasured(run: Run) -> dict[str, str]:
    """Return what was skipped, crashed or left undecided, and the injected failures that were not detected."""
    reasons: dict[str, dict[str, str]] = {"SKIPPED": {}, "ERROR": {}, "INCONCLUSIVE": {}}
    for group in tables.finding_groups(run):
        reasons.setdefault(group[0].verdict, {})[tables.group_name(group[0])] = tables.group_reason(group)
    skipped, crashed, undecided = (
        _bullets(f"{name}: {reason}" for name, reason in reasons[verdict].items()) or "Nothing."
        for verdict in ("SKIPPED", "ERROR", "INCONCLUSIVE")
    )
    missed = [
        f"{tables.group_name(finding)}: {finding.control.variant}"
        for finding in run.findings
        if finding.control.outcome == "missed"
    ]
    reported = {*(finding.plugin for finding in run.findings), "all"}
    absent = [name for name in run.suite.get("plugins") or () if name not in reported]
    return {
        "What was skipped?": skipped,
        "What crashed?": crashed,
        "What was left undecided?": undecided,
        "Which injected failures were not detected?": _bullets(missed) or "None.",
    } | ({"Which plugins have no finding?": _sentence(absent, ", ")} if absent else {})


def _matrix_sections(run: Run) -> dict[str, dict[str, str]]:
    """Return answers by question by section for a matrix."""
    matrix, suite, cost = matrix_tables.matrix_of(run), run.suite, run.cost
    seeds = sorted({row["seed"] for row in matrix.rows})
    crashed, diverged = (sum(bool(row[name]) for row in matrix.rows) for name in ("error", "diverged"))
    unit = format.unit_name(metrics.get_metric(str(suite["metric"])).unit)
    level = format.format_confidence(float(suite["alpha"]))
    environment = run.provenance.environment
    versions = [f"xferbench {environment.get('xferbench', '')}", f"Python {environment.get('python', '')}"]
    claims = [f"{claim['claim']}: {claim['why']}" for claim in matrix.claims if claim["why"]]
    return {
        "Runs and seeds": {
            "How many runs is a result based on?": f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), which the recipes of a"
            f" task share; {len(suite['recipes'])} recipes, {len(suite['tasks'])} tasks.",
            "How many runs failed?": f"{crashed} of {len(matrix.rows)} crashed; {diverged} diverged, and their scores count.",
        },
        "Metric and error bars": {
            "What is the metric?": f"{escape(suite['metric'])} on the target's test examples; differences in {escape(unit)}.",
            "What do error bars mean?": "Over all tasks: two-sided 95 % intervals from a bootstrap of seeds within each task"
            f" ({BOOTSTRAP_REPLICATES} replicates), widened for few seeds; tasks and test examples are fixed. For a claim or"
            f" two recipes: one-sided {level} bounds, seeds crossed with test examples. For a cost: Student's t over seeds.",
            "How are multiple comparisons corrected?": "They are not corrected; each interval stands alone.",
            "How is the best recipe of a task determined?": "By regret, cross-fitted over seeds, so that the luck of one recipe"
            " on the test examples does not count.",
        },
        "Hyper-parameters and their selection": {
            "How was each recipe's rate selected?": f"On validation data, by task, on {suite['tuning_seeds']} tuning seeds,"
            " which are not evaluation seeds; then it was frozen.",
            "What was tried?": _candidates_table(run),
        },
        "Data and weights": {"Which data and weights?": _matrix_data(run)},
        "Compute and versions": {
            "How much was trained?": f"{cost['fits']['unique']} unique fits, {cost['fits']['run']} of them in this run.",
            "How long did it take?": f"{format.format_seconds(cost['seconds']['total'])} recorded,"
            f" {format.format_seconds(cost['seconds']['wall'])} wall-clock time of this run.",
            "On which machine?": _machine(run, "device", "workers", "processor", "platform"),
            "Which software?": _sentence([*versions, *_packages(run)], ", "),
            "With which command?": _code(matrix.command),
        },
        "Notes, and what was not measured": {
            "What was left out, and why?": _bullets([*matrix_tables.describe_skipped(run), *claims]) or "Nothing.",
            "What else was noted?": _bullets(run.notes) or "Nothing.",
        },
    }


def _candidates_table(run: Run) -> str:
    rows = []
    for name, candidates in run.suite["recipes"].items():
        recipe_rows = [row for row in matrix_tables.matrix_of(run).rows if row["recipe"] == name]
        selected = dict.fromkeys(str(row["chosen"]) for row in recipe_rows if row["chosen"])
        rows.append([escape(name), str(len(candidates) or "its own grid"), escape("; ".join(candidates or selected))])
    return markdown_table(["Recipe", "Candidates", "What was tried"], rows, numbers=(1,))


def _matrix_data(run: Run) -> str:
    tasks_by_input: dict[str, list[str]] = {}
    for entry in matrix_tables.matrix_of(run).inputs:
        tasks_by_input.setdefault(_describe_input(entry), []).append(str(entry["task"]))
    count = len(run.suite["tasks"])
    lines = [line + ("" if len(tasks) == count else f" ({escape(', '.join(tasks))})") for line, tasks in tasks_by_input.items()]
    return "\n".join(f"- {line}" for line in lines)
