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
from typing import TYPE_CHECKING, Any

from xferbench import asking, pictures, reading
from xferbench.design import HARM, Facts, Pipeline, Plugin
from xferbench.strategies import each

if TYPE_CHECKING:
    from xferbench.lab.viewed import Seen
    from xferbench.record import Run


def cure(pipeline: Pipeline, _: Facts) -> Pipeline:
    return each(pipeline, lambda phase: replace(phase, batchnorm="eval"))


def induce(pipeline: Pipeline, _: Facts) -> dict[str, Pipeline]:
    return {
        "ghost-batch": each(pipeline, lambda phase: replace(phase, batchnorm="ghost:2")),
        "class-order": each(pipeline, lambda phase: replace(phase, batchnorm="train", order="class")),
        "stale-statistics": each(pipeline, lambda phase: replace(phase, batchnorm="momentum:0.001")),
    }


def drift(seen: Seen) -> dict[str, float]:
    """How far each layer's running statistics went, and the mean over layers."""
    from xferbench.lab import batchnorm

    found = batchnorm.drift(seen.before, seen.after)
    return {"drift": reading.mean([*found.values()])} | {f"drift/{name}": value for name, value in found.items()}


def picture(axes: Any, run: Run) -> None:
    """Drift by layer for each arm: the mean, and a thin line a seed."""
    told = reading.by_arm(reading.of(run, plugin.id), lambda one: reading.numbered(one, "drift/"), "drift")
    pictures.lines(axes, told)
    axes.set(xlabel="BatchNorm layer, from the input up", ylabel="drift of running statistics", ylim=(0, None))
    axes.legend()


plugin = Plugin(
    id="batchnorm-drift",
    version=1,
    question="Do BatchNorm statistics drift during adaptation, and what does it cost?",
    page=__doc__,
    applies=asking.batchnorm,
    cure=cure,
    induce=induce,
    contrasts=(
        HARM,
        asking.measured("discrepancy", ("subject", "train-mode"), ("subject", "test")),
        asking.measured("restored", ("subject", "restored"), ("subject", "test")),
        asking.measured("recalibrated", ("subject", "recalibrated"), ("subject", "test")),
    ),
    measures={"drift": "xferbench.plugins.batchnorm_drift:drift@1"},
    remedy="keep the BatchNorm layers of the pretrained backbone in eval mode while it is adapted",
    picture=picture,
)
