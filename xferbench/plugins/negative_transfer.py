"""Pretraining that hurts: the same architecture, trained from scratch on the same examples, would do better.

Symptom
    None, unless the network is also trained from scratch: a transferred model alone always looks like a success.

Cause
    The source's features do not have what the target needs, most often because they stay frozen (a linear probe on a distant
    target), or because the recipe never leaves them.

Remedy
    The best pretrained recipe of the search; the patch shows it. If scratch is better than that as well, train from scratch.

How it is judged
    There are two verdicts. ``pipeline`` is metric(scratch) − metric(subject), Wang et al.'s negative transfer gap: is a tuned
    training from scratch better than the recipe? ``pretraining`` is metric(scratch) − metric(best pretrained recipe), and both
    sides have the same search: is pretraining itself harmful for this target? If only ``pipeline`` fails, the cause is the
    recipe. If both fail, the cause is the pretraining.

    The search of scratch has the subject's own steps and rate, and every combination of rate, weight decay, label smoothing and
    augmentation, by successive halving on validation with separate seeds. The search of pretrained recipes has the subject, the
    default recipes, and the same combinations at a third of the rates. A best candidate at the highest or lowest rate, or with
    the most steps, extends the search once.

    A short budget measures speed and not harm. Therefore the report also has ``steps to scratch's accuracy``, the first
    checkpoint at which the subject reaches the final accuracy of scratch (seeds that never reach it are counted and left out of
    the mean).

How it is induced
    ``permuted``: a linear probe on the pretrained tensors, each permuted within itself: the scale of pretraining without
    its features. ``shuffled-source``, if the suite has a [source]: a linear probe on a network that was pretrained on the
    source with its labels shuffled, for as long as scratch is trained.

References
    Wang et al. 2019, Characterizing and avoiding negative transfer (arXiv:1811.09751); Ash & Adams 2020, On warm-starting
    neural network training (arXiv:1910.08475); Jamieson & Talwalkar 2016, Non-stochastic best arm identification
    (arXiv:1502.07943); Raghu et al. 2019, Transfusion (arXiv:1902.07208); Brigato & Iocchi 2020
    (arXiv:2003.12843): tuned baselines for small data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xferbench.plugin import (
    Pipeline,
    Plugin,
    Profile,
    Run,
    Selection,
    harm,
    interventions,
    leave_unchanged,
    plotting,
    records,
    requires_pretrained,
    strategies,
)
from xferbench.plugins.linear_probe import induce as permute_backbone


def cure(pipeline: Pipeline, _: Profile) -> Selection:
    return strategies.pretrained_search(pipeline, pipeline.baseline)


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    steps = min(strategies.DEFAULT.steps, sum(phase.steps for phase in pipeline.recipe.phases))
    phase = replace(strategies.DEFAULT, lr=strategies.HEAD_LR, steps=steps, batch_size=pipeline.recipe.phases[-1].batch_size)
    probe = strategies.inherit_settings(strategies.linear_probe(phase), pipeline.recipe)
    starts = (interventions.PermutedWeights(), *([interventions.ShuffledSource()] if pipeline.data.source else []))
    recipes = (replace(probe, init=start, name=f"linear probe, {start} features") for start in starts)
    return {recipe.init.spelling: replace(pipeline, recipe=recipe) for recipe in recipes}


def steps_to_scratch(records_by_term: records.RecordsByTerm, seeds: records.Seeds) -> dict[str, float]:
    """Return the mean first checkpoint at which the subject reaches scratch's last validation accuracy.

    The result also has the number of seeds at which the subject never reaches it.
    """
    steps = []
    for seed in seeds:
        target = records_by_term["scratch", "test", seed].curve[-1][2]
        steps += [step for step, _, score in records_by_term["subject", "test", seed].curve if score >= target][:1]
    never = {"seeds that never reach scratch's accuracy": float(len(seeds) - len(steps))}
    return never | ({"steps to scratch's accuracy": records.mean_or_nan(steps)} if steps else {})


def plot(axes: Any, run: Run) -> None:
    """Draw validation accuracy by step for subject and scratch: the mean, and a thin line for each seed."""
    by_arm = records.values_by_arm(records.plugin_records(run, plugin.id), records.validation_curve)
    plotting.draw_lines(axes, {arm: by_arm.get(arm, []) for arm in ("subject", "scratch")})
    axes.set(xlabel="training step", ylabel="validation accuracy")
    axes.legend()


plugin = Plugin(
    id="negative-transfer",
    version=2,
    question="Would the same network, trained from scratch on the same examples, do better?",
    doc=__doc__,
    applies=requires_pretrained,
    cure=cure,
    induce=induce,
    contrasts=(
        harm("pipeline", ("scratch", "test"), ("subject", "test"), "scratch − subject"),
        harm("pretraining", ("scratch", "test"), ("cured", "test"), "scratch − best pretrained recipe"),
    ),
    derived_metrics=steps_to_scratch,
    remedy="use the best pretrained recipe of the search, or train from scratch if that is better",
    plot=plot,
)


AUDIT_DOC = """A finished network that training from scratch would beat.

Symptom
    None, unless the network is also trained from random weights.

Cause
    The source is too far from the target, or pretrained features were frozen that the target cannot use.

Remedy
    Train from scratch, or train more of the backbone: `xferbench run` shows the accuracy of each.

How it is judged
    The same architecture is trained from random weights on the training examples, with a rate selected on validation, within
    the budget of ``--scratch BUDGET``. Harm is metric(scratch) − metric(finished network). A short budget makes a weak
    baseline: a PASS then says little, and the report states the number of steps.

How it is induced
    ``permuted``: the finished network with the values of each tensor below its head shuffled.

References
    Wang et al. 2019 (arXiv:1811.09751): negative transfer gap; Brigato & Iocchi 2020 (arXiv:2003.12843): tuned baselines.
"""


def audit_applies(_: Pipeline, profile: Profile) -> str:
    return "" if profile.data.train else "no training images are given"


audit = Plugin(
    id="negative-transfer",
    version=1,
    question="Would the same network, trained from scratch, do better than the finished one?",
    doc=AUDIT_DOC,
    applies=audit_applies,
    cure=leave_unchanged,
    induce=permute_backbone,
    contrasts=(harm("harm", ("scratch", "whole"), ("subject", "whole"), "from scratch − finished"),),
    remedy="train from scratch, or let more of the backbone learn",
)
