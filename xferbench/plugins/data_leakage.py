"""Test images that the network has seen in training, or in pretraining.

Symptom
    A test accuracy that nobody finds again in the field.

Cause
    The same photograph under two names, frames of one video or images of one patient on both sides of a split, a test set
    that was part of what the backbone was pretrained on; recompressed, resized, flipped or recoloured on the way.

Remedy
    Split by group, take the copies out, and report the score without them.

How it is judged
    ``copies`` is exact: the share of test images with a copy in the training images, in [source], or in the pretraining set
    whose manifest is given, is not above ``max_duplicates`` (0, if the suite does not say). Copies are found by digests,
    perceptual hashes and embeddings of the images as they lie on the disk, flips included; the threshold is calibrated on the
    data. ``groups`` is exact too: no group (patient, scene) is on both sides.

How it is induced
    ``copied``: a tenth of the test images put in the place of training images. ``altered``: the same, flipped and compressed
    anew.

Measured beside it
    ``inflation``: the metric on all test images minus that on those without a copy. Of what was induced, the ``recall`` and
    ``precision`` of the search.

References
    Barz & Denzler 2020, Do we train on test data? (arXiv:1902.00423): copies of 3.3 and 10 % of the CIFAR-10 and CIFAR-100
    tests; Radford et al. 2021 (arXiv:2103.00020), section 5: overlap with CLIP's data, median 2.2 %; imagenette issue 47.
"""

from __future__ import annotations

from dataclasses import replace

from xferbench.plugin import MeasureContext, Pipeline, Plugin, Preprocessing, Profile, info, invariant, records

SHARE, SURE = 0.1, 0.9  # of the test images that are planted; of those found, below which a reader is told


def applies(pipeline: Pipeline, facts: Profile) -> str:
    if not isinstance(pipeline.train_preprocessing, Preprocessing):
        return "copies are looked for among images alone"
    return "" if facts.train or pipeline.pretraining else "neither training images nor a pretraining set are given"


def cure(pipeline: Pipeline, _: Profile) -> Pipeline:
    return replace(pipeline, evaluation_split="unique")


def induce(pipeline: Pipeline, facts: Profile) -> dict[str, Pipeline]:
    if not facts.train:
        return {}
    told = replace(pipeline, evaluation_split="test")
    return {way: replace(told, injected_duplicates=f"{way}:{SHARE:g}") for way in ("copied", "altered")}


def copies(seen: MeasureContext) -> dict[str, float]:
    """Share of the test images that have a copy; beside it how many of which kind and where, and of those planted, found."""
    from xferbench.lab.evaluation import leakage

    fit, view = seen.fit, seen.view
    if view.examples == "unique":  # by its own definition there are none, which shows nothing
        return {"copies": float("nan")}
    told = leakage.count_copies(leakage.find_copies(fit.data, view.limit, view.reference_data, seen.cache))
    leaked = leakage.leaked_examples(fit.data, view.limit, view.reference_data, seen.cache)
    if fit.injected_duplicates:
        leaked, of_search = leakage.detection_of_injected(seen.dataset, seen.injected_duplicates, leaked)
        told |= of_search
    return {"copies": float(leaked.mean()), "test images": float(len(leaked))} | told


def groups(seen: MeasureContext) -> dict[str, float]:
    """How many groups are on both sides of the split."""
    from xferbench.data import duplicates as search

    train, test = seen.dataset.train.groups, seen.dataset.test.groups
    return {"groups": float(len(search.shared_groups(train, test))), "known": float(len(test) > 0)}


def told(contrast: str, answers: records.RecordsByTerm, _subject: Pipeline, _cured: Pipeline) -> str:
    """How many copies of which kind lie where, or how many groups are on both sides."""
    found = next((one.scalars for (arm, view, _), one in answers.items() if (arm, view) == ("subject", contrast)), {})
    if contrast == "groups":
        shared = f"groups on both sides: {found['groups']:g}" if found.get("groups") else ""
        return shared if found.get("known", 1.0) else "the data have no groups"
    said = ", ".join(f"{count:g} {name}" for name, count in found.items() if " in " in name)
    parts = [f"copies among {found.get('test images', 0):g} test images: {said}"] * bool(said)
    recalls = {
        arm: one.scalars["recall"] for (arm, view, _), one in answers.items() if view == "copies" and "recall" in one.scalars
    }
    few = ", ".join(f"{arm.partition(':')[2]} {recall:.0%}" for arm, recall in recalls.items() if recall < SURE)
    return "; ".join(parts + [f"of those planted the search finds few: {few}"] * bool(few))


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
    explain=told,
    remedy="split by group, take the copies out of training, and report the score without them",
)

audit = plugin  # a finished network is asked the same
