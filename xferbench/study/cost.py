"""The planned cost of trials, from one measured time of an example, whatever the machine does later. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.core.interventions import BATCHNORM_EVAL, HEAD_ONLY
from xferbench.core.pipeline import MAX_HELD_OUT_EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xferbench.core.pipeline import Phase
    from xferbench.core.plugin import Profile
    from xferbench.core.trial import TrainingSpec, Trial


def planned_seconds(trials: Iterable[Trial], profile: Profile) -> float:
    """Return the time of one worker for trials: training by examples seen, evaluation by examples scored.

    Each trial is computed once, and each network is trained once. The time of an example is measured when the pipeline is
    profiled.
    """
    listed = {trial.key: trial for trial in trials}.values()
    specs: dict[TrainingSpec, None] = {trial.model.base: None for trial in listed}
    training_seconds = sum(training_cost(spec) for spec in specs) * profile.timing.seconds_step
    half = profile.data.test // 2
    sizes = {"validation": profile.data.validation, "held-out": MAX_HELD_OUT_EXAMPLES, "screen": half, "confirm": half}
    # Other evaluations count all test images, because the number of images without a copy is not known in advance.
    views = [trial.view for trial in listed if trial.view.measure == "predictions"]
    scored_examples = sum(sizes.get(view.examples, profile.data.test) for view in views)
    return training_seconds + scored_examples * profile.timing.seconds_forward


def training_cost(spec: TrainingSpec) -> float:
    """Return the number of training examples; those of a frozen backbone count a tenth. For ordering and estimates."""
    # The domain classifier sees the batch again, and as many images of the other domain.
    factor = 3 if spec.data.unlabeled else 1
    phases, augment = spec.procedure.phases, spec.procedure.augment
    return factor * sum(phase.steps * phase.batch_size if augment else phase_examples(phase) for phase in phases)


def phase_examples(phase: Phase) -> float:
    """Return the part of a phase in :func:`training_cost`."""
    is_cheap = phase.trainable == HEAD_ONLY and phase.batchnorm == BATCHNORM_EVAL
    return phase.steps * phase.batch_size * (0.1 if is_cheap else 1.0)
