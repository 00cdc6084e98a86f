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

from xferbench import looks, plan
from xferbench.core.interventions import L2SP, REQUIREMENTS, ZERO_HEAD, AdaptBatchNorm, FlipAndCrop, MLPHead
from xferbench.design import (
    Data,
    Domain,
    Facts,
    Fit,
    Phase,
    Pipeline,
    Place,
    Plugin,
    Preprocessing,
    Recipe,
    Suite,
    Trial,
    Weights,
    digest,
)
from xferbench.record import Predictions, Record, Run
from xferbench.strategies import (
    dann,
    deep,
    discriminative,
    distillation,
    from_scratch,
    full,
    gradual_unfreezing,
    linear_probe,
    lp_ft,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

EXAMPLES = 2000
RECORDED = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PLACE = Place(device="cpu", torch="0.0", lab=0)
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
    weights=Weights(digest="weights"),
    target=Data(digest="target"),
    train_size=100,
    test_size=None,
    recipe=Recipe(),
    train_preprocessing=RECORDED,
    serve_preprocessing=RECORDED,
    source=Domain(data=Data(digest="source"), classes=(0, 1)),
    shifted=Domain(data=Data(digest="shifted"), classes=(0, 1)),
)
FACTS = Facts(
    parameters=10,
    groups=("stem", "lower", "middle", "upper"),
    head="fc",
    batchnorm=("bn",),
    classes=("a", "b"),
    train=100,
    validation=100,
    test=EXAMPLES,
    test_groups=None,
    preprocessing=RECORDED,
    size=(32, 32),
    source=(0, 1),
    shifted=(0, 1),
)


def predictions(accuracy: float, seed: int, examples: int = EXAMPLES) -> Predictions:
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


def by_content(trial: Trial) -> float:
    """An accuracy from 0.5 to 0.9 that is another one for each fit and view, and about the same at every seed."""
    fit = trial.model.base
    changes = str(fit.regularizer or "") + str(fit.augment or "") + "".join(map(str, fit.interventions))
    told = digest((fit.init, fit.phases, changes, fit.preprocessing, trial.model.edits, trial.view))
    return 0.5 + 0.4 * int(told[:8], 16) / 2**32


def lab(
    accuracy: Callable[[Trial], float] = by_content,
    measures: Mapping[str, Mapping[str, float]] | None = None,
    examples: int = EXAMPLES,
) -> Callable[[Trial], Record]:
    """A function that answers a trial as the real laboratory would, at no cost.

    Args:
        accuracy: of a trial's predictions. examples: how many there are.
        measures: what a plugin's own measure returns, by ``module:function@version``.
    """

    def answer(trial: Trial) -> Record:
        fit, value = trial.model.base, accuracy(trial)
        error = impossible(fit)
        if error:
            return Record(key=trial.key, error=error)
        told = Record(
            key=trial.key,
            fit=digest((fit, trial.place)),
            scalars={"diverged": 0.0},
            curve=curve(fit, value),
            seconds=1.0,
            fit_seconds=10.0,
        )
        if trial.view.measure == "predictions":
            return replace(told, predictions=predictions(value, fit.seed, examples))
        return replace(told, scalars={"diverged": 0.0, **(measures or {})[trial.view.function or trial.view.measure]})

    return answer


def impossible(fit: Fit) -> str:
    """Why the real laboratory could not train a fit, or ""."""
    if fit.init != "random" and fit.start is None:
        return f"Problem: init {fit.init} without pretrained weights"
    if fit.regularizer is None:
        return ""
    there = {
        "teacher": fit.teacher is not None,
        "shifted": fit.unlabelled is not None,
        "pretrained": fit.init == "pretrained",
        "plain-head": not deep(fit.head),
        "source": fit.source is not None and bool(fit.source.classes),
    }
    missing = [REQUIREMENTS[need] for need in fit.regularizer.requires if not there.get(need, True)]
    return f"ValueError: regularizer {fit.regularizer} without {missing[0]}" if missing else ""


def curve(fit: Fit, accuracy: float) -> tuple[tuple[int, float, float], ...]:
    """A learning curve of five rows that ends at an accuracy; none of a fit without steps."""
    total = sum(phase.steps for phase in fit.phases)
    shares = [check / 5 for check in range(1, 6)] if total else []
    return tuple((round(share * total), 2.0 - share, accuracy * (0.5 + share / 2)) for share in shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A pipeline with what is known of it, and its name for a message."""

    name: str
    pipeline: Pipeline
    facts: Facts


def worlds() -> Iterator[World]:
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
        yield World(name=name, pipeline=replace(PIPELINE, recipe=recipe), facts=FACTS)
    pipeline, facts = PIPELINE, FACTS
    cropped = Preprocessing(resize=40, crop=32, interpolation="bicubic")
    without = {
        "no BatchNorm": (pipeline, replace(facts, batchnorm=())),
        "no [source]": (replace(pipeline, source=None), replace(facts, source=(), no_source="the suite has no [source]")),
        "no [shifted] set": (replace(pipeline, shifted=None), replace(facts, shifted=())),
        "a [source] whose classes nobody knows": (
            replace(pipeline, source=Domain(data=Data(digest="source"))),
            replace(facts, source=(), no_source="nobody knows them"),
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
        yield World(name=name, pipeline=own, facts=known)


def study(*plugins: Plugin, suite: Suite = SUITE, pipeline: Pipeline = PIPELINE, facts: Facts = FACTS) -> plan.Study:
    """A study of plugins on a pipeline: its recipe, or where the suite has another that one, is what the user does."""
    subject = pipeline if suite.recipe == Recipe() else plan.subject(suite, pipeline)
    return plan.Study(suite=suite, facts=facts, plugins=plugins, subject=subject, place=PLACE)


def replay(
    asked: plan.Study, answer: Callable[[Trial], Record], answers: Mapping[str, Record] | None = None
) -> tuple[looks.Step, dict[str, Record]]:
    """Carry a study out in a laboratory, beside what is answered already: its last step, and all answers."""
    known = dict(answers or {})
    while True:
        step = looks.step(asked, known)
        missing = [trial for key, trial in step.wanted.items() if key not in known]
        if not missing:
            return step, known
        known |= {trial.key: answer(trial) for trial in missing}


def run(asked: plan.Study, answer: Callable[[Trial], Record]) -> Run:
    """Carry a study out and judge it."""
    from xferbench import execute, finish

    step, answers = replay(asked, answer)
    executed = execute.Executed(
        study=asked, step=step, answers=answers, trials_run=len(answers), fits_run=0, workers=1, seconds=0.0
    )
    return finish.finished(executed)
