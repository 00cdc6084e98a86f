"""Another way of adapting the backbone would have been better.

Symptom
    None that one pipeline can show: it trains, and stops below what the same examples and steps allow.

Cause
    The strategy comes from a tutorial, or from another dataset. Too much is unfrozen too soon for few examples; or the frozen
    features have plateaued because they belong to another task; or too little is trained to leave them.

Remedy
    The strategy that validation selects, on separate seeds.

How it is judged
    Harm is metric(selected strategy) − metric(the recipe's own). Linear probe, upper half, all layers, discriminative rates,
    LP-FT, gradual unfreezing, normalization layers and LoRA are compared with equal tuning budgets: the recipe's steps and
    batch size, and two rates each, its usual one and three times that.

How it is induced
    ``worst``: the same candidates, of which the worst on validation is selected.

Also measured
    What the advice of the textbooks would cost: the selected strategy − ``textbook-similar`` and ``textbook-different`` (the
    size × similarity table of the textbooks; the similarity is unknown here, so both are measured) and − ``by-size`` (the
    gradual rule), each at the better of its two rates. Numbers trained and bytes stored per task. The plot has all candidates.

References
    Stanford CS231n, notes on transfer learning; Chu et al. 2016, Best practices for fine-tuning visual classifiers to new
    domains; Plested & Gedeon 2022 (arXiv:2205.09904): the rules are hardly tested.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

from xferbench.analysis import rules_of_thumb
from xferbench.plugin import (
    HARM,
    MeasureContext,
    Phase,
    Pipeline,
    Plugin,
    Profile,
    Run,
    Selection,
    info,
    plotting,
    records,
    requires_pretrained,
    strategies,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

CANDIDATES = ("linear-probe", "partial", "full", "discriminative", "lp-ft", "gradual-unfreezing", "norm-only", "lora")
LR_FACTORS = (1.0, 3.0)  # of a strategy's usual rate
RULES = ("textbook-similar", "textbook-different", "by-size")


def _select_strategy(pipeline: Pipeline, profile: Profile, names: tuple[str, ...] = CANDIDATES) -> Selection:
    """Return the selection among strategies, each at its two rates, in the pipeline's own steps."""
    budget = strategies.finetune_phase(pipeline.recipe)
    recipes = []
    for name, factor in product(names, LR_FACTORS):
        lr = factor * strategies.USUAL_LR.get(name, strategies.DEFAULT.lr)
        phase = Phase(lr=lr, steps=budget.steps, batch_size=budget.batch_size)
        half = max(1, len(profile.model.groups) // 2)
        recipes.append(strategies.partial(phase, half) if name == "partial" else strategies.STRATEGIES[name](phase))
    return strategies.select_among(pipeline, recipes)


def induce(pipeline: Pipeline, profile: Profile) -> Mapping[str, Selection]:
    selection = _select_strategy(pipeline, profile)
    others = tuple(candidate for candidate in selection.candidates if candidate != pipeline)
    return {"worst": replace(selection, worst=True, candidates=others)}


def extra_arms(pipeline: Pipeline, profile: Profile) -> Mapping[str, Selection]:
    size = min(pipeline.data.train_size or profile.data.train, profile.data.train)
    strategies_by_rule = (
        rules_of_thumb.textbook_strategy(size, similar=True),
        rules_of_thumb.textbook_strategy(size, similar=False),
        rules_of_thumb.size_rule_strategy(size),
    )
    return {rule: _select_strategy(pipeline, profile, (name,)) for rule, name in zip(RULES, strategies_by_rule, strict=True)}


def explain(contrast: str, _: records.RecordsByTerm, subject: Pipeline, cured: Pipeline) -> str:
    """Return the likely cause, from the difference between the selected strategy and the recipe's own."""
    subject_groups, cured_groups = (
        max(strategies.unfrozen_groups(phase.trainable, 99) for phase in arm.recipe.phases) for arm in (subject, cured)
    )
    if contrast != "harm" or subject == cured:
        return ""
    selected = f"validation selected {cured.recipe.name}: "
    if cured_groups > subject_groups:
        return selected + ("the frozen features have plateaued" if subject_groups == 0 else "too little is trained")
    adds_probe = strategies.begins_with_probe(cured.recipe) and not strategies.begins_with_probe(subject.recipe)
    if cured_groups < subject_groups or adds_probe:
        return selected + "too much is unfrozen too soon"
    return selected + "it trains as many layers, at another rate or in another order"


def trainable(context: MeasureContext) -> dict[str, float]:
    """Return the numbers trained, the bytes stored per task, and the multiply-adds of an example."""
    from xferbench.lab.evaluation import cost

    return cost.measure_cost(context)


def plot(axes: Any, run: Run) -> None:
    """Draw the validation score of each strategy at each rate; a ring marks the recipe's own, a cross the selected one."""
    candidates = run.arms[plugin.id]["cured"]["weighed"]
    rows = sorted(candidates, key=lambda row: row["validation"])
    axes.plot([row["validation"] for row in rows], range(len(rows)), "o", color=plotting.ARM_COLORS["subject"])
    for row, marker in ((candidates[0], "o"), *((row, "x") for row in rows if row["chosen"])):
        plotting.draw_mark(axes, row["validation"], rows.index(row), marker)
    # Each label is inside the axes, on the side with more room.
    scores = [row["validation"] for row in rows]
    middle = (min(scores) + max(scores)) / 2
    for y, (row, score) in enumerate(zip(rows, scores, strict=True)):
        side, offset = ("right", -9) if score > middle else ("left", 9)
        name, rate = row["recipe"].partition(":")[0], f"{row['rate']:g}"
        label = name if name.endswith(rate) else f"{name} {rate}"
        axes.annotate(label, (score, y), (offset, 0), textcoords="offset points", ha=side, va="center", fontsize=7)
    axes.set(yticks=[], xlabel="score on validation")


plugin = Plugin(
    id="strategy-regret",
    version=1,
    question="Would another way of adapting the backbone do better?",
    doc=__doc__,
    applies=requires_pretrained,
    cure=_select_strategy,
    induce=induce,
    extra_arms=extra_arms,
    contrasts=(
        HARM,
        *(info(rule, ("cured", "test"), (f"beside:{rule}", "test"), f"cured − {rule}") for rule in RULES),
    ),
    measures={"trainable": "xferbench.plugins.strategy_regret:trainable@1"},
    explain=explain,
    remedy="adapt with the strategy that validation selected",
    plot=plot,
)
