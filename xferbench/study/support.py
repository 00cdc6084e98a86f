"""The arms that a user's training code can run: those that differ from the subject only in supported fields. Pure.

The lab builds the model and its data, so that init, head and preprocessing are always supported. The user's code decides
how the model is trained, and which step is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.core.pipeline import PHASE_FIELDS, SUPPORTABLE_FIELDS, Selection

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from xferbench.core.pipeline import Arm, Pipeline, Recipe


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
