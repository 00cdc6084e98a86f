"""A head whose number of outputs differs from the number of classes.

Symptom
    One class is never predicted, or some labels exceed the outputs.

Cause
    A class folder that was empty or hidden, a head that remains from pretraining, labels that start at 1, a "background"
    class.

Remedy
    Give the head one output for each class, and store the names of the classes with the checkpoint.

How it is judged
    An exact invariant: outputs = classes. One output for two classes is a sigmoid, and counts as two.

References
    torchvision issue 714: classes are what the folders say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.plugin import Contrast, MeasureContext, Pipeline, Plugin, Profile, Record, always_applies, leave_unchanged

if TYPE_CHECKING:
    from collections.abc import Mapping


def induce(_pipeline: Pipeline, _profile: Profile) -> Mapping[str, Pipeline]:
    """Return no arms: an exact invariant needs no control."""
    return {}


def spare(context: MeasureContext) -> dict[str, float]:
    """Return the number of outputs minus the number of classes, and both numbers."""
    outputs = context.network.layout.classes
    classes = len(context.trial.dataset.classes)
    return {"head-size": outputs - classes, "outputs": outputs, "classes": classes}


def explain(
    _contrast: str, records_by_term: Mapping[tuple[str, str, int], Record], _subject: Pipeline, _cured: Pipeline
) -> str:
    """Return the number of outputs and of classes."""
    scalars = records_by_term["subject", "head-size", 0].scalars
    return f"{scalars['outputs']:g} outputs, {scalars['classes']:g} classes"


audit = Plugin(
    id="audit/head-size",
    version=1,
    question="Does the head have one output for each class?",
    doc=__doc__,
    applies=always_applies,
    cure=leave_unchanged,
    induce=induce,
    contrasts=(
        Contrast(name="harm", kind="exact", weights={("subject", "head-size"): 1.0}, meaning="one output for each class"),
    ),
    measures={"head-size": "xferbench.plugins.head_size:spare@1"},
    explain=explain,
    remedy="give the head one output for each class, and store the names of the classes with the checkpoint",
)
