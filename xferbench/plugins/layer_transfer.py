"""How many of the lowest layers are transferred, and whether they stay frozen.

Symptom
    A frozen backbone stops far below what the examples allow, or fine-tuning ends below a network with a randomly initialized
    upper part.

Cause
    Low layers are general, high ones are specific to the source's classes (specificity): frozen layers cannot adapt. And
    layers that were trained together may not work without each other (co-adaptation), which is not always visible.

Remedy
    The cut that validation selects.

How it is cured
    The best on validation of the recipe and four cuts (a quarter, half, three quarters and all of the layer groups). The groups
    below the cut are transferred, and frozen in eval mode or trained; the groups above it, and the head, are initialized and
    trained. A cut keeps the schedule of the recipe: its phases, their rates and steps. The harm is therefore due to the
    layers. Another rate is the question of the plugin learning-rate.

How it is induced
    ``one-too-high``: the cured cut, one layer group higher and frozen. If nothing is frozen, ``frozen-top``: all groups are
    frozen; if all groups are frozen, ``one-too-low``: the top group is initialized again.

Also measured
    Accuracy at each cut of AnB (from the pretrained network, frozen), AnB+ (the same, all trained), BnB and BnB+ (from a
    network that was first trained on the target's own examples, as scratch at its highest rate: the control, absent if scratch
    learns nothing), all with the schedule of the recipe. AnB+ at the highest cut transfers and trains all layers. ``anb-K`` is
    AnB at the cut K of 4 − all layers, and ``specificity-K`` is BnB − AnB there.

References
    Yosinski et al. 2014, How transferable are features in deep neural networks? (arXiv:1411.1792): AnB+ gains 1.6 % on
    average; a frozen top costs 8 % on a similar target and 25 % on a dissimilar one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xferbench.analysis import estimates
from xferbench.plugin import (
    HARM,
    Contrast,
    Phase,
    Pipeline,
    Plugin,
    Profile,
    Run,
    Selection,
    info,
    interventions,
    plotting,
    records,
    replace_phases,
    requires_pretrained,
    strategies,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

CUTS = range(1, 5)
ALL_LAYERS = f"beside:anb-plus-{CUTS[-1]}"  # the cut that transfers and trains all layers
STARTS = ("anb", "bnb")
LABELS = {"anb": "AnB", "anb-plus": "AnB+", "bnb": "BnB", "bnb-plus": "BnB+"}


def applies(pipeline: Pipeline, profile: Profile) -> str:
    uncuttable = "" if len(profile.model.groups) > 1 else "the backbone has a single layer group and cannot be cut"
    return requires_pretrained(pipeline, profile) or uncuttable


def _cut(pipeline: Pipeline, profile: Profile, low: int, kind: str) -> Pipeline:
    """Return an arm that transfers the lowest groups under the schedule of the pipeline, so that only the layers differ."""
    groups, recipe = len(profile.model.groups), pipeline.recipe
    above, trains_all = groups - low, kind.endswith("plus")
    *earlier, _ = (strategies.unfrozen_groups(phase.trainable, groups) for phase in recipe.phases)
    counts = [*(max(above, count) for count in earlier), groups] if trains_all else [above] * len(recipe.phases)
    phases = [_train_groups(*pair, groups, has_new=above > 0) for pair in zip(recipe.phases, counts, strict=True)]
    init = interventions.PRETRAINED if kind.startswith("anb") else interventions.TargetPretraining()
    keeps_all = trains_all and not above and init == interventions.PRETRAINED
    recipe = replace(
        replace_phases(recipe, *phases),
        init=init,
        regularizer=recipe.regularizer if keeps_all else None,  # it acts on the pretrained weights of all layers
        transferred=interventions.TransferLowest(groups=low) if above else interventions.TRANSFER_ALL,
        name=f"{kind}, {low} of {groups} groups",
    )
    return replace(pipeline, recipe=recipe)


def _train_groups(phase: Phase, count: int, groups: int, *, has_new: bool) -> Phase:
    """Return a phase that trains the uppermost groups. It stays as it is if it does already, but new layers need train mode."""
    changed = strategies.train_top_groups(phase, count, groups)
    return phase if phase.trainable == changed.trainable and not has_new else changed


def extra_arms(pipeline: Pipeline, profile: Profile) -> Mapping[str, Pipeline]:
    lows = {cut: max(1, round(len(profile.model.groups) * cut / len(CUTS))) for cut in CUTS}
    return {f"{kind}-{cut}": _cut(pipeline, profile, low, kind) for kind in LABELS for cut, low in lows.items()}


def cure(pipeline: Pipeline, profile: Profile) -> Selection:
    arms = extra_arms(pipeline, profile).values()
    return Selection(candidates=tuple(dict.fromkeys(arm for arm in arms if arm.recipe.init == interventions.PRETRAINED)))


def induce(pipeline: Pipeline, profile: Profile) -> Mapping[str, Pipeline]:
    trainables = [phase.trainable for phase in pipeline.recipe.phases]
    top = max(strategies.unfrozen_groups(trainable, len(profile.model.groups)) for trainable in trainables)
    name, low = ("one-too-high", len(profile.model.groups) - top + 1) if top else ("one-too-low", len(profile.model.groups) - 1)
    if top == len(profile.model.groups):
        name, low = "frozen-top", len(profile.model.groups)
    arm = _cut(pipeline, profile, low, "anb")
    if name == "one-too-high" and pipeline.recipe.transferred == interventions.TRANSFER_ALL:  # the upper groups stay pretrained
        arm = replace(arm, recipe=replace(arm.recipe, transferred=interventions.TRANSFER_ALL))
    return {name: arm}


def accuracy_by_cut(records_by_term: records.RecordsByTerm, seeds: records.Seeds) -> dict[str, float]:
    """Return the mean accuracy of each kind at each cut, over the seeds that have it."""
    arms = dict.fromkeys(arm for arm, _, _ in records_by_term if arm.startswith("beside:"))
    means = {arm.partition(":")[2]: estimates.mean_accuracy(records_by_term, arm, seeds) for arm in arms}
    return {f"{name} accuracy": value for name, value in means.items() if value is not None}


def plot(axes: Any, run: Run) -> None:
    """Draw accuracy against the cut for each kind, dashed if all is trained: the mean, and a thin line for each seed."""
    by_arm = records.values_by_arm(records.plugin_records(run, plugin.id), records.accuracy)
    for suffix, style in (("", "-"), ("-plus", "--")):
        kinds = [start + suffix for start in STARTS]
        rows_by_kind = {kind: zip(*(by_arm.get(f"beside:{kind}-{cut}", []) for cut in CUTS), strict=False) for kind in kinds}
        curves = {LABELS[kind]: [list(zip(CUTS, row, strict=True)) for row in rows] for kind, rows in rows_by_kind.items()}
        plotting.draw_lines(axes, curves, linestyle=style, marker="o")
    axes.axhline(records.mean_or_nan(by_arm.get("subject", [])), color=plotting.BLUE, linewidth=0.8, label="subject")
    axes.set(xticks=CUTS, xticklabels=["a quarter", "half", "three quarters", "all"])
    axes.set(xlabel="layer groups transferred, from the input up", ylabel="test accuracy")
    axes.legend()


def _difference(name: str, arm: str, minus: str, meaning: str) -> Contrast:
    return info(name, (arm, "test"), (minus, "test"), meaning)


plugin = Plugin(
    id="layer-transfer",
    version=2,
    question="Are the right layers transferred, and should they be frozen?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    extra_arms=extra_arms,
    contrasts=(
        HARM,
        *(_difference(f"anb-{cut}", f"beside:anb-{cut}", ALL_LAYERS, f"AnB − all layers, cut {cut}") for cut in CUTS),
        *(_difference(f"specificity-{cut}", f"beside:bnb-{cut}", f"beside:anb-{cut}", f"BnB − AnB, cut {cut}") for cut in CUTS),
    ),
    derived_metrics=accuracy_by_cut,
    remedy="transfer, and freeze, the number of layer groups that was best on validation",
    plot=plot,
)
