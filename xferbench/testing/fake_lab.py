"""A lab that trains nothing and returns records of the same form as the real lab. Imports no torch.

``run_study(make_study(plugin), fake_lab(lambda trial: 0.8))`` returns the run of a plugin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.canonical import digest
from xferbench.core.interventions import (
    L2SP,
    PRETRAINED,
    RANDOM,
    REQUIREMENTS,
    TRAIN_MODE,
    ZERO_HEAD,
    AdaptBatchNorm,
    CuedSource,
    FlipAndCrop,
    GhostBatchNorm,
    MLPHead,
)
from xferbench.core.pipeline import (
    AuxiliaryDataset,
    Backbone,
    Data,
    Phase,
    Pipeline,
    PipelineData,
    Recipe,
    Serving,
    WeightsFile,
    replace_data,
)
from xferbench.core.plugin import DataProfile, ModelProfile, Plugin, Profile
from xferbench.core.record import Predictions, Record
from xferbench.core.requirements import plugin_for_suite
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
from xferbench.core.suite import BackboneSection, DataSection, Invocation, Rules, Suite
from xferbench.core.transforms import Preprocessing
from xferbench.core.trial import ComputeContext, TrainingSpec, Trial
from xferbench.study import schedule, study
from xferbench.study.affordable import afford

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from xferbench.core.run import Run

DEFAULT_EXAMPLES = 2000
PREPROCESSING = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CONTEXT = ComputeContext(device="cpu", torch="0.0", lab=0)
SUITE = Suite(
    name="fake",
    plugins=("all",),
    invocation=Invocation(path="fake.toml"),
    backbone=BackboneSection(arch="tiny-resnet"),
    data=DataSection(target="digits"),
    recipe=Recipe(),
    rules=Rules(margin=0.03, looks=(3, 5), tuning_seeds=2, keep_source=True),
)
PIPELINE = Pipeline(
    backbone=Backbone(arch="tiny-resnet", weights=WeightsFile(digest="weights")),
    data=PipelineData(
        target=Data(digest="target"),
        train_size=100,
        test_size=None,
        train_preprocessing=PREPROCESSING,
        source=AuxiliaryDataset(data=Data(digest="source"), classes=(0, 1)),
        shifted=AuxiliaryDataset(data=Data(digest="shifted"), classes=(0, 1)),
    ),
    recipe=Recipe(),
    serving=Serving(preprocessing=PREPROCESSING),
)
PROFILE = Profile(
    model=ModelProfile(parameters=10, groups=("stem", "lower", "middle", "upper"), head="fc", batchnorm=("bn",), size=(32, 32)),
    data=DataProfile(
        classes=("a", "b"), train=100, validation=100, test=DEFAULT_EXAMPLES, test_groups=None, source=(0, 1), shifted=(0, 1)
    ),
    preprocessing=PREPROCESSING,
)


def fake_predictions(accuracy: float, seed: int, examples: int = DEFAULT_EXAMPLES) -> Predictions:
    """Return predictions for two classes with about an accuracy.

    The difficulty of an example is the same for all seeds, plus a little noise by seed.
    """
    difficulty = np.random.default_rng(0).random(examples)
    noise = np.random.default_rng([seed, int(accuracy * 1e4)]).random(examples)
    label = np.arange(examples, dtype=np.int32) % 2
    correct = 0.9 * difficulty + 0.1 * noise < accuracy
    p_true = np.where(correct, 0.9, 0.1).astype(np.float32)
    return Predictions(
        example=np.arange(examples, dtype=np.uint64),
        label=label,
        predicted=np.where(correct, label, 1 - label).astype(np.int32),
        group=np.empty(0, np.int32),
        p_true=p_true,
        p_max=np.full(examples, 0.9, np.float32),
        sum_p2=np.full(examples, 0.82, np.float32),
        probabilities=np.where(np.arange(2) == label[:, None], p_true[:, None], 1 - p_true[:, None]).astype(np.float16),
    )


def accuracy_by_content(trial: Trial) -> float:
    """Return an accuracy from 0.5 to 0.9 that depends on the training spec and the view, but not on the seed."""
    spec = trial.model.base
    procedure, data = spec.procedure, spec.data
    changes = str(procedure.regularizer or "") + str(procedure.augment or "") + "".join(map(str, data.interventions))
    content = digest((spec.network.init, procedure.phases, changes, data.preprocessing, trial.model.edits, trial.view))
    return 0.5 + 0.4 * int(content[:8], 16) / 2**32


def fake_lab(
    accuracy: Callable[[Trial], float] = accuracy_by_content,
    measures: Mapping[str, Mapping[str, float]] | None = None,
    examples: int = DEFAULT_EXAMPLES,
) -> Callable[[Trial], Record]:
    """Return a function from a trial to its record, as the real lab would compute it, without training.

    Args:
        accuracy: Returns the accuracy of a trial's predictions.
        measures: The scalars that a plugin's own measure returns, by ``module:function@version``.
        examples: The number of test examples.
    """

    def compute_record(trial: Trial) -> Record:
        spec, value = trial.model.base, accuracy(trial)
        error = why_impossible(spec)
        if error:
            return Record(key=trial.key, error=error)
        record = Record(
            key=trial.key,
            fit=digest((spec, trial.context)),
            scalars={"diverged": 0.0},
            curve=learning_curve(spec, value),
            seconds=1.0,
            fit_seconds=10.0,
        )
        if trial.view.measure == "predictions":
            return replace(record, predictions=fake_predictions(value, spec.seed, examples))
        return replace(record, scalars={"diverged": 0.0, **(measures or {})[trial.view.function or trial.view.measure]})

    return compute_record


def why_impossible(spec: TrainingSpec) -> str:
    """Return why the real lab could not train a spec, or ""."""
    network, data, regularizer = spec.network, spec.data, spec.procedure.regularizer
    if network.init != RANDOM and network.start is None:
        return f"UserError: init {network.init} without pretrained weights"
    if regularizer is None:
        return ""
    available = {
        "teacher": spec.procedure.teacher is not None,
        "shifted": data.unlabeled is not None,
        "pretrained": network.init == PRETRAINED,
        "plain-head": not is_mlp_head(network.head),
        "source": data.source is not None and bool(data.source.classes),
    }
    missing = [REQUIREMENTS[need] for need in regularizer.requires if not available.get(need, True)]
    return f"ValueError: regularizer {regularizer} without {missing[0]}" if missing else ""


def learning_curve(spec: TrainingSpec, accuracy: float) -> tuple[tuple[int, float, float], ...]:
    """Return a learning curve of five rows that ends at an accuracy; it is empty for a spec without steps."""
    total = sum(phase.steps for phase in spec.procedure.phases)
    shares = [check / 5 for check in range(1, 6)] if total else []
    return tuple((round(share * total), 2.0 - share, accuracy * (0.5 + share / 2)) for share in shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A pipeline with its profile, and its name in messages."""

    name: str
    pipeline: Pipeline
    profile: Profile


def scenarios() -> Iterator[Scenario]:
    """Yield the pipelines that the conformance kit uses: recipes of all kinds, and a default one that lacks one thing each."""
    recipes = {
        "full fine-tuning": full(),
        "a linear probe": linear_probe(),
        "LP-FT": lp_ft(),
        "gradual unfreezing with warm-up": gradual_unfreezing(Phase(warmup=20)),
        "discriminative rates": discriminative(Phase(lr=1e-2, optimizer="sgd")),
        "training from scratch": from_scratch(),
        "an MLP head on augmented images": Recipe(head=MLPHead(units=16), augment=FlipAndCrop()),
        "distillation": distillation(),
        "DANN, then the statistics of each domain": replace(dann(), finish=AdaptBatchNorm()),
        "one step": full(Phase(steps=1, batch_size=2)),
        "a zero head, L2-SP and the best step": Recipe(head=ZERO_HEAD, regularizer=L2SP(strength=1), stop="best"),
        "weights pretrained here on a source with a cue": Recipe(init=CuedSource()),
        "class order and ghost batches": full(Phase(order="class", batchnorm=GhostBatchNorm(examples=2))),
    }
    for name, recipe in recipes.items():
        yield Scenario(name=name, pipeline=replace(PIPELINE, recipe=recipe), profile=PROFILE)
    pipeline, facts = PIPELINE, PROFILE
    cropped = Preprocessing(resize=40, crop=32, interpolation="bicubic")
    variants = {
        "no BatchNorm": (pipeline, replace(facts, model=replace(facts.model, batchnorm=()))),
        "no [source]": (
            replace_data(pipeline, source=None),
            replace(facts, data=replace(facts.data, source=(), source_error="the suite has no [source]")),
        ),
        "no [shifted] set": (
            replace_data(pipeline, shifted=None),
            replace(facts, data=replace(facts.data, shifted=())),
        ),
        "a [source] whose classes are unknown": (
            replace_data(pipeline, source=AuxiliaryDataset(data=Data(digest="source"))),
            replace(facts, data=replace(facts.data, source=(), source_error="the classes of [source] are unknown")),
        ),
        "no recorded preprocessing": (pipeline, replace(facts, recorded=False, trust=("preprocessing: recorded nowhere",))),
        "images served in train mode and another form": (
            replace(
                pipeline, serving=replace(pipeline.serving, mode=TRAIN_MODE, preprocessing=replace(cropped, channels="bgr"))
            ),
            facts,
        ),
        "images resized and not normalized": (
            replace(
                pipeline,
                data=replace(pipeline.data, train_preprocessing=cropped),
                serving=replace(pipeline.serving, preprocessing=cropped),
            ),
            replace(facts, preprocessing=cropped),
        ),
    }
    for name, (variant, profile) in variants.items():
        yield Scenario(name=name, pipeline=variant, profile=profile)


def make_study(*plugins: Plugin, suite: Suite = SUITE, pipeline: Pipeline = PIPELINE, facts: Profile = PROFILE) -> study.Study:
    """Return a study of plugins on a pipeline; the recipe of the suite, if it has one, replaces the recipe of the pipeline."""
    pipeline = replace(pipeline, baseline=suite.scratch)
    recipe = pipeline.recipe if suite.recipe in {Recipe(), None} else suite.recipe
    subject = pipeline if suite.recipe == Recipe() else study.subject_arm(suite, replace(pipeline, recipe=recipe))
    judged = tuple(plugin_for_suite(plugin, suite) for plugin in plugins)
    return afford(study.Study(suite=suite, profile=facts, plugins=judged, subject=subject, context=CONTEXT))


def replay_study(
    planned: study.Study, lab: Callable[[Trial], Record], records: Mapping[str, Record] | None = None
) -> tuple[schedule.Schedule, dict[str, Record]]:
    """Run a study in a lab, except for trials that have records, and return its last step and all records by key."""
    known_records = dict(records or {})
    while True:
        step = schedule.next_schedule(planned, known_records)
        missing = [trial for key, trial in step.pending.items() if key not in known_records]
        if not missing:
            return step, known_records
        known_records |= {trial.key: lab(trial) for trial in missing}


def run_study(planned: study.Study, lab: Callable[[Trial], Record]) -> Run:
    """Run a study in a lab and return the run with its findings."""
    from xferbench.runner import build_run, execute

    step, records = replay_study(planned, lab)
    executed = execute.StudyResult(
        study=planned, step=step, records=records, trials_run=len(records), fits_run=0, workers=1, seconds=0.0
    )
    return build_run.build_run(executed)
