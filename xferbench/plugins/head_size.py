"""A head that has not as many outputs as there are classes.

Symptom
    One class is never predicted, or labels lie beyond the outputs.

Cause
    A class folder that was empty or hidden, a head left from pretraining, labels that begin at 1, a "background" class.

Remedy
    Give the head one output a class, and keep the classes' names with the checkpoint.

How it is judged
    An exact invariant: outputs = classes.

References
    torchvision issue 714: classes are what the folders say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.plugin import Contrast, MeasureContext, Pipeline, Plugin, Profile, Record, always_applies, leave_unchanged

if TYPE_CHECKING:
    from collections.abc import Mapping


def induce(_pipeline: Pipeline, _facts: Profile) -> Mapping[str, Pipeline]:
    return {}


def spare(seen: MeasureContext) -> dict[str, float]:
    """Outputs beyond the number of classes; below 0 where they are too few."""
    outputs = seen.network.anatomy.classes
    classes = len(seen.dataset.classes)
    return {"head-size": outputs - classes, "outputs": outputs, "classes": classes}


def told(_contrast: str, answers: Mapping[tuple[str, str, int], Record], _subject: Pipeline, _cured: Pipeline) -> str:
    found = answers["subject", "head-size", 0].scalars
    return f"{found['outputs']:g} outputs, {found['classes']:g} classes"


audit = Plugin(
    id="audit/head-size",
    version=1,
    question="Has the head one output for each class?",
    doc=__doc__,
    applies=always_applies,
    cure=leave_unchanged,
    induce=induce,
    contrasts=(
        Contrast(name="harm", kind="exact", weights={("subject", "head-size"): 1.0}, meaning="one output for each class"),
    ),
    measures={"head-size": "xferbench.plugins.head_size:spare@1"},
    explain=told,
    remedy="give the head one output for each class, and keep the classes' names with the checkpoint",
)
