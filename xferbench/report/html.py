"""``report.html``: one file that needs no network, no script and no other file."""

from __future__ import annotations

import re
import shlex
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench import advice, metrics
from xferbench.report import comparison, drawn, evidence, figures, forest, frames, held, matrix_tables, page, samples, text
from xferbench.suite import folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.design import Plugin
    from xferbench.record import Run


QUIET = ("PASS", "SKIPPED", "INFO")  # verdicts that ask for nobody
MANY = 3  # plugins, beyond which the page has a list of its contents and folds up what passed
TRUST = "taken on trust: "
COSTS = ("trainable", "stored", "multiply_adds", "seconds", "accuracy", "source_before", "source", "shifted")
CLAIM_LOOK = {"agrees": "PASS", "disagrees": "FAIL", "inconclusive": "INCONCLUSIVE", "not measured": "SKIPPED"}


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

    groups = frames.groups(run)
    shown = [name for name in frames.plugins(run) if _asked(run, name)]
    anchors = {name: f"plugin-{number}" for number, name in enumerate(shown, start=1)}
    units = sorted({text.in_words(group[0].unit) for group in groups})
    verdicts = [
        _verdict(group) | {"anchor": anchors.get(group[0].plugin, ""), "cause": _cause(plugins.get(group[0].plugin))}
        for group in groups
    ]
    content = "" if cache is None else drawn.named(run) or ""
    sections = [_section(run, name, plugins.get(name), cache, content) | {"anchor": anchors[name]} for name in shown]
    trusted, others = _notes(run)
    told = page.render(
        "report.html.j2",
        title=text.line(run.suite.get("name", "")),
        suite=run.suite,
        held=comparison.section(run, cache),
        outcome=held.sentence(run.gate) if run.gate else frames.outcome(run),
        alone=frames.outcome(run) if run.gate else "",
        facts=_facts(run),
        unit=" / ".join(units),
        level=text.level(float(run.suite.get("alpha") or 0.05)),
        failed=[one for one in verdicts if one["verdict"] == "FAIL"],
        verdicts=[one for one in verdicts if one["verdict"] != "FAIL"],
        forest=Markup(forest.forest(groups, cache)),  # noqa: S704 - drawn here, its texts escaped
        retained=Markup(figures.retained(groups, cache)),  # noqa: S704 - likewise
        sections=sections,
        many=len(shown) > MANY,
        samples=[_samples(one) for one in samples.shown(run.samples)],
        trusted=trusted,
        notes=others,
        false_alarms=f"{run.expected_false_alarms:.2g}",
        cost=_cost(run.cost),
        environment=comparison.environment(run.environment),
        plan=text.line(run.plan),
        command=command(run.suite),
        evidence=_evidence(run),
    )
    if cache is not None:
        drawn.trim(cache)
    return told


def _notes(run: Run) -> tuple[list[str], list[str]]:
    """What was taken on trust, and whatever else is to be kept in mind."""
    told = [text.line(note) for note in run.notes]
    trusted = [note.removeprefix(TRUST) for note in told if note.startswith(TRUST)]
    return trusted, [note for note in told if not note.startswith(TRUST)]


def _cause(plugin: Plugin | None) -> str:
    """What the plugin's manual page says under "Cause", if it says anything."""
    found = re.search(r"^Cause\n((?:[ \t]+.*\n?|\n(?=[ \t]))+)", plugin.page if plugin else "", re.MULTILINE)
    return text.line(" ".join(found[1].replace("``", "").split())) if found else ""


def _samples(one: samples.Shown) -> dict[str, Any]:
    return {
        "role": text.line(one.samples.role),
        "title": text.line(one.samples.title),
        "arms": [text.line(arm) for arm in one.samples.arms],
        "images": [(text.line(label), image) for label, image in zip(one.samples.labels, one.images, strict=True)],
    }


def _facts(run: Run) -> list[tuple[str, str]]:
    """Say what was asked of what, for the head of the page."""
    suite = run.suite
    margin = suite.get("margin")
    unit = run.findings[0].unit if run.findings else "accuracy"
    factor, _ = text.scale(unit)
    files = {role: Path(str(suite[role])).name if suite.get(role) else None for role in ("weights", "after", "before")}
    told = {
        "backbone": suite.get("arch"),
        "weights": files["weights"],
        "finished network": files["after"],
        "made from": files["before"],
        "target": suite.get("target"),
        "training images": suite.get("train_size"),
        "metric": suite.get("metric"),
        "margin": None if margin is None else f"{factor * margin:g} {text.in_words(unit)}",
        "looks": ", ".join(map(str, suite["looks"])) + " seeds" if suite.get("looks") and not files["after"] else None,
        "alpha": suite.get("alpha"),
    }
    return [(name, text.line(value)) for name, value in told.items() if value is not None]


def _verdict(group: frames.Group) -> dict[str, Any]:
    first = group[0]
    accuracy = {arm: text.percent(first.accuracy.get(arm)) for arm in ("subject", "cured", "scratch")}
    return {
        "plugin": text.line(first.plugin),
        "contrast": "" if first.contrast == "harm" else text.line(first.contrast),
        "verdict": first.verdict,
        "harm": text.signed(first.harm, first.unit),
        "bounds": "" if first.harm is None else frames.harm(first).partition(" ")[2],
        "p": [
            (name, text.p_value(value))
            for name, value in (("p FAIL", first.p_fail), ("p PASS", first.p_pass))
            if value is not None
        ],
        "controls": frames.gist(group),
        "retained": text.percent(first.benefit_retained, 0),
        "accuracy": accuracy,
        "induced": [(variant if len(group) > 1 else "", text.percent(value)) for variant, value in frames.induced(group)],
        "reason": frames.reason(group),
        "action": frames.action(group),
        "advice": text.line((first.remedy or {}).get("text") or ""),
        "patch": frames.patch(group),
        "verified": frames.verified(group),
        "margin": "" if first.margin is None else text.signed(first.margin, first.unit).removeprefix("+"),
        "unit": text.in_words(first.unit),
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
            ("Learning curves", figures.learning(frames.curves(run, name), cache)),
        )
        if drawing
    ]
    own = Markup(figures.picture(plugin, run, cache, content)) if plugin else ""  # noqa: S704 - likewise
    return {
        "name": text.line(name),
        "question": text.line(plugin.question) if plugin else "",
        "at_hand": plugin is not None,
        "open": any(group[0].verdict not in QUIET for group in frames.groups(run) if group[0].plugin == name),
        "verdicts": list(dict.fromkeys(group[0].verdict for group in frames.groups(run) if group[0].plugin == name)),
        "arms": frames.arms(run, name),
        "figures": [*drawn, *([(_caption(plugin), own)] if own else [])],
        "measured": [
            (
                text.line(one.contrast),
                frames.harm(one),
                text.in_words(one.unit),
                one.seeds,
                text.line(one.reason),
            )
            for one in frames.measured(run, name)
        ],
        "measures": _measures(run, name),
    }


def _caption(plugin: Plugin | None) -> str:
    """What a plugin's picture shows, by its own docstring."""
    told = (plugin.picture.__doc__ or "").strip() if plugin and plugin.picture else ""
    return text.line(" ".join(told.split()).rstrip(".") or "The plugin's own picture")


def _asked(run: Run, name: str) -> bool:
    """Whether there is more to say of a plugin than its verdict."""
    return any(cell.plugin == name for cell in run.cells)


def _paired(run: Run, name: str, plugin: Plugin | None, cache: Path | None) -> list[tuple[str, str]]:
    contrasts = {contrast.name: contrast for contrast in plugin.contrasts} if plugin else {}
    groups: dict[str, frames.Group] = {}
    for group in frames.groups(run):
        if group[0].plugin == name and group[0].contrast in contrasts:
            own = group[0].contrast
            groups[own] = groups.get(own, ()) + group
    return [
        (
            "Paired differences" if len(groups) == 1 else f"Paired differences: {text.line(contrast)}",
            figures.paired(list(frames.paired(run, group, contrasts[contrast])), group[0].margin, group[0].unit, cache),
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
                found[text.line(told), text.number(value)] = ""
    return list(found)


def _cost(cost: Mapping[str, Any]) -> dict[str, Any]:
    counted = [
        (name, [cost[name].get(kind, 0) for kind in ("asked", "unique", "run", "reused")])
        for name in ("fits", "trials")
        if name in cost
    ]
    seconds = cost.get("seconds") or {}
    return {"counted": counted, "seconds": [(text.line(kind), text.seconds(float(value))) for kind, value in seconds.items()]}


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
        "claim": evidence.CLAIM,
        "hash": text.line(run.evidence.get("hash", "")),
        "frozen": text.line(run.frozen.get("written", "")),
        "file": text.line(run.frozen.get("file", ""))[:16],
        "begun": text.line(run.evidence.get("begun", "")),
        "ended": text.line(run.evidence.get("ended", "")),
        "inputs": [
            {name: text.line(one.get(name, "")) for name in ("key", "files")}
            | {
                "given": re.sub(r"[^:]*/", "", text.line(one.get("given", "")).rstrip("/"))
            }  # whole paths are in the evidence file
            | {"digest": text.line(one["digest"])[:16]}
            for one in run.evidence.get("inputs", ())
        ],
        "repair": text.line((run.evidence.get("repair") or {}).get("said", "")),
        "repaired": text.line((run.evidence.get("repair") or {}).get("sha256", "")),
        "on": text.line(", ".join(on)),
        "plugins": text.line("; ".join(f"{name}, source {source[:16]}…" for name, source in sources.items())),
    }


def command(suite: Mapping[str, Any]) -> str:
    """What is typed to carry a suite out again, as it is told in a run."""
    if words := suite.get("command"):
        return " ".join(["xferbench audit", *map(text.line, words), "--output DIR"])
    changed = [word for one in suite.get("overrides") or () for word in ("--set", shlex.quote(text.line(one)))]
    path = Path(str(suite.get("path") or suite.get("name") or "SUITE"))
    file = shlex.quote(text.line(path.stem if path.parent == folder() else path))  # a shipped suite goes by its name
    return " ".join(["xferbench audit" if suite.get("after") else "xferbench run", file, *changed, "--output DIR"])


def _matrix_page(run: Run) -> str:
    """The page of a matrix: claims, recipes over all tasks, the 2×2 of size and similarity, scores and costs."""
    from markupsafe import Markup

    suite, matrix, (summaries, notes) = run.suite, matrix_tables.matrix_of(run), matrix_tables.rank_recipes(run)
    return page.render(
        "matrix.html.j2",
        title=text.line(suite["name"]),
        outcome=matrix_tables.format_outcome(run),
        facts=[(name, text.line(value)) for name, value in _matrix_facts(run).items() if value],
        claims=[_claim(claim) for claim in matrix.claims],
        head=matrix_tables.summary_columns(run),
        ranked=[matrix_tables.summary_cells(summary) for summary in summaries],
        ruled=_rules(run),
        quarters=matrix_tables.describe_quadrants(run),
        drawing=Markup(figures.draw_quadrants(run)),  # noqa: S704 - drawn here, its texts escaped
        tasks=[text.line(task) for task in suite["tasks"]],
        metric=text.line(suite["metric"]),
        unit=text.in_words(metrics.named(str(suite["metric"])).unit),
        level=f"{100 * (1 - float(suite['alpha'])):g} %",
        against=text.line(suite["against"]),
        grid=_score_grid(run),
        costs=_cost_grid(run),
        findings=[
            (finding, text.line(finding.id), text.line(finding.reason)) for finding in run.findings if finding.verdict != "INFO"
        ],
        pages=sorted({finding.id.partition(":")[0] for finding in run.findings}),
        crashed=[text.line(crash) for crash in matrix.crashes],
        skipped=[text.line(line) for line in matrix_tables.describe_skipped(run)],
        notes=[text.line(note) for note in (*notes, *run.notes)],
        cost=run.cost,
        environment=comparison.environment(run.environment),
        command=command(suite),
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
    words = {name: text.line(claim[name]) for name in ("claim", "source", "why", "task", "outcome")}
    recipes = f"{claim['recipe']} − {claim['against']}, {claim['view']}"
    number = claim["contrast"] or (recipes if claim["against"] else f"{claim['recipe']}, {claim['measure']}")
    return words | {
        "look": CLAIM_LOOK[claim["outcome"]],
        "measured": measured,
        "asked": asked,
        "published": published,
        "number": text.line(number),
    }


def _rules(run: Run) -> str:
    """What each rule of thumb that has a row advises."""
    probe, upper, whole = "a linear probe", "the upper layers", "all layers"
    advice_of = {
        matrix_tables.TEXTBOOK: f"below {advice.FEW} images {probe} if they are like the source, else {upper};"
        f" above it {whole}",
        matrix_tables.BY_SIZE: f"below {advice.LEAST} images {probe}, up to {advice.MOST} {upper}, above it {whole}",
    }
    return "; ".join(f"{rule}: {advice_of[rule]}" for rule in matrix_tables.advised_recipes(run))


def _score_grid(run: Run) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Recipes by task: the mean, the difference from the reference recipe, and whether the recipe may be the best."""
    means, best = matrix_tables.mean_scores(run), matrix_tables.tied_recipes(run)
    unit = metrics.named(str(run.suite["metric"])).unit
    comparisons = {(entry["recipe"], entry["task"]): entry for entry in matrix_tables.matrix_of(run).comparisons}
    rows = []
    for name in run.suite["recipes"]:
        cells = []
        for task in run.suite["tasks"]:
            entry = comparisons.get((name, task))
            bounds = None if entry is None or entry["error"] else (entry["difference"], entry["low"], entry["high"])
            score = matrix_tables.format_score((means.get((name, task)) or {}).get("accuracy"), unit)
            cells.append((score, "" if bounds is None else text.bounded(bounds, unit), (name, task) in best))
        rows.append((text.line(name), cells))
    return rows


def _cost_grid(run: Run) -> list[tuple[str, list[str]]]:
    """The costs of each recipe: means over all tasks that have a number."""
    frame, unit = run.to_frame(), metrics.named(str(run.suite["metric"])).unit
    rows = []
    for name in run.suite["recipes"]:
        means = frame[frame["recipe"] == name][list(COSTS)].mean()
        if not means.isna().all():
            rows.append((text.line(name), [_format_cost(column, float(means[column]), unit) for column in COSTS]))
    return rows


def _format_cost(column: str, value: float, unit: str) -> str:
    if isnan(value):
        return text.NOTHING
    if column == "seconds":
        return text.seconds(value)
    if column in {"trainable", "multiply_adds"}:
        return f"{value:,.0f}"
    return f"{value / 1000:,.1f} kB" if column == "stored" else matrix_tables.format_score(value, unit)
