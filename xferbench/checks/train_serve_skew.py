"""A finished network that is served in another way than it was trained.

Symptom
    Fine in the notebook, worse in production; the same image gets another answer in another batch.

Cause
    Two code paths: the service decodes, resizes or orders channels by itself, or forgets ``model.eval()``.

Remedy
    Serve with the very preprocessing of training, in evaluation mode.

How it is judged
    Harm is metric(served as trained) − metric(served as is said), with the same weights, on all test images, since nothing is
    chosen. ``batch-dependence`` is an exact
    invariant beside it: in shuffled batches and in batches ordered by class an image has the same probabilities.

How it is induced
    ``train-mode`` and ``train-mode-by-class``: the network in training mode, on shuffled batches or on such as are ordered by
    class. ``unnormalised``: serving leaves mean and standard deviation out.

Measured beside it
    ``flips``: share of the answers that change between the two ways of serving.

References
    LearningToCompare_FSL issue 48: train mode at test lifted 90 to 99.6 %; Ioffe & Szegedy 2015 (arXiv:1502.03167).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.design import HARM
from xferbench.plugins.train_serve_skew import plugin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.design import Arm, Facts, Pipeline
    from xferbench.lab.viewed import Seen

KEPT = ("train-mode", "train-mode-by-class", "unnormalised")  # the others are the autopsy's controls
ASKED = 64  # images that go through the network in two orders


def induce(pipeline: Pipeline, facts: Facts) -> Mapping[str, Arm]:
    return {name: arm for name, arm in plugin.induce(pipeline, facts).items() if name in KEPT}


def batch_dependence(seen: Seen) -> dict[str, float]:
    """As the plugin of the same name measures it, on fewer images."""
    from xferbench.plugins import train_serve_skew

    few = replace(seen, served=seen.served[:ASKED], served_labels=seen.served_labels[:ASKED])
    return train_serve_skew.batch_dependence(few)


check = replace(
    plugin,
    question="Is the finished network served in the way it was trained?",
    page=__doc__,
    induce=induce,
    contrasts=(
        replace(HARM, weights={(arm, "whole"): weight for (arm, _), weight in HARM.weights.items()}),
        *(one for one in plugin.contrasts if one.kind == "exact"),
    ),
    measures={"batch-dependence": "xferbench.checks.train_serve_skew:batch_dependence@1"},
)
