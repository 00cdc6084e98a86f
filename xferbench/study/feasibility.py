"""The arms that a backbone and a user's training code can run. Pure.

A recipe that would be a linear probe under another name is not feasible. The lab builds the model and its data, so that user
code always supports init, head and preprocessing; it decides how the model is trained, and which step is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.core.interventions import ADDED_KINDS, AdaptBatchNorm, InterpolatePhase, TopGroups
from xferbench.core.pipeline import PHASE_FIELDS, SUPPORTABLE_FIELDS, Selection
from xferbench.core.reason import Code, Reason, because
from xferbench.core.strategies import virtual_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from xferbench.core.pipeline import Arm, Pipeline, Recipe
    from xferbench.core.plugin import Profile

# The requirements of trainable kinds that a backbone may lack.
MISSING_LAYERS = ("norm", "bias", "lora", "adapter", "prompt", "prefix")


def why_not_trainable(recipe: Recipe, profile: Profile) -> Reason | None:
    """Return why a recipe cannot run on a backbone, or None."""
    return why_missing_layers(recipe, profile) or why_no_dropout(recipe, profile) or why_missing_inputs(recipe, profile)


def why_no_dropout(recipe: Recipe, profile: Profile) -> Reason | None:
    """Return that the dropout layers whose probability a recipe sets do not exist, or None."""
    if "dropout" in profile.model.unsupported and any(phase.dropout is not None for phase in recipe.phases):
        return because(Code.LAYERS_MISSING, value="dropout", requirement="dropout")
    return None


def why_missing_inputs(recipe: Recipe, profile: Profile) -> Reason | None:
    """Return why an input of the recipe's regularizer or finish is missing, or None."""
    regularizer, finish = recipe.regularizer, recipe.finish
    if regularizer and "shifted" in regularizer.requires and (code := _why_no_unlabeled_images(profile)):
        return because(code, value=regularizer)
    if finish and "batchnorm" in finish.requires and not profile.has_batchnorm:
        return because(Code.LAYERS_MISSING, value=finish, requirement="batchnorm")
    if isinstance(finish, AdaptBatchNorm) and "unlabelled" in profile.model.unsupported:
        return because(Code.NO_SHIFTED_TRAINING_IMAGES, value=finish)
    if isinstance(finish, InterpolatePhase) and profile.user_code.supports is not None:
        return because(Code.LAST_PHASE_UNKNOWN, value=finish)
    return None


def _why_no_unlabeled_images(profile: Profile) -> Code | None:
    if profile.user_code.supports is not None:
        return Code.CODE_WITHOUT_SHIFTED
    if not profile.data.shifted:
        return Code.NO_SHIFTED
    return Code.NO_SHIFTED_TRAINING_IMAGES if "unlabelled" in profile.model.unsupported else None


def why_missing_layers(recipe: Recipe, profile: Profile) -> Reason | None:
    """Return why parameters that a recipe trains do not exist, or None."""
    for trainable in (phase.trainable for phase in recipe.phases):
        if missing := [name for name in trainable.requires if name in profile.model.unsupported]:
            return because(Code.LAYERS_MISSING, value=trainable, requirement=missing[0])
        if isinstance(trainable, TopGroups) and trainable.groups > len(profile.model.groups):
            return because(Code.TOO_FEW_GROUPS, value=trainable, groups=len(profile.model.groups))
        if isinstance(trainable, ADDED_KINDS) and profile.model.outputs:
            return because(Code.FINISHED_WITHOUT_ADDED, value=trainable)
    for kind in ADDED_KINDS:
        sizes = {str(phase.trainable) for phase in recipe.phases if isinstance(phase.trainable, kind)}
        if len(sizes) > 1:
            return because(Code.ADDED_OF_SEVERAL_SIZES, values=tuple(sorted(sizes)))
    return _why_no_room(recipe, profile)


def _why_no_room(recipe: Recipe, profile: Profile) -> Reason | None:
    """Return that a network has too few positions for the virtual tokens and the longest text, or None."""
    tokens, length, limit = virtual_tokens(recipe), profile.model.size[-1], max(profile.model.accepted_sizes, default=0)
    if not tokens or not limit or tokens + length <= limit:
        return None
    return because(Code.NO_ROOM_FOR_TOKENS, tokens=tokens, length=length, limit=limit)


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


def why_not_feasible(cure: Arm, subject: Pipeline, profile: Profile) -> Reason | None:
    """Return why no candidate of a cure can run on the backbone, or None."""
    reasons = [why_not_trainable(pipeline.recipe, profile) for pipeline in candidates(cure) if pipeline != subject]
    return reasons[0] if reasons and all(reasons) else None


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


def why_unsupported(cure: Arm, induced: Iterable[Arm], subject: Pipeline, supported: Sequence[str] | None) -> Reason | None:
    """Return why the training code cannot be tested for a failure mode, or None.

    An unsupported cure would be the subject under another name, and its harm of 0 would mean nothing. If the cure changes
    nothing, at least one induced variant must be supported, because otherwise the code may or may not follow the recipe.
    """
    if supported is None:
        return None
    cures = [pipeline for pipeline in candidates(cure) if pipeline != subject]
    required = cures or [pipeline for arm in induced for pipeline in candidates(arm)]
    missing = [differing_fields(subject.recipe, pipeline.recipe) - {*supported} for pipeline in required]
    if not missing or not all(missing):
        return None
    fewest = min(missing, key=len)
    names = tuple(name for name in (*SUPPORTABLE_FIELDS, "regularizer") if name in fewest)
    return because(Code.FIELDS_UNSUPPORTED, fields=names)


def candidates(arm: Arm) -> tuple[Pipeline, ...]:
    """Return the candidates of an arm; a pipeline is its own only candidate."""
    return arm.candidates if isinstance(arm, Selection) else (arm,)
