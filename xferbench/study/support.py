"""Which arms a user's training code can tell apart: those that differ only in what it says it honours. Pure.

We make the model and its data, so that init, head and preprocessing are always honoured. How it is trained, and which step is
kept, is up to the code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.core.pipeline import PHASE_FIELDS, SUPPORTABLE_FIELDS, Selection

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from xferbench.core.pipeline import Arm, Pipeline, Recipe


def differing_fields(one: Recipe, other: Recipe) -> set[str]:
    """The fields of a phase or a recipe in which two recipes differ.

    Where they have unequal numbers of phases, a field differs whose values in the one are not those in the other.
    """
    found = {name for name in ("regularizer", "augment", "stop") if getattr(one, name) != getattr(other, name)}
    if len(one.phases) == len(other.phases):
        pairs = list(zip(one.phases, other.phases, strict=True))
        return found | {name for name in PHASE_FIELDS if any(getattr(a, name) != getattr(b, name) for a, b in pairs)}
    sets = {name: [{getattr(phase, name) for phase in recipe.phases} for recipe in (one, other)] for name in PHASE_FIELDS}
    return found | {"phases"} | {name for name, (a, b) in sets.items() if a != b}


def supported_arms(asked: Mapping[str, Arm], subject: Pipeline, honoured: Sequence[str] | None) -> dict[str, Arm]:
    """The arms as far as they are honoured, with what is left of their candidates; None honours all.

    Of the scratch arm the first candidate always stays, the subject's own recipe from random weights.
    """
    if honoured is None:
        return dict(asked)
    kept: dict[str, Arm] = {}
    for name, arm in asked.items():
        told = candidates(arm)
        left = tuple(
            one
            for rank, one in enumerate(told)
            if (name == "scratch" and rank == 0) or differing_fields(subject.recipe, one.recipe) <= {*honoured}
        )
        if left:
            kept[name] = replace(arm, candidates=left) if isinstance(arm, Selection) and len(left) > 1 else left[0]
    return kept


def why_unsupported(cure: Arm, induced: Iterable[Arm], subject: Pipeline, honoured: Sequence[str] | None) -> str:
    """Why a failure mode cannot be asked about, or "".

    A cure that is not honoured would be the subject under another name, and its harm of 0 no finding. A cure that changes
    nothing needs an induced variant that is honoured: else the code may do what the recipe says, or the contrary.
    """
    if honoured is None:
        return ""
    cures = [one for one in candidates(cure) if one != subject]
    asked = cures or [one for arm in induced for one in candidates(arm)]
    missing = [differing_fields(subject.recipe, one.recipe) - {*honoured} for one in asked]
    if not missing or not all(missing):
        return ""
    least = min(missing, key=len)
    return (
        f"the training code does not honour {', '.join(name for name in (*SUPPORTABLE_FIELDS, 'regularizer') if name in least)}"
    )


def candidates(arm: Arm) -> tuple[Pipeline, ...]:
    """The pipelines among which an arm is chosen; an arm that is settled is its only one."""
    return arm.candidates if isinstance(arm, Selection) else (arm,)
