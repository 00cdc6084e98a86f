"""A finished network that one trained from scratch would beat.

Symptom
    None; nobody trains the small network from random weights.

Cause
    The source is too far from the target, or pretrained features were frozen that the target cannot use.

Remedy
    Train from scratch, or let more of the backbone learn: `xferbench run` says which reaches what.

How it is judged
    The same architecture is trained from random weights on the training images, its rate chosen on validation, for as long as
    ``--scratch BUDGET`` pays for. Harm is metric(scratch) − metric(finished network). A short budget makes a weak baseline: a
    PASS then says little, and the report says how many steps it was.

How it is induced
    ``permuted``: the finished network with the values of each tensor below its head shuffled.

References
    Wang et al. 2019 (arXiv:1811.09751): negative transfer gap; Brigato & Iocchi 2020 (arXiv:2003.12843): tuned baselines.
"""

from __future__ import annotations

from xferbench.checks.linear_probe import induce
from xferbench.design import Contrast, Facts, Pipeline, Plugin


def applies(_: Pipeline, facts: Facts) -> str:
    return "" if facts.train else "no training images are given"


def cure(pipeline: Pipeline, _: Facts) -> Pipeline:
    return pipeline


check = Plugin(
    id="negative-transfer",
    version=1,
    question="Would the same network, trained from scratch, do better than the finished one?",
    page=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        Contrast(
            name="harm", weights={("scratch", "whole"): 1.0, ("subject", "whole"): -1.0}, meaning="from scratch − finished"
        ),
    ),
    remedy="train from scratch, or let more of the backbone learn",
)
