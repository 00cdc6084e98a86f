"""A learning rate that is too high, or too low, for this backbone and this target.

Symptom
    Too high: the loss jumps or is NaN, the answer depends on the seed, fine-tuning ends below a linear probe. Too low: the
    curve still rises where training ends.

Cause
    A rate taken over from pretraining, or from another optimizer: what matters for SGD is rate / (1 − momentum), and for Adam
    another scale altogether. Small targets leave few steps in which a wrong rate could be made good.

Remedy
    The rate that validation chooses of seven, half a decade apart around the recipe's own, each with all its rates scaled
    together; or the recipe's own rate with a warm-up over a tenth of the steps.

How it is judged
    Harm is metric(chosen rate) − metric(the recipe's rate). Every candidate is a training of its own, with seeds of its own,
    so no state of the judged fits is touched by the search. A choice at the edge of the grid is reported.

How it is induced
    ``x30`` and ``x1-30``: thirty times the chosen rate, and a thirtieth of it.

Measured beside it
    How often subject and induced arms diverged (``diverged``). The picture is the failure map: validation accuracy by rate
    and training step, with the recipe's own place marked.

References
    Smith 2017, Cyclical learning rates (arXiv:1506.01186); Li et al. 2020, Rethinking the hyperparameters for fine-tuning
    (arXiv:2002.11770); Howard & Ruder 2018, ULMFiT (arXiv:1801.06146): discriminative rates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xferbench.design import Choice, Facts, Pipeline, Plugin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.record import Record, Run

FACTORS = tuple(10.0 ** (half / 2) for half in (-3, -2, -1, 1, 2, 3))  # beside the recipe's own
FAR = 30.0


def applies(pipeline: Pipeline, _: Facts) -> str:
    return "" if pipeline.recipe.init == "pretrained" else "nothing pretrained is adapted"


def _scaled(pipeline: Pipeline, factor: float) -> Pipeline:
    """Every rate of a recipe times a factor."""
    phases = tuple(
        replace(phase, lr=phase.lr * factor, head_lr=None if phase.head_lr is None else phase.head_lr * factor)
        for phase in pipeline.recipe.phases
    )
    return replace(pipeline, recipe=replace(pipeline.recipe, phases=phases, name=f"rate × {factor:.3g}"))


def _warmed_up(pipeline: Pipeline) -> Pipeline:
    phases = tuple(replace(phase, warmup=max(phase.warmup, phase.steps // 10)) for phase in pipeline.recipe.phases)
    return replace(pipeline, recipe=replace(pipeline.recipe, phases=phases, name="warm-up"))


def cure(pipeline: Pipeline, _: Facts) -> Choice:
    tried = (*(_scaled(pipeline, factor) for factor in FACTORS), _warmed_up(pipeline))
    return Choice(candidates=tuple(dict.fromkeys((pipeline, *tried))))


def induce(pipeline: Pipeline, _: Facts) -> Mapping[str, Pipeline]:
    return {"x30": _scaled(pipeline, FAR), "x1-30": _scaled(pipeline, 1 / FAR)}


def diverged(answers: Mapping[tuple[str, str, int], Record], seeds: Sequence[int]) -> dict[str, float]:
    """Share of the seeds at which the subject's training, and each induced one, was not finite."""
    arms = dict.fromkeys(arm for arm, view, _ in answers if view == "test" and arm not in {"cured", "scratch"})
    rates = {
        arm: [answers[arm, "test", seed].scalars.get("diverged", 0.0) > 0 for seed in seeds if (arm, "test", seed) in answers]
        for arm in arms
    }
    return {f"{arm}/diverged": sum(found) / len(found) for arm, found in rates.items() if found}


def picture(axes: Any, run: Run) -> None:
    """The failure map: validation accuracy by rate and step; a ring is the recipe's own rate, a cross the chosen one."""
    weighed = [one for one in run.arms[plugin.id]["cured"]["weighed"] if one["curve"] and "warm-up:" not in one["recipe"]]
    rows = sorted(weighed, key=lambda one: one["rate"])
    steps = [step for step, _ in rows[0]["curve"]]
    scores = [[score for _, score in one["curve"]] for one in rows]
    drawn = axes.pcolormesh(scores, cmap="cividis", rasterized=True)
    axes.figure.colorbar(drawn, ax=axes, label="validation accuracy")
    axes.set_xticks([at + 0.5 for at in range(len(steps))], [f"{step}" for step in steps])
    axes.set_yticks([at + 0.5 for at in range(len(rows))], [f"{one['rate']:.2g}" for one in rows])
    own = next(at for at, one in enumerate(rows) if one is weighed[0])
    chosen = [at for at, one in enumerate(rows) if one["chosen"]]
    for places, marker in (([own], "o"), (chosen, "x")):
        marked = {"marker": marker, "markersize": 12, "markeredgewidth": 2, "color": "#d55e00", "fillstyle": "none"}
        axes.plot([len(steps) - 0.5] * len(places), [at + 0.5 for at in places], linestyle="none", **marked)
    axes.set(xlabel="training step", ylabel="rate of the last phase")


plugin = Plugin(
    id="learning-rate",
    version=1,
    question="Is the learning rate right for this backbone and this target?",
    page=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    derived=diverged,
    remedy="train at the rate that validation chose",
    picture=picture,
)
