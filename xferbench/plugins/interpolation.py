"""Weights between before and after fine-tuning that are better than those after it.

Symptom
    Accuracy is good on data like the training data, and low everywhere else.

Cause
    Fine-tuning went farther than the task needed.

Remedy
    Use the weights between the two (WiSE-FT), or a lower rate and fewer steps.

How it is judged
    The plugin screens a quarter, half and three quarters of the way from before to after, with the head of after, on one half
    of the test examples. Harm is metric(the best of them, or after) − metric(after) on the other half.

How it is induced
    ``before``: the backbone of before under the head of after.

References
    Wortsman et al. 2022, Robust fine-tuning of zero-shot models (arXiv:2109.01903).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.plugin import Pipeline, Plugin, Profile, Selection, interventions
from xferbench.study.trials import INTERPOLATE_TO_BEFORE

if TYPE_CHECKING:
    from collections.abc import Mapping

SHARES = (0.75, 0.5, 0.25)  # of the way from before to after


def applies(pipeline: Pipeline, profile: Profile) -> str:
    if not (pipeline.checkpoint and pipeline.checkpoint.before):
        return "the weights from before training are not given"
    return "nothing below the head has moved, so there is nothing to interpolate" if profile.model.body_unchanged else ""


def cure(pipeline: Pipeline, _: Profile) -> Selection:
    edits = (interventions.InterpolateCheckpoints(share=share) for share in SHARES)
    return Selection(candidates=tuple(replace(pipeline, edits=(*pipeline.edits, edit)) for edit in edits))


def induce(pipeline: Pipeline, _: Profile) -> Mapping[str, Pipeline]:
    return {"before": replace(pipeline, edits=(INTERPOLATE_TO_BEFORE,))}


audit = Plugin(
    id="audit/interpolation",
    version=1,
    question="Are weights between before and after fine-tuning better than those after it?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    remedy="use the weights between before and after that this audit confirmed, or train with a lower rate and fewer steps",
)
