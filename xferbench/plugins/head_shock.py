"""A fresh head whose gradients wreck good features in the first steps.

Symptom
    Fine-tuning everything from a random head ends below a linear probe of the same backbone, or dips before it recovers.

Cause
    The gradient that reaches the backbone passes through the head's weights. While these are random it is large and says
    nothing: features move far before the head has learnt what they are good for.

Remedy
    Train the head alone first. A head of zeros sends nothing back at the first step and helps less; warm-up was not seen to
    help. The dip often recovers: the final accuracy is judged, the dip only reported.

How it is cured
    Half of the steps up to the end of the first phase that moves the backbone train the head alone at a rate of 0.01, with
    BatchNorm in evaluation mode; the rest goes on as it was. The number of steps stays the same. A recipe that begins so (at a
    rate of 0.001 or more, for a quarter of the next phase's steps or more) is not exposed.

How it is induced
    ``random-head``: all layers from the first step on, at the rate and with the BatchNorm with which the recipe trains the
    backbone (of one that never does, at 0.001).

Measured beside it
    ``shock``: the norm of the backbone's gradient at the start, over that with a head that was fitted to the same images.
    ``dip``: how far the subject's validation accuracy lies below the cured one's at the first checkpoint.

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


def applies(pipeline: Pipeline, facts: Profile) -> str:
    recipe = pipeline.recipe
    untouched = strategies.begins_with_probe(recipe) or all(
        phase.trainable == interventions.HEAD_ONLY for phase in recipe.phases
    )
    short = strategies.probe_steps(recipe) == recipe and not untouched
    return requires_pretrained(pipeline, facts) or ("a single step leaves none for the head alone" if short else "")


def cure(pipeline: Pipeline, _: Profile) -> Pipeline:
    return replace(pipeline, recipe=strategies.probe_steps(pipeline.recipe))


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    phase = replace(strategies.finetune_phase(pipeline.recipe), trainable=interventions.ALL_LAYERS, head_lr=None)
    head = pipeline.recipe.head if strategies.is_mlp_head(pipeline.recipe.head) else interventions.RANDOM_HEAD
    recipe = replace(replace_phases(pipeline.recipe, phase), head=head, name="random head")
    return {"random-head": replace(pipeline, recipe=recipe)}


def shock(seen: MeasureContext) -> dict[str, float]:
    """Norm of the backbone's gradient at the start, over the same with a head fitted to the same images."""
    from xferbench.lab.evaluation import gradient_shock

    return {"shock": gradient_shock.gradient_ratio(seen)}


def dip(answers: records.RecordsByTerm, seeds: records.Seeds) -> dict[str, float]:
    """Mean over seeds of cured − subject in validation accuracy at the first checkpoint."""
    firsts = [tuple(answers[arm, "test", seed].curve[0][2] for arm in ("cured", "subject")) for seed in seeds]
    return {"dip": records.mean_or_nan([cured - subject for cured, subject in firsts])}


plugin = Plugin(
    id="head-shock",
    version=1,
    question="Do the fresh head's first gradients wreck the features?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(HARM,),
    measures={"shock": "xferbench.plugins.head_shock:shock@2"},
    derived_metrics=dip,
    remedy="train the head alone first, then the rest",
)
