"""Probabilities that claim more, or less, confidence than the adapted model's accuracy supports.

Symptom
    Predictions with a confidence of 99 % are right far less often, or those with 60 % far more often. A confidence threshold
    accepts too many predictions or too few.

Cause
    Overconfidence: the model was trained for long and at a high rate, until it predicts every training example with certainty.
    A small training set gets there soon. Underconfidence: all layers were trained, and training ended before they converged.

Remedy
    Divide the logits by a temperature that is fitted on validation examples. The predicted classes stay the same; only their
    confidence changes.

How it is judged
    The temperature is fitted on the validation examples of each training, never on test examples. Harm is Brier score(as it is)
    − Brier score(with that temperature), with a margin of 0.02; if the suite's metric is the Brier score, with the suite's
    margin. A temperature leaves the order of the classes as it is, so that the score of an example changes by less than 1 if
    the prediction is right, and by at most 1.5 if it is wrong. About 300 test examples can therefore decide. The NLL of one
    example may change by 16 nats, and no small test set shows that such examples are rare.

How it is induced
    ``overtrained``, in twice the steps: the head alone, then from a fifth on all layers at a constant rate of 0.01 (or three
    times the recipe's) and without weight decay. It is compared with itself after temperature scaling.

Also measured
    ``nll``: the same for the NLL, in nats. ``ece`` of each arm: the expected calibration error, as a root mean square over 15
    bins with equally many examples, corrected for its chance bias. It needs at least 2000 test examples. The plot is the
    reliability diagram.

References
    Guo et al. 2017, On calibration of modern neural networks (arXiv:1706.04599): temperature, ECE; Kumar et al. 2019, Verified
    uncertainty calibration (arXiv:1909.10155): the error's bias, and how to correct it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xferbench.analysis.reliability import reliability_diagram, squared_calibration_error
from xferbench.plugin import (
    Contrast,
    Pipeline,
    Plugin,
    Profile,
    Run,
    always_applies,
    harm,
    info,
    interventions,
    plotting,
    records,
    strategies,
)

NLL_MARGIN_NATS = 0.05  # of the audit
BRIER_MARGIN = 0.02
LARGEST_CHANGE = 1.5  # of the Brier score of an image: from 1/2, two equal probabilities, to 2, certain and wrong
MIN_ECE_EXAMPLES = 2000
TERMS = ("subject", "tempered"), ("subject", "test")


def cure(pipeline: Pipeline, _: Profile) -> Pipeline:
    return replace(pipeline, edits=tuple(dict.fromkeys((*pipeline.edits, interventions.FitTemperature()))))


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    edits = tuple(edit for edit in pipeline.edits if edit != interventions.FitTemperature())
    return {"overtrained": replace(pipeline, recipe=strategies.overtrained(pipeline.recipe), edits=edits)}


def calibration_errors(records_by_term: records.RecordsByTerm, seeds: records.Seeds) -> dict[str, float]:
    """Return the calibration error of each arm but scratch: the root mean square over seeds, where examples suffice."""
    by_arm = records.values_by_arm(records_by_term, lambda record: record.predictions, exclude={"scratch"}, seeds=seeds)
    squared = {
        arm: [squared_calibration_error(predictions) for predictions in runs if len(predictions.label) >= MIN_ECE_EXAMPLES]
        for arm, runs in by_arm.items()
    }
    return {f"{arm}/ece": max(0.0, records.mean_or_nan(values)) ** 0.5 for arm, values in squared.items() if values}


def plot(axes: Any, run: Run) -> None:
    """Draw the reliability diagram for each arm: the mean, and a thin line for each seed."""
    axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=plotting.MUTED, label="confidence equals accuracy")
    plugin_records = records.plugin_records(run, plugin.id)
    by_arm = records.values_by_arm(plugin_records, lambda record: record.predictions, exclude={"scratch"})
    plotting.draw_lines(axes, {arm: [reliability_diagram(predictions) for predictions in runs] for arm, runs in by_arm.items()})
    axes.set(xlabel="confidence", ylabel="share of correct predictions", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend()


plugin = Plugin(
    id="calibration",
    version=2,
    question="Are the probabilities of the adapted model calibrated?",
    doc=__doc__,
    applies=always_applies,
    cure=cure,
    induce=induce,
    contrasts=(
        replace(harm("harm", *TERMS, "what a temperature gains", metric="brier", margin=BRIER_MARGIN), span=LARGEST_CHANGE),
        info("nll", *TERMS, "what a temperature gains in NLL", metric="nll"),
    ),
    derived_metrics=calibration_errors,
    remedy="divide the logits by a temperature fitted on validation examples",
    plot=plot,
)


AUDIT_DOC = """Probabilities that claim more, or less, confidence than the network's accuracy supports.

Symptom
    Predictions with a confidence of 99 % are right far less often.

Cause
    Training drove the training loss close to zero, often in a long fine-tuning at a high rate.

Remedy
    Divide the logits by a temperature that is fitted on examples that were not used in training.

How it is judged
    The temperature is fitted on one half of the test examples. Harm is NLL(as it is) − NLL(with that temperature), in nats, on
    the other half. The margin is 0.05 nats, unless the suite's metric is the NLL.

How it is induced
    ``overconfident``: logits times four.

Also measured
    The same for the Brier score. ``ece``, as the experiment ``calibration`` measures it, if at least 2000 examples are
    evaluated.

References
    Guo et al. 2017, On calibration of modern neural networks (arXiv:1706.04599).
"""
AUDIT_TERMS = ("cured", "test"), ("subject", "test")


def audit_induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    return {"overconfident": replace(pipeline, edits=(*pipeline.edits, interventions.DivideLogits(temperature=0.25)))}


audit = Plugin(
    id="audit/calibration",  # this audit is older than the experiment and keeps its id
    version=1,
    question="Are the probabilities of the finished network calibrated?",
    doc=AUDIT_DOC,
    applies=always_applies,
    cure=cure,
    induce=audit_induce,
    contrasts=(
        harm("harm", *AUDIT_TERMS, "what a temperature would gain", metric="nll", margin=NLL_MARGIN_NATS),
        Contrast(
            name="brier",
            kind="info",
            weights=dict(zip(AUDIT_TERMS, (1.0, -1.0), strict=True)),
            metric="brier",
            margin=NLL_MARGIN_NATS,
            meaning="the same, Brier score",
        ),
    ),
    derived_metrics=calibration_errors,
    remedy="divide the logits by a temperature fitted on examples that training did not use",
)
