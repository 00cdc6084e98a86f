"""A run's answers to what reproducibility checklists ask, out of its record alone; what that lacks is said to be missing.

The questions are those of the ML reproducibility checklist (Pineau et al. 2021, arXiv:2003.12206) and of the conferences that
have taken it up.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from xferbench.analysis import metrics
from xferbench.analysis.aggregate import BOOTSTRAP_REPLICATES
from xferbench.report import format, markdown, matrix_tables, tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.core.run import Run

MISSING = "*Not in the record.*"
MOST = 40  # candidates of one search that are told one by one
SEARCHED = ("subject", "cured", "scratch")
OUTSIDE = (
    "Licences and consent for data and weights",
    "Energy, memory and the model of an accelerator",
    "What was tried before this run, by hand or elsewhere",
    "Whether test images were looked at before it",
)
word = markdown.escape


def render(run: Run) -> str:
    """Render the checklist as Markdown; it ends with a line break."""
    parts = [f"# Reproducibility checklist: {word(run.suite.get('name', ''))}"]
    outcome = matrix_tables.format_outcome(run) if run.matrix else tables.headline(run)
    parts.append(f"Read out of the record of the run alone. {word(outcome)}")
    for title, answers in (_matrix_sections(run) if run.matrix else _sections(run)).items():
        parts += [f"## {title}", *(f"**{question}** {answer}".replace(" \n", "\n", 1) for question, answer in answers.items())]
    parts += ["## What no record of a run can say", bullets([word(one) for one in OUTSIDE])]
    return "\n\n".join(parts) + "\n"


def _sections(run: Run) -> dict[str, dict[str, str]]:
    return {
        "Runs and seeds": _runs(run),
        "Metric, margin and error bars": _statistics(run),
        "Hyper-parameters and how they were chosen": _chosen(run),
        "Data and weights": _data(run),
        "Compute": _compute(run),
        "Versions and code": _versions(run),
        "Assumptions and notes": _notes(run),
        "What was not measured": _unmeasured(run),
    }


def _runs(run: Run) -> dict[str, str]:
    seeds, rest = sorted({cell.seed for cell in run.cells}), sorted({one.seeds for one in run.findings if one.seeds})
    finished = bool(run.suite.get("after"))
    tuning = run.suite.get("tuning_seeds")
    own = f"{tuning} of their own, apart from the judged ones." if tuning else MISSING
    unique = {cell.record.key: cell for cell in run.cells}.values()
    broken = Counter(tables.arm_name(cell) for cell in unique if cell.record.error)
    diverged = Counter(tables.arm_name(cell) for cell in unique if cell.record.scalars.get("diverged", 0.0) > 0)
    fewer = f" Findings rest on the first {' or '.join(map(str, rest))} of them." if len(rest) > 1 else ""
    looks = ", ".join(map(str, run.suite.get("looks") or ()))
    return {
        "How many runs is a result based on?": "One finished network, which was not trained here."
        if finished
        else f"{len(seeds)} judged seeds ({', '.join(map(str, seeds))}), shared by all arms, which are paired by seed.{fewer}"
        if seeds
        else MISSING,
        "When was the number of seeds decided?": "There is one network."
        if finished
        else f"Before the run: verdicts may be taken at {looks} seeds, and the error rate is shared among these looks."
        if looks
        else MISSING,
        "On which seeds were choices made?": "None: choices were made on one half of the test images." if finished else own,
        "How many runs failed?": _counted(broken, "crashed") + "; " + _counted(diverged, "diverged") + ".",
    }


def _counted(count: Mapping[str, int], what: str) -> str:
    """How many views of networks that is, by arm."""
    arms = ", ".join(f"{word(arm)} {number}" for arm, number in count.items())
    return f"{sum(count.values())} measurements {what}" + (f" ({arms})" if arms else "")


def _statistics(run: Run) -> dict[str, str]:
    suite = run.suite
    metric, alpha = metrics.get_metric(str(suite["metric"])), float(suite["alpha"])
    factor, digits = format.unit_scale(metric.unit)
    images = sorted({one.examples for one in run.findings if one.examples})
    grouped = any(len(told.group) for cell in run.cells if (told := cell.record.predictions) is not None)
    how = "Crossed random effects of seeds and test images (Student's t with Satterthwaite's degrees of freedom)"
    how = "Test images alone, given this one network" if suite.get("after") else how
    wider = "" if metric.mean else "; of this metric through jackknife pseudo-values, widened by a bootstrap"
    others = sorted(
        f"{plugin}/{one['name']}: {one['metric']}, margin {one['margin']:g}"
        for plugin, about in run.plugins.items()
        for one in about.get("contrasts", ())
        if (one["metric"], one["margin"]) != (suite["metric"], suite["margin"])
    )
    return {
        "What is the metric?": word(f"{suite['metric']}" + (f"; of others: {'; '.join(others)}" if others else "")) + ".",
        "Which difference matters?": f"{factor * float(suite['margin']):.{digits}f} {word(format.unit_name(metric.unit))},"
        " fixed in the suite before the run.",
        "What do error bars mean?": f"One-sided bounds, each at {format.format_confidence(alpha)}, so that both together are"
        " an interval"
        f" at {format.format_confidence(2 * alpha)}; each by itself, not corrected for how many there are.",
        "What varies in them?": f"{how}{wider}"
        + ("; averaged within groups of images first, which are the examples then." if grouped else "."),
        "On how many test images?": f"{' or '.join(map(str, images))}{' groups or images' if grouped else ''}."
        if images
        else MISSING,
        "How are many comparisons corrected for?": "Verdicts by Holm's procedure over all that was judged, and over looks by"
        f" sharing alpha ({alpha:g}); at most {run.expected_false_alarms:.2g} false FAILs are expected in the whole run.",
    }


def _chosen(run: Run) -> dict[str, str]:
    """What was tried for the subject, its cures and the from-scratch baseline; what several plugins share is told once."""
    found: dict[str, tuple[list[str], str]] = {}
    for plugin, arms in run.arms.items():
        for arm in SEARCHED:
            weighed = list((arms.get(arm) or {}).get("weighed") or ())
            if weighed:
                told = _candidates(weighed, str(arms[arm].get("edge") or ""))
                found.setdefault(f"{arm}\n{told}", ([], told))[0].append(plugin)
    answers = {
        "How was the best chosen?": "By the metric on one half of the test images, and judged on the other."
        if run.suite.get("after")
        else "By the score on images that no verdict is taken on (of validation, unless the plugin's page says otherwise), on"
        " the tuning seeds; then frozen.",
    }
    for at, (plugins, told) in found.items():
        whose = "" if len(plugins) == len([one for one in run.arms.values() if one]) else f" of {', '.join(plugins)}"
        answers[word(f"What was tried for {at.partition(chr(10))[0]}{whose}?")] = told
    fixed = [arm for arm in SEARCHED if not any(at.startswith(f"{arm}\n") for at in found)]
    kept = {arm: dict.fromkeys(_recipes(run, arm)) for arm in fixed}
    answers |= {
        f"What was {arm}?": "Nothing was searched: " + word("; ".join(told)) + "." for arm, told in kept.items() if told
    }
    missing = [arm for arm, told in kept.items() if not told]
    return answers | ({f"And {', '.join(missing)}?": MISSING} if missing else {})


def _recipes(run: Run, arm: str) -> list[str]:
    return [str(arms[arm]["recipe"]) for arms in run.arms.values() if (arms.get(arm) or {}).get("recipe")]


def _candidates(weighed: Sequence[Mapping[str, Any]], edge: str) -> str:
    """A search: its bounds, then each candidate with its score."""
    rates = sorted(rate for one in weighed if isinstance(rate := one.get("rate"), int | float))
    bounds = f", rates {rates[0]:.3g} to {rates[-1]:.3g}" if rates else ""
    rows = [
        [word(one.get("recipe", "")), format.format_number(one.get("validation")), "yes" if one.get("chosen") else ""]
        for one in weighed[:MOST]
    ]
    more = f"\n\nand {len(weighed) - MOST} more." if len(weighed) > MOST else ""
    at_edge = f"; {word(edge)} was chosen, so a better one may lie beyond" if edge else ""
    many = f"{len(weighed)} {'recipe' if len(weighed) == 1 else 'recipes'}"
    return f"{many}{bounds}{at_edge}.\n\n" + markdown.markdown_table(["Recipe", "Score", "Chosen"], rows, numbers=(1,)) + more


def _data(run: Run) -> dict[str, str]:
    suite, inputs = run.suite, run.evidence.get("inputs") or ()
    listed = [
        f"{word(one['key'])}: {word(format.hide_folders(one['given']))}, SHA-256 digest `{word(one['digest'])}`"
        + (f" (files: {one['files']}; bytes: {one['bytes']})" if one.get("files") else "")
        for one in inputs
    ]
    sizes = {"training": suite.get("train_size"), "test": suite.get("test_size")}
    told = [f"{number} {name} images at most" for name, number in sizes.items() if number]
    ready = "As the suite says" if suite.get("preprocessing") else "As recorded for the weights"
    changed = [name for name in ("train_preprocessing", "serve_preprocessing") if suite.get(name)]
    return {
        "Which data and weights?": bullets(listed, "\n\n")
        if listed
        else f"{word(format.hide_folders(suite['target']))}; digests: {MISSING}",
        "Which backbone?": word(suite["arch"]) + ".",
        "How many images are used?": f"{' and '.join(told)}." if told else "All that the data have.",
        "How are images prepared?": ready + (f", with the suite's {word(' and '.join(changed))}" if changed else "") + ".",
        "Was anything left out of the data?": _noted(run, "left out of the data", "Nothing that the run has noted."),
    }


def _compute(run: Run) -> dict[str, str]:
    cost, at = run.cost, run.environment
    seconds = cost.get("seconds") or {}
    places = {cell.record.place for cell in run.cells if cell.record.place}
    machine = [
        f"{name} {word(at[name])}" for name in ("device", "workers", "processor", "instructions", "platform") if at.get(name)
    ]
    took = {"recorded": "total", "of it training": "fit", "of it measuring": "view", "of this run by the clock": "wall"}
    times = [f"{format.format_seconds(seconds[key])} {what}" for what, key in took.items() if seconds.get(key) is not None]
    counts = [
        f"{told['unique']} {kind} ({told['run']} run now, {told['reused']} from the store)"
        for kind in ("fits", "trials")
        if (told := cost.get(kind))
    ]
    return {
        "How much was trained and measured?": f"{'; '.join(counts)}." if counts else MISSING,
        "How long did it take?": f"{', '.join(times)}." if times else MISSING,
        "On which machine?": f"{'; '.join(machine)}." if machine else MISSING,
        "On how many machines were the records made?": f"{len(places)}." if places else MISSING,
    }


def _versions(run: Run) -> dict[str, str]:
    at, said = run.environment, run.evidence
    packages = ", ".join(f"{name} {version}" for name, version in (at.get("packages") or {}).items())
    own = ", ".join(f"{name} {at[name]}" for name in ("xferbench", "python") if at.get(name))
    frozen = run.frozen
    return {
        "Which software?": word(", ".join(filter(None, (own, packages)))) + "." if own or packages else MISSING,
        "Which revision of the user's code?": f"`{word(at['git'])}`" if at.get("git") else MISSING,
        "With which command?": f"`{format.one_line(said['command']).replace('`', ' ')}`" if said.get("command") else MISSING,
        "When?": f"{word(said['begun'])} to {word(said['ended'])}." if said.get("begun") and said.get("ended") else MISSING,
        "Was the plan fixed beforehand?": f"Yes, on {word(frozen['written'])}: plan `{word(frozen['hash'])}`."
        if frozen
        else "No plan was frozen before the run.",
        "Which trials were carried out?": f"Those with the digest `{word(run.plan)}`." if run.plan else MISSING,
    }


def _notes(run: Run) -> dict[str, str]:
    rest = [word(note) for note in run.notes if not note.startswith(("taken on trust", "left out of the data"))]
    return {
        "What was taken on trust?": _noted(run, "taken on trust", "Nothing that the run has noted."),
        "What else was noted?": bullets(rest, "\n\n") if rest else "Nothing.",
    }


def _noted(run: Run, start: str, nothing: str) -> str:
    found = [word(note) for note in run.notes if note.startswith(start)]
    return bullets(found, "\n\n") if found else nothing


def _unmeasured(run: Run) -> dict[str, str]:
    """What was skipped, crashed or left undecided, and failures whose control was not seen."""
    by: dict[str, dict[str, str]] = {}
    for group in tables.finding_groups(run):
        by.setdefault(group[0].verdict, {})[tables.group_name(group[0])] = tables.group_reason(group)
    missed = [f"{tables.group_name(one)}: {one.variant}" for one in run.findings if one.control == "missed"]
    asked = [name for name in run.suite.get("plugins") or () if name not in {*(one.plugin for one in run.findings), "all"}]
    questions = {"SKIPPED": "What was not asked?", "ERROR": "What crashed?", "INCONCLUSIVE": "What was left undecided?"}
    told = {
        question: bullets([f"{word(name)}: {word(why)}" for name, why in by[verdict].items()], "\n\n")
        if by.get(verdict)
        else "Nothing."
        for verdict, question in questions.items()
    }
    told["Which failures, put in on purpose, were not detected?"] = bullets([word(one) for one in missed], "\n\n") or "None."
    if asked:
        told["Which plugins have no finding?"] = word(", ".join(asked)) + "."
    return told


def bullets(lines: Sequence[str], before: str = "") -> str:
    """A list in Markdown, "" of no lines."""
    return before + "\n".join(f"- {one}" for one in lines) if lines else ""


def _matrix_sections(run: Run) -> dict[str, dict[str, str]]:
    return {
        "Runs and seeds": _matrix_runs(run),
        "Metric and error bars": _matrix_statistics(run),
        "Hyper-parameters and how they were chosen": _matrix_chosen(run),
        "Data and weights": {"Which data and weights?": _matrix_data(run)},
        "Compute and versions": _matrix_compute(run),
        "Notes, and what was not measured": _matrix_left(run),
    }


def _matrix_runs(run: Run) -> dict[str, str]:
    matrix = matrix_tables.matrix_of(run)
    seeds = sorted({row["seed"] for row in matrix.rows})
    crashed, diverged = (sum(bool(row[name]) for row in matrix.rows) for name in ("error", "diverged"))
    return {
        "How many runs is a result based on?": f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), shared by the recipes"
        f" of a task; {len(run.suite['recipes'])} recipes, {len(run.suite['tasks'])} tasks.",
        "How many runs failed?": f"{crashed} of {len(matrix.rows)} crashed, {diverged} diverged and count as they are.",
    }


def _matrix_statistics(run: Run) -> dict[str, str]:
    suite = run.suite
    unit = format.unit_name(metrics.get_metric(str(suite["metric"])).unit)
    level = f"{100 * (1 - float(suite['alpha'])):g} %"
    return {
        "What is the metric?": f"{word(suite['metric'])} on the target's test images; differences in {word(unit)}.",
        "What do error bars mean?": "Over all tasks: two-sided 95 % intervals by a bootstrap of seeds within each task"
        f" ({BOOTSTRAP_REPLICATES} replicates), widened for few seeds; tasks and test images are taken as given."
        f" Of a claim or of two recipes: one-sided {level} bounds, seeds crossed with test images; of a cost: Student's t over"
        " seeds.",
        "How are many comparisons corrected for?": "They are not: each interval is by itself.",
        "How is the best recipe of a task told?": "Not by its own luck on the test set: regret is cross-fitted over seeds.",
    }


def _matrix_chosen(run: Run) -> dict[str, str]:
    rows = []
    for name, candidates in run.suite["recipes"].items():
        of_recipe = [row for row in matrix_tables.matrix_of(run).rows if row["recipe"] == name]
        chosen = dict.fromkeys(str(row["chosen"]) for row in of_recipe if row["chosen"])
        rows.append([word(name), str(len(candidates) or "its own grid"), word("; ".join(candidates or chosen))])
    tuning = run.suite["tuning_seeds"]
    answer = f"On validation, on tuning seeds apart from the judged ones ({tuning}), by task; then frozen."
    bounds = markdown.markdown_table(["Recipe", "Candidates", "What was tried"], rows, numbers=(1,))
    return {"How was each recipe's rate chosen?": answer, "What was tried?": f"\n\n{bounds}"}


def _matrix_data(run: Run) -> str:
    matrix = matrix_tables.matrix_of(run)
    tasks_by_line: dict[str, list[str]] = {}
    for entry in matrix.inputs:
        line = (
            f"{word(entry['key'])}: {word(format.hide_folders(str(entry['given'])))}, SHA-256 digest `{word(entry['digest'])}`"
        )
        tasks_by_line.setdefault(line, []).append(str(entry["task"]))
    count = len(run.suite["tasks"])
    lines = [line + ("" if len(tasks) == count else f" ({word(', '.join(tasks))})") for line, tasks in tasks_by_line.items()]
    return bullets(lines, "\n\n") or MISSING


def _matrix_compute(run: Run) -> dict[str, str]:
    matrix = matrix_tables.matrix_of(run)
    cost, at = run.cost, run.environment
    packages = ", ".join(f"{name} {version}" for name, version in (at.get("packages") or {}).items())
    machine = [f"{name} {word(at[name])}" for name in ("device", "workers", "processor", "platform") if at.get(name)]
    seconds: dict[str, Any] = dict(cost["seconds"])
    return {
        "How much was trained?": f"{cost['fits']['unique']} unique fits, {cost['fits']['run']} of them in this run.",
        "How long did it take?": f"{format.format_seconds(seconds['total'])} recorded,"
        f" {format.format_seconds(seconds['wall'])} of this run.",
        "On which machine?": f"{'; '.join(machine)}." if machine else MISSING,
        "Which software?": word(f"xferbench {at.get('xferbench', '')}, Python {at.get('python', '')}, {packages}") + ".",
        "With which command?": f"`{format.one_line(matrix.command).replace('`', ' ')}`" if matrix.command else MISSING,
    }


def _matrix_left(run: Run) -> dict[str, str]:
    matrix = matrix_tables.matrix_of(run)
    skipped = [word(line) for line in matrix_tables.describe_skipped(run)]
    claims = [f"{word(claim['claim'])}: {word(claim['why'])}" for claim in matrix.claims if claim["why"]]
    return {
        "What was left out, and why?": bullets([*skipped, *claims], "\n\n") or "Nothing.",
        "What else was noted?": bullets([word(note) for note in run.notes], "\n\n") or "Nothing.",
    }
