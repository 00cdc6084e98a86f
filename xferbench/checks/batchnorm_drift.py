"""BatchNorm statistics of a finished network that are not those it needs.

Symptom
    Near-perfect in training mode, far worse in evaluation mode, with the same weights.

Cause
    The running statistics drifted while a "frozen" backbone was adapted, lag behind the weights (a low momentum), or are those
    of a few last batches of one class.

Remedy
    Put the statistics of before back, or recalibrate them on training images; ``--repair`` writes those that were shown to
    help. Then keep BatchNorm in evaluation mode, or train with enough images a batch.

How it is judged
    Restored and recalibrated statistics are screened on one half of the test images; harm is metric(the better one, or the
    network as it is) − metric(as it is) on the other half.

How it is induced
    ``initial``: the statistics of a fresh network. ``one-class``: recalibrated on training images of the most frequent class.

Measured beside it
    ``discrepancy``: accuracy with the statistics of test batches minus that with the running ones. ``drift`` by layer, where
    the weights of before are given: the mean of (μ − μ₀)² / σ₀² plus the mean of |log σ² / σ₀²|.

References
    Wu & Johnson 2021, Rethinking "Batch" in BatchNorm (arXiv:2105.07576): precise statistics; Li et al. 2016, AdaBN
    (arXiv:1603.04779); Lightning issue 15062 and keras issue 9965: statistics of frozen layers that move.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.design import HARM, Choice, Contrast, Facts, Pipeline, Plugin
from xferbench.plugins import batchnorm_drift

if TYPE_CHECKING:
    from collections.abc import Mapping

RECALIBRATED = "batchnorm:recalibrated@2"


def applies(pipeline: Pipeline, facts: Facts) -> str:
    if not facts.has_batchnorm:
        return "the network has no BatchNorm layer"
    before = pipeline.finished and pipeline.finished.before
    return "" if before or facts.train else "neither the weights of before nor training images are given"


def _edited(pipeline: Pipeline, *words: str) -> Pipeline:
    return replace(pipeline, edits=(*pipeline.edits, *words))


def cure(pipeline: Pipeline, facts: Facts) -> Choice:
    words = [RECALIBRATED] * bool(facts.train)
    words += ["batchnorm:restored"] * bool(pipeline.finished and pipeline.finished.before)
    return Choice(candidates=tuple(_edited(pipeline, word) for word in words))


def induce(pipeline: Pipeline, facts: Facts) -> Mapping[str, Pipeline]:
    found = {"initial": _edited(pipeline, "batchnorm:initial")}
    return found | ({"one-class": _edited(pipeline, "batchnorm:one-class@1")} if facts.train else {})


check = Plugin(
    id="batchnorm-drift",
    version=1,
    question="Are the BatchNorm statistics those that the network needs?",
    page=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        HARM,
        Contrast(
            name="discrepancy",
            kind="info",
            weights={("subject", "train-mode"): 1.0, ("subject", "test"): -1.0},
            meaning="what the statistics of test batches would gain over the running ones",
        ),
    ),
    measures={"drift": "xferbench.plugins.batchnorm_drift:drift@1"},
    remedy="use the BatchNorm statistics that were confirmed here, and keep BatchNorm of a frozen backbone in evaluation mode",
    picture=batchnorm_drift.picture,
)
