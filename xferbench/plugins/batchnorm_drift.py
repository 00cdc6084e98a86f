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
    Under a real shift new statistics can be the better ones; that is why this is tested and not preached. Restoring or
    recalibrating the statistics of a finished model is measured too, as ``restored`` and ``recalibrated``: neither is advised
    untested.

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

from xferbench.design import HARM, Contrast, Facts, Pipeline, Plugin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.lab.viewed import Seen
    from xferbench.record import Run

GHOST, LAG = 2, 0.001


def applies(pipeline: Pipeline, facts: Facts) -> str:
    if not facts.has_batchnorm:
        return "the backbone has no BatchNorm layer"
    return "" if pipeline.recipe.init == "pretrained" else "nothing pretrained is adapted"


def _with(pipeline: Pipeline, **changes: Any) -> Pipeline:
    phases = tuple(replace(phase, **changes) for phase in pipeline.recipe.phases)
    return replace(pipeline, recipe=replace(pipeline.recipe, phases=phases))


def cure(pipeline: Pipeline, _: Facts) -> Pipeline:
    return _with(pipeline, batchnorm="eval")


def induce(pipeline: Pipeline, _: Facts) -> Mapping[str, Pipeline]:
    return {
        "ghost-batch": _with(pipeline, batchnorm=f"ghost:{GHOST}"),
        "class-order": _with(pipeline, batchnorm="train", order="class"),
        "stale-statistics": _with(pipeline, batchnorm=f"momentum:{LAG:g}"),
    }


def drift(seen: Seen) -> dict[str, float]:
    """How far each layer's running statistics went, and the mean over layers."""
    names = [name.removesuffix(".running_mean") for name in seen.after if name.endswith(".running_mean")]
    found = {}
    for name in names:
        mean, variance = (seen.after[f"{name}.{part}"].cpu() for part in ("running_mean", "running_var"))
        mean_0, variance_0 = (seen.before[f"{name}.{part}"] for part in ("running_mean", "running_var"))
        least = 1e-5  # BatchNorm's own epsilon: a dead channel has no variance to compare
        moved = ((mean - mean_0) ** 2 / (variance_0 + least)).mean() + (
            (variance + least) / (variance_0 + least)
        ).log().abs().mean()
        found[f"drift/{name}"] = float(moved)
    return {"drift": sum(found.values()) / len(found)} | found


def picture(axes: Any, run: Run) -> None:
    """Drift by layer, one line for each arm (mean over seeds)."""
    frame = run.to_frame()
    frame = frame[(frame["plugin"] == plugin.id) & (frame["view"] == "drift")]
    for (arm, variant), rows in frame.groupby(["arm", "variant"], sort=False):
        columns = [name for name in rows.columns if name.startswith("drift/") and rows[name].notna().any()]
        axes.plot(range(len(columns)), rows[columns].mean().to_numpy(), marker="o", label=variant or arm)
    axes.set(xlabel="BatchNorm layer, from the input up", ylabel="drift of running statistics", ylim=(0, None))
    axes.legend()


plugin = Plugin(
    id="batchnorm-drift",
    version=1,
    question="Do BatchNorm statistics drift during adaptation, and what does it cost?",
    page=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        HARM,
        Contrast(name="discrepancy", kind="info", weights={("subject", "train-mode"): 1.0, ("subject", "test"): -1.0}),
        Contrast(name="restored", kind="info", weights={("subject", "restored"): 1.0, ("subject", "test"): -1.0}),
        Contrast(name="recalibrated", kind="info", weights={("subject", "recalibrated"): 1.0, ("subject", "test"): -1.0}),
    ),
    measures={"drift": "xferbench.plugins.batchnorm_drift:drift@1"},
    remedy="keep the BatchNorm layers of the pretrained backbone in eval mode while it is adapted",
    picture=picture,
)
