"""Write ``report.html``, a single file without scripts and network access. Reads the templates."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.config.loader import shipped_folder
from xferbench.report import (
    comparison,
    comparison_text,
    figure_cache,
    figures,
    forest_plot,
    format,
    matrix_page,
    messages,
    provenance,
    sample_images,
    tables,
    templates,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.core.plugin import Plugin
    from xferbench.core.run import Duplicate, Run


QUIET_VERDICTS = ("PASS", "SKIPPED", "INFO")  # verdicts that need no attention
MAX_LISTED_DUPLICATES = 100  # the others are in duplicates.csv
MAX_OPEN_SECTIONS = 3  # with more plugins, the page has a table of contents and folds those that pass


def render(run: Run, plugins: Mapping[str, Plugin | None], cache: Path | None = None) -> str:
    """Return the report of a run as HTML.

    Args:
        run: the run.
        plugins: plugins by id; None for one that is not installed, whose question and figures are then left out.
        cache: folder of cached figures; None draws all figures.
    """
    if run.matrix:
        return matrix_page.render(run, command_line(run.suite))
    from markupsafe import Markup

    groups = tables.finding_groups(run)
    names = [name for name in tables.plugin_names(run) if _has_trials(run, name)]
    anchors = {name: f"plugin-{number}" for number, name in enumerate(names, start=1)}
    unit = tables.suite_unit(run)
    verdicts = [
        _verdict(group, unit) | {"anchor": anchors.get(group[0].plugin, ""), "cause": _cause(plugins.get(group[0].plugin))}
        for group in groups
    ]
    content = "" if cache is None else figure_cache.content_key(run) or ""
    sections = [_section(run, name, plugins.get(name), cache, content) | {"anchor": anchors[name]} for name in names]
    trusted, notes = _notes(run)
    page = templates.render_template(
        "report.html.j2",
        title=format.one_line(run.suite.get("name", "")),
        suite=run.suite,
        comparison=comparison.comparison_values(run, cache),
        outcome=comparison_text.headline(run.gate) if run.gate else tables.headline(run),
        own_headline=tables.headline(run) if run.gate else "",
        settings=_settings(run),
        unit=format.unit_name(unit),
        level=format.format_confidence(float(run.suite.get("alpha") or 0.05)),
        failed=[verdict for verdict in verdicts if verdict["verdict"] == "FAIL"],
        verdicts=[verdict for verdict in verdicts if verdict["verdict"] != "FAIL"],
        forest=Markup(forest_plot.draw_forest(groups, cache)),  # noqa: S704 - drawn by this package, with its texts escaped
        retained=Markup(figures.draw_benefit_retained(groups, cache)),  # noqa: S704 - as above
        sections=sections,
        has_contents=len(names) > MAX_OPEN_SECTIONS,
        samples=[_samples(images) for images in sample_images.encode_images(run.samples)],
        duplicates=[_duplicate(duplicate) for duplicate in run.duplicates[:MAX_LISTED_DUPLICATES]],
        more_duplicates=max(0, len(run.duplicates) - MAX_LISTED_DUPLICATES),
        trusted=trusted,
        notes=notes,
        false_alarms=f"{run.expected_false_alarms:.2g}",
        cost=_cost(run.cost),
        environment=comparison.environment_rows(run.provenance.environment),
        plan=format.one_line(run.provenance.plan),
        command=command_line(run.suite),
        evidence=_evidence(run),
    )
    if cache is not None:
        figure_cache.trim_cache(cache)
    return page


def _notes(run: Run) -> tuple[list[str], list[str]]:
    """Return what the run takes on trust, and the other notes."""
    notes = [format.one_line(note) for note in run.notes]
    trusted = [note.removeprefix(messages.TRUST_PREFIX) for note in notes if note.startswith(messages.TRUST_PREFIX)]
    return trusted, [note for note in notes if not note.startswith(messages.TRUST_PREFIX)]


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


def _duplicate(duplicate: Duplicate) -> list[str]:
    names = (duplicate.test, duplicate.original, duplicate.dataset, duplicate.kind)
    return [*map(format.one_line, names), f"{duplicate.similarity:.3f}"]


def _settings(run: Run) -> list[tuple[str, str]]:
    """Return the main settings of the suite for the head of the page."""
    suite = run.suite
    margin = suite.get("margin")
    unit = tables.suite_unit(run)
    factor, _ = format.unit_scale(unit)
    files = {role: Path(str(suite[role])).name if suite.get(role) else None for role in ("weights", "after", "before")}
    settings = {
        "backbone": suite.get("arch"),
        "weights": files["weights"],
        "finished network": files["after"],
        "starting checkpoint": files["before"],
        "target": suite.get("target"),
        "training examples": suite.get("train_size"),
        "metric": suite.get("metric"),
        "margin": None if margin is None else f"{factor * margin:g} {format.unit_name(unit)}",
        "looks": ", ".join(map(str, suite["looks"])) + " seeds" if suite.get("looks") and not files["after"] else None,
        "alpha": suite.get("alpha"),
    }
    return [(name, format.one_line(value)) for name, value in settings.items() if value is not None]


def _verdict(group: tables.Group, usual_unit: str) -> dict[str, Any]:
    first, estimate = group[0], group[0].estimate
    accuracy = {arm: format.format_percent(first.accuracy.get(arm)) for arm in ("subject", "cured", "scratch")}
    accuracy["induced"] = _percent_range([value for _, value in tables.induced_range(group)])
    return {
        "plugin": format.one_line(first.plugin),
        "contrast": "" if first.contrast == "harm" else format.one_line(first.contrast),
        "verdict": first.verdict,
        "harm": format.format_harm(estimate.harm, estimate.unit),
        "bounds": "" if estimate.harm is None else tables.harm_text(first).partition(" ")[2],
        "p": [
            (name, format.format_p_value(value))
            for name, value in (("p FAIL", estimate.p_fail), ("p PASS", estimate.p_pass))
            if value is not None
        ],
        "controls": tables.control_summary(group),
        "retained": format.format_percent(first.benefit_retained, 0),
        "accuracy": accuracy,
        "induced": [
            (variant if len(group) > 1 else "", format.format_percent(value)) for variant, value in tables.induced_range(group)
        ],
        "reason": tables.group_reason(group),
        "action": tables.next_action(group),
        "advice": format.one_line((first.remedy or {}).get("text") or ""),
        "patch": tables.patch_lines(group),
        "verified": tables.verification_text(group),
        "margin": "" if estimate.margin is None else format.format_harm(estimate.margin, estimate.unit).removeprefix("+"),
        "unit": format.unit_name(estimate.unit),
        "has_other_unit": estimate.harm is not None and estimate.unit != usual_unit,
        "seeds": estimate.seeds,
        "examples": estimate.examples,
    }


def _percent_range(values: Sequence[float]) -> str:
    """Return the least and greatest of some accuracies: ``53.9 to 60.1 %``."""
    if not values:
        return format.MISSING
    least, greatest = (format.format_percent(value) for value in (min(values), max(values)))
    return least if least == greatest else f"{least.removesuffix(' %')} to {greatest}"


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
                format.unit_name(finding.estimate.unit),
                finding.estimate.seeds,
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
        if group[0].plugin == name and group[0].contrast in contrasts and contrasts[group[0].contrast].kind != "share":
            groups[group[0].contrast] = groups.get(group[0].contrast, ()) + group
    return [
        (
            "Paired differences" if len(groups) == 1 else f"Paired differences: {format.one_line(contrast)}",
            figures.draw_paired(
                list(tables.paired_harms(run, group, contrasts[contrast])),
                group[0].estimate.margin,
                group[0].estimate.unit,
                cache,
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
                label = f"{key} ({finding.control.variant})" if key.startswith("induced/") and finding.control.variant else key
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
    evidence, preregistration = run.provenance.evidence, run.provenance.preregistration
    if not evidence:
        return {}
    return {
        "claim": provenance.DISCLAIMER,
        "hash": format.one_line(evidence.get("hash", "")),
        "frozen_on": format.one_line(preregistration.get("written", "")),
        "frozen_file": format.one_line(preregistration.get("file", ""))[:16],
        "begun": format.one_line(evidence.get("begun", "")),
        "ended": format.one_line(evidence.get("ended", "")),
        "inputs": [
            {
                "key": format.one_line(entry.get("key", "")),
                "files": format.one_line(entry.get("files", "")),
                "name": re.sub(
                    r"[^:]*/", "", format.one_line(entry.get("given", "")).rstrip("/")
                ),  # evidence.json has the path
                "digest": format.one_line(entry["digest"])[:16],
            }
            for entry in evidence.get("inputs", ())
        ],
        "repair": format.one_line((evidence.get("repair") or {}).get("said", "")),
        "repaired": format.one_line((evidence.get("repair") or {}).get("sha256", "")),
        "environment": _environment_line(run.provenance.environment),
        "plugins": _format_sources(evidence.get("plugin_sources") or {}),
        "interventions": _format_sources(evidence.get("intervention_sources") or {}),
    }


def _format_sources(sources: Mapping[str, str]) -> str:
    """Return the names of third-party plugins or interventions with the start of the digests of their source, in one line."""
    return format.one_line("; ".join(f"{name}, source {source[:16]}…" for name, source in sources.items()))


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
