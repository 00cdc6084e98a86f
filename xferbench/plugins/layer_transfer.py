"""How many of the lowest layers are transferred, and whether they stay frozen.

Symptom
    A frozen backbone stops far below what the images allow, or fine-tuning below a network whose upper part is drawn anew.

Cause
    Low layers are general, high ones about the source's classes (specificity): frozen, they cannot be mended. And layers that
    were trained together may not work without each other (co-adaptation), which need not show.

Remedy
    The cut that validation chooses.

How it is cured
    The best on validation of four cuts (a quarter, half, three quarters and all of the layer groups): what lies below is
    transferred, and frozen in eval mode or trained; what lies above, and the head, is drawn anew and trained.

How it is induced
    ``one-too-high``: the cured cut, one layer group further up and frozen. Where nothing is frozen ``frozen-top``: all of it;
    where all of it is, ``one-too-low``: the top group drawn anew.

Measured beside it
    Accuracy at each cut of AnB (from the pretrained network, frozen), AnB+ (the same, all trained), BnB and BnB+ (from a
    network that was first trained on the target's own images, as scratch at its highest rate: the control, and none where
    scratch learns nothing), all in the subject's own steps and at its rate, but no lower than a probe's. ``specificity-K`` is
    BnB − AnB at the cut K of 4.

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
STARTS = ("anb", "bnb")
LABELS = {"anb": "AnB", "anb-plus": "AnB+", "bnb": "BnB", "bnb-plus": "BnB+"}


def applies(pipeline: Pipeline, facts: Profile) -> str:
    uncut = "" if len(facts.groups) > 1 else "the backbone is one layer group, and cannot be cut"
    return requires_pretrained(pipeline, facts) or uncut


def _cut(pipeline: Pipeline, facts: Profile, low: int, kind: str) -> Pipeline:
    """The lowest groups transferred, and frozen or not, at a rate at which what is drawn anew can learn."""
    above, phase = len(facts.groups) - low, strategies.finetune_phase(pipeline.recipe)
    phase = replace(phase, lr=max(phase.lr, strategies.HEAD_LR), head_lr=None, layer_decay=1.0)
    if kind.endswith("plus"):
        phase = replace(phase, trainable=interventions.ALL_LAYERS, batchnorm="train")
    elif above:
        phase = replace(phase, trainable=interventions.TopGroups(groups=above), batchnorm="train-above")
    else:
        phase = replace(phase, trainable=interventions.HEAD_ONLY, batchnorm="eval")
    init = "pretrained" if kind.startswith("anb") else "target"
    head = pipeline.recipe.head if strategies.is_mlp_head(pipeline.recipe.head) else interventions.RANDOM_HEAD
    recipe = replace(replace_phases(pipeline.recipe, phase), init=init, head=head, regularizer=None)
    told = f"{kind}, {low} of {len(facts.groups)} groups"
    return replace(pipeline, recipe=replace(recipe, transferred=f"low:{low}" if above else "all", name=told))


def beside(pipeline: Pipeline, facts: Profile) -> Mapping[str, Pipeline]:
    lows = {cut: max(1, round(len(facts.groups) * cut / len(CUTS))) for cut in CUTS}
    return {f"{kind}-{cut}": _cut(pipeline, facts, low, kind) for kind in LABELS for cut, low in lows.items()}


def cure(pipeline: Pipeline, facts: Profile) -> Selection:
    tried = beside(pipeline, facts).values()
    return Selection(candidates=tuple(dict.fromkeys(one for one in tried if one.recipe.init == "pretrained")))


def induce(pipeline: Pipeline, facts: Profile) -> Mapping[str, Pipeline]:
    words = [phase.trainable for phase in pipeline.recipe.phases]
    top = max(strategies.unfrozen_groups(word, len(facts.groups)) for word in words)
    name, low = ("one-too-high", len(facts.groups) - top + 1) if top else ("one-too-low", len(facts.groups) - 1)
    if top == len(facts.groups):
        name, low = "frozen-top", len(facts.groups)
    found = _cut(pipeline, facts, low, "anb")
    if name == "one-too-high" and pipeline.recipe.transferred == "all":  # the upper groups are pretrained too, and stay so
        found = replace(found, recipe=replace(found.recipe, transferred="all"))
    return {name: found}


def by_cut(answers: records.RecordsByTerm, seeds: records.Seeds) -> dict[str, float]:
    """Mean accuracy of each kind at each cut, over the seeds that have it."""
    arms = dict.fromkeys(arm for arm, _, _ in answers if arm.startswith("beside:"))
    found = {arm.partition(":")[2]: estimates.mean_accuracy(answers, arm, seeds) for arm in arms}
    return {f"{name} accuracy": value for name, value in found.items() if value is not None}


def picture(axes: Any, run: Run) -> None:
    """Accuracy against the cut for each kind, dashed where all is trained: the mean, and a thin line a seed."""
    told = records.values_by_arm(records.plugin_records(run, plugin.id), records.accuracy)
    for end, style in (("", "-"), ("-plus", "--")):
        rows = {kind + end: zip(*(told.get(f"beside:{kind}{end}-{cut}", []) for cut in CUTS), strict=False) for kind in STARTS}
        curves = {LABELS[kind]: [list(zip(CUTS, row, strict=True)) for row in own] for kind, own in rows.items()}
        plotting.draw_lines(axes, curves, linestyle=style, marker="o")
    axes.axhline(records.mean_or_nan(told.get("subject", [])), color=plotting.BLUE, linewidth=0.8, label="subject")
    axes.set(xticks=CUTS, xticklabels=["a quarter", "half", "three quarters", "all"])
    axes.set(xlabel="layer groups transferred, from the input up", ylabel="test accuracy")
    axes.legend()


def _minus(name: str, arm: str, other: str, words: str) -> Contrast:
    return info(name, (arm, "test"), (other, "test"), words)


plugin = Plugin(
    id="layer-transfer",
    version=1,
    question="Are the right layers transferred, and is it right to freeze them?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    extra_arms=beside,
    contrasts=(
        HARM,
        *(_minus(f"anb-{cut}", f"beside:anb-{cut}", "subject", f"AnB − subject, cut {cut}") for cut in CUTS),
        *(_minus(f"specificity-{cut}", f"beside:bnb-{cut}", f"beside:anb-{cut}", f"BnB − AnB, cut {cut}") for cut in CUTS),
    ),
    derived_metrics=by_cut,
    remedy="transfer, and freeze, as many layer groups as was best on validation",
    plot=picture,
)
