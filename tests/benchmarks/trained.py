"""Runs that train the arms subject and cured, which a comparison reads, without the baseline and the controls.

Pipelines, trials, the training loop, the store and the judging are those of the package. Without a control, a PASS of an
exposed pipeline is INCONCLUSIVE, as everywhere.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from typing import TYPE_CHECKING

from factory import make_binary_predictions

from xferbench.config import loader
from xferbench.core.interventions import as_dict
from xferbench.core.plugin import HARM
from xferbench.core.record import Record
from xferbench.core.run import Provenance, Run
from xferbench.report import messages
from xferbench.runner import build_run, discovery, execute, store
from xferbench.study import batching, findings, plugin_state, schedule, selection, trial_requests
from xferbench.study.arms import plugin_arms
from xferbench.study.trials import make_trial

if TYPE_CHECKING:
    from xferbench.study.study import Study

SEEDS_PER_BATCH = 100  # seeds that are submitted together
CACHE_BYTES = 2**28  # weights and activations that stay in the cache
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
class TwoArmStudy:
    """A study of the arms subject and cured, and the file of its records."""

    study: Study
    states: tuple[plugin_state.PluginState, ...]
    path: Path

    def at(self, first, seeds):
        """Return the study at ``seeds`` seeds from ``first`` on, judged once, at the last of them."""
        rules = replace(self.study.suite.rules, seed=first, looks=(seeds,))
        return replace(self, study=replace(self.study, suite=replace(self.study.suite, rules=rules)))

    @property
    def seeds(self):
        """The seeds of the study."""
        rules = self.study.suite.rules
        return range(rules.seed, rules.seed + rules.looks[-1])

    def requests(self, seeds):
        """Return the trial requests at some seeds."""
        return [request for state in self.states for request in trial_requests.contrast_requests(state, seeds, self.study, {})]


def open_two_arm_study(recipe, target, path):
    """Return the study of a recipe on a target."""
    suite = loader.parse_suite(TABLE | {"recipe": recipe, "target": target}, Path("gate.toml"))
    plugins = tuple(
        replace(plugin, contrasts=(HARM,), measures={}, derived_metrics=None, plot=None)
        for plugin in discovery.suite_plugins(suite)
    )
    with execute.open_study(suite, path, "cpu", 1) as (full_study, _, _):
        study = replace(full_study, plugins=plugins)
    return TwoArmStudy(study=study, states=tuple(two_arm_state(plugin, study) for plugin in plugins), path=path)


def two_arm_state(plugin, study):
    """Return the state of a plugin with the arms subject and cured."""
    arms = {name: plugin_arms(plugin, study, study.subject)[name] for name in ("subject", "cured")}
    resolved = {name: selection.select(arm, study, {}) for name, arm in arms.items()}
    return plugin_state.PluginState(plugin=plugin, arms=resolved, recorded=study.profile.preprocessing)


def train(two_arm, seeds):
    """Train what the store lacks of some seeds."""
    with execute.open_study(two_arm.study.suite, two_arm.path, "cpu", 1) as (_, db, engine):
        folder = store.cache_folder(two_arm.path)
        for start in range(0, len(seeds), SEEDS_PER_BATCH):
            requests = two_arm.requests(seeds[start : start + SEEDS_PER_BATCH])
            step = schedule.Schedule(pending=batching.unique_trials(requests))
            missing = frozenset(step.pending) - stored_records(db, step.pending).keys()
            groups = [group for group in execute.trial_groups(step, two_arm.study) if missing & {trial.key for trial in group}]
            for future in [execute.submit_group(engine, folder, group, missing) for group in groups]:
                for record in future.result()[0]:
                    if record.error:
                        raise RuntimeError(record.error)
                    store.put_record(db, record)
            store.trim_cache(folder, CACHE_BYTES)
            if missing:
                suite = two_arm.study.suite
                print(suite.recipe.name, suite.data.train_size, "seeds from", seeds[start], flush=True)


def stored_records(db, keys):
    """Return the stored records among some keys."""
    return store.get_records(db, list(keys))


def run(two_arm):
    """Return the run of a study whose records are all stored."""
    with store.open_store(two_arm.path) as db:
        return judge(two_arm, stored_records(db, batching.unique_trials(two_arm.requests(two_arm.seeds))))


def judge(two_arm, records):
    """Return the run of a study with these records, and its verdicts."""
    step = schedule._run_looks(two_arm.study, schedule.Schedule(states=two_arm.states), records)
    if step.pending:
        raise LookupError(f"{sum(key not in records for key in step.pending)} records are missing: train first")
    suite = two_arm.study.suite
    return Run(
        suite=as_dict(suite),
        findings=messages.write_findings(findings.build_findings(suite, step, records)),
        cells=findings.trial_rows(step, records),
        cost={},
        arms={},
        provenance=Provenance(environment={}, plugins=build_run.plugin_contrasts(SimpleNamespace(study=two_arm.study))),
    )


def run_with_answers(two_arm, correct_by_arm):
    """Return the run whose arms answer as the tables [S, N] say: that of ``subject``, and that of a plugin's id for its cure.

    A cure without a table answers as the subject.
    """
    records = {}
    for request in two_arm.requests(two_arm.seeds):
        name = request.plugin if request.arm == "cured" and request.plugin in correct_by_arm else "subject"
        predictions = make_binary_predictions(correct_by_arm[name][request.seed - two_arm.seeds.start])
        records[request.trial.key] = Record(key=request.trial.key, predictions=predictions)
    return judge(two_arm, records)


def replace_answers(run, correct):
    """Return a run whose cells all have the answers of a table [S, N]; its verdicts stay as they are."""
    first = min(cell.seed for cell in run.cells)
    predictions = [make_binary_predictions(row) for row in correct]
    cells = (replace(cell, record=replace(cell.record, predictions=predictions[cell.seed - first])) for cell in run.cells)
    return replace(run, cells=tuple(cells))


def correct_answers(two_arm, seeds):
    """Return the correctness [seeds, N] of each test image, by ``subject`` and by the plugin of each cured arm."""
    correct_by_arm = {}
    with store.open_store(two_arm.path) as db:
        for state in two_arm.states:
            for arm in state.arms:
                name = arm if arm == "subject" else state.plugin.id
                if name not in correct_by_arm:
                    pipeline = state.arms[arm].pipeline
                    keys = [make_trial(pipeline, "test", seed, two_arm.study.context).key for seed in seeds]
                    correct_by_arm[name] = np.stack([is_correct(stored_records(db, [key])[key]) for key in keys])
    return correct_by_arm


def is_correct(record):
    """Return the correctness [N] of each answer of a record."""
    return record.predictions.predicted == record.predictions.label
