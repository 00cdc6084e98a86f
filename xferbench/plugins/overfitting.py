"""A model that is trained past its best step: it learns its few images by heart.

Symptom
    The training loss goes on falling while validation accuracy stands still or falls; the last checkpoint is worse than an
    earlier one.

Cause
    More steps, more trainable layers or a higher rate than the training images can hold in check.

Remedy
    Keep the step that was best on validation; where that is not enough, train fewer layers or decay the weights.

How it is judged
    Harm is metric(best step on validation) − metric(last step) of the same training, on test images. The best of k steps looks
    better on validation than it is, by up to σ√(2 ln k), σ being the standard error there (k is 5); test images do not.

How it is cured
    The best on validation of the recipe as it is and of these, each stopped by the same rule, at its best step: the recipe
    itself, the recipe with weight decay 0.1, half of the trained layer groups, and the head alone at a rate of 0.01.

How it is induced
    ``overtrained``, in twice the steps: the head alone, then from a fifth on all layers at a constant rate of 0.01 (or three
    times the recipe's) and without weight decay, up to the last step. Labels are not touched.

Measured beside it
    ``gap``: accuracy on training images − that on test images. ``regulariser``: the gap of training from scratch − that of the
    subject. ``chosen step``: the mean best step. ``optimism``: its accuracy on validation − that on test images.

References
    Prechelt 1998, Early stopping, but when? (Neural networks: tricks of the trade); Cawley & Talbot 2010, On over-fitting in
    model selection (JMLR 11).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.design import Choice, Contrast, Facts, Pipeline, Plugin, Recipe
from xferbench.strategies import HEAD_LR, linear_probe, moving, overtrained, partial, reach

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from xferbench.record import Record, Run

DECAY = 0.1
GAP = {("subject", "training"): 1.0, ("subject", "test"): -1.0}
SCRATCH = {("scratch", view): weight for (_, view), weight in GAP.items()}


def applies(pipeline: Pipeline, _: Facts) -> str:
    if pipeline.recipe.init != "pretrained":
        return "nothing pretrained is adapted"
    return "" if sum(phase.steps for phase in pipeline.recipe.phases) > 1 else "a single step leaves none to choose"


def _candidates(recipe: Recipe, groups: int) -> Iterator[Recipe]:
    yield replace(recipe, name="the best step")
    decayed = tuple(replace(phase, weight_decay=max(DECAY, phase.weight_decay)) for phase in recipe.phases)
    yield replace(recipe, name=f"weight decay {DECAY:g}", phases=decayed)
    words = {phase.trainable for phase in recipe.phases}
    trained = max(reach(word, groups) for word in words)
    whole = any(word == "all" or word.startswith("top:") for word in words)  # others train few numbers already
    if whole and trained > 1:
        half = partial(moving(recipe), trained // 2)
        yield replace(recipe, name=half.name, phases=half.phases)
    if trained:
        probe = linear_probe(replace(moving(recipe), lr=HEAD_LR))
        yield replace(recipe, name=probe.name, phases=probe.phases)


def cure(pipeline: Pipeline, facts: Facts) -> Choice:
    tried = (replace(pipeline, recipe=replace(one, stop="best")) for one in _candidates(pipeline.recipe, len(facts.groups)))
    return Choice(candidates=tuple(dict.fromkeys(tried)))


def induce(pipeline: Pipeline, _: Facts) -> Mapping[str, Pipeline]:
    return {"overtrained": replace(pipeline, recipe=overtrained(pipeline.recipe))}


def chosen(answers: Mapping[tuple[str, str, int], Record], seeds: Sequence[int]) -> dict[str, float]:
    """The subject's best step, and its accuracy on validation − that on test images: means over seeds."""
    found = []
    for seed in seeds:
        one = answers.get(("subject", "best-step", seed))
        if one is not None and one.curve and one.predictions is not None:
            step, _, score = max(one.curve, key=lambda row: row[2])
            found.append((step, score - float((one.predictions.predicted == one.predictions.label).mean())))
    steps, optimism = np.mean(found, axis=0) if found else (np.nan, np.nan)
    return {"chosen step": float(steps), "optimism": float(optimism)}


def picture(axes: Any, run: Run) -> None:
    """Validation accuracy by step (mean over seeds), a ring at its best, and dashed the training loss, for each arm."""
    beside = axes.twinx()
    curves: dict[str, list[Any]] = {}
    for cell in run.cells:
        if (cell.plugin, cell.view) == (plugin.id, "test") and cell.arm in {"subject", "induced"} and cell.record.curve:
            curves.setdefault(cell.variant or cell.arm, []).append(cell.record.curve)
    for colour, (name, told) in zip(("#0072B2", "#D55E00"), curves.items(), strict=False):
        steps, losses, scores = np.mean(told, axis=0).T
        axes.plot(steps, scores, color=colour, marker=".", label=name)
        best = [scores.argmax()]
        axes.plot(steps[best], scores[best], linestyle="none", marker="o", color=colour, markersize=12, fillstyle="none")
        beside.plot(steps, losses, color=colour, linestyle="--", linewidth=1)
    axes.set(xlabel="training step", ylabel="validation accuracy", ylim=(0, 1.02))
    beside.set(ylabel="training loss (dashed)", ylim=(0, None))
    axes.legend()


plugin = Plugin(
    id="overfitting",
    version=1,
    question="Is it trained past its best step?",
    page=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        Contrast(
            name="harm",
            weights={("subject", "best-step"): 1.0, ("subject", "test"): -1.0},
            meaning="best step on validation − last step, of one training",
        ),
        Contrast(name="gap", kind="info", weights=GAP, meaning="on training images − on test images"),
        Contrast(
            name="regulariser",
            kind="info",
            weights=SCRATCH | {term: -weight for term, weight in GAP.items()},
            meaning="the gap of training from scratch − that of the subject",
        ),
    ),
    derived=chosen,
    remedy="keep the step that is best on validation, or train as the recipe that validation chose",
    picture=picture,
)
