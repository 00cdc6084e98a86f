"""Another way of adapting the backbone would have been better.

Symptom
    None that can be seen from one pipeline: it trains, and stops below what the same images and steps allow.

Cause
    The strategy was taken from a tutorial, or from another dataset. Too much is unfrozen too soon for few images; or the frozen
    features have plateaued, being about another task; or too little is trained to leave them.

Remedy
    The strategy that validation chooses, on seeds of its own.

How it is judged
    Harm is metric(chosen strategy) − metric(the recipe's own). Linear probe, upper half, all layers, discriminative rates,
    LP-FT, gradual unfreezing, normalisation layers and LoRA are weighed with equal tuning budgets: the recipe's steps and batch
    size, and two rates each, its usual one and three times that.

How it is induced
    ``worst``: of the same candidates the one that is worst on validation.

Measured beside it
    What the textbooks' advice would cost: the chosen strategy − ``textbook-similar`` and ``textbook-different`` (the two by
    two of data size × similarity; nobody knows the similarity here, so both are measured) and − ``by-size`` (the gradual rule),
    each at the better of its two rates. Numbers trained and bytes stored per task. The picture has all candidates.

References
    Stanford CS231n, notes on transfer learning; Chu et al. 2016, Best practices for fine-tuning visual classifiers to new
    domains; Plested & Gedeon 2022 (arXiv:2205.09904): the rules are hardly tested.
"""

from __future__ import annotations

from dataclasses import replace
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

WEIGHED = ("linear-probe", "partial", "full", "discriminative", "lp-ft", "gradual-unfreezing", "norm-only", "lora")
FACTORS = (1.0, 3.0)  # of a strategy's usual rate
RULES = ("textbook-similar", "textbook-different", "by-size")


def _weighed(pipeline: Pipeline, facts: Profile, names: tuple[str, ...] = WEIGHED) -> Selection:
    """The best of some strategies, each at its two rates, in the pipeline's own steps."""
    own = strategies.finetune_phase(pipeline.recipe)
    recipes = []
    for name in names:
        for factor in FACTORS:
            phase = Phase(
                lr=factor * strategies.USUAL_LR.get(name, strategies.DEFAULT.lr), steps=own.steps, batch_size=own.batch_size
            )
            recipes.append(
                strategies.partial(phase, max(1, len(facts.groups) // 2))
                if name == "partial"
                else strategies.STRATEGIES[name](phase)
            )
    return strategies.select_among(pipeline, recipes)


def induce(pipeline: Pipeline, facts: Profile) -> Mapping[str, Selection]:
    found = _weighed(pipeline, facts)
    return {"worst": replace(found, worst=True, candidates=tuple(one for one in found.candidates if one != pipeline))}


def beside(pipeline: Pipeline, facts: Profile) -> Mapping[str, Selection]:
    size = min(pipeline.train_size or facts.train, facts.train)
    advised = (
        rules_of_thumb.textbook_strategy(size, similar=True),
        rules_of_thumb.textbook_strategy(size, similar=False),
        rules_of_thumb.size_rule_strategy(size),
    )
    return {rule: _weighed(pipeline, facts, (name,)) for rule, name in zip(RULES, advised, strict=True)}


def told(contrast: str, _: records.RecordsByTerm, subject: Pipeline, cured: Pipeline) -> str:
    """What the chosen strategy does otherwise, as a cause."""
    own, best = (
        max(strategies.unfrozen_groups(phase.trainable, 99) for phase in one.recipe.phases) for one in (subject, cured)
    )
    if contrast != "harm" or subject == cured:
        return ""
    said = f"validation chose {cured.recipe.name}: "
    if best > own:
        return said + ("the frozen features have plateaued" if own == 0 else "too little is trained")
    if best < own or (strategies.begins_with_probe(cured.recipe) and not strategies.begins_with_probe(subject.recipe)):
        return said + "too much is unfrozen too soon"
    return said + "it trains as many layers, at another rate or in another order"


def trainable(seen: MeasureContext) -> dict[str, float]:
    """Numbers trained, bytes stored per task, and multiply-adds of an image."""
    from xferbench.lab.evaluation import cost

    return cost.measure_cost(seen)


def picture(axes: Any, run: Run) -> None:
    """Validation score of each strategy at each rate; a ring is the recipe's own, a cross the chosen one."""
    told = run.arms[plugin.id]["cured"]["weighed"]
    weighed = sorted(told, key=lambda one: one["validation"])
    axes.plot([one["validation"] for one in weighed], range(len(weighed)), "o", color=plotting.ARM_COLOURS["subject"])
    for one, marker in ((told[0], "o"), *((one, "x") for one in weighed if one["chosen"])):
        plotting.draw_mark(axes, one["validation"], weighed.index(one), marker)
    # A name stands inside the axes, on the side where there is room.
    scores = [one["validation"] for one in weighed]
    middle = (min(scores) + max(scores)) / 2
    for place, (one, score) in enumerate(zip(weighed, scores, strict=True)):
        side, away = ("right", -9) if score > middle else ("left", 9)
        name, rate = one["recipe"].partition(":")[0], f"{one['rate']:g}"
        name = name if name.endswith(rate) else f"{name} {rate}"
        axes.annotate(name, (score, place), (away, 0), textcoords="offset points", ha=side, va="center", fontsize=7)
    axes.set(yticks=[], xlabel="on validation")


plugin = Plugin(
    id="strategy-regret",
    version=1,
    question="Would another way of adapting the backbone do better?",
    doc=__doc__,
    applies=requires_pretrained,
    cure=_weighed,
    induce=induce,
    extra_arms=beside,
    contrasts=(
        HARM,
        *(info(rule, ("cured", "test"), (f"beside:{rule}", "test"), f"cured − {rule}") for rule in RULES),
    ),
    measures={"trainable": "xferbench.plugins.strategy_regret:trainable@1"},
    explain=told,
    remedy="adapt with the strategy that validation chose",
    plot=picture,
)
