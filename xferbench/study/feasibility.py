"""Which recipes a backbone can carry out: one that would be a linear probe under another name is none of them. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.core.interventions import REQUIREMENTS, AdaptBatchNorm, Adapters, InterpolatePhase, TopGroups
from xferbench.core.pipeline import Selection
from xferbench.study.support import candidates

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.core.pipeline import Arm, Pipeline, Recipe
    from xferbench.core.plugin import Profile

MISSING_LAYERS = ("norm", "bias", "lora", "adapter")  # what a backbone may lack, requirements of :class:`Trainable`


def why_not_trainable(recipe: Recipe, facts: Profile) -> str:
    """Why a recipe cannot be carried out on a backbone, or ""."""
    return why_missing_layers(recipe, facts) or why_missing_inputs(recipe, facts)


def why_missing_inputs(recipe: Recipe, facts: Profile) -> str:
    """Why what ends a recipe, or makes domains alike, has not what it needs, or ""."""
    own = facts.supports is not None
    if recipe.regularizer and "shifted" in recipe.regularizer.requires:
        if own or not facts.shifted:
            why = "the training code is given no images of another domain" if own else "the suite has no [shifted]"
            return f"{recipe.regularizer}: {why}"
        if "unlabelled" in facts.unsupported:
            return f"{recipe.regularizer}: the [shifted] set has no training images"
    if recipe.finish and "batchnorm" in recipe.finish.requires and not facts.has_batchnorm:
        return f"{recipe.finish}: the backbone has no {REQUIREMENTS['batchnorm']}"
    if isinstance(recipe.finish, AdaptBatchNorm) and "unlabelled" in facts.unsupported:
        return "adabn: the [shifted] set has no training images"
    if isinstance(recipe.finish, InterpolatePhase) and own:
        return f"{recipe.finish}: nobody knows where the training code's last phase began"
    return ""


def why_missing_layers(recipe: Recipe, facts: Profile) -> str:
    """Why something that a recipe trains is not there, or ""."""
    for trainable in (phase.trainable for phase in recipe.phases):
        if lacked := [need for need in trainable.requires if need in facts.unsupported]:
            return f"{trainable}: the backbone has no {REQUIREMENTS[lacked[0]]}"
        if isinstance(trainable, TopGroups) and trainable.groups > len(facts.groups):
            return f"{trainable}: the backbone has {len(facts.groups)} layer groups"
        if isinstance(trainable, Adapters) and facts.outputs:
            return f"{trainable}: a finished network has no adapters beside its own tensors"
    sizes = {str(phase.trainable) for phase in recipe.phases if isinstance(phase.trainable, Adapters)}
    return f"{', '.join(sorted(sizes))}: a network has adapters of one size" if len(sizes) > 1 else ""


def describe_trainable(facts: Profile) -> str:
    """What may be trained of a backbone, in words."""
    there = [kind for kind in MISSING_LAYERS if kind not in facts.unsupported]
    groups = f"top:N with N up to {len(facts.groups)} (groups from the input up: {', '.join(facts.groups)})"
    return f"{', '.join(['head', *there, 'all'])}, or {groups}"


def feasible_arms(asked: Mapping[str, Arm], facts: Profile) -> dict[str, Arm]:
    """The arms as far as the backbone can carry them out, with what is left of their candidates."""
    kept: dict[str, Arm] = {}
    for name, arm in asked.items():
        told = candidates(arm)
        left = tuple(one for one in told if not why_not_trainable(one.recipe, facts))
        if left:
            kept[name] = arm if left == told else replace(arm, candidates=left) if isinstance(arm, Selection) else left[0]
    return kept


def why_not_feasible(cure: Arm, subject: Pipeline, facts: Profile) -> str:
    """Why a failure mode cannot be asked about, or "": nothing of its cure can be carried out."""
    reasons = [why_not_trainable(one.recipe, facts) for one in candidates(cure) if one != subject]
    return reasons[0] if reasons and all(reasons) else ""
