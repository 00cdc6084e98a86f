"""How far the target is from the pretraining data, and what scores predict. It measures and gives no verdict.

Symptom
    None. The question comes before training: is this source near enough, and which of several backbones is best?

Cause
    Examples of another kind reach features that were learned for the source's examples.

Remedy
    None by itself: a gap is no harm. The plugins that train measure whether transfer gains. If a score disagrees with
    ``gain``, the score is wrong.

How it is measured
    On the penultimate features of the pretrained network before training, of at most 500 training examples of the target and as
    many of [source], each with its training preprocessing: ``mmd2`` (unbiased, Gaussian kernel as wide as the median
    distance), ``proxy a-distance`` (2(1 − 2ε) of a linear classifier, cross-validated; 2 means separable, 0 means alike) and
    ``frechet``. Each is also measured ``within the source``, between two samples of its examples of the same size: this is the
    value without a gap. From the labels: ``logme``, ``h-score``, and with the pretrained head ``leep``. Each of these is also
    measured with ``permuted labels``, for which no feature is better than another: the mean of 19 permutations, which are drawn
    from the run's seed, and their greatest score, which 95 % of such labels do not exceed. A score that is not above it says
    nothing. ``cka`` is linear CKA of the target's features before and after training, the only pair of sets here with the same
    examples. Without [source]: logme, h-score, leep and cka.

Also measured
    ``gain``: subject − scratch in accuracy, which the scores are meant to predict.

How far to trust it
    With fewer examples than features (n < d), frechet is too large, h-score and cka are near their maximum for any features,
    and the classifier of the proxy A-distance is weak. LogME, H-score and LEEP change with the number of classes; compare them
    only within one target. No score is best everywhere, and one target with one backbone says nothing about a score: a rank
    correlation with the gain needs some twenty pairs, as in a research suite.

References
    Gretton et al. 2012, A kernel two-sample test (JMLR 13); Ben-David et al. 2007, Analysis of representations for domain
    adaptation; Dowson & Landau 1982; Chong & Forsyth 2020 (arXiv:1911.07023): the bias of Fréchet distances; Kornblith et al.
    2019 (arXiv:1905.00414); You et al. 2021, LogME (arXiv:2102.11005); Bao et al. 2019, H-score (ICIP); Ibrahim et al. 2021
    (arXiv:2110.06893): its bias; Nguyen et al. 2020, LEEP (arXiv:2002.12462); Agostinelli et al. 2022 (arXiv:2204.01403).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from collections.abc import Mapping

WITHIN_SOURCE = ", within the source"
PERMUTED_LABELS = (", permuted labels", ", permuted labels 95 %")  # mean and greatest score
DISTANCES = ("mmd2", "proxy a-distance", "frechet")


def logme(context: MeasureContext) -> dict[str, float]:
    """Return every score that the source and the pretrained head allow, and ``cka`` after training."""
    from xferbench.lab.evaluation import domain_gap

    return domain_gap.transfer_scores(context, WITHIN_SOURCE, PERMUTED_LABELS)


def mean_scores(records_by_term: records.RecordsByTerm, _: records.Seeds) -> dict[str, float]:
    """Return the mean of each score over the seeds, whose training examples differ."""
    means = records.mean_scalars(record.scalars for (_, view, _), record in records_by_term.items() if view == "logme")
    return {name: value for name, value in means.items() if name not in {"logme", "diverged"}}


def explain(_contrast: str, records_by_term: records.RecordsByTerm, _subject: Pipeline, _cured: Pipeline) -> str:
    """Return the scores in one line."""
    logmes = [record.scalars["logme"] for (_, view, _), record in records_by_term.items() if view == "logme"]
    scores = {"logme": records.mean_or_nan(logmes)} if logmes else {}
    scores |= mean_scores(records_by_term, ())
    return ", ".join(f"{name} {value:.3g}{_null_text(name, scores)}" for name, value in scores.items() if "," not in name)


def _null_text(name: str, scores: Mapping[str, float]) -> str:
    """Return what a score would be without a gap, or with labels that no feature predicts."""
    if name + WITHIN_SOURCE in scores:
        return f" ({scores[name + WITHIN_SOURCE]:.3g} within the source)"
    mean, high = (scores.get(name + suffix) for suffix in PERMUTED_LABELS)
    return "" if mean is None or high is None else f" (permuted labels: {mean:.3g}, 95 % up to {high:.3g})"


def plot(axes: Any, run: Run) -> None:
    """Draw the distance of the target from the source (a ring per seed) and of the source from itself (a cross).

    Each distance is divided by its greatest value.
    """
    by_arm = records.values_by_arm(records.plugin_records(run, plugin.id), lambda record: record.scalars, "logme")
    scalars_by_seed = by_arm.get("subject", [])
    names = [name for name in DISTANCES if any(name in scalars for scalars in scalars_by_seed)]
    for row, name in enumerate(names):
        keys = (name, name + WITHIN_SOURCE)
        values_by_key = {key: [scalars[key] for scalars in scalars_by_seed if key in scalars] for key in keys}
        greatest = max(abs(value) for values in values_by_key.values() for value in values) or 1.0
        for marker, color, values in zip("ox", (plotting.VERMILION, plotting.BLUE), values_by_key.values(), strict=True):
            axes.plot([value / greatest for value in values], [row] * len(values), marker, color=color, fillstyle="none")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="share of the greatest value" if names else "no [source] to measure a distance from")


plugin = Plugin(
    id="domain-gap",
    version=1,
    question="How far is the target from the pretraining data, and what do scores predict?",
    doc=__doc__,
    applies=requires_pretrained,
    cure=leave_unchanged,
    induce=lambda *_: {},
    contrasts=(info("gain", ("subject", "test"), ("scratch", "test"), "subject − scratch in accuracy", "accuracy"),),
    measures={"logme": "xferbench.plugins.domain_gap:logme@2"},
    derived_metrics=mean_scores,
    explain=explain,
    domain="source",
    remedy="none: a gap is no harm; use the backbone with the greatest gain",
    plot=plot,
)
