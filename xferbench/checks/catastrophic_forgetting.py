"""The source skill that a finished network has lost.

Symptom
    The network is good at the new task, and nobody looked at the old one.

Cause
    A high rate, all layers, many steps, nothing that holds on to the source; or BatchNorm statistics of the target alone.

Remedy
    Freeze more, take a lower rate, or add what holds on to the source (L2-SP, EWC, replay, LwF): `xferbench run` tries them.

How it is judged
    Harm is accuracy on the source's test set, with the pretrained head, before − after. The cure is the better one of the old
    BatchNorm statistics and the weights between before and after, and only feeds the remedy.

How it is induced
    ``permuted``: the values of each tensor below the head shuffled.

Measured beside it
    ``probe-forgetting``: the same with a head fitted anew on the source. ``restored``: what the old BatchNorm statistics give
    back.

References
    Kirkpatrick et al. 2017 (arXiv:1612.00796); Davari et al. 2022 (arXiv:2203.13381): probe forgetting is far milder.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.design import Choice, Facts, Pipeline, Plugin
from xferbench.plugins.catastrophic_forgetting import plugin

if TYPE_CHECKING:
    from collections.abc import Mapping


def applies(pipeline: Pipeline, facts: Facts) -> str:
    if not (pipeline.finished and pipeline.finished.before):
        return "the weights of before are not given"
    return "" if facts.source else facts.no_source or "the suite has no [source] whose classes are known"


def cure(pipeline: Pipeline, facts: Facts) -> Choice:
    words = ["batchnorm:restored"] * facts.has_batchnorm + ["interpolated:0.75", "interpolated:0.5"]
    arms = (replace(pipeline, edits=(*pipeline.edits, word)) for word in words)
    return Choice(candidates=tuple(arms), by="source-held-out", keeping="validation")


def induce(pipeline: Pipeline, _: Facts) -> Mapping[str, Pipeline]:
    return {"permuted": replace(pipeline, edits=("weights:permuted@1",))}


check = Plugin(
    id="catastrophic-forgetting",
    version=1,
    question="How much of the source skill has the finished network lost?",
    page=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=plugin.contrasts,
    remedy="freeze more of the backbone or hold on to the source: `xferbench run` with this [source] says which way keeps most",
)
