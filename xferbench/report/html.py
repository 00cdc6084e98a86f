"""Write ``report.html``, a single file without scripts and network access. Reads the templates."""

from __future__ import annotations

import re
import shlex
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.analysis import metrics, rules_of_thumb
from xferbench.config.loader import shipped_folder
from xferbench.report import (
    comparison,
    comparison_text,
    figure_cache,
    figures,
    forest_plot,
    format,
    matrix_tables,
    provenance,
    sample_images,
    tables,
    templates,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.core.plugin import Plugin
    from xferbench.core.run import Run


QUIET_VERDICTS = ("PASS", "SKIPPED", "INFO")  # verdicts that need no attention
MAX_OPEN_SECTIONS = 3  # with more plugins, the page has a table of contents and folds those that pass
TRUST_PREFIX = "taken on trust: "
COSTS = ("trainable", "stored", "multiply_adds", "seconds", "accuracy", "source_before", "source", "shifted")
CLAIM_STYLE = {"agrees": "PASS", "disagrees": "FAIL", "inconclusive": "INCONCLUSIVE", "not measured": "SKIPPED"}


def render(run: Run, plugins: Mapping[str, Plugin | None], cache: Path | None = None) -> str:
    """Return the report of a run as HTML.

    Args:
        run: the run.
        plugins: plugins by id; None for one that is not installed, whose question and figures are then left out.
        cache: folder of cached figures; None draws all figures.
    """
    if run.matrix:
        return _matrix_page(run)
    from markupsafe import Markup

    groups = tables.finding_groups(run)
    names = [name for name in tables.plugin_names(run) if _has_trials(run, name)]
    anchors = {name: f"plugin-{number}" for number, name in enumerate(names, start=1)}
    units = sorted({format.unit_name(group[0].unit) for group in groups})
    verdicts = [
        _verdict(group) | {"anchor": anchors.get(group[0].plugin, ""), "cause": _cause(plugins.get(group[0].plugin))}
        for group in groups
    ]
    content = "" if cache is None else figure_cache.content_key(run) or ""
    sections = [_section(run, name, plugins.get(name), cache, content) | {"anchor": anchors[name]} for name in names]
    trusted, notes = _notes(run)
    page = templates.render_template(
        "report.html.j2",
        title=format.one_line(run.suite.get("name", "")),
        suite=run.suite,
        comparison=comparison.section(run, cache),
        outcome=comparison_text.headline(run.gate) if run.gate else tables.headline(run),
        own_headline=tables.headline(run) if run.gate else "",
        settings=_settings(run),
        unit=" / ".join(units),
        level=format.format_confidence(float(run.suite.get("alpha") or 0.05)),
        failed=[verdict for verdict in verdicts if verdict["verdict"] == "FAIL"],
        verdicts=[verdict for verdict in verdicts if verdict["verdict"] != "FAIL"],
        forest=Markup(forest_plot.draw_forest(groups, cache)),  # noqa: S704 - drawn by this package, with its texts escaped
        retained=Markup(figures.draw_benefit_retained(groups, cache)),  # noqa: S704 - as above
        sections=sections,
        has_contents=len(names) > MAX_OPEN_SECTIONS,
        samples=[_samples(images) for images in sample_images.encode_images(run.samples)],
        trusted=trusted,
        notes=notes,
        false_alarms=f"{run.expected_false_alarms:.2g}",
        cost=_cost(run.cost),
        environment=comparison.environment(run.environment),
        plan=format.one_line(run.plan),
        command=command_line(run.suite),
        evidence=_evidence(run),
    )
    if cache is not None:
        figure_cache.trim_cache(cache)
    return page


def _notes(run: Run) -> tuple[list[str], list[str]]:
    """Return what the run takes on trust, and the other notes."""
    notes = [format.one_line(note) for note in run.notes]
    trusted = [note.removeprefix(TRUST_PREFIX) for note in notes if note.startswith(TRUST_PREFIX)]
    return trusted, [note for note in notes if not note.startswith(TRUST_PREFIX)]


def _cause(plugin: Plugin | None) -> str:
    """Return the section "Cause" of a plugin's manual page, or an empty string."""
    match = re.search(r"^Cause\n((?:[ \t]+.*\n?|\n(?=[ \t]))+)", plugin.doc if plugin else "", re.MULTILINE)
    return format.one_line(" ".join(match[1].replace("``", "").split())) if match else ""


def _samples(encoded: sample_images.EncodedImages) -> dict[str, Any]:
    samples = encoded.samples
    return {
        "role": format.one_line(samples.role),
        "title": format.one_line(samples.title),
        "arms": [format.one_line(arm) for arm in samples.arms],
        "images": [(format.one_line(label), image) for label, image in zip(samples.labels, encoded.images, strict=True)],
    }


def _settings(run: Run) -> list[tuple[str, str]]:
    """Return the main settings of the suite for the head of the page."""
    suite = run.suite
    margin = suite.get("margin")
    unit = run.findings[0].unit if run.findings else "accuracy"
    factor, _ = format.unit_scale(unit)
    files = {role: Path(str(suite[role])).name if suite.get(role) else None for role in ("weights", "after", "before")}
    settings = {
        "backbone": suite.get("arch"),
        "weights": files["weights"],
        "finished network": files["after"],
        "made from": files["before"],
        "target": suite.get("target"),
        "training images": suite.get("train_size"),
        "metric": suite.get("metric"),
        "margin": None if margin is None else f"{factor * margin:g} {format.unit_name(unit)}",
        "looks": ", ".join(map(str, suite["looks"])) + " seeds" if suite.get("looks") and not files["after"] else None,
        "alpha": suite.get("alpha"),
    }
    return [(name, format.one_line(value)) for name, value in settings.items() if value is not None]


def _verdict(group: tables.Group) -> dict[str, Any]:
    first = group[0]
    accuracy = {arm: format.format_percent(first.accuracy.get(arm)) for arm in ("subject", "cured", "scratch")}
    return {
        "plugin": format.one_line(first.plugin),
        "contrast": "" if first.contrast == "harm" else format.one_line(first.contrast),
        "verdict": first.verdict,
        "harm": format.format_harm(first.harm, first.unit),
        "bounds": "" if first.harm is None else tables.harm_text(first).partition(" ")[2],
        "p": [
            (name, format.format_p_value(value))
            for name, value in (("p FAIL", first.p_fail), ("p PASS", first.p_pass))
            if value is not None
        ],
        "controls": tables.gist(group),
        "retained": format.format_percent(first.benefit_retained, 0),
        "accuracy": accuracy,
        "induced": [
            (variant if len(group) > 1 else "", format.format_percent(value)) for variant, value in tables.induced_range(group)
        ],
        "reason": tables.group_reason(group),
        "action": tables.next_action(group),
        "advice": format.one_line((first.remedy or {}).get("text") or ""),
        "patch": tables.patch_lines(group),
        "verified": tables.is_verified(group),
        "margin": "" if first.margin is None else format.format_harm(first.margin, first.unit).removeprefix("+"),
        "unit": format.unit_name(first.unit),
        "seeds": first.seeds,
        "examples": first.examples,
    }


def _section(run: Run, name: str, plugin: Plugin | None, cache: Path | None, content: str) -> dict[str, Any]:
    """Return the values of a plugin's section."""
    from markupsafe import Markup

    charts = [
        (title, Markup(drawing))  # noqa: S704 - drawn by this package, with its texts escaped
        for title, drawing in (
            *_paired_figures(run, name, plugin, cache),
            ("Learning curves", figures.draw_learning_curves(tables.learning_curves(run, name), cache)),
        )
        if drawing
    ]
    plot = Markup(figures.draw_plugin_plot(plugin, run, cache, content)) if plugin else ""  # noqa: S704 - as above
    return {
        "name": format.one_line(name),
        "question": format.one_line(plugin.question) if plugin else "",
        "is_installed": plugin is not None,
        "open": any(group[0].verdict not in QUIET_VERDICTS for group in tables.finding_groups(run) if group[0].plugin == name),
        "verdicts": list(dict.fromkeys(group[0].verdict for group in tables.finding_groups(run) if group[0].plugin == name)),
        "arms": tables.arm_rows(run, name),
        "figures": [*charts, *([(_caption(plugin), plot)] if plot else [])],
        "measurements": [
            (
                format.one_line(finding.contrast),
                tables.harm_text(finding),
                format.unit_name(finding.unit),
                finding.seeds,
                format.one_line(finding.reason),
            )
            for finding in tables.measurements(run, name)
        ],
        "measures": _measures(run, name),
    }


def _caption(plugin: Plugin | None) -> str:
    """Return the docstring of a plugin's plot as its caption."""
    docstring = (plugin.plot.__doc__ or "") if plugin and plugin.plot else ""
    return format.one_line(" ".join(docstring.split()).rstrip(".") or "The figure of the plugin")


def _has_trials(run: Run, name: str) -> bool:
    """Return whether a plugin has trials, and thus a section."""
    return any(cell.plugin == name for cell in run.cells)


def _paired_figures(run: Run, name: str, plugin: Plugin | None, cache: Path | None) -> list[tuple[str, str]]:
    """Return a title and a figure of the paired differences for each contrast of a plugin."""
    contrasts = {contrast.name: contrast for contrast in plugin.contrasts} if plugin else {}
    groups: dict[str, tables.Group] = {}
    for group in tables.finding_groups(run):
        if group[0].plugin == name and group[0].contrast in contrasts:
            groups[group[0].contrast] = groups.get(group[0].contrast, ()) + group
    return [
        (
            "Paired differences" if len(groups) == 1 else f"Paired differences: {format.one_line(contrast)}",
            figures.draw_paired(
                list(tables.paired_harms(run, group, contrasts[contrast])), group[0].margin, group[0].unit, cache
            ),
        )
        for contrast, group in groups.items()
    ]


def _measures(run: Run, name: str) -> list[tuple[str, str]]:
    """Return the names and values of a plugin's measures without repetitions; a measure of a variant includes its name."""
    rows: dict[tuple[str, str], None] = {}
    for finding in run.findings:
        if finding.plugin == name:
            for key, value in finding.measures.items():
                label = f"{key} ({finding.variant})" if key.startswith("induced/") and finding.variant else key
                rows[format.one_line(label), format.format_number(value)] = None
    return list(rows)


def _cost(cost: Mapping[str, Any]) -> dict[str, Any]:
    counts = [
        (name, [cost[name].get(kind, 0) for kind in ("asked", "unique", "run", "reused")])
        for name in ("fits", "trials")
        if name in cost
    ]
    seconds = cost.get("seconds") or {}
    return {
        "counts": counts,
        "seconds": [(format.one_line(kind), format.format_seconds(float(value))) for kind, value in seconds.items()],
    }


def _evidence(run: Run) -> dict[str, Any]:
    """Return the values of the section about evidence; empty for a run without evidence."""
    if not run.evidence:
        return {}
    sources = run.evidence.get("plugin_sources") or {}
    return {
        "claim": provenance.DISCLAIMER,
        "hash": format.one_line(run.evidence.get("hash", "")),
        "frozen_on": format.one_line(run.frozen.get("written", "")),
        "frozen_file": format.one_line(run.frozen.get("file", ""))[:16],
        "begun": format.one_line(run.evidence.get("begun", "")),
        "ended": format.one_line(run.evidence.get("ended", "")),
        "inputs": [
            {
                "key": format.one_line(entry.get("key", "")),
                "files": format.one_line(entry.get("files", "")),
                "name": re.sub(
                    r"[^:]*/", "", format.one_line(entry.get("given", "")).rstrip("/")
                ),  # evidence.json has the path
                "digest": format.one_line(entry["digest"])[:16],
            }
            for entry in run.evidence.get("inputs", ())
        ],
        "repair": format.one_line((run.evidence.get("repair") or {}).get("said", "")),
        "repaired": format.one_line((run.evidence.get("repair") or {}).get("sha256", "")),
        "environment": _environment_line(run.environment),
        "plugins": format.one_line("; ".join(f"{name}, source {source[:16]}…" for name, source in sources.items())),
    }


def _environment_line(environment: Mapping[str, Any]) -> str:
    """Return the versions of xferbench, Python and torch, and the platform, processor and device, in one line."""
    torch = (environment.get("packages") or {}).get("torch")
    versions = (("xferbench", environment.get("xferbench")), ("Python", environment.get("python")), ("torch", torch))
    parts = [f"{name} {value}" for name, value in versions if value]
    parts += [str(environment[name]) for name in ("platform", "processor", "device") if environment.get(name)]
    return format.one_line(", ".join(parts))


def command_line(suite: Mapping[str, Any]) -> str:
    """Return the command that runs a suite again."""
    if arguments := suite.get("command"):
        return " ".join(["xferbench audit", *map(format.one_line, arguments), "--output DIR"])
    overrides = [f"--set {shlex.quote(format.one_line(override))}" for override in suite.get("overrides") or ()]
    path = Path(str(suite.get("path") or suite.get("name") or "SUITE"))
    is_shipped = path.parent == shipped_folder()  # a shipped suite has a name instead of a path
    file = shlex.quote(format.one_line(path.stem if is_shipped else path))
    return " ".join(["xferbench audit" if suite.get("after") else "xferbench run", file, *overrides, "--output DIR"])


def _matrix_page(run: Run) -> str:
    """Return the page of a matrix: claims, recipes over all tasks, size × similarity, scores and costs."""
    from markupsafe import Markup

    suite, matrix, (summaries, notes) = run.suite, matrix_tables.matrix_of(run), matrix_tables.rank_recipes(run)
    return templates.render_template(
        "matrix.html.j2",
        title=format.one_line(suite["name"]),
        outcome=matrix_tables.format_outcome(run),
        settings=[(name, format.one_line(value)) for name, value in _matrix_settings(run).items() if value],
        claims=[_claim(claim) for claim in matrix.claims],
        columns=matrix_tables.summary_columns(run),
        ranked=[matrix_tables.summary_cells(summary) for summary in summaries],
        rules=_rules(run),
        quadrants=matrix_tables.describe_quadrants(run),
        drawing=Markup(figures.draw_quadrants(run)),  # noqa: S704 - drawn by this package, with its texts escaped
        tasks=[format.one_line(task) for task in suite["tasks"]],
        metric=format.one_line(suite["metric"]),
        unit=format.unit_name(metrics.get_metric(str(suite["metric"])).unit),
        level=f"{100 * (1 - float(suite['alpha'])):g} %",
        against=format.one_line(suite["against"]),
        grid=_score_grid(run),
        costs=_cost_grid(run),
        findings=[
            (finding, format.one_line(finding.id), format.one_line(finding.reason))
            for finding in run.findings
            if finding.verdict != "INFO"
        ],
        pages=sorted({finding.id.partition(":")[0] for finding in run.findings}),
        crashed=[format.one_line(crash) for crash in matrix.crashes],
        skipped=[format.one_line(line) for line in matrix_tables.describe_skipped(run)],
        notes=[format.one_line(note) for note in (*notes, *run.notes)],
        cost=run.cost,
        environment=comparison.environment(run.environment),
        command=command_line(suite),
    )


def _matrix_settings(run: Run) -> dict[str, Any]:
    suite = run.suite
    return {
        "recipes": len(suite["recipes"]),
        "tasks": len(suite["tasks"]),
        "seeds": len({row["seed"] for row in matrix_tables.matrix_of(run).rows}),
        "chosen": f"the rate of each recipe, on validation data with separate tuning seeds ({suite['tuning_seeds']})",
        "metric": suite["metric"],
        "margin": f"{suite['margin']:g}",
        "compared with": suite["against"],
    }


def _claim(claim: Mapping[str, Any]) -> dict[str, str]:
    measured, bound, published = matrix_tables.format_claim(claim)
    texts = {name: format.one_line(claim[name]) for name in ("claim", "source", "why", "task", "outcome")}
    recipes = f"{claim['recipe']} − {claim['against']}, {claim['view']}"
    number = claim["contrast"] or (recipes if claim["against"] else f"{claim['recipe']}, {claim['measure']}")
    return texts | {
        "style": CLAIM_STYLE[claim["outcome"]],
        "measured": measured,
        "bound": bound,
        "published": published,
        "number": format.one_line(number),
    }


def _rules(run: Run) -> str:
    """Return the advice of each rule of thumb that the table lists."""
    probe, upper, full = "a linear probe", "the upper layers", "all layers"
    few, least, most = rules_of_thumb.FEW_EXAMPLES, rules_of_thumb.MIN_UPPER_EXAMPLES, rules_of_thumb.MAX_UPPER_EXAMPLES
    small = f"{probe} if they are similar to the source, otherwise {upper}"
    advice_of = {
        matrix_tables.TEXTBOOK: f"below {few} images {small}; above that, {full}",
        matrix_tables.BY_SIZE: f"below {least} images {probe}, up to {most} {upper}, above that {full}",
    }
    return "; ".join(f"{rule}: {advice_of[rule]}" for rule in matrix_tables.advised_recipes(run))


def _score_grid(run: Run) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Return the mean, the difference from the reference and whether it may be the best, for each recipe and task."""
    means, best = matrix_tables.mean_scores(run), matrix_tables.tied_recipes(run)
    unit = metrics.get_metric(str(run.suite["metric"])).unit
    comparisons = {(entry["recipe"], entry["task"]): entry for entry in matrix_tables.matrix_of(run).comparisons}
    rows = []
    for name in run.suite["recipes"]:
        cells = []
        for task in run.suite["tasks"]:
            entry = comparisons.get((name, task))
            bounds = None if entry is None or entry["error"] else (entry["difference"], entry["low"], entry["high"])
            score = matrix_tables.format_score((means.get((name, task)) or {}).get("accuracy"), unit)
            cells.append((score, "" if bounds is None else format.format_bounds(bounds, unit), (name, task) in best))
        rows.append((format.one_line(name), cells))
    return rows


def _cost_grid(run: Run) -> list[tuple[str, list[str]]]:
    """Return the costs of each recipe: means over the tasks that have a value."""
    frame, unit = run.to_frame(), metrics.get_metric(str(run.suite["metric"])).unit
    rows = []
    for name in run.suite["recipes"]:
        means = frame[frame["recipe"] == name][list(COSTS)].mean()
        if not means.isna().all():
            rows.append((format.one_line(name), [_format_cost(column, float(means[column]), unit) for column in COSTS]))
    return rows


def _format_cost(column: str, value: float, unit: str) -> str:
    if isnan(value):
        return format.MISSING
    if column == "seconds":
        return format.format_seconds(value)
    if column in {"trainable", "multiply_adds"}:
        return f"{value:,.0f}"
    return f"{value / 1000:,.1f} kB" if column == "stored" else matrix_tables.format_score(value, unit)
