"""The arms that a backbone and a user's training code can run. Pure.

A recipe that would be a linear probe under another name is not feasible. The lab builds the model and its data, so that user
code always supports init, head and preprocessing; it decides how the model is trained, and which step is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.core.interventions import REQUIREMENTS, AdaptBatchNorm, Adapters, InterpolatePhase, TopGroups
from xferbench.core.pipeline import PHASE_FIELDS, SUPPORTABLE_FIELDS, Selection

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from xferbench.core.pipeline import Arm, Pipeline, Recipe
    from xferbench.core.plugin import Profile

MISSING_LAYERS = ("norm", "bias", "lora", "adapter")  # requirements of trainable kinds that a backbone may lack


def why_not_trainable(recipe: Recipe, profile: Profile) -> str:
    """Return why a recipe cannot run on a backbone, or ""."""
    return why_missing_layers(recipe, profile) or why_missing_inputs(recipe, profile)


def why_missing_inputs(recipe: Recipe, profile: Profile) -> str:
    """Return why an input of the recipe's regularizer or finish is missing, or ""."""
    if recipe.regularizer and "shifted" in recipe.regularizer.requires and (reason := _why_no_unlabeled_images(profile)):
        return f"{recipe.regularizer}: {reason}"
    if recipe.finish and "batchnorm" in recipe.finish.requires and not profile.has_batchnorm:
        return f"{recipe.finish}: the backbone has no {REQUIREMENTS['batchnorm']}"
    if isinstance(recipe.finish, AdaptBatchNorm) and "unlabelled" in profile.model.unsupported:
        return "adabn: the [shifted] set has no training images"
    if isinstance(recipe.finish, InterpolatePhase) and profile.user_code.supports is not None:
        return f"{recipe.finish}: it is not known where the training code's last phase begins"
    return ""


def _why_no_unlabeled_images(profile: Profile) -> str:
    if profile.user_code.supports is not None:
        return "the training code receives no images of another domain"
    if not profile.data.shifted:
        return "the suite has no [shifted]"
    return "the [shifted] set has no training images" if "unlabelled" in profile.model.unsupported else ""


def why_missing_layers(recipe: Recipe, profile: Profile) -> str:
    """Return why parameters that a recipe trains do not exist, or ""."""
    for trainable in (phase.trainable for phase in recipe.phases):
        if missing := [name for name in trainable.requires if name in profile.model.unsupported]:
            return f"{trainable}: the backbone has no {REQUIREMENTS[missing[0]]}"
        if isinstance(trainable, TopGroups) and trainable.groups > len(profile.model.groups):
            return f"{trainable}: the backbone has {len(profile.model.groups)} layer groups"
        if isinstance(trainable, Adapters) and profile.model.outputs:
            return f"{trainable}: a finished network has no adapters besides its own tensors"
    sizes = {str(phase.trainable) for phase in recipe.phases if isinstance(phase.trainable, Adapters)}
    return f"{', '.join(sorted(sizes))}: a network has adapters of one size" if len(sizes) > 1 else ""


def describe_trainable(profile: Profile) -> str:
    """Return what a phase can train of a backbone, in words."""
    kinds = [name for name in MISSING_LAYERS if name not in profile.model.unsupported]
    groups = f"top:N with N up to {len(profile.model.groups)} (groups from the input up: {', '.join(profile.model.groups)})"
    return f"{', '.join(['head', *kinds, 'all'])}, or {groups}"


def feasible_arms(arms: Mapping[str, Arm], profile: Profile) -> dict[str, Arm]:
    """Return the arms that the backbone can run, each with its feasible candidates."""
    feasible: dict[str, Arm] = {}
    for name, arm in arms.items():
        remaining = tuple(pipeline for pipeline in candidates(arm) if not why_not_trainable(pipeline.recipe, profile))
        if remaining:
            feasible[name] = replace(arm, candidates=remaining) if isinstance(arm, Selection) else arm
    return feasible


def why_not_feasible(cure: Arm, subject: Pipeline, profile: Profile) -> str:
    """Return why no candidate of a cure can run on the backbone, or ""."""
    reasons = [why_not_trainable(pipeline.recipe, profile) for pipeline in candidates(cure) if pipeline != subject]
    return reasons[0] if reasons and all(reasons) else ""


def differing_fields(recipe: Recipe, other: Recipe) -> set[str]:
    """Return the fields of phases and recipe in which two recipes differ.

    If the numbers of phases differ, a field of a phase differs if the sets of its values in the two recipes do.
    """
    names = {name for name in ("regularizer", "augment", "stop") if getattr(recipe, name) != getattr(other, name)}
    if len(recipe.phases) == len(other.phases):
        pairs = list(zip(recipe.phases, other.phases, strict=True))
        return names | {name for name in PHASE_FIELDS if any(getattr(a, name) != getattr(b, name) for a, b in pairs)}
    values = {name: [{getattr(phase, name) for phase in each.phases} for each in (recipe, other)] for name in PHASE_FIELDS}
    return names | {"phases"} | {name for name, (a, b) in values.items() if a != b}


def supported_arms(arms: Mapping[str, Arm], subject: Pipeline, supported: Sequence[str] | None) -> dict[str, Arm]:
    """Return the supported arms, each with its supported candidates.

    The first candidate of the scratch arm, the subject's recipe from random weights, is always included.

    Args:
        arms: the arms by name.
        subject: the pipeline that the arms are compared with.
        supported: the fields that the training code supports; None if all fields are supported.
    """
    if supported is None:
        return dict(arms)
    feasible: dict[str, Arm] = {}
    for name, arm in arms.items():
        remaining = tuple(
            pipeline
            for index, pipeline in enumerate(candidates(arm))
            if (name == "scratch" and index == 0) or differing_fields(subject.recipe, pipeline.recipe) <= {*supported}
        )
        if remaining:
            feasible[name] = (
                replace(arm, candidates=remaining) if isinstance(arm, Selection) and len(remaining) > 1 else remaining[0]
            )
    return feasible


def why_unsupported(cure: Arm, induced: Iterable[Arm], subject: Pipeline, supported: Sequence[str] | None) -> str:
    """Return why the training code cannot be tested for a failure mode, or "".

    An unsupported cure would be the subject under another name, and its harm of 0 would mean nothing. If the cure changes
    nothing, at least one induced variant must be supported, because otherwise the code may or may not follow the recipe.
    """
    if supported is None:
        return ""
    cures = [pipeline for pipeline in candidates(cure) if pipeline != subject]
    required = cures or [pipeline for arm in induced for pipeline in candidates(arm)]
    missing = [differing_fields(subject.recipe, pipeline.recipe) - {*supported} for pipeline in required]
    if not missing or not all(missing):
        return ""
    fewest = min(missing, key=len)
    names = [name for name in (*SUPPORTABLE_FIELDS, "regularizer") if name in fewest]
    return f"the training code does not support {', '.join(names)}"


def candidates(arm: Arm) -> tuple[Pipeline, ...]:
    """Return the candidates of an arm; a pipeline is its own only candidate."""
    return arm.candidates if isinstance(arm, Selection) else (arm,)
