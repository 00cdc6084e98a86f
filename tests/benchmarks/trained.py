"""Runs that train what a comparison reads, the arms subject and cured, and leave out the baseline and the controls.

Pipelines, trials, the training loop, the store and the judging are the package's own; only the arms are fewer. Without a
control a PASS of what is exposed is called INCONCLUSIVE, as everywhere.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from typing import TYPE_CHECKING

from factory import make_told

from xferbench.config import loader
from xferbench.core.interventions import as_dict
from xferbench.core.plugin import HARM
from xferbench.core.record import Record
from xferbench.core.run import Run
from xferbench.report import messages
from xferbench.runner import build_run, discovery, execute, store
from xferbench.study import batching, findings, plugin_state, schedule, selection, trial_requests
from xferbench.study.arms import plugin_arms
from xferbench.study.trials import make_trial

if TYPE_CHECKING:
    from xferbench.study.study import Study

CHUNK = 100  # seeds that are asked for together
KEPT = 2**28  # bytes of weights and activations that are kept
PLUGINS = ("batchnorm-drift", "head-shock")
TABLE = {
    "schema": 1,
    "name": "gate",
    "plugins": list(PLUGINS),
    "margin": 0.02,
    "looks": [5],
    "budget": "20h",
    "backbone": {"arch": "tiny-resnet"},
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A study of subject and cured alone, and where its records are."""

    study: Study
    cases: tuple[plugin_state.PluginState, ...]
    path: Path

    def at(self, first, seeds):
        """The same at other seeds, judged once, when all are there."""
        return replace(
            self,
            study=replace(
                self.study, suite=replace(self.study.suite, rules=replace(self.study.suite.rules, seed=first, looks=(seeds,)))
            ),
        )

    @property
    def seeds(self):
        """The seeds that are asked for."""
        own = self.study.suite
        return range(own.rules.seed, own.rules.seed + own.rules.looks[-1])

    def questions(self, seeds):
        """What is asked at some seeds."""
        return [one for case in self.cases for one in trial_requests.contrast_requests(case, seeds, self.study, {})]


def asked(recipe, target, path):
    """The study of a recipe on a target."""
    given = loader.parse_suite(TABLE | {"recipe": recipe, "target": target}, Path("gate.toml"))
    plugins = tuple(
        replace(one, contrasts=(HARM,), measures={}, derived_metrics=None, plot=None) for one in discovery.suite_plugins(given)
    )
    with execute.open_study(given, path, "cpu", 1) as (found, _, _):
        study = replace(found, plugins=plugins)
    return Asked(study=study, cases=tuple(case(one, study) for one in plugins), path=path)


def case(plugin, study):
    """A plugin whose arms are the subject and its cure."""
    arms = {name: plugin_arms(plugin, study, study.subject)[name] for name in ("subject", "cured")}
    settled = {name: selection.select(arm, study, {}) for name, arm in arms.items()}
    return plugin_state.PluginState(plugin=plugin, arms=settled, recorded=study.facts.preprocessing)


def train(one, seeds):
    """Train what the store does not have of some seeds."""
    with execute.open_study(one.study.suite, one.path, "cpu", 1) as (_, db, engine):
        folder = store.cache_folder(one.path)
        for start in range(0, len(seeds), CHUNK):
            step = schedule.Schedule(pending=batching.unique_trials(one.questions(seeds[start : start + CHUNK])))
            lacking = frozenset(step.pending) - kept(db, step.pending).keys()
            groups = [group for group in execute.trial_groups(step, one.study) if lacking & {trial.key for trial in group}]
            for future in [execute.submit_group(engine, folder, group, lacking) for group in groups]:
                for record in future.result()[0]:
                    if record.error:
                        raise RuntimeError(record.error)
                    store.put_record(db, record)
            store.trim_cache(folder, KEPT)
            if lacking:
                print(one.study.suite.recipe.name, one.study.suite.data.train_size, "seeds from", seeds[start], flush=True)


def kept(db, keys):
    """Records by key, as far as they are there."""
    return store.get_records(db, list(keys))


def run(one):
    """The run of a study whose records are all there."""
    with store.open_store(one.path) as db:
        return judged(one, kept(db, batching.unique_trials(one.questions(one.seeds))))


def judged(one, answers):
    """The run that some answers make, with the verdicts that they lead to."""
    step = schedule._run_looks(one.study, schedule.Schedule(states=one.cases), answers)
    if step.pending:
        raise LookupError(f"{sum(key not in answers for key in step.pending)} records are missing: train first")
    own = one.study.suite
    return Run(
        suite=as_dict(own),
        environment={},
        findings=messages.write_findings(findings.build_findings(own, step, answers)),
        cells=findings.trial_rows(step, answers),
        cost={},
        arms={},
        plugins=build_run.plugin_contrasts(SimpleNamespace(study=one.study)),
    )


def imagined(one, arms):
    """The run in which ``subject`` and each plugin's cure, where it has a table of its own, answer as told: [S, N] each."""
    answers = {}
    for question in one.questions(one.seeds):
        name = question.plugin if question.arm == "cured" and question.plugin in arms else "subject"
        told = make_told(arms[name][question.seed - one.seeds.start])
        answers[question.trial.key] = Record(key=question.trial.key, predictions=told)
    return judged(one, answers)


def answering(run, right):
    """A run whose arms are all the same pipeline with other answers, [S, N]; its verdicts have no say."""
    first = min(cell.seed for cell in run.cells)
    told = [make_told(row) for row in right]
    cells = (replace(cell, record=replace(cell.record, predictions=told[cell.seed - first])) for cell in run.cells)
    return replace(run, cells=tuple(cells))


def right(one, seeds):
    """Whether each test image was answered rightly, by "subject" and by each plugin's cured arm: [seeds, N] each."""
    found = {}
    with store.open_store(one.path) as db:
        for case in one.cases:
            for arm in case.arms:
                name = arm if arm == "subject" else case.plugin.id
                if name not in found:
                    pipeline = case.arms[arm].pipeline
                    trials = [make_trial(pipeline, "test", seed, one.study.context) for seed in seeds]
                    found[name] = np.stack([correct(kept(db, [trial.key])[trial.key]) for trial in trials])
    return found


def correct(record):
    """[N], of one record."""
    return record.predictions.predicted == record.predictions.label
