"""Probabilities that say more, or less, than the network knows.

Symptom
    Answers given with 99 % are right far less often.

Cause
    Trained to the last digit of the training loss, often after a long fine-tuning at a high rate.

Remedy
    Divide the logits by a temperature that was fitted on images apart from training.

How it is judged
    The temperature is fitted on one half of the test images. Harm is NLL(as it is) − NLL(with that temperature), in nats, on
    the other half; the margin is 0.05 nats, unless the suite's own metric is the NLL.

How it is induced
    ``overconfident``: logits times four.

Measured beside it
    The same in the Brier score. ``ece``, as the plugin ``calibration`` measures it, where 2000 images or more are judged.

References
    Guo et al. 2017, On calibration of modern neural networks (arXiv:1706.04599).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench import asking
from xferbench.design import Contrast, Facts, Pipeline, Plugin
from xferbench.plugins.calibration import NATS, cure, errors

if TYPE_CHECKING:
    from collections.abc import Mapping

WEIGHTS = {("cured", "test"): 1.0, ("subject", "test"): -1.0}


def induce(pipeline: Pipeline, _: Facts) -> Mapping[str, Pipeline]:
    return {"overconfident": replace(pipeline, edits=(*pipeline.edits, "temperature:0.25"))}


check = Plugin(
    id="audit/calibration",
    version=1,
    question="Do the probabilities mean what they say?",
    page=__doc__,
    applies=asking.always,
    cure=cure,
    induce=induce,
    contrasts=(
        Contrast(name="harm", weights=WEIGHTS, metric="nll", margin=NATS, meaning="what a temperature would gain"),
        Contrast(name="brier", kind="info", weights=WEIGHTS, metric="brier", margin=NATS, meaning="the same, Brier score"),
    ),
    derived=errors,
    remedy="divide the logits by a temperature fitted on images apart from training",
)
