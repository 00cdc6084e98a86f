"""A laboratory that trains nothing: records of the real one's form, for tests of plugins and of what reads records.

from xferbench import fake

study = fake.study(plugin)
step, answers = fake.replay(study, fake.lab(lambda trial: 0.8))
run = fake.run(study, fake.lab())
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.canonical import digest
from xferbench.core.interventions import L2SP, REQUIREMENTS, ZERO_HEAD, AdaptBatchNorm, FlipAndCrop, MLPHead
from xferbench.core.pipeline import AuxiliaryDataset, Data, Phase, Pipeline, Preprocessing, Recipe, WeightsFile
from xferbench.core.plugin import Plugin, Profile
from xferbench.core.record import Predictions, Record
from xferbench.core.strategies import (
    dann,
    discriminative,
    distillation,
    from_scratch,
    full,
    gradual_unfreezing,
    is_mlp_head,
    linear_probe,
    lp_ft,
)
from xferbench.core.suite import Suite
from xferbench.core.trial import ComputeContext, TrainingSpec, Trial
from xferbench.study import schedule, study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from xferbench.core.run import Run

DEFAULT_EXAMPLES = 2000
PREPROCESSING = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CONTEXT = ComputeContext(device="cpu", torch="0.0", lab=0)
SUITE = Suite(
    name="fake",
    path="fake.toml",
    plugins=("all",),
    arch="tiny-resnet",
    target="digits",
    margin=0.03,
    looks=(3, 5),
    recipe=Recipe(),
    tuning_seeds=2,
)
PIPELINE = Pipeline(
    arch="tiny-resnet",
    weights=WeightsFile(digest="weights"),
    target=Data(digest="target"),
    train_size=100,
    test_size=None,
    recipe=Recipe(),
    train_preprocessing=PREPROCESSING,
    serve_preprocessing=PREPROCESSING,
    source=AuxiliaryDataset(data=Data(digest="source"), classes=(0, 1)),
    shifted=AuxiliaryDataset(data=Data(digest="shifted"), classes=(0, 1)),
)
PROFILE = Profile(
    parameters=10,
    groups=("stem", "lower", "middle", "upper"),
    head="fc",
    batchnorm=("bn",),
    classes=("a", "b"),
    train=100,
    validation=100,
    test=DEFAULT_EXAMPLES,
    test_groups=None,
    preprocessing=PREPROCESSING,
    size=(32, 32),
    source=(0, 1),
    shifted=(0, 1),
)


def fake_predictions(accuracy: float, seed: int, examples: int = DEFAULT_EXAMPLES) -> Predictions:
    """Answers [examples] of about an accuracy, of two classes: the same examples are hard for all, a little luck by seed."""
    hard, luck = np.random.default_rng(0).random(examples), np.random.default_rng([seed, int(accuracy * 1e4)]).random(examples)
    label = np.arange(examples, dtype=np.int32) % 2
    right = 0.9 * hard + 0.1 * luck < accuracy
    p_true = np.where(right, 0.9, 0.1).astype(np.float32)
    return Predictions(
        example=np.arange(examples, dtype=np.uint64),
        label=label,
        predicted=np.where(right, label, 1 - label).astype(np.int32),
        group=np.empty(0, np.int32),
        p_true=p_true,
        p_max=np.full(examples, 0.9, np.float32),
        sum_p2=np.full(examples, 0.82, np.float32),
        probabilities=np.where(np.arange(2) == label[:, None], p_true[:, None], 1 - p_true[:, None]).astype(np.float16),
    )


def accuracy_by_content(trial: Trial) -> float:
    """An accuracy from 0.5 to 0.9 that is another one for each fit and view, and about the same at every seed."""
    fit = trial.model.base
    changes = str(fit.regularizer or "") + str(fit.augment or "") + "".join(map(str, fit.interventions))
    told = digest((fit.init, fit.phases, changes, fit.preprocessing, trial.model.edits, trial.view))
    return 0.5 + 0.4 * int(told[:8], 16) / 2**32


def fake_lab(
    accuracy: Callable[[Trial], float] = accuracy_by_content,
    measures: Mapping[str, Mapping[str, float]] | None = None,
    examples: int = DEFAULT_EXAMPLES,
) -> Callable[[Trial], Record]:
    """A function that answers a trial as the real laboratory would, at no cost.

    Args:
        accuracy: of a trial's predictions. examples: how many there are.
        measures: what a plugin's own measure returns, by ``module:function@version``.
    """

    def answer(trial: Trial) -> Record:
        fit, value = trial.model.base, accuracy(trial)
        error = why_impossible(fit)
        if error:
            return Record(key=trial.key, error=error)
        told = Record(
            key=trial.key,
            fit=digest((fit, trial.place)),
            scalars={"diverged": 0.0},
            curve=learning_curve(fit, value),
            seconds=1.0,
            fit_seconds=10.0,
        )
        if trial.view.measure == "predictions":
            return replace(told, predictions=fake_predictions(value, fit.seed, examples))
        return replace(told, scalars={"diverged": 0.0, **(measures or {})[trial.view.function or trial.view.measure]})

    return answer


def why_impossible(fit: TrainingSpec) -> str:
    """Why the real laboratory could not train a fit, or ""."""
    if fit.init != "random" and fit.start is None:
        return f"UserError: init {fit.init} without pretrained weights"
    if fit.regularizer is None:
        return ""
    there = {
        "teacher": fit.teacher is not None,
        "shifted": fit.unlabeled is not None,
        "pretrained": fit.init == "pretrained",
        "plain-head": not is_mlp_head(fit.head),
        "source": fit.source is not None and bool(fit.source.classes),
    }
    missing = [REQUIREMENTS[need] for need in fit.regularizer.requires if not there.get(need, True)]
    return f"ValueError: regularizer {fit.regularizer} without {missing[0]}" if missing else ""


def learning_curve(fit: TrainingSpec, accuracy: float) -> tuple[tuple[int, float, float], ...]:
    """A learning curve of five rows that ends at an accuracy; none of a fit without steps."""
    total = sum(phase.steps for phase in fit.phases)
    shares = [check / 5 for check in range(1, 6)] if total else []
    return tuple((round(share * total), 2.0 - share, accuracy * (0.5 + share / 2)) for share in shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A pipeline with what is known of it, and its name for a message."""

    name: str
    pipeline: Pipeline
    facts: Profile


def scenarios() -> Iterator[Scenario]:
    """What a plugin may be asked about: recipes of all kinds, and a usual one without this and that."""
    recipes = {
        "full fine-tuning": full(),
        "a linear probe": linear_probe(),
        "LP-FT": lp_ft(),
        "gradual unfreezing with warm-up": gradual_unfreezing(Phase(warmup=20)),
        "discriminative rates": discriminative(Phase(lr=1e-2, optimizer="sgd")),
        "training from scratch": from_scratch(),
        "an MLP head on augmented images": Recipe(head=MLPHead(units=16), augment=FlipAndCrop()),
        "distillation": distillation(),
        "DANN, then each domain's own statistics": replace(dann(), finish=AdaptBatchNorm()),
        "one step": full(Phase(steps=1, batch_size=2)),
        "a zero head, L2-SP and the best step": Recipe(head=ZERO_HEAD, regularizer=L2SP(strength=1), stop="best"),
        "class order and ghost batches": full(Phase(order="class", batchnorm="ghost:2")),
    }
    for name, recipe in recipes.items():
        yield Scenario(name=name, pipeline=replace(PIPELINE, recipe=recipe), facts=PROFILE)
    pipeline, facts = PIPELINE, PROFILE
    cropped = Preprocessing(resize=40, crop=32, interpolation="bicubic")
    without = {
        "no BatchNorm": (pipeline, replace(facts, batchnorm=())),
        "no [source]": (replace(pipeline, source=None), replace(facts, source=(), source_error="the suite has no [source]")),
        "no [shifted] set": (replace(pipeline, shifted=None), replace(facts, shifted=())),
        "a [source] whose classes nobody knows": (
            replace(pipeline, source=AuxiliaryDataset(data=Data(digest="source"))),
            replace(facts, source=(), source_error="nobody knows them"),
        ),
        "no recorded preprocessing": (pipeline, replace(facts, recorded=False, trust=("preprocessing: recorded nowhere",))),
        "images served in train mode and another form": (
            replace(pipeline, mode="train", serve_preprocessing=replace(cropped, channels="bgr")),
            facts,
        ),
        "images resized and not normalised": (
            replace(pipeline, train_preprocessing=cropped, serve_preprocessing=cropped),
            replace(facts, preprocessing=cropped),
        ),
    }
    for name, (own, known) in without.items():
        yield Scenario(name=name, pipeline=own, facts=known)


def make_study(*plugins: Plugin, suite: Suite = SUITE, pipeline: Pipeline = PIPELINE, facts: Profile = PROFILE) -> study.Study:
    """A study of plugins on a pipeline: its recipe, or where the suite has another that one, is what the user does."""
    subject = pipeline if suite.recipe == Recipe() else study.subject_arm(suite, pipeline)
    return study.Study(suite=suite, facts=facts, plugins=plugins, subject=subject, place=CONTEXT)


def replay_study(
    asked: study.Study, answer: Callable[[Trial], Record], answers: Mapping[str, Record] | None = None
) -> tuple[schedule.Schedule, dict[str, Record]]:
    """Carry a study out in a laboratory, beside what is answered already: its last step, and all answers."""
    known = dict(answers or {})
    while True:
        step = schedule.next_step(asked, known)
        missing = [trial for key, trial in step.wanted.items() if key not in known]
        if not missing:
            return step, known
        known |= {trial.key: answer(trial) for trial in missing}


def run_study(asked: study.Study, answer: Callable[[Trial], Record]) -> Run:
    """Carry a study out and judge it."""
    from xferbench.runner import build_run, execute

    step, answers = replay_study(asked, answer)
    executed = execute.StudyResult(
        study=asked, step=step, answers=answers, trials_run=len(answers), fits_run=0, workers=1, seconds=0.0
    )
    return build_run.build_run(executed)
