"""Weights between before and after that are better than those after.

Symptom
    Accuracy is fine where the network was trained, and lost everywhere else.

Cause
    Fine-tuning went further than the task needed.

Remedy
    Take the weights between the two (WiSE-FT), or a lower rate and fewer steps.

How it is judged
    A quarter, half and three quarters of the way from before to after, the head that of after, are screened on one half of
    the test images. Harm is metric(the best of them, or after) − metric(after) on the other half.

How it is induced
    ``before``: the backbone of before under the head of after.

References
    Wortsman et al. 2022, Robust fine-tuning of zero-shot models (arXiv:2109.01903).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.plugin import Pipeline, Plugin, Profile, Selection
from xferbench.study.trials import BEFORE

if TYPE_CHECKING:
    from collections.abc import Mapping

SHARES = (0.75, 0.5, 0.25)


def applies(pipeline: Pipeline, facts: Profile) -> str:
    if not (pipeline.finished and pipeline.finished.before):
        return "the weights of before are not given"
    return "nothing below the head has moved, so that nothing lies in between" if facts.body_unchanged else ""


def cure(pipeline: Pipeline, _: Profile) -> Selection:
    words = (f"interpolated:{share:g}" for share in SHARES)
    return Selection(candidates=tuple(replace(pipeline, edits=(*pipeline.edits, word)) for word in words))


def induce(pipeline: Pipeline, _: Profile) -> Mapping[str, Pipeline]:
    return {"before": replace(pipeline, edits=(BEFORE,))}


audit = Plugin(
    id="audit/interpolation",
    version=1,
    question="Are the weights between before and after better than those after?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    remedy="take the weights between before and after that were confirmed here, or train with a lower rate and fewer steps",
)
