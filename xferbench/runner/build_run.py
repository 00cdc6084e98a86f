"""Build a run from an executed study: findings, arms, cost and notes. Reads the versions of the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xferbench.analysis import estimates, failed_runs, multiplicity
from xferbench.config import render
from xferbench.core.canonical import digest
from xferbench.core.interventions import OWN_HEAD, SourcePretraining, as_dict
from xferbench.core.pipeline import ScratchGrid
from xferbench.core.reason import Code, Reason, because
from xferbench.core.run import Provenance, Run
from xferbench.core.transforms import Preprocessing, Tokens
from xferbench.report import messages
from xferbench.runner import preregistration
from xferbench.runner.environment import describe_environment
from xferbench.study import describe, findings, followup, forecast, schedule, trials
from xferbench.study.contrast_result import MAX_BASELINE_MARGIN, failed_runs_remark
from xferbench.study.cost import training_cost
from xferbench.study.selection import FIRST_TUNING_SEED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from xferbench.core.record import Record
    from xferbench.core.suite import Suite
    from xferbench.runner.execute import StudyResult
    from xferbench.study.plugin_state import PluginState
    from xferbench.study.study import TrialRequest


def build_run(executed: StudyResult) -> Run:
    """Return the run of an executed study, with its findings."""
    study, step = executed.study, executed.step
    drafts = findings.build_findings(study.suite, step, executed.records)
    written = messages.write_findings(followup.add_followup(drafts, executed.followup))
    # A crash is also a tested hypothesis, but it cannot become a false FAIL.
    hypotheses = {
        finding.id.rpartition("/")[0] or finding.id
        for finding in written
        if finding.estimate.p_fail is not None and finding.estimate.exposed
    }
    keys = sorted({request.trial.key for request in step.requests})
    return Run(
        suite=as_dict(study.suite),
        findings=written,
        cells=findings.trial_rows(step, executed.records),
        cost=cost_summary(executed),
        arms=arm_descriptions(executed),
        notes=build_notes(executed),
        expected_false_alarms=multiplicity.expected_false_alarms(len(hypotheses), study.suite.rules.alpha),
        samples=executed.samples,
        duplicates=executed.duplicates,
        provenance=Provenance(
            environment=describe_environment(study.context.device, executed.workers) | {"lab": study.context.lab},
            plan=digest([*keys, rules_digest(study.suite), *preregistration.plugin_sources(study.plugins).values()]),
            plugins=plugin_contrasts(executed),
        ),
    )


def plugin_contrasts(executed: StudyResult) -> dict[str, Any]:
    """Return the version, source and paired contrasts of each plugin, which two runs must share to be compared."""
    study = executed.study
    return {
        plugin.id: {
            "version": plugin.version,
            "source": plugin.source,
            "contrasts": [
                {
                    "name": contrast.name,
                    "weights": [[*term, weight] for term, weight in contrast.weights.items()],
                    "metric": schedule.rules_for(contrast, study.suite.rules).metric,
                    "margin": schedule.rules_for(contrast, study.suite.rules).margin,
                }
                for contrast in plugin.contrasts
                if contrast.kind == "paired"
            ],
        }
        for plugin in study.plugins
    }


def rules_digest(suite: Suite) -> str:
    """Return a digest of the fields of a suite that a verdict depends on, in addition to its trials."""
    return digest((suite.rules.metric, suite.rules.margin, suite.rules.alpha, suite.rules.looks, suite.plugins))


def cost_summary(executed: StudyResult) -> dict[str, Any]:
    """Return the numbers of requested, unique, computed and reused fits and trials, and the recorded seconds."""
    requests = _requests(executed)
    unique = {request.trial.key: request.trial for request in requests}
    specs = {trial.model.base for trial in unique.values()}
    specs = {spec for spec in specs if spec.network.head != OWN_HEAD}  # a finished network is not trained
    records = [executed.records[key] for key in unique if key in executed.records]
    fit_seconds = schedule.training_seconds(requests, executed.records)
    view_seconds = sum(record.seconds for record in records)
    requested_fits = {(request.plugin, request.arm, request.trial.model.base) for request in requests}
    fits_asked = sum(spec.network.head != OWN_HEAD for _, _, spec in requested_fits)
    return {
        "fits": {"asked": fits_asked, "unique": len(specs), "run": executed.fits_run, "reused": len(specs) - executed.fits_run},
        "trials": {
            "asked": len(requests),
            "unique": len(unique),
            "run": executed.trials_run,
            "reused": len(unique) - executed.trials_run,
        },
        "checks": _seconds_by_plugin(executed),
        "seconds": {"total": fit_seconds + view_seconds, "fit": fit_seconds, "view": view_seconds, "wall": executed.seconds},
    }


def _requests(executed: StudyResult) -> tuple[TrialRequest, ...]:
    """Return all trial requests, including those of the follow-up of a finished network."""
    return executed.step.requests + (executed.followup.step.requests if executed.followup else ())


def _seconds_by_plugin(executed: StudyResult) -> dict[str, float]:
    """Return the recorded seconds of each plugin's evaluations; a shared evaluation counts for the first plugin."""
    owners: dict[str, str] = {}
    for request in _requests(executed):
        owners.setdefault(request.trial.key, request.plugin)
    seconds: dict[str, float] = {}
    for key, plugin in owners.items():
        if key in executed.records:
            seconds[plugin] = seconds.get(plugin, 0.0) + executed.records[key].seconds
    return seconds


def arm_descriptions(executed: StudyResult) -> dict[str, dict[str, Any]]:
    """Return a description of each resolved arm by plugin and name, with the lines of a suite file that produce it."""
    descriptions: dict[str, dict[str, Any]] = {}
    for state in executed.step.states:
        plugin_arms = descriptions.setdefault(state.plugin.id, {})
        for name, arm in state.arms.items():
            lines = render.pipeline_patch(None, arm.pipeline, state.recorded) if arm.pipeline else []
            plugin_arms[name] = {"patch": lines, **describe.describe_arm(arm, state.recorded)}
    subject = executed.step.subject
    if subject is not None and subject.candidates:
        for plugin_arms in descriptions.values():
            plugin_arms.get("subject", {}).update(describe.describe_arm(subject, executed.study.profile.preprocessing))
    return descriptions


def build_notes(executed: StudyResult) -> tuple[str, ...]:
    """Return notes about unverified inputs, dropped examples, choices at an edge of the search, and unused data."""
    return tuple(map(messages.write_sentence, _notes(executed)))


def _notes(executed: StudyResult) -> tuple[Reason, ...]:
    study, step = executed.study, executed.step
    suite, profile = study.suite, study.profile
    notes = [because(Code.OVERRIDDEN, overrides=suite.invocation.overrides)] if suite.invocation.overrides else []
    notes += [because(Code.CLASSES, names=profile.data.classes)] if profile.data.classes else []
    notes += [because(Code.TEXT, text=note) for note in profile.data.notes]
    notes += [because(Code.ON_TRUST, what=what) for what in profile.trust]
    if profile.user_code.supports is not None:
        notes.append(because(Code.SUPPORTED_FIELDS, training=suite.training, fields=profile.user_code.supports))
    notes += _format_notes(executed)
    if profile.data.dropped_examples:
        notes.append(because(Code.DROPPED_EXAMPLES, entries=profile.data.dropped_examples))
    plugins = [state.plugin for state in step.states if not state.skipped]
    if power := forecast.decision_power(suite, profile.data.test_groups or profile.data.test, plugins):
        notes.append(because(Code.DECISION_CHANCES, power=power))
    notes += _edge_notes(step)
    notes += [step.stop_reason] if step.stop_reason else []
    notes += _scratch_notes(executed) + _subject_notes(executed) + _unused_data_notes(executed)
    if suite.rules.unsearched_copies and any(state.plugin.id == "data-leakage" for state in step.states):
        notes.append(because(Code.UNSEARCHED_COPIES, kinds=", ".join(suite.rules.unsearched_copies)))
    notes += [because(Code.TEXT, text=remark) for remark in executed.notes]
    if not suite.is_audit:
        return (*notes, because(Code.ONE_CHECKPOINT))
    notes.append(because(Code.HALF_JUDGED, count=profile.data.test - profile.data.test // 2))
    if executed.followup is None and sum(judgement.verdict == "FAIL" for judgement in step.decisions.values()) > 1:
        notes.append(because(Code.JUDGED_APART))
    return (*notes, because(Code.ONE_FINISHED_NETWORK))


def _format_notes(executed: StudyResult) -> list[Reason]:
    """Return notes on how the pipeline reads texts that are cut, photographs with an EXIF orientation, and 16-bit files."""
    data, transform = executed.study.profile.data, executed.study.profile.preprocessing
    if isinstance(transform, Tokens) and data.truncated:
        return [because(Code.TRUNCATED, count=data.truncated, test=data.test, length=transform.max_length)]
    if not isinstance(transform, Preprocessing):
        return []
    rotated = [because(Code.ROTATED, count=data.rotated, orientation=transform.orientation)] if data.rotated else []
    deep = because(Code.SIXTEEN_BIT, count=data.sixteen_bit, highest=data.highest, bits=transform.bits)
    return rotated + ([deep] if data.sixteen_bit else [])


def _unused_data_notes(executed: StudyResult) -> list[Reason]:
    """Return notes about data of the suite that no plugin of this run uses."""
    suite, step = executed.study.suite, executed.step
    inits = {arm.pipeline.recipe.init for state in step.states for arm in state.arms.values() if arm.pipeline}
    domains = {trials.VIEWS[request.view].domain for request in step.requests if request.view in trials.VIEWS}
    domains |= {state.plugin.domain for state in step.states if state.arms}
    specs = {request.trial.model.base for request in step.requests}
    uses_source = any(spec.data.source for spec in specs) or any(isinstance(init, SourcePretraining) for init in inits)
    uses_shifted = any(spec.data.unlabeled for spec in specs)
    unused = {
        "source": suite.data.source and "source" not in domains and not uses_source,
        "shifted": suite.data.shifted and "shifted" not in domains and not uses_shifted,
    }
    return [because(Code.UNUSED_INPUT, role=role) for role, is_unused in unused.items() if is_unused]


def _edge_notes(step: schedule.Schedule) -> list[Reason]:
    """Return notes about arms that chose the lowest or the highest learning rate; plugins with the same arm share a note."""
    edges: dict[tuple[str, str], list[str]] = {}
    for state in step.states:
        for name, arm in state.arms.items():
            if arm.at_edge:
                edges.setdefault((name, arm.at_edge), []).append(state.plugin.id)
    all_plugins = [state.plugin.id for state in step.states if state.arms]
    notes = {}
    for (name, edge), plugins in edges.items():
        reason = because(Code.AT_EDGE, plugins=() if plugins == all_plugins else plugins, arm=name, edge=edge)
        notes[f"{name} chose the {edge}:"] = reason
    return [notes[key] for key in sorted(notes)]


def _subject_notes(executed: StudyResult) -> list[Reason]:
    """Return notes on the pipeline's own runs: how many failed, and whether it learned nothing.

    No failure mode can reduce the score of a pipeline that learned nothing. A network that a confirmed repair makes better did
    learn something. A finished network is not a sample of runs.
    """
    step, suite, subject = executed.step, executed.study.suite, ("subject", "test")
    records: dict[tuple[str, str, int], Record] = {}
    for state in step.states:
        by_term = schedule.records_by_term(step.requests, state.plugin.id, executed.records)
        records = {term: record for term, record in by_term.items() if term[:2] == subject} | records
    seeds, margin = sorted(seed for _, _, seed in records), min(suite.rules.margin, MAX_BASELINE_MARGIN)
    failed = None if suite.is_audit else failed_runs.failed_seeds([subject], records, seeds, margin)
    share = estimates.majority_baseline_share(records, "subject", seeds, margin)
    is_repaired = any(_has_failed(step, state) and followup.keeps_network(state) for state in step.states)
    notes = []
    has_share = any(True for state in step.states for _ in state.contrasts("share"))  # its finding has the failed runs
    if failed is not None and len(failed) and not has_share:
        notes.append(failed_runs_remark("subject", failed_runs.failed_share(failed, suite.rules.alpha), len(failed)))
    return notes + ([] if share is None or is_repaired else [because(Code.SUBJECT_LEARNT_NOTHING, share=share)])


def _has_failed(step: schedule.Schedule, state: PluginState) -> bool:
    return any(step.decisions[name].verdict == "FAIL" for name, _ in state.contrasts("paired"))


def _search_costs(executed: StudyResult) -> Iterator[Reason]:
    """Yield the numbers of images that the searches of scratch and of the cure trained, where a verdict compares the two."""
    for state in executed.step.states:
        weighed = [{arm for arm, _ in contrast.weights} for _, contrast in state.contrasts("paired")]
        if any({"scratch", "cured"} <= arms for arms in weighed):
            requests = [request for request in executed.step.requests if request.plugin == state.plugin.id]
            images = {arm: _searched_images(requests, arm) for arm in ("scratch", "cured")}
            yield because(Code.SEARCH_COST, plugin=state.plugin.id, **images)


def _searched_images(requests: Iterable[TrialRequest], arm: str) -> float:
    tuned = {request.trial.model.base for request in requests if request.arm == arm and request.seed >= FIRST_TUNING_SEED}
    return sum(map(training_cost, tuned))


def _scratch_notes(executed: StudyResult) -> list[Reason]:
    """Return notes about an unusual search for the from-scratch baseline, and about a baseline that learned nothing."""
    study, step = executed.study, executed.step
    notes: list[Reason] = []
    has_scratch = any("scratch" in state.arms for state in step.states)
    if has_scratch and study.search != ScratchGrid():
        notes.append(because(Code.SCRATCH_SEARCH, grid=study.search, full=study.suite.scratch))
    notes += _search_costs(executed)
    for state in step.states:
        records = schedule.records_by_term(step.requests, state.plugin.id, executed.records)
        seeds = sorted({seed for arm, _, seed in records if arm == "scratch"})
        share = estimates.majority_baseline_share(records, "scratch", seeds, study.suite.rules.margin)
        if share is not None:
            return [*notes, because(Code.SCRATCH_LEARNT_NOTHING, share=share)]
    return notes
