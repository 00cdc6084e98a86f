"""The keys of values of every kind, as they have always been: a class, field or module may be renamed, a key may not.

``python tests/test_keys.py`` writes them anew, which is right only together with a higher version of the lab.
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
    Preprocessing,
    Recipe,
    ScratchGrid,
    Serving,
    Spectrogram,
    UserCode,
    WeightsFile,
)
from xferbench.core.strategies import STRATEGIES
from xferbench.core.suite import BackboneSection, DataSection, Invocation, Matrix, Suite
from xferbench.core.trial import ComputeContext, EvaluationSpec, ModelSpec, TrainingSpec, Trial
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
FIT = TrainingSpec(
    arch="tiny-resnet",
    init=PRETRAINED,
    start=WEIGHTS,
    head=RANDOM_HEAD,
    phases=(Phase(),),
    data=DATA,
    train_size=200,
    preprocessing=PREPROCESSING,
    seed=1,
)
EVERY = replace(
    FIT,
    start=FIT,
    labels="shuffled",
    regularizer=Regularizer.parse("ewc:1"),
    source=DOMAIN,
    code=CODE,
    training=CODE,
    stop="best",
    before=WEIGHTS,
    injected_duplicates="copies:0.1",
    augment=Augmentation.parse("flip"),
    teacher=FIT,
    has_cue=True,
    transferred=TransferLowest(groups=2),
    unlabeled=DATA,
)
VIEW = EvaluationSpec(preprocessing=PREPROCESSING)
PLACE = ComputeContext(device="cpu", torch="2.14", lab=1)
SUITE = Suite(
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
    """A value of every kind that a key is made of, at its defaults and with every field set."""
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
    yield "fit", FIT
    yield "fit, every field", EVERY
    yield "model", ModelSpec(base=FIT, edits=(SourceHead(),))
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
    yield "trial", Trial(model=ModelSpec(base=FIT), view=VIEW, context=PLACE)
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
    yield "measure", _measured()


def _measured():
    """The trial that a plugin asks its own measure in."""
    trials = []
    fake_lab.run_study(
        fake_lab.make_study(batchnorm_drift.plugin),
        lambda trial: trials.append(trial) or fake_lab.fake_lab(measures=MEASURED)(trial),
    )
    return next(trial for trial in trials if trial.view.measure != "predictions")


MEASURED = {reference: {name: 0.5} for name, reference in batchnorm_drift.plugin.measures.items()}


def keys():
    return {name: digest(value) for name, value in values()}


GOLDEN = json.loads(FILE.read_text()) if FILE.exists() else {}


def test_every_kind_of_value_is_there():
    assert GOLDEN.keys() == keys().keys()
    assert len(GOLDEN) >= 40


@pytest.mark.parametrize("name", GOLDEN)
def test_keys_are_what_they_have_always_been(name):
    assert digest(dict(values())[name]) == GOLDEN[name], "a renamed noun or field would retrain everything"


def test_a_class_without_a_tag_has_no_key():
    with pytest.raises(TypeError, match="no tag"):
        digest(fake_lab.SUITE.plugins and batchnorm_drift.plugin)


def test_where_a_thing_lies_is_no_part_of_its_key():
    assert digest(replace(WEIGHTS, path="/elsewhere")) == digest(WEIGHTS)
    assert digest(replace(VIEW, function="a:b@1")) == digest(VIEW)


if __name__ == "__main__":
    FILE.write_text(json.dumps(keys(), indent=1) + "\n")
