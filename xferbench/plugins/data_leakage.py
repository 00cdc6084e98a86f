"""Test examples that the network has seen in training, or in pretraining.

Symptom
    A test accuracy that is not reached in production.

Cause
    One photograph or text under two names; frames of one video or texts of one author on both sides of a split; a test set that
    was in the pretraining data. Images may be recompressed, resized, flipped or recolored; texts may be edited or cut.

Remedy
    Split by group, remove the copies, and report the score without them.

How it is judged
    ``identical``: no test example is in training, in [source], or in the pretraining set whose manifest is given. Texts are
    compared without case, punctuation and white space. ``copies``: at most ``max_duplicates`` (1 %) of the test examples have a
    copy there. Copies of images are found by digests, perceptual hashes and embeddings, flips and crops included; copies of
    texts by digests and words, and rare words count most. The threshold is calibrated on the data. A PASS needs a recall of
    50 % for each kind of altered copy that is not in ``unsearched_copies``, by the bound of Clopper and Pearson at ``alpha``,
    on up to 100 test examples: images flipped and recompressed, recompressed (JPEG 50), resized (×0.5), recolored (by up to
    20 %) and cropped (26/32 of each side); texts repunctuated (in capitals, without punctuation), misspelled (an error in 60
    characters), shortened (by a tenth of the words), truncated to three quarters, extended by a third, and swapped (both
    halves, or the texts of a pair). ``groups``: no group (patient, scene, author) is on both sides; skipped without groups.

How it is induced
    ``copied``: copies of a tenth of the test examples replace training examples. ``altered``: the same, but images are flipped
    and compressed again, and texts lack a tenth of their words.

Also measured
    ``inflation``: the metric on all test examples minus that on those without a copy; the ``recall`` of the induced arms.

References
    Barz & Denzler 2020 (arXiv:1902.00423): copies of 3.3 and 10 % of the CIFAR-10 and CIFAR-100 tests; Radford et al. 2021
    (arXiv:2103.00020): CLIP's data, median 2.2 %; Lee et al. 2022 (arXiv:2107.06499): copies in texts; imagenette issue 47.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.analysis import intervals
from xferbench.core.reason import Code, because
from xferbench.core.suite import COPY_KINDS, TEXT_COPY_KINDS
from xferbench.plugin import (
    MeasureContext,
    Pipeline,
    Plugin,
    Profile,
    Spectrogram,
    info,
    interventions,
    invariant,
    records,
    replace_data,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.core.reason import Reason
    from xferbench.core.suite import Rules

INJECTED_SHARE = 0.1  # of the test examples
MIN_RECALL = 0.5  # of each kind of altered copy; the share of copies that is found is then at least half of the true share


def applies(pipeline: Pipeline, profile: Profile) -> str:
    if isinstance(pipeline.data.train_preprocessing, Spectrogram):
        return "only images and texts are searched for copies"
    return "" if profile.data.train or pipeline.data.pretraining else "neither training data nor a pretraining set are given"


def cure(pipeline: Pipeline, _: Profile) -> Pipeline:
    return replace(pipeline, evaluation_split="unique")


def induce(pipeline: Pipeline, profile: Profile) -> dict[str, Pipeline]:
    if not profile.data.train:
        return {}
    base = replace(pipeline, evaluation_split="test")
    kinds = (interventions.CopiedTestImages, interventions.AlteredTestImages)
    return {kind.spelling: replace_data(base, injected_duplicates=kind(share=INJECTED_SHARE)) for kind in kinds}


def copies(context: MeasureContext) -> dict[str, float]:
    from xferbench.lab.evaluation import leakage

    return leakage.measure_copies(context)


def identical(context: MeasureContext) -> dict[str, float]:
    from xferbench.lab.evaluation import leakage

    return leakage.measure_identical(context)


def groups(context: MeasureContext) -> dict[str, float]:
    """Return how many groups are on both sides of the split."""
    from xferbench.data import duplicates

    train, test = context.trial.dataset.train.groups, context.trial.dataset.test.groups
    return {"groups": float(len(duplicates.shared_groups(train, test))), "known": float(len(test) > 0)}


def why_no_pass(contrast: str, records_by_term: records.RecordsByTerm, rules: Rules) -> Reason | None:
    """Return the kinds of copies that the search finds too rarely, or that there are no groups."""
    scalars = _subject_scalars(contrast, records_by_term)
    if contrast == "groups":
        return None if scalars.get("known") else because(Code.NO_GROUPS)
    low, kinds = [], TEXT_COPY_KINDS if "test texts" in scalars else COPY_KINDS
    for kind in kinds if contrast == "copies" else ():
        found, altered = (int(scalars.get(f"{name} {kind}", 0.0)) for name in ("found", "altered"))
        bound = intervals.proportion_lower_bound(found, altered, rules.alpha)
        if kind not in rules.unsearched_copies and not bound >= MIN_RECALL:
            low.append((kind, found, altered, bound))
    return because(Code.LOW_RECALL, kinds=tuple(low), at_least=MIN_RECALL, confidence=1 - rules.alpha) if low else None


def explain(contrast: str, records_by_term: records.RecordsByTerm, _subject: Pipeline, _cured: Pipeline) -> str:
    """Return what was searched, with the number of copies by kind and place, or the number of groups on both sides."""
    scalars = _subject_scalars(contrast, records_by_term)
    if contrast == "groups":
        return f"groups on both sides: {scalars['groups']:g}" if scalars.get("groups") else ""
    searched = ", ".join(name.removeprefix("searched ") for name in scalars if name.startswith("searched "))
    counts = ", ".join(f"{count:g} {name}" for name, count in scalars.items() if " in " in name)
    kinds = (name.removeprefix("found ") for name in scalars if name.startswith("found "))
    recalls = (f"{kind} {scalars[f'found {kind}']:g} of {scalars.get(f'altered {kind}', 0):g}" for kind in kinds)
    tested = "".join(f"{count:g} {name}" for name, count in scalars.items() if name.startswith("test "))
    parts = [f"copies among {tested}: {counts}"] * bool(counts) + [f"searched: {searched}"] * bool(searched)
    parts += [f"found in a test of the search: {', '.join(recalls)} altered copies"] * (contrast == "copies")
    return "; ".join(parts)


def _subject_scalars(contrast: str, records_by_term: records.RecordsByTerm) -> Mapping[str, float]:
    subject = (record.scalars for (arm, view, _), record in records_by_term.items() if (arm, view) == ("subject", contrast))
    return next(subject, {})


plugin = Plugin(
    id="data-leakage",
    version=2,
    question="Has the network seen the test examples before?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        invariant("identical", "no test example is identical to a searched one", effect="inflation"),
        invariant("copies", "no more test examples than allowed have a copy", allowed="max_duplicates", effect="inflation"),
        invariant("groups", "no group is in training and test", controlled=False),
        info("inflation", ("subject", "whole"), ("cured", "test"), "all test examples − those without a copy"),
    ),
    measures={
        "identical": "xferbench.plugins.data_leakage:identical@1",
        "copies": "xferbench.plugins.data_leakage:copies@2",
        "groups": "xferbench.plugins.data_leakage:groups@1",
    },
    needs_pretraining_data=True,
    explain=explain,
    why_no_pass=why_no_pass,
    remedy="split by group, remove the copies from training, and report the score without them",
)

audit = plugin  # the check is the same for a finished network
