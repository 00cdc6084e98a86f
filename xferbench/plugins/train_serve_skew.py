"""A model that is served in another way than it was trained.

Symptom
    Fine in the notebook, worse in production; the same image gets another answer in another batch, or on another day.

Cause
    Two code paths: the service decodes, resizes or orders channels by itself, or forgets ``model.eval()``, so that BatchNorm
    takes the statistics of whatever happens to be in the batch (which flatters where the batch is large and mixed).

Remedy
    Serve with the very preprocessing of training, in evaluation mode.

How it is judged
    Harm is metric(served as trained) − metric(served as the suite says), with the same weights. ``batch-dependence`` is an
    exact invariant beside it: an answer must not depend on the batch it comes in. Test images go through the model as it is
    served in shuffled batches and in batches ordered by class; it is broken if the probabilities of any differ by more than
    a hundredth.

How it is induced
    ``train-mode`` and ``train-mode-by-class``: the network in training mode (BatchNorm with the statistics of its batches,
    dropout at work) on shuffled batches, or on such as are ordered by class. ``unnormalised``, ``raw`` (0–255), ``bgr``,
    ``zoom``, and where images are resized at all ``nearest``: serving differs in that alone.

Measured beside it
    ``flips``: share of the answers that change between the two ways of serving, for the subject and each induced arm.

References
    LearningToCompare_FSL issue 48: train mode at test lifted 90 to 99.6 %; Breck et al. 2019, Data validation for machine
    learning (training–serving skew); Ioffe & Szegedy 2015 (arXiv:1502.03167).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.design import HARM, Contrast, Facts, Pipeline, Plugin
from xferbench.plugins.preprocessing_mismatch import mistakes
from xferbench.wording import differences

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.lab.viewed import Seen
    from xferbench.record import Record

FIELDS = ("unnormalised", "raw", "bgr", "zoom", "nearest")
APART = 0.01


def applies(_pipeline: Pipeline, _facts: Facts) -> str:
    return ""


def cure(pipeline: Pipeline, _: Facts) -> Pipeline:
    return replace(pipeline, serve_preprocessing=pipeline.train_preprocessing, mode="eval")


def induce(pipeline: Pipeline, facts: Facts) -> Mapping[str, Pipeline]:
    wrong = mistakes(pipeline.serve_preprocessing, facts)
    arms = {name: replace(pipeline, serve_preprocessing=wrong[name]) for name in FIELDS if name in wrong}
    modes = {"train-mode": "train", "train-mode-by-class": "train:class"}
    return {name: replace(pipeline, mode=mode) for name, mode in modes.items()} | arms


def flips(answers: Mapping[tuple[str, str, int], Record], seeds: Sequence[int]) -> dict[str, float]:
    """Share of the test images whose answer is not the one of the model served as it was trained."""
    found: dict[str, list[float]] = {}
    for (arm, view, seed), record in answers.items():
        cured = answers.get(("cured", "test", seed))
        if view != "test" or arm in {"cured", "scratch"} or seed not in seeds or cured is None:
            continue
        if record.predictions is not None and cured.predictions is not None:
            changed = record.predictions.predicted != cured.predictions.predicted
            found.setdefault(arm, []).append(float(changed.mean()))
    return {f"{arm}/flips": sum(values) / len(values) for arm, values in found.items()}


def batch_dependence(seen: Seen) -> dict[str, float]:
    """Share of test images whose probabilities depend on the batch they come in, by more than a hundredth.

    NaN where an answer is none. Few images come in smaller batches, for in a single one nothing could depend on it.
    """
    from xferbench.lab import viewed

    labels = seen.served_labels.numpy()
    size = min(viewed.SERVED, max(2, len(labels) // 4))
    orders = (viewed.serving_order(way, labels) for way in ("", "class"))
    shuffled, by_class = (
        viewed.in_batches(
            seen.network, seen.after, seen.served, seen.ready, order, training=seen.mode != "eval", size=size
        ).softmax(1)
        for order in orders
    )
    apart = (shuffled - by_class).abs().amax(1)
    return {"batch-dependence": float((apart > APART).double().mean()) if apart.isfinite().all() else float("nan")}


def told(_contrast: str, _answers: Mapping[tuple[str, str, int], Record], subject: Pipeline, _cured: Pipeline) -> str:
    """In which fields serving is not training."""
    served, trained = subject.serve_preprocessing, subject.train_preprocessing
    said = [f"served on {differences(served, trained)}, trained on {differences(trained, served)}"] * (served != trained)
    return "; ".join(said + [f"served in {subject.mode} mode"] * (subject.mode != "eval"))


plugin = Plugin(
    id="train-serve-skew",
    version=1,
    question="Is the model served in the way it was trained?",
    page=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        HARM,
        Contrast(
            name="batch-dependence",
            kind="exact",
            weights={("subject", "batch-dependence"): 1.0},
            meaning="an answer must not depend on the batch it comes in",
        ),
    ),
    measures={"batch-dependence": "xferbench.plugins.train_serve_skew:batch_dependence@2"},
    derived=flips,
    told=told,
    remedy="serve with the preprocessing of training, in evaluation mode",
)
