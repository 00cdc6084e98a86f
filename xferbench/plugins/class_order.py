"""Outputs that mean other classes than the labels say.

Symptom
    A model that was good in training is at chance, or worse than chance, on data that another program read.

Cause
    Class folders in another order (sorted as strings, "10" comes before "2"), a list of names from another machine, labels
    that start at 1, two classes exchanged.

Remedy
    Store the order of the classes in the checkpoint, and read it from there.

How it is judged
    On one half of the test examples the plugin finds the assignment of outputs to classes with the most correct predictions
    (Kuhn 1955). Harm is metric(outputs in that order) − metric(as they are) on the other half.

How it is induced
    ``rotated``: each class takes the place of the next one.

References
    torchvision issue 714: class folders are sorted as strings; Kuhn 1955, The Hungarian method for the assignment problem.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.plugin import HARM, Pipeline, Plugin, Profile, Record, Selection, always_applies, interventions

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_LISTED_OUTPUTS = 6
NUMERIC_ORDER = "; this is the numeric order of the folder names (1, 2, … 10), and the classes are sorted as text (1, 10, 2, …)"


def cure(pipeline: Pipeline, _: Profile) -> Selection:
    return Selection(candidates=(replace(pipeline, edits=(*pipeline.edits, interventions.AssignClasses())),))


def induce(pipeline: Pipeline, _: Profile) -> Mapping[str, Pipeline]:
    return {"rotated": replace(pipeline, edits=(*pipeline.edits, interventions.RotateClasses()))}


def explain(_contrast: str, records_by_term: Mapping[tuple[str, str, int], Record], subject: Pipeline, cured: Pipeline) -> str:
    """Return which output means which class, for the outputs that at least one example has."""
    if subject == cured:
        return ""
    before, after = (records_by_term[arm, "test", 0].predictions for arm in ("subject", "cured"))
    if before is None or after is None:
        return ""
    predicted = zip(before.predicted, after.predicted, strict=True)
    pairs = sorted({(int(output), int(label)) for output, label in predicted if output != label})
    listed = ", ".join(f"output {output} means class {label}" for output, label in pairs[:MAX_LISTED_OUTPUTS])
    more = f" … ({len(pairs)} in all)" if len(pairs) > MAX_LISTED_OUTPUTS else ""
    assigned = dict(zip(before.predicted.tolist(), after.predicted.tolist(), strict=True))
    numeric = NUMERIC_ORDER if is_numeric_order(assigned, int(max(*assigned, before.label.max())) + 1) else ""
    return "the screened half asks for: " * bool(listed) + listed + more + numeric


def is_numeric_order(assigned: Mapping[int, int], classes: int) -> bool:
    """Return whether outputs in the order of numbers, from 0 or from 1, are assigned to classes that are sorted as text."""
    for first in (0, 1):
        numbers = range(first, first + classes)
        as_text = sorted(map(str, numbers))
        numeric = {output: as_text.index(str(number)) for output, number in enumerate(numbers)}
        if assigned and any(output != label for output, label in numeric.items()) and assigned.items() <= numeric.items():
            return True
    return False


audit = Plugin(
    id="audit/class-order",
    version=1,
    question="Do the outputs mean the classes that the labels say?",
    doc=__doc__,
    applies=always_applies,
    cure=cure,
    induce=induce,
    contrasts=(HARM,),
    explain=explain,
    remedy="put the classes in the order that was confirmed here, and keep that order with the checkpoint",
)
