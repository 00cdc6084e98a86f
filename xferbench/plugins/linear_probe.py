"""A fine-tuned network that is no better than a linear probe of its pretrained network.

Symptom
    None, if only the accuracy of the fine-tuned network is measured.

Cause
    Too high a rate, the gradients of a fresh head or too few examples: fine-tuning damaged features that were good for the
    task. Or the labels of the training were wrong or shuffled, which this check cannot tell apart from too high a rate. Or, if
    nothing below the head has moved, the head was not trained to convergence.

Remedy
    Keep the backbone frozen and train a head, or start with that head (LP-FT).

How it is judged
    Multinomial logistic regression is fitted on training examples, on the features that enter the head of the network before.
    Harm is metric(regression) − metric(the finished network), both served with the training preprocessing, on all test
    examples, since nothing is selected. The regression gets 2000 training examples at most.

How it is induced
    ``permuted``: the finished network with the values of each tensor below its head shuffled. It shows that this test set can
    detect a damaged network; it shows nothing about the probe.

References
    Kumar et al. 2022, Fine-tuning can distort pretrained features (arXiv:2202.10054); Kornblith et al. 2019 (arXiv:1805.08974).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.plugin import Contrast, Pipeline, Plugin, Profile, interventions, records
from xferbench.study.trials import INTERPOLATE_TO_BEFORE

if TYPE_CHECKING:
    from collections.abc import Mapping


def applies(pipeline: Pipeline, profile: Profile) -> str:
    if not (pipeline.checkpoint and pipeline.checkpoint.before):
        return "the weights from before training are not given"
    return "" if profile.data.train else "no training images are given"


def cure(pipeline: Pipeline, _: Profile) -> Pipeline:
    return replace(pipeline, edits=(INTERPOLATE_TO_BEFORE, interventions.ProbeHead()))


def induce(pipeline: Pipeline, _: Profile) -> Mapping[str, Pipeline]:
    return {"permuted": replace(pipeline, edits=(interventions.PermuteWeights(),))}


def explain(_contrast: str, records_by_term: records.RecordsByTerm, _subject: Pipeline, _cured: Pipeline) -> str:
    """Return the causes that this check cannot tell apart, if the finished network is worse than the probe."""
    finished, probe = (records.accuracy(records_by_term[arm, "as-trained", 0]) for arm in ("subject", "cured"))
    return CAUSES if finished < probe else ""


CAUSES = (
    "this check cannot tell these causes apart: too high a rate, the gradients of a fresh head, too few steps, or wrong labels "
    "in the training; if nothing below the head has moved, the head was not trained to its end"
)

audit = Plugin(
    id="audit/linear-probe",
    version=1,
    question="Is the finished network better than a linear probe of its pretrained network?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        Contrast(
            name="harm",
            weights={("cured", "as-trained"): 1.0, ("subject", "as-trained"): -1.0},
            meaning="a linear probe of before − the finished network, both served as trained",
        ),
    ),
    explain=explain,
    remedy="train a head on the frozen backbone to its end, or begin the fine-tuning with that (LP-FT)",
)
