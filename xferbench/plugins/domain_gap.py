"""How far the target lies from what the backbone was pretrained on, and what that foretells. Measured, and never judged.

Symptom
    None. People ask it beforehand: is this source near enough, and which of several backbones should be taken?

Cause
    Images of another kind reach features that were learnt for the source's.

Remedy
    None by itself: a gap is no harm. Whether transfer gains is measured by the plugins that train; a score that disagrees
    with ``gain`` is the score that is wrong.

How it is measured
    On the penultimate features of the pretrained network before training, of at most 500 training images of the target and as
    many of [source], each prepared as they are trained on: ``mmd2`` (unbiased, Gaussian kernel as wide as the median distance),
    ``proxy a-distance`` (2(1 − 2ε) of a linear classifier, cross-validated; 2 is apart, 0 alike), ``frechet``. Each also
    ``within the source``, between two lots of as many of its images: what these numbers are where there is no gap.
    Of the labels too: ``logme``, ``h-score``, and with the pretrained head ``leep``. ``cka`` is linear CKA of the target's
    features before and after training, the only pair of sets here that are of the same images. Without [source]: logme,
    h-score, leep and cka.

Measured beside it
    ``gain``: subject − scratch in accuracy, which the scores are meant to foretell.

How far to trust it
    With fewer images than features (n < d) frechet is too large, h-score and cka are near their greatest whatever the features,
    and the classifier of the proxy A-distance is worse than it could be. LogME, H-score and LEEP change with the number of
    classes and are compared only within one target. No score is best everywhere, and one target with one backbone says nothing
    of a score: a rank correlation with the gain needs some twenty pairs, as a research suite has.

References
    Gretton et al. 2012, A kernel two-sample test (JMLR 13); Ben-David et al. 2007, Analysis of representations for domain
    adaptation; Dowson & Landau 1982; Chong & Forsyth 2020 (arXiv:1911.07023): the bias of Fréchet distances; Kornblith et al.
    2019 (arXiv:1905.00414); You et al. 2021, LogME (arXiv:2102.11005); Bao et al. 2019, H-score (ICIP); Ibrahim et al. 2021
    (arXiv:2110.06893): its bias; Nguyen et al. 2020, LEEP (arXiv:2002.12462); Agostinelli et al. 2022 (arXiv:2204.01403).
"""

from __future__ import annotations

from typing import Any

from xferbench.plugin import (
    MeasureContext,
    Pipeline,
    Plugin,
    Run,
    info,
    leave_unchanged,
    plotting,
    records,
    requires_pretrained,
)

WITHIN = ", within the source"
DISTANCES = ("mmd2", "proxy a-distance", "frechet")


def logme(seen: MeasureContext) -> dict[str, float]:
    """Every score of a fit's start, as far as there is a source and a pretrained head; ``cka`` of its end too."""
    from xferbench.lab.evaluation import domain_gap

    return domain_gap.transfer_scores(seen, WITHIN)


def means(answers: records.RecordsByTerm, _: records.Seeds) -> dict[str, float]:
    """Mean of each score over the seeds, whose training images differ."""
    found = records.mean_scalars(one.scalars for (_, view, _), one in answers.items() if view == "logme")
    return {name: value for name, value in found.items() if name not in {"logme", "diverged"}}


def told(_contrast: str, answers: records.RecordsByTerm, _subject: Pipeline, _cured: Pipeline) -> str:
    """The scores in one line."""
    logmes = [one.scalars["logme"] for (_, view, _), one in answers.items() if view == "logme"]
    first = {"logme": records.mean_or_nan(logmes)} if logmes else {}
    return ", ".join(f"{name} {value:.3g}" for name, value in (first | means(answers, ())).items() if WITHIN not in name)


def picture(axes: Any, run: Run) -> None:
    """Distance of the target from the source (a ring a seed), and of the source from itself (a cross), each by the greatest."""
    seeds = records.values_by_arm(records.plugin_records(run, plugin.id), lambda one: one.scalars, "logme").get("subject", [])
    names = [name for name in DISTANCES if any(name in one for one in seeds)]
    for place, name in enumerate(names):
        found = {own: [one[own] for one in seeds if own in one] for own in (name, name + WITHIN)}
        most = max(abs(value) for values in found.values() for value in values) or 1.0
        for marker, colour, values in zip("ox", (plotting.VERMILION, plotting.BLUE), found.values(), strict=True):
            axes.plot([value / most for value in values], [place] * len(values), marker, color=colour, fillstyle="none")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="share of the greatest value" if names else "no [source] to measure a distance from")


plugin = Plugin(
    id="domain-gap",
    version=1,
    question="How far is the target from what the backbone was pretrained on, and what do scores foretell?",
    doc=__doc__,
    applies=requires_pretrained,
    cure=leave_unchanged,
    induce=lambda *_: {},
    contrasts=(info("gain", ("subject", "test"), ("scratch", "test"), "subject − scratch in accuracy", "accuracy"),),
    measures={"logme": "xferbench.plugins.domain_gap:logme@1"},
    derived_metrics=means,
    explain=told,
    domain="source",
    remedy="none: a gap is no harm; take the backbone whose gain is greatest",
    plot=picture,
)
