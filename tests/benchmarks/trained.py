"""Runs that train what a comparison reads, the arms subject and cured, and leave out the baseline and the controls.

Pipelines, trials, the training loop, the store and the judging are the package's own; only the arms are fewer. Without a
control a PASS of what is exposed is called INCONCLUSIVE, as everywhere.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from factory import make_told

from xferbench import discover, execute, findings, finish, looks, plan, store, suite
from xferbench.design import HARM
from xferbench.record import Record, Run
from xferbench.report import messages

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

    study: plan.Study
    cases: tuple[looks.Case, ...]
    path: Path

    def at(self, first, seeds):
        """The same at other seeds, judged once, when all are there."""
        return replace(self, study=replace(self.study, suite=replace(self.study.suite, seed=first, looks=(seeds,))))

    @property
    def seeds(self):
        """The seeds that are asked for."""
        own = self.study.suite
        return range(own.seed, own.seed + own.looks[-1])

    def questions(self, seeds):
        """What is asked at some seeds."""
        return [one for case in self.cases for one in looks.questions(case, seeds, self.study, {})]


def asked(recipe, target, path):
    """The study of a recipe on a target."""
    given = suite.parse(TABLE | {"recipe": recipe, "target": target}, Path("gate.toml"))
    plugins = tuple(replace(one, contrasts=(HARM,), measures={}, derived=None, picture=None) for one in discover.of(given))
    with execute.laid_out(given, path, "cpu", 1) as (found, _, _):
        study = replace(found, plugins=plugins)
    return Asked(study=study, cases=tuple(case(one, study) for one in plugins), path=path)


def case(plugin, study):
    """A plugin whose arms are the subject and its cure."""
    arms = {name: plan.arms(plugin, study, study.subject)[name] for name in ("subject", "cured")}
    settled = {name: plan.settle(arm, study, {}) for name, arm in arms.items()}
    return looks.Case(plugin=plugin, arms=settled, recorded=study.facts.preprocessing)


def train(one, seeds):
    """Train what the store does not have of some seeds."""
    with execute.laid_out(one.study.suite, one.path, "cpu", 1) as (_, db, engine):
        folder = store.cache(one.path)
        for start in range(0, len(seeds), CHUNK):
            step = looks.Step(wanted=plan.trials(one.questions(seeds[start : start + CHUNK])))
            lacking = frozenset(step.wanted) - kept(db, step.wanted).keys()
            groups = [group for group in execute.groups(step, one.study) if lacking & {trial.key for trial in group}]
            for future in [execute.asked(engine, folder, group, lacking) for group in groups]:
                for record in future.result()[0]:
                    if record.error:
                        raise RuntimeError(record.error)
                    store.put(db, record)
            store.trim(folder, KEPT)
            if lacking:
                print(one.study.suite.recipe.name, one.study.suite.train_size, "seeds from", seeds[start], flush=True)


def kept(db, keys):
    """Records by key, as far as they are there."""
    return store.get(db, list(keys))


def run(one):
    """The run of a study whose records are all there."""
    with store.opened(one.path) as db:
        return judged(one, kept(db, plan.trials(one.questions(one.seeds))))


def judged(one, answers):
    """The run that some answers make, with the verdicts that they lead to."""
    step = looks._looked(one.study, looks.Step(cases=one.cases), answers)
    if step.wanted:
        raise LookupError(f"{sum(key not in answers for key in step.wanted)} records are missing: train first")
    own = one.study.suite
    return Run(
        suite=asdict(own),
        environment={},
        findings=messages.write_findings(findings.findings(own, step, answers)),
        cells=findings.cells(step, answers),
        cost={},
        arms={},
        plugins=finish.asked(SimpleNamespace(study=one.study)),
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
    with store.opened(one.path) as db:
        for case in one.cases:
            for arm in case.arms:
                name = arm if arm == "subject" else case.plugin.id
                if name not in found:
                    pipeline = case.arms[arm].pipeline
                    trials = [plan.trial(pipeline, "test", seed, one.study.place) for seed in seeds]
                    found[name] = np.stack([correct(kept(db, [trial.key])[trial.key]) for trial in trials])
    return found


def correct(record):
    """[N], of one record."""
    return record.predictions.predicted == record.predictions.label
