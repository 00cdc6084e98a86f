"""Golden keys of values of every kind: a class, field or module may be renamed, and its key stays.

``python tests/core/test_canonical.py`` rewrites the golden keys, which needs a higher version of the lab.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from xferbench.core.canonical import digest
from xferbench.core.interventions import (
    PRETRAINED,
    RANDOM,
    RANDOM_HEAD,
    AdaptBatchNorm,
    Augmentation,
    Finish,
    GhostBatchNorm,
    Head,
    Regularizer,
    SourceHead,
    Trainable,
    TransferLowest,
)
from xferbench.core.pipeline import (
    AuxiliaryDataset,
    Backbone,
    Checkpoint,
    Data,
    Phase,
    Pipeline,
    PipelineData,
    Recipe,
    ScratchGrid,
    Serving,
    UserCode,
    WeightsFile,
)
from xferbench.core.strategies import STRATEGIES
from xferbench.core.suite import BackboneSection, DataSection, Invocation, Matrix, Rules, Suite
from xferbench.core.transforms import Preprocessing, Spectrogram
from xferbench.core.trial import (
    ComputeContext,
    EvaluationSpec,
    InitialNetwork,
    ModelSpec,
    TrainingData,
    TrainingProcedure,
    TrainingSpec,
    Trial,
)
from xferbench.plugins import batchnorm_drift
from xferbench.study.trials import VIEWS, make_trial
from xferbench.testing import fake_lab

FILE = Path(__file__).with_name("golden_keys.json")
WEIGHTS, DATA, CODE = (
    WeightsFile(digest="w", path="/w"),
    Data(digest="d", spec="npz:/d"),
    UserCode(spec="python:m:f", digest="c", path="/"),
)
SPECTROGRAM = Spectrogram(mean=-60.0, std=12.0)
PREPROCESSING = Preprocessing(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
DOMAIN = AuxiliaryDataset(data=DATA, classes=(3, 1), preprocessing=PREPROCESSING)
SPEC = TrainingSpec(
    network=InitialNetwork(arch="tiny-resnet", init=PRETRAINED, start=WEIGHTS, head=RANDOM_HEAD),
    data=TrainingData(dataset=DATA, train_size=200, preprocessing=PREPROCESSING),
    procedure=TrainingProcedure(phases=(Phase(),)),
    seed=1,
)
FULL_SPEC = replace(
    SPEC,
    network=replace(SPEC.network, start=SPEC, code=CODE, before=WEIGHTS, transferred=TransferLowest(groups=2)),
    data=replace(SPEC.data, labels="shuffled", source=DOMAIN, injected_duplicates="copies:0.1", has_cue=True, unlabeled=DATA),
    procedure=replace(
        SPEC.procedure,
        regularizer=Regularizer.parse("ewc:1"),
        training=CODE,
        stop="best",
        augment=Augmentation.parse("flip"),
        teacher=SPEC,
    ),
)
VIEW = EvaluationSpec(preprocessing=PREPROCESSING)
PLACE = ComputeContext(device="cpu", torch="2.14", lab=1)
SUITE = Suite(
    rules=Rules(looks=(5, 10, 20)),
    name="a",
    plugins=("all",),
    invocation=Invocation(path="/a.toml"),
    backbone=BackboneSection(arch="tiny-resnet"),
    data=DataSection(target="digits", source="digits", shifted="digits"),
)
PIPELINE = Pipeline(
    backbone=Backbone(arch="tiny-resnet", weights=WEIGHTS),
    data=PipelineData(
        target=DATA, train_size=200, test_size=1000, train_preprocessing=PREPROCESSING, source=DOMAIN, shifted=DOMAIN
    ),
    recipe=Recipe(),
    serving=Serving(preprocessing=replace(PREPROCESSING, channels="bgr")),
)


def values():
    """Yield a value of every kind that takes part in a key, with its defaults and with every field set."""
    yield "weights", WEIGHTS
    yield "data", DATA
    yield "code", CODE
    yield "preprocessing", PREPROCESSING
    yield "preprocessing, less detail", replace(PREPROCESSING, detail=0.5)
    yield "spectrogram", SPECTROGRAM
    yield "domain", DOMAIN
    yield "phase", Phase()
    yield (
        "phase, all",
        Phase(
            trainable=Trainable.parse("lora:4"),
            batchnorm=GhostBatchNorm(examples=8),
            head_lr=1e-2,
            layer_decay=0.5,
            order="class",
        ),
    )
    yield "recipe", Recipe()
    yield (
        "recipe, all",
        Recipe(
            init=RANDOM,
            head=Head.parse("mlp:8"),
            augment=Augmentation.parse("flip"),
            transferred=TransferLowest(groups=1),
            finish=Finish.parse("adabn"),
            stop="best",
        ),
    )
    yield "scratch", ScratchGrid()
    yield "finished", Checkpoint(after=WEIGHTS, before=WEIGHTS)
    yield "fit", SPEC
    yield "fit, every field", FULL_SPEC
    yield "model", ModelSpec(base=SPEC, edits=(SourceHead(),))
    yield "view", VIEW
    yield (
        "view, all",
        replace(
            VIEW,
            domain=DOMAIN,
            expected_training=Recipe(),
            reference_data=(DATA,),
            has_cue=True,
            measure="batchnorm-drift/drift@1",
        ),
    )
    yield "place", PLACE
    yield "trial", Trial(model=ModelSpec(base=SPEC), view=VIEW, context=PLACE)
    yield "suite", SUITE
    yield "suite, matrix", replace(SUITE, matrix=Matrix(tasks=(SUITE,), compared=(), against="full"))
    yield "pipeline", PIPELINE
    yield (
        "pipeline, finished",
        replace(PIPELINE, checkpoint=Checkpoint(after=WEIGHTS), edits=(AdaptBatchNorm(),), expected_training=Recipe()),
    )
    for name in VIEWS:
        yield f"a pipeline in view {name}", make_trial(PIPELINE, name, 0, PLACE)
    for name, strategy in STRATEGIES.items():
        yield f"strategy {name}", strategy()
    yield "measure", measure_trial()


def measure_trial():
    """Return the trial that computes the measure of a plugin."""
    trials = []
    fake_lab.run_study(
        fake_lab.make_study(batchnorm_drift.plugin),
        lambda trial: trials.append(trial) or fake_lab.fake_lab(measures=MEASURES)(trial),
    )
    return next(trial for trial in trials if trial.view.measure != "predictions")


MEASURES = {reference: {name: 0.5} for name, reference in batchnorm_drift.plugin.measures.items()}


def keys():
    return {name: digest(value) for name, value in values()}


GOLDEN = json.loads(FILE.read_text()) if FILE.exists() else {}


def test_every_kind_of_value_has_a_golden_key():
    assert GOLDEN.keys() == keys().keys()
    assert len(GOLDEN) >= 40


@pytest.mark.parametrize("name", GOLDEN)
def test_keys_equal_the_golden_keys(name):
    assert digest(dict(values())[name]) == GOLDEN[name], "a renamed tag or field would retrain everything"


def test_a_class_without_a_tag_has_no_key():
    with pytest.raises(TypeError, match="no tag"):
        digest(fake_lab.SUITE.plugins and batchnorm_drift.plugin)


def test_a_path_is_not_part_of_a_key():
    assert digest(replace(WEIGHTS, path="/elsewhere")) == digest(WEIGHTS)
    assert digest(replace(VIEW, function="a:b@1")) == digest(VIEW)


if __name__ == "__main__":
    FILE.write_text(json.dumps(keys(), indent=1) + "\n")
