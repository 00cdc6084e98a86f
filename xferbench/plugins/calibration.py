"""Probabilities that say more, or less, than the adapted model knows.

Symptom
    Answers given with 99 % are right far less often, or those given with 60 % far more often; a threshold on confidence lets
    too much through, or too little.

Cause
    Too sure: trained until every training image is told with certainty, for long and at a high rate; a few images are soon
    known. Too unsure: all layers were moved, and training ended before they had settled.

Remedy
    Divide the logits by a temperature that is fitted on validation images: no answer changes, only how sure it is.

How it is judged
    The temperature is fitted on the validation images of each training, never on test images. Harm is NLL(as it is) − NLL(with
    that temperature), in nats, with a margin of 0.05; ``brier`` is the same in the Brier score, with a margin of 0.02. A
    margin is the suite's own where its metric is that one.

How it is induced
    ``overtrained``, in twice the steps: the head alone, then from a fifth on all layers at a constant rate of 0.01 (or three
    times the recipe's) and without weight decay. It is held against itself with a temperature of its own.

Measured beside it
    ``ece`` of each arm: the expected calibration error, as a root mean square over 15 bins of equally many images, without the
    bias that chance gives it. Only from 2000 test images on. The picture is the reliability diagram.

References
    Guo et al. 2017, On calibration of modern neural networks (arXiv:1706.04599): temperature, ECE; Kumar et al. 2019, Verified
    uncertainty calibration (arXiv:1909.10155): the error's bias, and how to take it away.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.design import Contrast, Facts, Pipeline, Plugin
from xferbench.plan import TEMPERED
from xferbench.strategies import overtrained

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.record import Predictions, Record, Run

NATS, BRIER = 0.05, 0.02  # margins
BINS, LEAST = 15, 2000  # of images with equal shares; test images from which on the error is stated
WEIGHTS = {("subject", "tempered"): 1.0, ("subject", "test"): -1.0}


def applies(_pipeline: Pipeline, _facts: Facts) -> str:
    return ""


def cure(pipeline: Pipeline, _: Facts) -> Pipeline:
    return replace(pipeline, edits=tuple(dict.fromkeys((*pipeline.edits, TEMPERED))))


def induce(pipeline: Pipeline, _: Facts) -> Mapping[str, Pipeline]:
    own = tuple(edit for edit in pipeline.edits if edit != TEMPERED)
    return {"overtrained": replace(pipeline, recipe=overtrained(pipeline.recipe), edits=own)}


def bins(told: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, share that is right and size of bins of equally many images, by rising confidence: [bins] each."""
    order = np.argsort(told.p_max, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    right = told.predicted == told.label
    said, true = (np.array([float(values[part].mean()) for part in parts]) for values in (told.p_max, right))
    return said, true, np.array([len(part) for part in parts])


def square(told: Predictions) -> float:
    """The squared calibration error without bias, so that it may be below 0 (Kumar et al. 2019, definition 5.2)."""
    said, true, size = bins(told)
    return float(np.average((said - true) ** 2 - true * (1 - true) / (size - 1), weights=size))


def errors(answers: Mapping[tuple[str, str, int], Record], seeds: Sequence[int]) -> dict[str, float]:
    """The root of the mean square over seeds for each arm but scratch, where there are images enough."""
    found: dict[str, list[float]] = {}
    for (arm, view, seed), one in answers.items():
        told = one.predictions
        if view == "test" and arm != "scratch" and seed in seeds and told is not None and len(told.label) >= LEAST:
            found.setdefault(f"{arm}/ece", []).append(square(told))
    return {name: max(0.0, sum(values) / len(values)) ** 0.5 for name, values in found.items()}


def picture(axes: Any, run: Run) -> None:
    """The reliability diagram: the share that is right by confidence, a line for each arm (mean over seeds)."""
    found: dict[str, list[Any]] = {}
    for cell in run.cells:
        if (cell.plugin, cell.view) == (plugin.id, "test") and cell.arm != "scratch" and cell.record.predictions is not None:
            found.setdefault(cell.variant or cell.arm, []).append(bins(cell.record.predictions)[:2])
    axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color="#7f7f7f", label="as sure as right")
    for name, told in found.items():
        axes.plot(*np.mean(told, axis=0), marker=".", label=name)
    axes.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend()


plugin = Plugin(
    id="calibration",
    version=1,
    question="Do the probabilities of the adapted model mean what they say?",
    page=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        Contrast(name="harm", weights=WEIGHTS, metric="nll", margin=NATS, meaning="what a temperature gains in NLL"),
        Contrast(name="brier", weights=WEIGHTS, metric="brier", margin=BRIER, meaning="what it gains in the Brier score"),
    ),
    derived=errors,
    remedy="divide the logits by a temperature fitted on validation images",
    picture=picture,
)
