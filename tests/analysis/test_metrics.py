from __future__ import annotations

from dataclasses import replace
from math import isnan, log, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xferbench.analysis import intervals, metrics, multiplicity
from xferbench.core.errors import UserError
from xferbench.core.record import Predictions

MEANS = [name for name, metric in metrics.METRICS.items() if metric.mean]
OTHERS = [name for name, metric in metrics.METRICS.items() if not metric.mean]
HARM = {"cured": 1.0, "subject": -1.0}


def make_predictions(label, probabilities, group=()):
    label, probabilities = np.asarray(label), np.asarray(probabilities, dtype=float)
    return Predictions(
        example=np.arange(len(label), dtype=np.uint64),
        label=label,
        predicted=probabilities.argmax(1),
        group=np.asarray(group, dtype=np.int64),
        p_true=probabilities[np.arange(len(label)), label].astype(np.float32),
        p_max=probabilities.max(1).astype(np.float32),
        sum_p2=np.square(probabilities).sum(1).astype(np.float32),
        probabilities=probabilities.astype(np.float16),
    )


def two_classes(label, positive, group=()):
    positive = np.asarray(positive, dtype=float)
    return make_predictions(label, np.stack([1 - positive, positive], axis=1), group)


def random_predictions(seed, N=60, shift=1.0, group=()):
    generator = np.random.default_rng(seed)
    label = np.arange(N) % 3 == 0
    return two_classes(label.astype(int), 1 / (1 + np.exp(-generator.normal(size=N) - shift * (label - 0.5))), group)


def select_rows(predictions, rows):
    columns = {name: getattr(predictions, name) for name in Predictions.__slots__}
    return Predictions(**{name: column[rows] if len(column) else column for name, column in columns.items()})


def pairwise_auroc(predictions):
    odds = predictions.probabilities[:, 1].astype(float)
    high, low = odds[predictions.label == 1], odds[predictions.label != 1]
    return np.mean([(first > second) + 0.5 * (first == second) for first in high for second in low])


# values


def test_metrics_of_four_examples_match_a_calculation_by_hand():
    predictions = two_classes([1, 1, 0, 0], [0.75, 0.25, 0.5, 0.125])  # predicted 1 0 0 0
    assert metrics.metric_value(predictions, "accuracy") == 3 / 4
    assert metrics.metric_value(predictions, "sensitivity") == 1 / 2
    assert metrics.metric_value(predictions, "specificity") == 1
    assert metrics.metric_value(predictions, "balanced_accuracy") == 3 / 4
    assert metrics.metric_value(predictions, "nll") == pytest.approx(-(log(0.75) + log(0.25) + log(0.5) + log(0.875)) / 4)
    assert metrics.metric_value(predictions, "brier") == pytest.approx(2 * (0.25**2 + 0.75**2 + 0.5**2 + 0.125**2) / 4)
    assert metrics.metric_value(predictions, "auroc") == 3 / 4  # of four pairs, only (.25, .5) is in the wrong order


def test_the_brier_score_sums_over_all_classes():
    predictions = make_predictions([0, 2], [[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
    assert metrics.example_scores(predictions, "brier")[1] == pytest.approx([0.5**2 + 2 * 0.25**2, 0.5**2 + 0.25**2 + 0.75**2])


def test_a_true_class_of_probability_zero_costs_sixteen_nats():
    assert (
        metrics.metric_value(two_classes([1], [0.0]), "nll")
        == pytest.approx(metrics.METRICS["nll"].span)
        == pytest.approx(15.94, abs=0.01)
    )


def test_specificity_counts_every_prediction_that_is_not_positive():
    predictions = make_predictions([0, 2, 2], [[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    mask, score = metrics.example_scores(predictions, "specificity")
    assert list(mask) == [True, True, True]
    assert list(score) == [1, 1, 0]


def test_sensitivity_and_specificity_cover_only_one_class_each():
    predictions = two_classes([1, 1, 0, 1], [0.9, 0.1, 0.2, 0.8])
    mask, score = metrics.example_scores(predictions, "sensitivity")
    assert list(mask) == [True, True, False, True]
    assert list(score) == [1, 0, 1]
    assert list(metrics.example_scores(predictions, "specificity")[0]) == [False, False, True, False]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=4, max_size=30))
def test_auroc_is_the_share_of_ordered_pairs_and_ties_count_half(rows):
    label = [1, 0, *(value for value, _ in rows)]
    predictions = two_classes(label, [0.5, 0.5, *(score / 8 for _, score in rows)])
    assert metrics.metric_value(predictions, "auroc") == pytest.approx(pairwise_auroc(predictions))


def test_the_rounding_of_certainty_does_not_reveal_the_label():
    certain = two_classes([1, 0] * 10, 1 - 10.0 ** -np.repeat(np.arange(9, 19), 2))
    unsure = two_classes([1, 0] * 10, 10.0 ** -np.repeat(np.arange(9, 19), 2))
    assert metrics.metric_value(certain, "auroc") == 0.5
    assert metrics.metric_value(unsure, "auroc") == 0.5


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_a_missing_probability_or_class_gives_nan(metric):
    broken = random_predictions(0)
    broken.p_true[3], broken.sum_p2[3], broken.probabilities[3] = nan, nan, nan
    empty = select_rows(random_predictions(0), slice(0, 0))
    assert isnan(metrics.metric_value(empty, metric))
    if metric in {"nll", "brier", "auroc"}:
        assert isnan(metrics.metric_value(broken, metric))


@pytest.mark.parametrize("metric", ["auroc", "sensitivity"])
def test_no_positive_example_gives_nan(metric):
    assert isnan(metrics.metric_value(two_classes([0, 0, 0], [0.1, 0.2, 0.9]), metric))


def test_an_unknown_metric_is_an_error_with_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        metrics.metric_value(random_predictions(0), "acuracy")


def test_auroc_without_probabilities_is_an_error():
    with pytest.raises(UserError, match="AUROC needs"):
        metrics.metric_value(replace(random_predictions(0), probabilities=np.empty((60, 0), dtype=np.float16)), "auroc")


# scores by example


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_every_metric_is_the_mean_of_its_scores(metric):
    assert metrics.example_scores(random_predictions(1), metric)[1].mean() == pytest.approx(
        metrics.metric_value(random_predictions(1), metric)
    )


@pytest.mark.parametrize("metric", OTHERS)
def test_pseudo_values_leave_out_one_example_each(metric):
    predictions = random_predictions(2, N=30)
    pseudo_values = [
        30 * metrics.metric_value(predictions, metric)
        - 29 * metrics.metric_value(select_rows(predictions, np.arange(30) != index), metric)
        for index in range(30)
    ]
    assert metrics.example_scores(predictions, metric)[1] == pytest.approx(np.array(pseudo_values))


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_scores_of_an_example_stay_within_the_span(metric):
    prediction_sets = [random_predictions(seed, shift=shift) for seed, shift in ((0, -4.0), (1, 0.0), (2, 4.0))]
    spans = [np.ptp([metrics.example_scores(predictions, metric)[1] for predictions in prediction_sets], axis=0)]
    assert np.max(spans) <= metrics._score_span(prediction_sets[0], metric) + 1e-9


# contrasts


def make_arms(cured, subject):
    return {"cured": cured, "subject": subject}


def test_harm_is_positive_if_the_cured_arm_is_better():
    cured, subject = (
        [random_predictions(seed, shift=4.0) for seed in range(3)],
        [random_predictions(seed, shift=0.0) for seed in range(3)],
    )
    for metric in metrics.METRICS:
        estimate, difference = metrics.estimate_metric_contrast(
            make_arms(cured, subject), HARM, metric=metric, margin=0.02, alpha=0.05
        )
        gap = np.mean([metrics.metric_value(predictions, metric) for predictions in cured]) - np.mean(
            [metrics.metric_value(predictions, metric) for predictions in subject]
        )
        assert estimate.harm > 0
        assert estimate.harm == pytest.approx(abs(gap))
        assert estimate.harm == pytest.approx(difference.mean())


def test_an_accuracy_contrast_is_the_crossed_interval_of_its_differences():
    cured, subject = (
        [random_predictions(seed) for seed in range(3)],
        [random_predictions(seed + 9, shift=0.0) for seed in range(3)],
    )
    estimate, difference = metrics.estimate_metric_contrast(
        make_arms(cured, subject), HARM, metric="accuracy", margin=0.02, alpha=0.05
    )
    assert set(np.unique(difference)) <= {-1, 0, 1}
    assert estimate == intervals.crossed_interval(difference, margin=0.02, alpha=0.05)


def test_a_contrast_of_more_arms_has_a_larger_span():
    arms = {name: [random_predictions(seed + 10 * index) for seed in range(3)] for index, name in enumerate("abcd")}
    weights = {"a": 1.0, "b": -1.0, "c": -1.0, "d": 1.0}
    estimate, difference = metrics.estimate_metric_contrast(arms, weights, metric="accuracy", margin=0.02, alpha=0.05)
    assert estimate == intervals.crossed_interval(difference, margin=0.02, alpha=0.05, span=2.0)


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_groups_are_counted_as_examples(metric):
    group = np.arange(60) // 4
    cured, subject = (
        [random_predictions(seed, group=group) for seed in range(3)],
        [random_predictions(seed + 9, group=group) for seed in range(3)],
    )
    estimate, _ = metrics.estimate_metric_contrast(make_arms(cured, subject), HARM, metric=metric, margin=0.02, alpha=0.05)
    mask, _ = metrics.example_scores(cured[0], metric)
    assert estimate.examples == len(np.unique(group[mask]))


@pytest.mark.parametrize("metric", OTHERS)
@pytest.mark.parametrize("group", [(), np.arange(60) // 4])
def test_the_bootstrap_widens_and_never_narrows(metric, group):
    cured, subject = (
        [random_predictions(seed, group=group) for seed in range(3)],
        [random_predictions(seed + 9, group=group) for seed in range(3)],
    )
    estimate, pseudo = metrics.estimate_metric_contrast(make_arms(cured, subject), HARM, metric=metric, margin=0.02, alpha=0.05)
    groups, span = (None if len(group) == 0 else group), metrics._score_span(cured[0], metric)
    single = intervals.crossed_interval(
        pseudo, margin=0.02, alpha=0.05, groups=groups, span=span
    )  # all groups have the same size
    assert estimate.harm == pytest.approx(single.harm)
    assert estimate.low <= single.low + 1e-12
    assert estimate.high >= single.high - 1e-12


def bootstrap_interval(pseudo, factor):
    """Return the interval if each example moves the harm of a seed by ``factor`` times its pseudo-value."""
    harm = pseudo.mean(1)
    return metrics.crossed_bootstrap(
        pseudo, lambda counts: harm + factor * (counts @ (pseudo.T - harm)) / pseudo.shape[1], margin=0.02, alpha=0.05
    )


def test_a_bootstrap_that_varies_more_widens_the_interval():
    pseudo = np.random.default_rng(0).normal(0, 1, size=(3, 50))
    narrow, wide = bootstrap_interval(pseudo, 0.1), bootstrap_interval(pseudo, 5.0)
    assert narrow.se == pytest.approx(intervals.crossed_interval(pseudo, margin=0.02, alpha=0.05).se)
    assert wide.low < narrow.low
    assert wide.high > narrow.high
    assert wide == bootstrap_interval(pseudo, 5.0)


def test_different_seeds_widen_the_bootstrap_interval():
    pseudo = np.random.default_rng(0).normal(0, 1, size=(3, 50))
    pseudo -= pseudo.mean(1, keepdims=True)
    different = pseudo + np.array([[-3.0], [0.0], [3.0]])
    _, seeds, _, rest = intervals.mean_squares(different)
    variance = bootstrap_interval(pseudo, 5.0).se ** 2 + (seeds - rest) / 150
    assert bootstrap_interval(different, 5.0).se ** 2 == pytest.approx(variance)


@pytest.mark.parametrize("metric", OTHERS)
def test_unequal_groups_keep_the_harm_of_the_metric(metric):
    group = np.minimum(np.arange(60) // 4, 9)
    cured, subject = (
        [random_predictions(seed, group=group) for seed in range(3)],
        [random_predictions(seed + 9, group=group) for seed in range(3)],
    )
    estimate, pseudo = metrics.estimate_metric_contrast(make_arms(cured, subject), HARM, metric=metric, margin=0.02, alpha=0.05)
    assert estimate.harm == pytest.approx(pseudo.mean())
    assert estimate.examples == 10


@pytest.mark.parametrize("metric", OTHERS)
def test_a_class_with_one_example_stays_undecided(metric):
    cured = two_classes([1] + [0] * 40, np.linspace(0.9, 0.1, 41))
    subject = two_classes([1] + [0] * 40, np.linspace(0.1, 0.9, 41))
    estimate, _ = metrics.estimate_metric_contrast(
        make_arms([cured] * 3, [subject] * 3), HARM, metric=metric, margin=0.02, alpha=0.05
    )
    assert (estimate.p_fail, estimate.p_pass) == (1.0, 1.0)


@pytest.mark.parametrize("metric", ["nll", "brier", "auroc"])
def test_a_missing_probability_stays_undecided(metric):
    broken = random_predictions(0)
    broken.p_true[3], broken.sum_p2[3], broken.probabilities[3] = nan, nan, nan
    estimate, _ = metrics.estimate_metric_contrast(
        make_arms([random_predictions(5), broken], [random_predictions(6), random_predictions(7)]),
        HARM,
        metric=metric,
        margin=9.0,
        alpha=0.05,
    )
    assert (estimate.p_fail, estimate.p_pass) == (1.0, 1.0)
    assert isnan(estimate.harm)


@pytest.mark.parametrize("metric", OTHERS)
def test_equal_arms_pass_only_with_many_examples(metric):
    few, many = [random_predictions(0, N=60)] * 3, [random_predictions(0, N=3000)] * 3
    verdicts = []
    for arm in (few, many):
        estimate, _ = metrics.estimate_metric_contrast(make_arms(arm, arm), HARM, metric=metric, margin=0.02, alpha=0.05)
        verdicts.append(multiplicity.decide(estimate.p_fail, estimate.p_pass, 0.05))
    assert verdicts == ["INCONCLUSIVE", "PASS"]
