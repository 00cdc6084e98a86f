"""A fresh head whose gradients damage good features in the first steps.

Symptom
    Fine-tuning everything from a random head ends below a linear probe of the same backbone, or dips before it recovers.

Cause
    The gradient that reaches the backbone passes through the head's weights. While these are random, the gradient is large and
    uninformative: features move far before the head has learned what they are good for.

Remedy
    Train the head alone first. A head of zeros sends no gradient back at the first step and helps less; warm-up did not help
    in our tests. The dip often recovers: the verdict is about the final accuracy, and the dip is only reported.

How it is cured
    Half of the steps up to the end of the first phase that moves the backbone train the head alone at a rate of 0.01, with
    BatchNorm in evaluation mode; the rest continues unchanged. The number of steps stays the same. A recipe that starts this
    way (at a rate of 0.001 or more, for at least a quarter of the next phase's steps) is not exposed.

How it is induced
    ``random-head``: all layers from the first step on, at the rate and with the BatchNorm mode with which the recipe trains
    the backbone (at 0.001 if it never does).

Also measured
    ``shock``: the norm of the backbone's gradient at the start, over the norm with a head that is fitted to the same examples.
    ``dip``: how far the subject's validation accuracy is below the cured arm's at the first checkpoint.

References
    Kumar et al. 2022, Fine-tuning can distort pretrained features (arXiv:2202.10054); Ren et al. 2023, How to prepare your
    task head for finetuning (arXiv:2302.05779).
"""

from __future__ import annotations

from dataclasses import replace

from xferbench.plugin import (
    HARM,
    MeasureContext,
    Pipeline,
    Plugin,
    Profile,
    interventions,
    records,
    replace_phases,
    requires_pretrained,
    strategies,
)


def applies(pipeline: Pipeline, profile: Profile) -> str:
    recipe = pipeline.recipe
    head_only = all(phase.trainable == interventions.HEAD_ONLY for phase in recipe.phases)
    needs_cure = not (head_only or strategies.begins_with_probe(recipe))
    too_short = needs_cure and strategies.probe_steps(recipe) == recipe
    return requires_pretrained(pipeline, profile) or ("a single step leaves none for the head alone" if too_short else "")


def cure(pipeline: Pipeline, _: Profile) -> Pipeline:
    return replace(pipeline, recipe=strategies.probe_steps(pipeline.recipe))


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    phase = replace(strategies.finetune_phase(pipeline.recipe), trainable=interventions.ALL_LAYERS, head_lr=None)
    head = pipeline.recipe.head if strategies.is_mlp_head(pipeline.recipe.head) else interventions.RANDOM_HEAD
    recipe = replace(replace_phases(pipeline.recipe, phase), head=head, name="random head")
    return {"random-head": replace(pipeline, recipe=recipe)}


def shock(context: MeasureContext) -> dict[str, float]:
    """Return the norm of the backbone's gradient at the start, over the norm with a head fitted to the same examples."""
    from xferbench.lab.evaluation import gradient_shock

    return {"shock": gradient_shock.compute_gradient_ratio(context)}


def dip(records_by_term: records.RecordsByTerm, seeds: records.Seeds) -> dict[str, float]:
    """Return the mean over seeds of cured − subject in validation accuracy at the first checkpoint."""
    first_scores = [tuple(records_by_term[arm, "test", seed].curve[0][2] for arm in ("cured", "subject")) for seed in seeds]
    return {"dip": records.mean_or_nan([cured - subject for cured, subject in first_scores])}


plugin = Plugin(
    id="head-shock",
    version=1,
    question="Do the first gradients of the fresh head damage the features?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(HARM,),
    measures={"shock": "xferbench.plugins.head_shock:shock@2"},
    derived_metrics=dip,
    remedy="train the head alone first, then the rest",
)
