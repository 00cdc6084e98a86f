"""Probabilities that say more, or less, than the adapted model knows.

Symptom
    Answers given with 99 % are right far less often, or those with 60 % far more; a threshold lets too much or too little by.

Cause
    Too sure: trained long and at a high rate, until every training image is told with certainty; a few are soon known. Too
    unsure: all layers were moved, and training ended before they had settled.

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
from typing import Any

from xferbench.analysis.reliability import reliability_diagram, squared_calibration_error
from xferbench.plugin import Contrast, Pipeline, Plugin, Profile, Run, always_applies, harm, plotting, records, strategies
from xferbench.study.trials import TEMPERED

NATS, BRIER = 0.05, 0.02  # margins
LEAST = 2000  # test images from which on the error is stated
TERMS = ("subject", "tempered"), ("subject", "test")


def cure(pipeline: Pipeline, _: Profile) -> Pipeline:
    return replace(pipeline, edits=tuple(dict.fromkeys((*pipeline.edits, TEMPERED))))


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    own = tuple(edit for edit in pipeline.edits if edit != TEMPERED)
    return {"overtrained": replace(pipeline, recipe=strategies.overtrained(pipeline.recipe), edits=own)}


def errors(answers: records.RecordsByTerm, seeds: records.Seeds) -> dict[str, float]:
    """The root of the mean square over seeds for each arm but scratch, where there are images enough."""
    told = records.values_by_arm(answers, lambda one: one.predictions, but={"scratch"}, seeds=seeds)
    squares = {arm: [squared_calibration_error(one) for one in own if len(one.label) >= LEAST] for arm, own in told.items()}
    return {f"{arm}/ece": max(0.0, records.mean_or_nan(values)) ** 0.5 for arm, values in squares.items() if values}


def picture(axes: Any, run: Run) -> None:
    """The reliability diagram for each arm: the mean, and a thin line a seed."""
    axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=plotting.MUTED, label="as sure as right")
    told = records.values_by_arm(records.plugin_records(run, plugin.id), lambda one: one.predictions, but={"scratch"})
    plotting.draw_lines(axes, {arm: [reliability_diagram(one) for one in own] for arm, own in told.items()})
    axes.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend()


plugin = Plugin(
    id="calibration",
    version=1,
    question="Do the probabilities of the adapted model mean what they say?",
    doc=__doc__,
    applies=always_applies,
    cure=cure,
    induce=induce,
    contrasts=(
        harm("harm", *TERMS, "what a temperature gains in NLL", metric="nll", margin=NATS),
        harm("brier", *TERMS, "what it gains in the Brier score", metric="brier", margin=BRIER),
    ),
    derived_metrics=errors,
    remedy="divide the logits by a temperature fitted on validation images",
    plot=picture,
)


AUDIT_PAGE = """Probabilities that say more, or less, than the network knows.

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
AUDIT_TERMS = ("cured", "test"), ("subject", "test")


def audit_induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    return {"overconfident": replace(pipeline, edits=(*pipeline.edits, "temperature:0.25"))}


audit = Plugin(
    id="audit/calibration",  # older than the experiment, so that its findings have an id of their own
    version=1,
    question="Do the probabilities mean what they say?",
    doc=AUDIT_PAGE,
    applies=always_applies,
    cure=cure,
    induce=audit_induce,
    contrasts=(
        harm("harm", *AUDIT_TERMS, "what a temperature would gain", metric="nll", margin=NATS),
        Contrast(
            name="brier",
            kind="info",
            weights=dict(zip(AUDIT_TERMS, (1.0, -1.0), strict=True)),
            metric="brier",
            margin=NATS,
            meaning="the same, Brier score",
        ),
    ),
    derived_metrics=errors,
    remedy="divide the logits by a temperature fitted on images apart from training",
)
