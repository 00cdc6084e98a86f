"""Test images that the network has seen in training, or in pretraining.

Symptom
    A test accuracy that is not reached in production.

Cause
    The same photograph under two names; frames of one video or images of one patient on both sides of a split; a test set that
    was part of the pretraining data. Copies may be recompressed, resized, flipped or recolored.

Remedy
    Split by group, remove the copies, and report the score without them.

How it is judged
    ``copies`` is exact: the share of test images with a copy in the training images, in [source], or in the pretraining set
    whose manifest is given, must not exceed ``max_duplicates`` (0 by default). Copies are found by digests, perceptual hashes
    and embeddings of the images as they are on the disk, flips included; the threshold is calibrated on the data. ``groups``
    is exact too: no group (patient, scene) is on both sides.

How it is induced
    ``copied``: copies of a tenth of the test images replace training images. ``altered``: the same, flipped and compressed
    again.

Also measured
    ``inflation``: the metric on all test images minus the metric on those without a copy. For the induced arms, the
    ``recall`` and ``precision`` of the search.

References
    Barz & Denzler 2020, Do we train on test data? (arXiv:1902.00423): copies of 3.3 and 10 % of the CIFAR-10 and CIFAR-100
    tests; Radford et al. 2021 (arXiv:2103.00020), section 5: overlap with CLIP's data, median 2.2 %; imagenette issue 47.
"""

from __future__ import annotations

from dataclasses import replace

from xferbench.plugin import (
    MeasureContext,
    Pipeline,
    Plugin,
    Preprocessing,
    Profile,
    info,
    interventions,
    invariant,
    records,
    replace_data,
)

INJECTED_SHARE = 0.1  # of the test images
MIN_RECALL = 0.9  # the report mentions a lower recall of injected copies


def applies(pipeline: Pipeline, profile: Profile) -> str:
    if not isinstance(pipeline.data.train_preprocessing, Preprocessing):
        return "only images are search_inputs for copies"
    return "" if profile.data.train or pipeline.data.pretraining else "neither training images nor a pretraining set are given"


def cure(pipeline: Pipeline, _: Profile) -> Pipeline:
    return replace(pipeline, evaluation_split="unique")


def induce(pipeline: Pipeline, profile: Profile) -> dict[str, Pipeline]:
    if not profile.data.train:
        return {}
    base = replace(pipeline, evaluation_split="test")
    kinds = (interventions.CopiedTestImages, interventions.AlteredTestImages)
    return {kind.spelling: replace_data(base, injected_duplicates=kind(share=INJECTED_SHARE)) for kind in kinds}


def copies(context: MeasureContext) -> dict[str, float]:
    """Return the share of test images with a copy, counts by kind and place, and the recall of injected copies."""
    from xferbench.lab.evaluation import leakage

    trial, view = context.trial, context.trial.view
    if view.examples == "unique":  # it has no copies by definition, which shows nothing
        return {"copies": float("nan")}
    search_inputs = (trial.spec.data.dataset, view.limit, view.reference_data, trial.cache)
    scalars = leakage.count_duplicates(leakage.find_leaked_duplicates(*search_inputs))
    leaked = leakage.leaked_examples(*search_inputs)
    if trial.injected_duplicates is not None:
        leaked, detection = leakage.detection_of_injected(trial.dataset, trial.injected_duplicates, leaked)
        scalars |= detection
    return {"copies": float(leaked.mean()), "test images": float(len(leaked))} | scalars


def groups(context: MeasureContext) -> dict[str, float]:
    """Return how many groups are on both sides of the split."""
    from xferbench.data import duplicates

    dataset = context.trial.dataset
    train, test = dataset.train.groups, dataset.test.groups
    return {"groups": float(len(duplicates.shared_groups(train, test))), "known": float(len(test) > 0)}


def explain(contrast: str, records_by_term: records.RecordsByTerm, _subject: Pipeline, _cured: Pipeline) -> str:
    """Return the number of copies by kind and place, or the number of groups on both sides."""
    subject = [record.scalars for (arm, view, _), record in records_by_term.items() if (arm, view) == ("subject", contrast)]
    scalars = subject[0] if subject else {}
    if contrast == "groups":
        shared = f"groups on both sides: {scalars['groups']:g}" if scalars.get("groups") else ""
        return shared if scalars.get("known", 1.0) else "the data have no groups"
    counts = ", ".join(f"{count:g} {name}" for name, count in scalars.items() if " in " in name)
    parts = [f"copies among {scalars.get('test images', 0):g} test images: {counts}"] * bool(counts)
    recalls = {
        arm: record.scalars["recall"]
        for (arm, view, _), record in records_by_term.items()
        if view == "copies" and "recall" in record.scalars
    }
    low = ", ".join(f"{arm.partition(':')[2]} {recall:.0%}" for arm, recall in recalls.items() if recall < MIN_RECALL)
    return "; ".join(parts + [f"the search finds few of the injected copies: {low}"] * bool(low))


plugin = Plugin(
    id="data-leakage",
    version=1,
    question="Has the network seen the test images before?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        invariant("copies", "no test image has a copy in training or pretraining", allowed="max_duplicates"),
        invariant("groups", "no group is in training and test", controlled=False),
        info("inflation", ("subject", "whole"), ("cured", "test"), "all test images − those without a copy"),
    ),
    measures={
        "copies": "xferbench.plugins.data_leakage:copies@1",
        "groups": "xferbench.plugins.data_leakage:groups@1",
    },
    needs_pretraining_data=True,
    explain=explain,
    remedy="split by group, remove the copies from training, and report the score without them",
)

audit = plugin  # the check is the same for a finished network
