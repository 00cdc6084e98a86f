"""``report.html``: one file that needs no network, no script and no other file."""

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


QUIET_VERDICTS = ("PASS", "SKIPPED", "INFO")  # verdicts that ask for nobody
MANY_EXAMPLES = 3  # plugins, beyond which the page has a list of its contents and folds up what passed
TRUST_PREFIX = "taken on trust: "
COSTS = ("trainable", "stored", "multiply_adds", "seconds", "accuracy", "source_before", "source", "shifted")
CLAIM_STYLE = {"agrees": "PASS", "disagrees": "FAIL", "inconclusive": "INCONCLUSIVE", "not measured": "SKIPPED"}


def render(run: Run, plugins: Mapping[str, Plugin | None], cache: Path | None = None) -> str:
    """Render the page; a plugin that is not at hand lacks its question and its pictures, nothing else.

    Args:
        run: what is told.
        plugins: by id.
        cache: folder of figures that were drawn before; None draws all.
    """
    if run.matrix:
        return _matrix_page(run)
    from markupsafe import Markup

    groups = tables.finding_groups(run)
    shown = [name for name in tables.plugin_names(run) if _asked(run, name)]
    anchors = {name: f"plugin-{number}" for number, name in enumerate(shown, start=1)}
    units = sorted({format.unit_name(group[0].unit) for group in groups})
    verdicts = [
        _verdict(group) | {"anchor": anchors.get(group[0].plugin, ""), "cause": _cause(plugins.get(group[0].plugin))}
        for group in groups
    ]
    content = "" if cache is None else figure_cache.content_key(run) or ""
    sections = [_section(run, name, plugins.get(name), cache, content) | {"anchor": anchors[name]} for name in shown]
    trusted, others = _notes(run)
    told = templates.render_template(
        "report.html.j2",
        title=format.one_line(run.suite.get("name", "")),
        suite=run.suite,
        held=comparison.section(run, cache),
        outcome=comparison_text.headline(run.gate) if run.gate else tables.headline(run),
        alone=tables.headline(run) if run.gate else "",
        facts=_facts(run),
        unit=" / ".join(units),
        level=format.format_confidence(float(run.suite.get("alpha") or 0.05)),
        failed=[one for one in verdicts if one["verdict"] == "FAIL"],
        verdicts=[one for one in verdicts if one["verdict"] != "FAIL"],
        forest=Markup(forest_plot.draw_forest(groups, cache)),  # noqa: S704 - drawn here, its texts escaped
        retained=Markup(figures.draw_benefit_retained(groups, cache)),  # noqa: S704 - likewise
        sections=sections,
        many=len(shown) > MANY_EXAMPLES,
        samples=[_samples(one) for one in sample_images.encode_images(run.samples)],
        trusted=trusted,
        notes=others,
        false_alarms=f"{run.expected_false_alarms:.2g}",
        cost=_cost(run.cost),
        environment=comparison.environment(run.environment),
        plan=format.one_line(run.plan),
        command=command_line(run.suite),
        evidence=_evidence(run),
    )
    if cache is not None:
        figure_cache.trim_cache(cache)
    return told


def _notes(run: Run) -> tuple[list[str], list[str]]:
    """What was taken on trust, and whatever else is to be kept in mind."""
    told = [format.one_line(note) for note in run.notes]
    trusted = [note.removeprefix(TRUST_PREFIX) for note in told if note.startswith(TRUST_PREFIX)]
    return trusted, [note for note in told if not note.startswith(TRUST_PREFIX)]


def _cause(plugin: Plugin | None) -> str:
    """What the plugin's manual page says under "Cause", if it says anything."""
    found = re.search(r"^Cause\n((?:[ \t]+.*\n?|\n(?=[ \t]))+)", plugin.doc if plugin else "", re.MULTILINE)
    return format.one_line(" ".join(found[1].replace("``", "").split())) if found else ""


def _samples(one: sample_images.EncodedImages) -> dict[str, Any]:
    return {
        "role": format.one_line(one.samples.role),
        "title": format.one_line(one.samples.title),
        "arms": [format.one_line(arm) for arm in one.samples.arms],
        "images": [(format.one_line(label), image) for label, image in zip(one.samples.labels, one.images, strict=True)],
    }


def _facts(run: Run) -> list[tuple[str, str]]:
    """Say what was asked of what, for the head of the page."""
    suite = run.suite
    margin = suite.get("margin")
    unit = run.findings[0].unit if run.findings else "accuracy"
    factor, _ = format.unit_scale(unit)
    files = {role: Path(str(suite[role])).name if suite.get(role) else None for role in ("weights", "after", "before")}
    told = {
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
    return [(name, format.one_line(value)) for name, value in told.items() if value is not None]


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
    """Gather a plugin's part of the page."""
    from markupsafe import Markup

    drawn = [
        (title, Markup(drawing))  # noqa: S704 - drawn here, its texts escaped
        for title, drawing in (
            *_paired(run, name, plugin, cache),
            ("Learning curves", figures.draw_learning_curves(tables.learning_curves(run, name), cache)),
        )
        if drawing
    ]
    own = Markup(figures.draw_plugin_plot(plugin, run, cache, content)) if plugin else ""  # noqa: S704 - likewise
    return {
        "name": format.one_line(name),
        "question": format.one_line(plugin.question) if plugin else "",
        "at_hand": plugin is not None,
        "open": any(group[0].verdict not in QUIET_VERDICTS for group in tables.finding_groups(run) if group[0].plugin == name),
        "verdicts": list(dict.fromkeys(group[0].verdict for group in tables.finding_groups(run) if group[0].plugin == name)),
        "arms": tables.arm_rows(run, name),
        "figures": [*drawn, *([(_caption(plugin), own)] if own else [])],
        "measured": [
            (
                format.one_line(one.contrast),
                tables.harm_text(one),
                format.unit_name(one.unit),
                one.seeds,
                format.one_line(one.reason),
            )
            for one in tables.measurements(run, name)
        ],
        "measures": _measures(run, name),
    }


def _caption(plugin: Plugin | None) -> str:
    """What a plugin's picture shows, by its own docstring."""
    told = (plugin.plot.__doc__ or "").strip() if plugin and plugin.plot else ""
    return format.one_line(" ".join(told.split()).rstrip(".") or "The plugin's own picture")


def _asked(run: Run, name: str) -> bool:
    """Whether there is more to say of a plugin than its verdict."""
    return any(cell.plugin == name for cell in run.cells)


def _paired(run: Run, name: str, plugin: Plugin | None, cache: Path | None) -> list[tuple[str, str]]:
    contrasts = {contrast.name: contrast for contrast in plugin.contrasts} if plugin else {}
    groups: dict[str, tables.Group] = {}
    for group in tables.finding_groups(run):
        if group[0].plugin == name and group[0].contrast in contrasts:
            own = group[0].contrast
            groups[own] = groups.get(own, ()) + group
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
    """List the plugin's own measures, each once; those of one variant carry its name."""
    found: dict[tuple[str, str], str] = {}
    for finding in run.findings:
        if finding.plugin == name:
            for key, value in finding.measures.items():
                told = f"{key} ({finding.variant})" if key.startswith("induced/") and finding.variant else key
                found[format.one_line(told), format.format_number(value)] = ""
    return list(found)


def _cost(cost: Mapping[str, Any]) -> dict[str, Any]:
    counted = [
        (name, [cost[name].get(kind, 0) for kind in ("asked", "unique", "run", "reused")])
        for name in ("fits", "trials")
        if name in cost
    ]
    seconds = cost.get("seconds") or {}
    return {
        "counted": counted,
        "seconds": [(format.one_line(kind), format.format_seconds(float(value))) for kind, value in seconds.items()],
    }


def _evidence(run: Run) -> dict[str, Any]:
    """What those who must sign are told; {} of a run that has no evidence."""
    if not run.evidence:
        return {}
    at = run.environment
    packages = at.get("packages") or {}
    on = [f"{name} {value}" for name, value in (("xferbench", at.get("xferbench")), ("Python", at.get("python"))) if value]
    on += [f"{name} {packages[name]}" for name in ("torch",) if name in packages]
    on += [str(at[name]) for name in ("platform", "processor", "device") if at.get(name)]
    sources = run.evidence.get("plugin_sources") or {}
    return {
        "claim": provenance.DISCLAIMER,
        "hash": format.one_line(run.evidence.get("hash", "")),
        "frozen": format.one_line(run.frozen.get("written", "")),
        "file": format.one_line(run.frozen.get("file", ""))[:16],
        "begun": format.one_line(run.evidence.get("begun", "")),
        "ended": format.one_line(run.evidence.get("ended", "")),
        "inputs": [
            {name: format.one_line(one.get(name, "")) for name in ("key", "files")}
            | {
                "given": re.sub(r"[^:]*/", "", format.one_line(one.get("given", "")).rstrip("/"))
            }  # whole paths are in the evidence file
            | {"digest": format.one_line(one["digest"])[:16]}
            for one in run.evidence.get("inputs", ())
        ],
        "repair": format.one_line((run.evidence.get("repair") or {}).get("said", "")),
        "repaired": format.one_line((run.evidence.get("repair") or {}).get("sha256", "")),
        "on": format.one_line(", ".join(on)),
        "plugins": format.one_line("; ".join(f"{name}, source {source[:16]}…" for name, source in sources.items())),
    }


def command_line(suite: Mapping[str, Any]) -> str:
    """What is typed to carry a suite out again, as it is told in a run."""
    if words := suite.get("command"):
        return " ".join(["xferbench audit", *map(format.one_line, words), "--output DIR"])
    changed = [word for one in suite.get("overrides") or () for word in ("--set", shlex.quote(format.one_line(one)))]
    path = Path(str(suite.get("path") or suite.get("name") or "SUITE"))
    file = shlex.quote(
        format.one_line(path.stem if path.parent == shipped_folder() else path)
    )  # a shipped suite goes by its name
    return " ".join(["xferbench audit" if suite.get("after") else "xferbench run", file, *changed, "--output DIR"])


def _matrix_page(run: Run) -> str:
    """The page of a matrix: claims, recipes over all tasks, the 2×2 of size and similarity, scores and costs."""
    from markupsafe import Markup

    suite, matrix, (summaries, notes) = run.suite, matrix_tables.matrix_of(run), matrix_tables.rank_recipes(run)
    return templates.render_template(
        "matrix.html.j2",
        title=format.one_line(suite["name"]),
        outcome=matrix_tables.format_outcome(run),
        facts=[(name, format.one_line(value)) for name, value in _matrix_facts(run).items() if value],
        claims=[_claim(claim) for claim in matrix.claims],
        head=matrix_tables.summary_columns(run),
        ranked=[matrix_tables.summary_cells(summary) for summary in summaries],
        ruled=_rules(run),
        quarters=matrix_tables.describe_quadrants(run),
        drawing=Markup(figures.draw_quadrants(run)),  # noqa: S704 - drawn here, its texts escaped
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


def _matrix_facts(run: Run) -> dict[str, Any]:
    suite = run.suite
    return {
        "recipes": len(suite["recipes"]),
        "tasks": len(suite["tasks"]),
        "seeds": len({row["seed"] for row in matrix_tables.matrix_of(run).rows}),
        "chosen": f"each recipe's rate, on validation, on tuning seeds of its own ({suite['tuning_seeds']})",
        "metric": suite["metric"],
        "margin": f"{suite['margin']:g}",
        "held against": suite["against"],
    }


def _claim(claim: Mapping[str, Any]) -> dict[str, str]:
    measured, asked, published = matrix_tables.format_claim(claim)
    words = {name: format.one_line(claim[name]) for name in ("claim", "source", "why", "task", "outcome")}
    recipes = f"{claim['recipe']} − {claim['against']}, {claim['view']}"
    number = claim["contrast"] or (recipes if claim["against"] else f"{claim['recipe']}, {claim['measure']}")
    return words | {
        "look": CLAIM_STYLE[claim["outcome"]],
        "measured": measured,
        "asked": asked,
        "published": published,
        "number": format.one_line(number),
    }


def _rules(run: Run) -> str:
    """What each rule of thumb that has a row advises."""
    probe, upper, whole = "a linear probe", "the upper layers", "all layers"
    advice_of = {
        matrix_tables.TEXTBOOK: f"below {rules_of_thumb.FEW_EXAMPLES} images {probe} if they are like the source, else {upper};"
        f" above it {whole}",
        matrix_tables.BY_SIZE: f"below {rules_of_thumb.MIN_UPPER_EXAMPLES} images {probe},"
        f" up to {rules_of_thumb.MAX_UPPER_EXAMPLES} {upper}, above it {whole}",
    }
    return "; ".join(f"{rule}: {advice_of[rule]}" for rule in matrix_tables.advised_recipes(run))


def _score_grid(run: Run) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Recipes by task: the mean, the difference from the reference recipe, and whether the recipe may be the best."""
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
    """The costs of each recipe: means over all tasks that have a number."""
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
