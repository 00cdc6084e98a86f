"""Outputs that mean other classes than the labels say.

Symptom
    A model that was good in training is at chance, or worse than chance, on data that were read elsewhere.

Cause
    Class folders sorted in another way (as strings, "10" comes before "2"), a list of names from another machine, labels that
    begin at 1, two classes exchanged.

Remedy
    Write the order of the classes into the checkpoint, and read it from there.

How it is judged
    On one half of the test images the assignment of outputs to classes with the most right answers is found (Kuhn 1955). Harm
    is metric(outputs in that order) − metric(as they are) on the other half.

How it is induced
    ``rotated``: each class in the next one's place.

References
    torchvision issue 714: class folders are sorted as strings; Kuhn 1955, The Hungarian method for the assignment problem.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.plugin import HARM, Pipeline, Plugin, Profile, Record, Selection, always_applies

if TYPE_CHECKING:
    from collections.abc import Mapping


def cure(pipeline: Pipeline, _: Profile) -> Selection:
    return Selection(candidates=(replace(pipeline, edits=(*pipeline.edits, "classes:assigned@1")),))


def induce(pipeline: Pipeline, _: Profile) -> Mapping[str, Pipeline]:
    return {"rotated": replace(pipeline, edits=(*pipeline.edits, "classes:rotated"))}


def told(_contrast: str, answers: Mapping[tuple[str, str, int], Record], subject: Pipeline, cured: Pipeline) -> str:
    """Which output means which class, as far as any image was answered so."""
    if subject == cured:
        return ""
    was, now = (answers[arm, "test", 0].predictions for arm in ("subject", "cured"))
    if was is None or now is None:
        return ""
    pairs = sorted({(int(a), int(b)) for a, b in zip(was.predicted, now.predicted, strict=True) if a != b})
    shown = ", ".join(f"output {output} means class {label}" for output, label in pairs[:6])
    return "the screened half asks for: " * bool(shown) + shown + (f" … ({len(pairs)} in all)" if len(pairs) > 6 else "")


audit = Plugin(
    id="audit/class-order",
    version=1,
    question="Do the outputs mean the classes that the labels say?",
    doc=__doc__,
    applies=always_applies,
    cure=cure,
    induce=induce,
    contrasts=(HARM,),
    explain=told,
    remedy="put the classes in the order that was confirmed here, and keep that order with the checkpoint",
)
