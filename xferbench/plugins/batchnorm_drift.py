"""BatchNorm statistics that drift while a pretrained backbone is adapted.

Symptom
    Accuracy in training mode is far above accuracy in evaluation mode on the same images. Or a "frozen" backbone gives
    different features after training than before.

Cause
    BatchNorm layers in train mode normalize with the statistics of the batch and update their running statistics,
    regardless of ``requires_grad``. Small batches, batches of one class or a low momentum make the two statistics disagree:
    the head is trained on features that differ from those it sees when it is served.

Remedy
    Keep BatchNorm in evaluation mode in every phase that starts from pretrained weights, and call ``.eval()`` on it again
    after each ``model.train()``. If the target differs from the source, statistics of the target can be better: then use one
    mode in all phases, train the statistics only in the last phase, or recalibrate them after training.

How it is cured
    The best on validation of the recipe and of four variants of it: evaluation mode in all phases, train mode in all phases,
    evaluation mode until the last phase trains in train mode (a single phase is divided into two of equal length), and the
    recipe with statistics that are recalibrated on training images afterwards. A recipe in evaluation mode in all phases has no
    statistics that drift, and is not exposed.

How it is induced
    ``ghost-batch``: train mode, normalized in slices of two images of the same batch, so that the batch size is not the
    cause. ``class-order``: train mode on batches ordered by class (this order costs a little in any mode).
    ``stale-statistics``: train mode with momentum 0.001, so that the running statistics lag behind the weights.

Also measured
    ``discrepancy``: accuracy with the statistics of test batches minus accuracy with the running statistics, for the same
    weights and images. ``drift``: per layer, the mean of (μ − μ₀)² / σ₀² plus the mean of |log σ² / σ₀²|, relative to the
    statistics before training.

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
    interventions,
    map_phases,
    plotting,
    records,
    requires_batchnorm,
)

RECALIBRATE = interventions.RecalibrateBatchNorm()


def _set_modes(pipeline: Pipeline, mode: interventions.BatchNormMode, **changes: Any) -> Pipeline:
    return map_phases(pipeline, lambda phase: replace(phase, batchnorm=mode, **changes))


def _train_at_last(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline with BatchNorm in train mode in its last phase alone; a single phase is divided into two."""
    *first, last = pipeline.recipe.phases
    if not first and last.steps > 1:
        steps = last.steps // 2
        first = [replace(last, steps=steps, warmup=min(last.warmup, steps - 1))]
        last = replace(last, steps=last.steps - steps, warmup=0)
    frozen = [replace(phase, batchnorm=interventions.BATCHNORM_EVAL) for phase in first]
    phases = (*frozen, replace(last, batchnorm=interventions.BATCHNORM_TRAIN))
    return replace(pipeline, recipe=replace(pipeline.recipe, phases=phases))


def cure(pipeline: Pipeline, _: Profile) -> Pipeline | Selection:
    in_eval = _set_modes(pipeline, interventions.BATCHNORM_EVAL)
    if in_eval == pipeline:
        return pipeline
    recalibrated = replace(pipeline, edits=tuple(dict.fromkeys((*pipeline.edits, RECALIBRATE))))
    in_train = _set_modes(pipeline, interventions.BATCHNORM_TRAIN)
    return Selection(candidates=tuple(dict.fromkeys((in_eval, in_train, _train_at_last(pipeline), recalibrated))))


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    plain = replace(pipeline, edits=tuple(edit for edit in pipeline.edits if edit != RECALIBRATE))  # it would undo the failure
    arms = {
        "ghost-batch": _set_modes(plain, interventions.GhostBatchNorm(examples=2)),
        "class-order": _set_modes(plain, interventions.BATCHNORM_TRAIN, order="class"),
        "stale-statistics": _set_modes(plain, interventions.BatchNormMomentum(momentum=0.001)),
    }
    return {name: arm for name, arm in arms.items() if arm != pipeline}  # a subject with the failure may be the best candidate


def drift(context: MeasureContext) -> dict[str, float]:
    """Return the drift of each layer's running statistics, and its mean over the layers."""
    from xferbench.lab.models import batchnorm

    by_layer = batchnorm.statistics_drift(context.before, context.after)
    return {"drift": records.mean_or_nan([*by_layer.values()])} | {f"drift/{name}": value for name, value in by_layer.items()}


def plot(axes: Any, run: Run) -> None:
    """Draw the drift by layer for each arm: the mean, and a thin line for each seed."""
    drift_by_arm = records.values_by_arm(
        records.plugin_records(run, plugin.id), lambda record: records.numbered_scalars(record, "drift/"), "drift"
    )
    plotting.draw_lines(axes, drift_by_arm)
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
    remedy="use the BatchNorm mode, or the recalibrated statistics, that were best on validation",
    plot=plot,
)


AUDIT_DOC = """BatchNorm statistics of a finished network that do not fit its weights.

Symptom
    Near-perfect in training mode, far worse in evaluation mode, with the same weights.

Cause
    The running statistics drifted while a "frozen" backbone was adapted, or they lag behind the weights (a low momentum or few
    steps), or they come from the last few batches of one class. Or the weights come from a framework with another epsilon.

Remedy
    Restore the statistics from before training, or recalibrate them on training images; ``--repair`` writes the statistics
    that were confirmed to help. Then keep BatchNorm in evaluation mode, or train with larger batches. If another epsilon was
    confirmed, set it in the layers (``eps``).

How it is judged
    The plugin screens restored and recalibrated statistics, and epsilons of 1e-3 (Keras) and 1e-5 (PyTorch), on one half of the
    test images. Harm is metric(the best of them, or the network as it is) − metric(as it is) on the other half.

How it is induced
    ``initial``: the statistics of a fresh network. ``one-class``: recalibrated on training images of the most frequent class.

Also measured
    ``discrepancy``: accuracy with the statistics of test batches minus accuracy with the running statistics. ``drift`` by
    layer, if the weights from before training are given: the mean of (μ − μ₀)² / σ₀² plus the mean of |log σ² / σ₀²|.
    ``share from before``: (1 − momentum) to the power of the steps in train mode, for the lowest momentum of the architecture.
    Such a share of the running statistics is still that from before training.

References
    Wu & Johnson 2021, Rethinking "Batch" in BatchNorm (arXiv:2105.07576): precise statistics; Li et al. 2016, AdaBN
    (arXiv:1603.04779); Lightning issue 15062 and keras issue 9965: statistics of frozen layers that move.
"""


EPSILONS = (1e-3, 1e-5)  # of Keras and of PyTorch
STALE_SHARE = 0.1  # share of the running statistics from before training above which they are named as stale


def drift_of_finished(context: MeasureContext) -> dict[str, float]:
    """Return the drift, the steps in train mode, and the share of the statistics that is still that from before these steps."""
    from xferbench.lab.models import batchnorm

    steps = batchnorm.training_steps(context.before, context.after)
    if steps <= 0:
        return drift(context)
    share = batchnorm.share_from_before(context.network.module, steps)
    return drift(context) | {"steps in train mode": steps, "share from before": share}


def explain(_contrast: str, records_by_term: records.RecordsByTerm, subject: Pipeline, cured: Pipeline) -> str:
    """Return which statistics the screened half prefers, and why the present ones may be stale."""
    if subject == cured:
        return ""
    edits = cured.edits[len(subject.edits) :]
    preferred = " and ".join(edit.describe() for edit in edits)
    measured = records_by_term.get(("subject", "drift", 0))
    scalars = measured.scalars if measured else {}
    share = scalars.get("share from before", 0.0)
    if share < STALE_SHARE or RECALIBRATE not in edits:  # only new statistics show that the present ones are too old
        return f"the screened half prefers {preferred}"
    steps = scalars["steps in train mode"]
    stale = f"after {steps:.0f} steps in train mode, {share:.0%} of the running statistics are still those from before"
    return f"the screened half prefers {preferred}; the momentum is low for so few steps: {stale}"


def audit_applies(pipeline: Pipeline, profile: Profile) -> str:
    if not profile.has_batchnorm:
        return "the network has no BatchNorm layer"
    before = pipeline.checkpoint and pipeline.checkpoint.before
    return "" if before or profile.data.train else "neither the weights from before training nor training images are given"


def _add_edit(pipeline: Pipeline, edit: interventions.Edit) -> Pipeline:
    return replace(pipeline, edits=(*pipeline.edits, edit))


def audit_cure(pipeline: Pipeline, profile: Profile) -> Selection:
    has_before = pipeline.checkpoint and pipeline.checkpoint.before
    edits: list[interventions.Edit] = [interventions.RecalibrateBatchNorm()] if profile.data.train else []
    edits += [interventions.RestoreBatchNorm()] if has_before else []
    edits += [interventions.BatchNormEpsilon(epsilon=epsilon) for epsilon in EPSILONS]
    return Selection(candidates=tuple(_add_edit(pipeline, edit) for edit in edits))


def audit_induce(pipeline: Pipeline, profile: Profile) -> dict[str, Pipeline]:
    arms = {"initial": _add_edit(pipeline, interventions.ResetBatchNorm())}
    return arms | ({"one-class": _add_edit(pipeline, interventions.OneClassBatchNorm())} if profile.data.train else {})


audit = Plugin(
    id="batchnorm-drift",
    version=1,
    question="Do the BatchNorm statistics fit the network?",
    doc=AUDIT_DOC,
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
    measures={"drift": "xferbench.plugins.batchnorm_drift:drift_of_finished@1"},
    explain=explain,
    remedy="use the BatchNorm statistics that were confirmed here, and keep BatchNorm of a frozen backbone in evaluation mode",
    plot=plot,
)
