"""Transferability scores, compared with closed forms and values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from xferbench.lab.evaluation import transferability


def logme(x, labels):
    return transferability.logme(x, labels[None])[0]


def h_score(x, labels):
    return transferability.h_score(x, labels[None])[0]


def leep(p, labels):
    return transferability.leep(p, labels[None])[0]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_mmd2_equals_its_formula():
    x, y = np.array([[0.0], [1.0]]), np.array([[2.0], [4.0]])
    width = np.median([1, 4, 16, 1, 9, 4])  # squared distances of the six pairs

    def k(a, b):
        return np.exp(-((a - b) ** 2) / (2 * width))

    expected = k(0, 1) + k(2, 4) - 2 * (k(0, 2) + k(0, 4) + k(1, 2) + k(1, 4)) / 4
    assert transferability.mmd2(x, y) == pytest.approx(expected)


def test_mmd2_is_unbiased_and_proxy_a_is_near_0_for_equal_distributions():
    pairs = [(normal(40, 5, seed=seed), normal(40, 5, seed=100 + seed)) for seed in range(30)]
    values = [transferability.mmd2(x, y) for x, y in pairs]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(30) and min(values) < 0 < max(values)
    assert abs(np.mean([transferability.proxy_a_distance(x, y) for x, y in pairs])) < 0.15


def test_proxy_a_is_2_for_separable_sets_and_grows_with_the_gap():
    x, y = normal(100, 5), normal(100, 5, seed=1)
    assert transferability.proxy_a_distance(x, y + 20) == 2
    assert (
        transferability.proxy_a_distance(x, y)
        < transferability.proxy_a_distance(x, y + 0.7)
        < transferability.proxy_a_distance(x, y + 3)
    )
    assert transferability.proxy_a_distance(normal(50, 80), normal(50, 80, seed=1) + 3) == 2, "fewer images than features"


def test_frechet_equals_the_closed_form_of_two_gaussians():
    x = normal(60, 4)
    assert transferability.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert transferability.frechet_distance(x, x + np.array([3, 0, 4, 0])) == pytest.approx(25)
    spread = np.trace(np.cov(x.T))
    assert transferability.frechet_distance(x, 3 * x - 2 * x.mean(0)) == pytest.approx(4 * spread), (
        "(1 − 3)² tr Σ if only the spread differs"
    )
    high_dimensional = transferability.frechet_distance(normal(20, 200), normal(20, 200, seed=1))
    assert high_dimensional > 5 * transferability.frechet_distance(normal(2000, 200), normal(2000, 200, seed=1)), (
        "few images make it too large"
    )


def test_cka_is_invariant_to_rotation_and_scale():
    x = normal(50, 6)
    rotated = x @ np.linalg.qr(normal(6, 6, seed=1))[0]
    assert transferability.linear_cka(x, 3 * rotated + 1) == pytest.approx(1)
    assert transferability.linear_cka(x, normal(50, 6, seed=2)) < 0.3
    assert np.isnan(transferability.linear_cka(x, np.ones((50, 6))))


def evidence(x, y, alpha, beta):
    """Return the log density of targets under N(0, FFᵀ/α + I/β)."""
    covariance = x @ x.T / alpha + np.eye(len(y)) / beta
    return -(len(y) * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + y @ np.linalg.solve(covariance, y)) / 2


@pytest.mark.parametrize("shape", [(30, 3), (12, 20)])
def test_logme_is_the_maximum_evidence_on_a_grid(shape):
    x = normal(*shape)
    labels = (x[:, 0] + 0.5 * normal(shape[0], seed=1) > 0).astype(int)
    grid = np.exp(np.linspace(-4, 8, 49))
    best = [max(evidence(x, (labels == label).astype(float), a, b) for a in grid for b in grid) for label in (0, 1)]
    assert logme(x, labels) * len(labels) == pytest.approx(np.mean(best), abs=0.05)


def test_logme_prefers_features_that_determine_the_labels():
    labels = np.arange(60) % 3
    good = np.eye(3)[labels] + 0.1 * normal(60, 3)
    assert logme(good, labels) > logme(normal(60, 3), labels) + 0.3


def test_h_score_is_between_class_variance_and_at_most_classes_minus_1():
    x, labels = np.array([[0.0], [2.0], [4.0], [6.0]]), np.array([0, 0, 1, 1])
    assert h_score(x, labels) == pytest.approx(4 / 5), "means 1 and 5 about 3, and a variance of 5"
    apart = np.eye(3)[np.arange(30) % 3]
    assert h_score(apart, np.arange(30) % 3) == pytest.approx(2)
    assert h_score(normal(20, 50), np.arange(20) % 4) == pytest.approx(3), "n < d separates any labels"


def test_leep_equals_its_formula():
    known = np.eye(2)[[0, 0, 1, 1]]
    assert leep(known, np.array([5, 5, 7, 7])) == pytest.approx(0)
    assert leep(known, np.array([5, 7, 5, 7])) == pytest.approx(np.log(0.5))
    p = np.array([[0.9, 0.1], [0.2, 0.8]])  # P(y | z) is 9/11 and 2/11 for column 0, and 1/9 and 8/9 for column 1
    expected = np.mean(np.log([0.9 * 9 / 11 + 0.1 / 9, 0.2 * 2 / 11 + 0.8 * 8 / 9]))
    assert leep(p, np.array([0, 1])) == pytest.approx(expected)


@pytest.mark.parametrize("score", [transferability.logme, transferability.h_score], ids=["logme", "h-score"])
def test_a_score_of_several_labelings_is_that_of_each(score):
    x, labelings = normal(30, 4), np.stack([np.arange(30) % 3, np.arange(30) // 10, np.arange(30) % 2])
    assert score(x, labelings) == pytest.approx([score(x, labels[None])[0] for labels in labelings])
