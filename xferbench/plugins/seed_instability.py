"""A recipe that fails with some seeds.

Symptom
    With another seed, the same script ends at the accuracy of the most frequent class, or its loss is NaN.

Cause
    A high rate meets a random head: gradients explode, or vanish for good. Large encoders and few examples make it likely, and
    so do a missing warm-up, few steps, and an Adam without bias correction (the training loop of xferbench has it).

Remedy
    Warm-up over a tenth of the steps, gradients clipped at a norm of 1, and twice the steps, at the recipe's rate or at a tenth
    of it, whichever is better on validation.

How it is judged
    The share of the subject's runs that fail is compared with ``max_failed_runs`` of the suite (0.2) by the exact binomial
    test. A run *failed* if it diverged; or if it is significantly worse than a run that learned, and learned less than half of
    what the median run did (or less than 5 points above the most frequent class, if most runs fail); or if it is in the lower
    of two modes, at least 5 points apart, that no distribution with one mode explains. Seeds that merely vary are no failures,
    and neither is a recipe that is always worse. A doubtful run counts as failed for PASS, and as healthy for FAIL.

    Without a failed run, five seeds leave a share of up to 45 % open. If the seeds of the suite cannot show that the share is
    below the allowed one, the subject alone is trained with more seeds, as far as the budget goes: about 15 for 20 %, 30 for
    10 %, 60 for 5 %. The cure is compared at the same seeds, and is verified if its own share is below the allowed one.

How it is induced
    ``rate-x1000``: all layers, at a thousand times the rate, which is constant, without warm-up and without clipping.

Also measured
    The shares of failed runs of subject and cure. The plot has each run of each arm.

References
    Mosbach et al. 2021, On the stability of fine-tuning BERT (arXiv:2006.04884); Dodge et al. 2020 (arXiv:2002.06305); Zhang
    et al. 2021 (arXiv:2006.05987); transformers issues 753 and 1267: .33 or .80 on MNLI, by seed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xferbench.plugin import (
    Phase,
    Pipeline,
    Plugin,
    Profile,
    Run,
    Selection,
    failed_share,
    full_finetune_phase,
    map_phases,
    plotting,
    records,
    replace_phases,
    requires_pretrained,
)

LR_FACTORS = (1.0, 0.1)  # of the recipe's rate
INDUCED_FACTOR = 1000.0


def _stabilize(pipeline: Pipeline, factor: float) -> Pipeline:
    """Return the pipeline with every rate times a factor, with warm-up and clipping, and in twice the steps."""

    def stabilize_phase(phase: Phase) -> Phase:
        steps, clip = 2 * phase.steps, min(phase.clip or 1.0, 1.0)
        scaled = replace(phase, lr=factor * phase.lr, head_lr=phase.head_lr and factor * phase.head_lr)
        return replace(scaled, steps=steps, warmup=max(2 * phase.warmup, steps // 10), clip=clip)

    return map_phases(pipeline, stabilize_phase, f"warm-up, clipping, twice the steps, rate × {factor:g}")


def cure(pipeline: Pipeline, _: Profile) -> Selection:
    return Selection(candidates=(pipeline, *(_stabilize(pipeline, factor) for factor in LR_FACTORS)))


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    phase = full_finetune_phase(pipeline.recipe)
    high = replace(phase, lr=INDUCED_FACTOR * phase.lr, schedule="constant", clip=None)
    recipe = replace(replace_phases(pipeline.recipe, high), name=f"rate × {INDUCED_FACTOR:g}")
    return {"rate-x1000": replace(pipeline, recipe=recipe)}


def plot(axes: Any, run: Run) -> None:
    """Draw the test accuracy of each run, one row for each arm."""
    by_arm = records.values_by_arm(records.plugin_records(run, plugin.id), lambda record: record.predictions)
    colors = plotting.arm_colors(by_arm)
    for row, (arm, runs) in enumerate(by_arm.items()):
        accuracies = [float((part.predicted == part.label).mean()) for part in runs]
        axes.plot(accuracies, [-row] * len(runs), "o", color=colors[arm], alpha=0.6)
    axes.set(yticks=[-row for row in range(len(by_arm))], yticklabels=[*by_arm], xlabel="test accuracy", xlim=(0, 1.02))


plugin = Plugin(
    id="seed-instability",
    version=1,
    question="Does the recipe fail with some seeds?",
    doc=__doc__,
    applies=requires_pretrained,
    cure=cure,
    induce=induce,
    contrasts=(failed_share("failed-runs", "share of the subject's runs that fail"),),
    remedy="train with warm-up, clipped gradients, more steps and the rate that validation selected",
    plot=plot,
)
