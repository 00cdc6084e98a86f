"""What fine-tuning has cost under a shift.

Symptom
    Test accuracy is fine; in the field, under another light or another device, it is not.

Cause
    Fine-tuning moved features that were good beyond the training images to where they are good for those alone.

Remedy
    Probe first, then fine-tune at a low rate (LP-FT); or take weights between before and after.

How it is judged
    Harm is metric on the shifted set of (a linear probe of the network before − the finished network), both served as it was
    trained.

How it is induced
    ``permuted``: the values of each tensor below the head shuffled.

References
    Kumar et al. 2022, Fine-tuning can distort pretrained features and underperform out of distribution (arXiv:2202.10054).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.checks import linear_probe
from xferbench.design import Contrast, Facts, Pipeline, Plugin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.record import Record


def applies(pipeline: Pipeline, facts: Facts) -> str:
    return linear_probe.applies(pipeline, facts) or ("" if facts.shifted else "the suite has no [shifted] set")


def gap(answers: Mapping[tuple[str, str, int], Record], seeds: Sequence[int]) -> dict[str, float]:
    """Accuracy on the test set and on the shifted one, of both networks."""
    found = {}
    for (arm, view, seed), one in answers.items():
        if (
            arm in {"subject", "cured"}
            and view in {"test", "shifted-as-trained"}
            and seed in seeds
            and one.predictions is not None
        ):
            found[f"{arm}/accuracy {view.partition('-')[0]}"] = float(
                (one.predictions.predicted == one.predictions.label).mean()
            )
    return found


check = Plugin(
    id="feature-distortion",
    version=1,
    question="Has fine-tuning cost accuracy under the shift?",
    page=__doc__,
    applies=applies,
    cure=linear_probe.cure,
    induce=linear_probe.induce,
    contrasts=(
        Contrast(
            name="harm",
            weights={("cured", "shifted-as-trained"): 1.0, ("subject", "shifted-as-trained"): -1.0},
            meaning="shifted accuracy of a linear probe of before − of the finished network",
        ),
    ),
    derived=gap,
    remedy="train a head first and fine-tune at a low rate (LP-FT), or take weights between before and after",
)
