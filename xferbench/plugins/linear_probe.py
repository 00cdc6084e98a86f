"""A fine-tuned network that is no better than a linear probe of what it was made from.

Symptom
    None; everybody looks at the fine-tuned network's accuracy alone.

Cause
    Too high a rate, a fresh head's gradients, too few images: the fine-tuning spoilt features that were good for the task. Or,
    where nothing below the head has moved, the head was not trained to its end.

Remedy
    Keep the backbone frozen and train a head, or begin with that head (LP-FT).

How it is judged
    Multinomial logistic regression on the features that enter the head of the network before, fitted on training images. Harm
    is metric(that) − metric(the finished network), both served as it was trained, on all test images, since nothing is chosen.
    The regression gets 2000 training images at most.

How it is induced
    ``permuted``: the finished network with the values of each tensor below its head shuffled. It shows that this test set can
    tell a ruined network; of the probe itself it shows nothing.

References
    Kumar et al. 2022, Fine-tuning can distort pretrained features (arXiv:2202.10054); Kornblith et al. 2019 (arXiv:1805.08974).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.plugin import Contrast, Pipeline, Plugin, Profile
from xferbench.study.trials import BEFORE

if TYPE_CHECKING:
    from collections.abc import Mapping


def applies(pipeline: Pipeline, facts: Profile) -> str:
    if not (pipeline.finished and pipeline.finished.before):
        return "the weights of before are not given"
    return "" if facts.train else "no training images are given"


def cure(pipeline: Pipeline, _: Profile) -> Pipeline:
    return replace(pipeline, edits=(BEFORE, "head:probe"))


def induce(pipeline: Pipeline, _: Profile) -> Mapping[str, Pipeline]:
    return {"permuted": replace(pipeline, edits=("weights:permuted@1",))}


audit = Plugin(
    id="audit/linear-probe",
    version=1,
    question="Is the finished network better than a linear probe of what it was made from?",
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
    remedy="train a head on the frozen backbone to its end, or begin the fine-tuning with that (LP-FT)",
)
