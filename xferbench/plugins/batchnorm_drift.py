"""BatchNorm statistics that drift while a pretrained backbone is adapted.

Symptom
    Accuracy in training mode is far above that in evaluation mode on the same images, or a "frozen" backbone gives other
    features after training than before.

Cause
    BatchNorm layers in train mode normalise by the statistics of the batch and move their running ones, whatever
    ``requires_grad`` says. Small batches, batches of one class, or a low momentum make the two disagree: the head learns on
    features that it will not be served.

Remedy
    Keep BatchNorm of every pretrained phase in evaluation mode, and call ``.eval()`` on it again after each ``model.train()``.
    Under a real shift new statistics can be the better ones: hence the test. Restoring or recalibrating those of a finished
    model is measured too, as ``restored`` and ``recalibrated``: neither is advised untested.

How it is induced
    ``ghost-batch``: train mode, normalised in slices of two images of the same batch, so that the batch size is not the
    cause. ``class-order``: train mode on batches ordered by class (which costs a little in any mode). ``stale-statistics``:
    train mode with momentum 0.001, so that the running statistics lag behind the weights.

Measured beside it
    ``discrepancy``: accuracy with the statistics of test batches minus that with the running ones, same weights and images.
    ``drift``: per layer, the mean of (μ − μ₀)² / σ₀² plus the mean of |log σ² / σ₀²|, against the statistics before.

References
    Ioffe & Szegedy 2015 (arXiv:1502.03167); Wu & He 2018, Group Normalization (arXiv:1803.08494): error at batch 2;
    Hoffer et al. 2017 (arXiv:1705.08741): ghost batches; Li et al. 2016, AdaBN (arXiv:1603.04779); keras issue 9965.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xferbench.plugin import (
    HARM,
    MeasureContext,
    Pipeline,
    Plugin,
    Profile,
    Run,
    Selection,
    info,
    map_phases,
    plotting,
    records,
    requires_batchnorm,
)


def cure(pipeline: Pipeline, _: Profile) -> Pipeline:
    return map_phases(pipeline, lambda phase: replace(phase, batchnorm="eval"))


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    return {
        "ghost-batch": map_phases(pipeline, lambda phase: replace(phase, batchnorm="ghost:2")),
        "class-order": map_phases(pipeline, lambda phase: replace(phase, batchnorm="train", order="class")),
        "stale-statistics": map_phases(pipeline, lambda phase: replace(phase, batchnorm="momentum:0.001")),
    }


def drift(seen: MeasureContext) -> dict[str, float]:
    """How far each layer's running statistics went, and the mean over layers."""
    from xferbench.lab.models import batchnorm

    found = batchnorm.statistics_drift(seen.before, seen.after)
    return {"drift": records.mean_or_nan([*found.values()])} | {f"drift/{name}": value for name, value in found.items()}


def picture(axes: Any, run: Run) -> None:
    """Drift by layer for each arm: the mean, and a thin line a seed."""
    told = records.values_by_arm(
        records.plugin_records(run, plugin.id), lambda one: records.numbered_scalars(one, "drift/"), "drift"
    )
    plotting.draw_lines(axes, told)
    axes.set(xlabel="BatchNorm layer, from the input up", ylabel="drift of running statistics", ylim=(0, None))
    axes.legend()


plugin = Plugin(
    id="batchnorm-drift",
    version=1,
    question="Do BatchNorm statistics drift during adaptation, and what does it cost?",
    doc=__doc__,
    applies=requires_batchnorm,
    cure=cure,
    induce=induce,
    contrasts=(
        HARM,
        info("discrepancy", ("subject", "train-mode"), ("subject", "test")),
        info("restored", ("subject", "restored"), ("subject", "test")),
        info("recalibrated", ("subject", "recalibrated"), ("subject", "test")),
    ),
    measures={"drift": "xferbench.plugins.batchnorm_drift:drift@1"},
    remedy="keep the BatchNorm layers of the pretrained backbone in eval mode while it is adapted",
    plot=picture,
)


AUDIT_PAGE = """BatchNorm statistics of a finished network that are not those it needs.

Symptom
    Near-perfect in training mode, far worse in evaluation mode, with the same weights.

Cause
    The running statistics drifted while a "frozen" backbone was adapted, lag behind the weights (a low momentum), or are those
    of a few last batches of one class.

Remedy
    Put the statistics of before back, or recalibrate them on training images; ``--repair`` writes those that were shown to
    help. Then keep BatchNorm in evaluation mode, or train with enough images a batch.

How it is judged
    Restored and recalibrated statistics are screened on one half of the test images; harm is metric(the better one, or the
    network as it is) − metric(as it is) on the other half.

How it is induced
    ``initial``: the statistics of a fresh network. ``one-class``: recalibrated on training images of the most frequent class.

Measured beside it
    ``discrepancy``: accuracy with the statistics of test batches minus that with the running ones. ``drift`` by layer, where
    the weights of before are given: the mean of (μ − μ₀)² / σ₀² plus the mean of |log σ² / σ₀²|.

References
    Wu & Johnson 2021, Rethinking "Batch" in BatchNorm (arXiv:2105.07576): precise statistics; Li et al. 2016, AdaBN
    (arXiv:1603.04779); Lightning issue 15062 and keras issue 9965: statistics of frozen layers that move.
"""
RECALIBRATED = "batchnorm:recalibrated@2"


def audit_applies(pipeline: Pipeline, facts: Profile) -> str:
    if not facts.has_batchnorm:
        return "the network has no BatchNorm layer"
    before = pipeline.finished and pipeline.finished.before
    return "" if before or facts.train else "neither the weights of before nor training images are given"


def _edited(pipeline: Pipeline, edit: str) -> Pipeline:
    return replace(pipeline, edits=(*pipeline.edits, edit))


def audit_cure(pipeline: Pipeline, facts: Profile) -> Selection:
    edits = [RECALIBRATED] * bool(facts.train)
    edits += ["batchnorm:restored"] * bool(pipeline.finished and pipeline.finished.before)
    return Selection(candidates=tuple(_edited(pipeline, edit) for edit in edits))


def audit_induce(pipeline: Pipeline, facts: Profile) -> dict[str, Pipeline]:
    arms = {"initial": _edited(pipeline, "batchnorm:initial")}
    return arms | ({"one-class": _edited(pipeline, "batchnorm:one-class@1")} if facts.train else {})


audit = Plugin(
    id="batchnorm-drift",
    version=1,
    question="Are the BatchNorm statistics those that the network needs?",
    doc=AUDIT_PAGE,
    applies=audit_applies,
    cure=audit_cure,
    induce=audit_induce,
    contrasts=(
        HARM,
        info(
            "discrepancy",
            ("subject", "train-mode"),
            ("subject", "test"),
            "what the statistics of test batches would gain over the running ones",
        ),
    ),
    measures={"drift": "xferbench.plugins.batchnorm_drift:drift@1"},
    remedy="use the BatchNorm statistics that were confirmed here, and keep BatchNorm of a frozen backbone in evaluation mode",
    plot=picture,
)
