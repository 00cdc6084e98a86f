"""The tail of the line: an executed study becomes a run, and a run becomes files."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench import findings, frozen, given, judge, looks, plan, repair, stats, suite, symptoms, wording
from xferbench.design import MADE_HERE, Scratch, Suite, digest
from xferbench.environment import environment
from xferbench.execute import Executed, Progress, execute, with_store
from xferbench.problem import Problem
from xferbench.reason import MOST
from xferbench.record import Run
from xferbench.store import cache

if TYPE_CHECKING:
    from collections.abc import Callable


def run(
    word: str | Path | Suite,
    *,
    output: str | Path | None = None,
    store: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    allow_code: bool = False,
    show: Callable[[Progress], None] = lambda _: None,
    plan: str | Path | None = None,
    repaired: Path | None = None,
    force: bool = False,
    command: str = "",
) -> Run:
    """See :func:`xferbench.run`.

    Args:
        word, output, store, device, workers, allow_code, plan: as there.
        show: is told of the progress.
        repaired: where a finished network with repaired BatchNorm statistics goes, if that is shown to mend it.
        force: whether that may overwrite a file.
        command: as it was typed, for the evidence.
    """
    asked = word if isinstance(word, Suite) else suite.load(suite.find(str(word)))
    asked = replace(asked, allow_code=allow_code or asked.allow_code)
    if asked.matrix is not None:
        raise Problem(f"{asked.path}: [matrix]", found="a suite of many tasks", do="carry it out by xferbench.cross")
    place = with_store(Path(store) if store else None)
    if output is not None:
        from xferbench.report import write

        write.writable(Path(output))  # before an hour is spent
    if repaired is not None:
        repair.writable(asked, repaired, force=force)
    evidence: dict[str, Any] = {"command": command, "begun": now()}
    show(Progress(stage="reading the data and the backbone", done=0, running=1, total=1, reused=0, left=None))
    inputs, then = given.checked(asked, place, Path(plan) if plan else None)
    executed = execute(asked, path=place, device=device, workers=workers, show=show)
    if then:
        given.unchanged(asked, place, inputs)
    run = finished(executed)
    evidence |= {"ended": now(), "hash": digest(frozen.plan(asked, inputs, executed.study.plugins))}
    evidence["inputs"] = [frozen.told(one, listed=True) for one in inputs]
    if repaired is not None:
        show(Progress(stage="repairing", done=0, running=1, total=1, reused=0, left=None))
        evidence["repair"] = repair.carried_out(executed, run.findings, repaired, cache(place))
    run = replace(run, frozen=then, evidence=evidence)
    if output is not None:
        show(Progress(stage="writing the report", done=0, running=1, total=1, reused=0, left=None))
        write.write(run, Path(output), {plugin.id: plugin for plugin in executed.study.plugins}, cache(place) / "figures")
    return run


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def finished(executed: Executed) -> Run:
    """Judge an executed study."""
    study, step = executed.study, executed.step
    found = symptoms.told(findings.findings(study.suite, step, executed.answers), executed.mended)
    tested = {
        finding.id.rpartition("/")[0] or finding.id for finding in found if finding.p_fail is not None and finding.exposed
    }
    return Run(
        suite=asdict(study.suite),
        environment=environment(study.place.device, executed.workers) | {"lab": study.place.lab},
        findings=found,
        cells=findings.cells(step, executed.answers),
        cost=cost(executed),
        arms=arms(executed),
        notes=notes(executed),
        expected_false_alarms=stats.expected_false_alarms(len(tested), study.suite.alpha),
        plan=digest([*sorted({one.trial.key for one in step.asked}), digest_of(study.suite)]),
        samples=executed.samples,
        plugins=asked(executed),
    )


def asked(executed: Executed) -> dict[str, Any]:
    """Version and paired contrasts of each plugin: what two runs must share to be held against each other."""
    study = executed.study
    return {
        plugin.id: {
            "version": plugin.version,
            "contrasts": [
                {
                    "name": one.name,
                    "weights": [[*term, weight] for term, weight in one.weights.items()],
                    "metric": looks.of(one, study.suite).metric,
                    "margin": looks.of(one, study.suite).margin,
                }
                for one in plugin.contrasts
                if one.kind == "paired"
            ],
        }
        for plugin in study.plugins
    }


def digest_of(asked: Suite) -> str:
    """What of a suite a verdict depends on beyond its trials."""
    return digest((asked.metric, asked.margin, asked.alpha, asked.looks, asked.plugins))


def cost(executed: Executed) -> dict[str, Any]:
    """Fits and trials asked, unique, run now and reused; recorded seconds, and those of this run."""
    asked = _asked(executed)
    unique = {one.trial.key: one.trial for one in asked}
    fits = {trial.model.base for trial in unique.values() if trial.model.base.head != "own"}  # nobody trains a finished one
    records = [executed.answers[key] for key in unique if key in executed.answers]
    fit_seconds = looks.trained(asked, executed.answers)
    view_seconds = sum(record.seconds for record in records)
    fits_asked = len({(one.plugin, one.arm, one.trial.model.base) for one in asked if one.trial.model.base.head != "own"})
    return {
        "fits": {"asked": fits_asked, "unique": len(fits), "run": executed.fits_run, "reused": len(fits) - executed.fits_run},
        "trials": {
            "asked": len(asked),
            "unique": len(unique),
            "run": executed.trials_run,
            "reused": len(unique) - executed.trials_run,
        },
        "checks": _by_check(executed),
        "seconds": {"total": fit_seconds + view_seconds, "fit": fit_seconds, "view": view_seconds, "wall": executed.seconds},
    }


def _asked(executed: Executed) -> tuple[plan.Question, ...]:
    """All that was asked, of a finished network also what is left once its largest failure is mended."""
    return executed.step.asked + (executed.mended.step.asked if executed.mended else ())


def _by_check(executed: Executed) -> dict[str, float]:
    """Recorded seconds of each plugin's views; one that several ask for counts with the first."""
    owner: dict[str, str] = {}
    for one in _asked(executed):
        owner.setdefault(one.trial.key, one.plugin)
    found: dict[str, float] = {}
    for key, plugin in owner.items():
        if key in executed.answers:
            found[plugin] = found.get(plugin, 0.0) + executed.answers[key].seconds
    return found


def arms(executed: Executed) -> dict[str, dict[str, Any]]:
    """Every settled arm in words, with the lines of a suite file that make it."""
    told: dict[str, dict[str, Any]] = {}
    for case in executed.step.cases:
        of_case = told.setdefault(case.plugin.id, {})
        for name, one in case.arms.items():
            lines = wording.patched(None, one.pipeline, case.recorded) if one.pipeline else []
            of_case[name] = {"patch": lines, **plan.told(one, case.recorded)}
    subject = executed.step.subject
    if subject is not None and subject.weighed:
        for of_case in told.values():
            of_case.get("subject", {}).update(plan.told(subject, executed.study.facts.preprocessing))
    return told


def notes(executed: Executed) -> tuple[str, ...]:
    """What was taken on trust, left out, found at an edge or capped."""
    study, step = executed.study, executed.step
    changed = "".join(f" --set {word}" for word in study.suite.overrides)
    found = [f"the suite file was overridden:{changed}"] if changed else []
    found += [f"taken on trust: {one}" for one in study.facts.trust]
    if study.facts.honours is not None:
        heeded = ", ".join(study.facts.honours) or "nothing of a recipe"
        said = f"{study.suite.training} says that it honours {heeded}"
        found.append(f"{said}: arms and scratch candidates that differ in anything else are left out")
    if study.facts.left_out:
        more = f"; and {len(study.facts.left_out) - 5} more" if len(study.facts.left_out) > 5 else ""
        found.append(f"left out of the data, or settled about it: {'; '.join(study.facts.left_out[:5])}{more}")
    found += _edges(step)
    if step.stopped:
        found.append(step.stopped)
    found += _of_scratch(executed) + _of_subject(executed)
    inits = {one.pipeline.recipe.init for case in step.cases for one in case.arms.values() if one.pipeline}
    seen = {plan.VIEWS[one.view].domain for one in step.asked if one.view in plan.VIEWS}
    seen |= {case.plugin.domain for case in step.cases if case.arms}
    rehearsed = any(one.trial.model.base.source for one in step.asked)
    adapted = any(one.trial.model.base.unlabelled for one in step.asked)
    unused = {
        "source": study.suite.source and not inits & {*MADE_HERE} and "source" not in seen and not rehearsed,
        "shifted": study.suite.shifted and "shifted" not in seen and not adapted,
    }
    found += [f"[{role}] is given, but no plugin of this run asks for it" for role, given in unused.items() if given]
    found += executed.remarks
    if study.suite.after:
        half = study.facts.test - study.facts.test // 2
        found.append(f"repairs were looked for on one half of the test images, and judged on the other ({half} or so)")
        if executed.mended is None and sum(one.verdict == "FAIL" for one in step.judgements.values()) > 1:
            said = "each failure was judged by itself: mend the one with the largest harm and audit again"
            found.append(f"{said}, for the others may be its symptoms")
        found.append("verdicts are about this one finished network: another training with the same recipe may do otherwise")
    else:
        found.append("verdicts are conditional on this one pretrained checkpoint")
    return tuple(found)


def _edges(step: looks.Step) -> list[str]:
    """Which arms chose the lowest or the highest rate that was tried, those of all plugins said once."""
    edges: dict[str, list[str]] = {}
    for case in step.cases:
        for name, one in case.arms.items():
            if one.at_edge:
                edges.setdefault(f"{name} chose the {one.at_edge}: a better one may lie beyond", []).append(case.plugin.id)
    asked = [case.plugin.id for case in step.cases if case.arms]
    return [what if whose == asked else f"{', '.join(whose)}: {what}" for what, whose in sorted(edges.items())]


def _of_subject(executed: Executed) -> list[str]:
    """That the pipeline itself learnt nothing, where it did not: then nothing that is put into it can cost anything."""
    step, suite = executed.step, executed.study.suite
    for case in step.cases:
        told = looks.by_question(step.asked, case.plugin.id, executed.answers)
        seeds = sorted({seed for arm, view, seed in told if (arm, view) == ("subject", "test")})
        if (share := judge.learnt_nothing(told, "subject", seeds, min(suite.margin, MOST))) is not None:
            frequent = f"no better than the most frequent class, {share:.0%} of the test images"
            return [f"the subject itself learnt nothing: {frequent}, so that a PASS says little"]
    return []


def _of_scratch(executed: Executed) -> list[str]:
    """How the from-scratch baseline was searched where that is not the usual way, and whether it learnt anything."""
    study, step, found = executed.study, executed.step, []
    scratched = any("scratch" in case.arms for case in step.cases)
    if scratched and (grid := plan.grid(study)) != Scratch():
        rates, decays = (" and ".join(f"{value:g}" for value in values) for values in (grid.lr, grid.weight_decay))
        steps = f"{grid.steps} steps of {grid.batch_size}, rates {rates}, weight decay {decays}"
        why = "as the budget allows" if study.suite.after else "as the suite says"
        own = "" if study.suite.after else ", beside the subject's own"
        found.append(f"scratch was searched {why}, not by the default grid: {steps}{own}")
    for case in step.cases:
        told = looks.by_question(step.asked, case.plugin.id, executed.answers)
        seeds = sorted({seed for arm, _, seed in told if arm == "scratch"})
        share = judge.learnt_nothing(told, "scratch", seeds, study.suite.margin)
        if share is not None:
            found.append(f"scratch learnt nothing here: no better than the most frequent class, {share:.0%} of the test images")
            break
    return found
