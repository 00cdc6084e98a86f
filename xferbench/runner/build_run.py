"""An executed study becomes a run: findings, arms, cost and notes. Reads the versions of this machine, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xferbench.analysis import estimates, intervals
from xferbench.config import render
from xferbench.core.canonical import digest
from xferbench.core.interventions import OWN_HEAD, as_dict
from xferbench.core.pipeline import LOCALLY_PRETRAINED_STARTS, ScratchGrid
from xferbench.core.reason import Code, Reason, because
from xferbench.core.run import Run
from xferbench.report import messages
from xferbench.runner import preregistration
from xferbench.runner.environment import describe_environment
from xferbench.study import arms, describe, findings, followup, schedule, trials
from xferbench.study.contrast_result import MAX_BASELINE_MARGIN

if TYPE_CHECKING:
    from xferbench.core.suite import Suite
    from xferbench.runner.execute import StudyResult
    from xferbench.study.study import TrialRequest


def build_run(executed: StudyResult) -> Run:
    """Judge an executed study."""
    study, step = executed.study, executed.step
    drafts = findings.build_findings(study.suite, step, executed.answers)
    found = messages.write_findings(followup.add_followup(drafts, executed.mended))
    tested = {
        finding.id.rpartition("/")[0] or finding.id for finding in found if finding.p_fail is not None and finding.exposed
    }  # a crash is a hypothesis too, but no false FAIL
    keys = sorted({one.trial.key for one in step.asked})
    return Run(
        suite=as_dict(study.suite),
        environment=describe_environment(study.place.device, executed.workers) | {"lab": study.place.lab},
        findings=found,
        cells=findings.trial_rows(step, executed.answers),
        cost=cost_summary(executed),
        arms=arm_descriptions(executed),
        notes=build_notes(executed),
        expected_false_alarms=intervals.expected_false_alarms(len(tested), study.suite.alpha),
        plan=digest([*keys, rules_digest(study.suite), *preregistration.plugin_sources(study.plugins).values()]),
        samples=executed.samples,
        plugins=plugin_contrasts(executed),
    )


def plugin_contrasts(executed: StudyResult) -> dict[str, Any]:
    """Version, source and paired contrasts of each plugin: what two runs must share to be held against each other."""
    study = executed.study
    return {
        plugin.id: {
            "version": plugin.version,
            "source": plugin.source,
            "contrasts": [
                {
                    "name": one.name,
                    "weights": [[*term, weight] for term, weight in one.weights.items()],
                    "metric": schedule.rules_for(one, study.suite).metric,
                    "margin": schedule.rules_for(one, study.suite).margin,
                }
                for one in plugin.contrasts
                if one.kind == "paired"
            ],
        }
        for plugin in study.plugins
    }


def rules_digest(asked: Suite) -> str:
    """What of a suite a verdict depends on beyond its trials."""
    return digest((asked.metric, asked.margin, asked.alpha, asked.looks, asked.plugins))


def cost_summary(executed: StudyResult) -> dict[str, Any]:
    """Fits and trials asked, unique, run now and reused; recorded seconds, and those of this run."""
    asked = _asked(executed)
    unique = {one.trial.key: one.trial for one in asked}
    fits = {trial.model.base for trial in unique.values() if trial.model.base.head != OWN_HEAD}  # nobody trains a finished one
    records = [executed.answers[key] for key in unique if key in executed.answers]
    fit_seconds = schedule.training_seconds(asked, executed.answers)
    view_seconds = sum(record.seconds for record in records)
    fits_asked = len({(one.plugin, one.arm, one.trial.model.base) for one in asked if one.trial.model.base.head != OWN_HEAD})
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


def _asked(executed: StudyResult) -> tuple[TrialRequest, ...]:
    """All that was asked, of a finished network also what is left once its largest failure is mended."""
    return executed.step.asked + (executed.mended.step.asked if executed.mended else ())


def _by_check(executed: StudyResult) -> dict[str, float]:
    """Recorded seconds of each plugin's views; one that several ask for counts with the first."""
    owner: dict[str, str] = {}
    for one in _asked(executed):
        owner.setdefault(one.trial.key, one.plugin)
    found: dict[str, float] = {}
    for key, plugin in owner.items():
        if key in executed.answers:
            found[plugin] = found.get(plugin, 0.0) + executed.answers[key].seconds
    return found


def arm_descriptions(executed: StudyResult) -> dict[str, dict[str, Any]]:
    """Every settled arm in words, with the lines of a suite file that make it."""
    told: dict[str, dict[str, Any]] = {}
    for case in executed.step.cases:
        of_case = told.setdefault(case.plugin.id, {})
        for name, one in case.arms.items():
            lines = render.pipeline_patch(None, one.pipeline, case.recorded) if one.pipeline else []
            of_case[name] = {"patch": lines, **describe.describe_arm(one, case.recorded)}
    subject = executed.step.subject
    if subject is not None and subject.weighed:
        for of_case in told.values():
            of_case.get("subject", {}).update(describe.describe_arm(subject, executed.study.facts.preprocessing))
    return told


def build_notes(executed: StudyResult) -> tuple[str, ...]:
    """What was taken on trust, left out, found at an edge or capped."""
    return tuple(map(messages.sentence, _notes(executed)))


def _notes(executed: StudyResult) -> tuple[Reason, ...]:
    study, step = executed.study, executed.step
    found = [because(Code.OVERRIDDEN, overrides=study.suite.overrides)] if study.suite.overrides else []
    found += [because(Code.ON_TRUST, what=what) for what in study.facts.trust]
    if study.facts.supports is not None:
        found.append(because(Code.SUPPORTED_FIELDS, training=study.suite.training, fields=study.facts.supports))
    if study.facts.dropped_examples:
        found.append(because(Code.DROPPED_EXAMPLES, entries=study.facts.dropped_examples))
    found += _edges(step)
    found += [step.stopped] if step.stopped else []
    found += _of_scratch(executed) + _of_subject(executed) + _unused(executed)
    found += [because(Code.TEXT, text=remark) for remark in executed.remarks]
    if not study.suite.after:
        return (*found, because(Code.ONE_CHECKPOINT))
    found.append(because(Code.HALF_JUDGED, count=study.facts.test - study.facts.test // 2))
    if executed.mended is None and sum(one.verdict == "FAIL" for one in step.judgements.values()) > 1:
        found.append(because(Code.JUDGED_APART))
    return (*found, because(Code.ONE_FINISHED_NETWORK))


def _unused(executed: StudyResult) -> list[Reason]:
    """Which data of the suite no plugin of this run uses."""
    study, step = executed.study, executed.step
    inits = {one.pipeline.recipe.init for case in step.cases for one in case.arms.values() if one.pipeline}
    seen = {trials.VIEWS[one.view].domain for one in step.asked if one.view in trials.VIEWS}
    seen |= {case.plugin.domain for case in step.cases if case.arms}
    rehearsed = any(one.trial.model.base.source for one in step.asked)
    adapted = any(one.trial.model.base.unlabeled for one in step.asked)
    unused = {
        "source": study.suite.source and not inits & {*LOCALLY_PRETRAINED_STARTS} and "source" not in seen and not rehearsed,
        "shifted": study.suite.shifted and "shifted" not in seen and not adapted,
    }
    return [because(Code.UNUSED_INPUT, role=role) for role, is_unused in unused.items() if is_unused]


def _edges(step: schedule.Schedule) -> list[Reason]:
    """Which arms chose the lowest or the highest rate that was tried, those of all plugins as one note."""
    edges: dict[tuple[str, str], list[str]] = {}
    for case in step.cases:
        for name, arm in case.arms.items():
            if arm.at_edge:
                edges.setdefault((name, arm.at_edge), []).append(case.plugin.id)
    everyone = [case.plugin.id for case in step.cases if case.arms]
    found = {}
    for (name, edge), plugins in edges.items():
        reason = because(Code.AT_EDGE, plugins=() if plugins == everyone else plugins, arm=name, edge=edge)
        found[f"{name} chose the {edge}:"] = reason
    return [found[key] for key in sorted(found)]


def _of_subject(executed: StudyResult) -> list[Reason]:
    """That the pipeline itself learnt nothing, where it did not: then no failure can cost it anything."""
    step, suite = executed.step, executed.study.suite
    for case in step.cases:
        records = schedule.records_by_term(step.asked, case.plugin.id, executed.answers)
        seeds = sorted({seed for arm, view, seed in records if (arm, view) == ("subject", "test")})
        share = estimates.majority_baseline_share(records, "subject", seeds, min(suite.margin, MAX_BASELINE_MARGIN))
        if share is not None:
            return [because(Code.SUBJECT_LEARNT_NOTHING, share=share)]
    return []


def _of_scratch(executed: StudyResult) -> list[Reason]:
    """How the from-scratch baseline was searched where that is not the usual way, and whether it learnt anything."""
    study, step = executed.study, executed.step
    found: list[Reason] = []
    scratched = any("scratch" in case.arms for case in step.cases)
    if scratched and (grid := arms.scratch_grid(study)) != ScratchGrid():
        found.append(because(Code.SCRATCH_SEARCH, grid=grid, audit=bool(study.suite.after)))
    for case in step.cases:
        records = schedule.records_by_term(step.asked, case.plugin.id, executed.answers)
        seeds = sorted({seed for arm, _, seed in records if arm == "scratch"})
        share = estimates.majority_baseline_share(records, "scratch", seeds, study.suite.margin)
        if share is not None:
            return [*found, because(Code.SCRATCH_LEARNT_NOTHING, share=share)]
    return found
