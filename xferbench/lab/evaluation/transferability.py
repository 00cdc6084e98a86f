"""Distances between two sets of features, and transferability scores of features for labels. Pure, numpy only.

All are estimates from few images and therefore biased; each docstring says how. A score of labels takes several labelings of
the same images, so that permuted labels show its value for features that say nothing about the labels.
"""

from __future__ import annotations

import numpy as np

FOLDS = 5
RIDGE_PENALTY = 1e-2  # penalty of the classifier of the proxy A-distance, in units of a standardized feature's variance
LOGME_ITERATIONS = 100  # iterations of LogME's fixed point, which converges long before


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the squared maximum mean discrepancy with a Gaussian kernel as wide as the median distance.

    This is the U-statistic of Gretton et al. 2012 (JMLR 13). Its expectation is 0 if both sets come from one distribution, so
    it may be negative.

    Args:
        x: features [n, d].
        y: features [m, d].
    """
    n, m = len(x), len(y)
    both = np.concatenate([x, y])
    squares = _squared_distances(both)
    width = np.median(squares[np.triu_indices(n + m, 1)])
    kernel = np.exp(-squares / (2 * max(float(width), 1e-12)))
    within = [(part.sum() - np.trace(part)) / (size * (size - 1)) for part, size in ((kernel[:n, :n], n), (kernel[n:, n:], m))]
    return float(within[0] + within[1] - 2 * kernel[:n, n:].mean())


def _squared_distances(x: np.ndarray) -> np.ndarray:
    norms = (x**2).sum(1)
    squares: np.ndarray = np.clip(norms[:, None] + norms[None] - 2 * x @ x.T, 0, None)
    return squares


def proxy_a_distance(x: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    """Compute the proxy A-distance 2(1 − 2ε), where ε is the error of a linear classifier that separates the sets.

    See Ben-David et al. 2007. ε is the error of five-fold cross-validation, and the classifier is ridge regression on
    standardized features. The distance is about 0 if the sets cannot be separated (by chance it may be negative) and 2 if they
    are separated perfectly. With few images the classifier is worse than it could be, and the distance is too small.

    Args:
        x: features [n, d].
        y: features [m, d].
        seed: of the folds.
    """
    both = np.concatenate([x, y])
    sign = np.repeat([1.0, -1.0], [len(x), len(y)])
    order = np.random.default_rng(seed).permutation(len(both))
    errors = 0
    for fold in np.array_split(order, FOLDS):
        rest = np.setdiff1d(order, fold)
        mean, scale = both[rest].mean(0), both[rest].std(0) + 1e-6
        a, b = (both[rest] - mean) / scale, (both[fold] - mean) / scale
        offset = sign[rest].mean()
        weight = np.linalg.solve(a.T @ a + RIDGE_PENALTY * len(rest) * np.eye(a.shape[1]), a.T @ (sign[rest] - offset))
        errors += int(((b @ weight + offset) * sign[fold] <= 0).sum())
    return 2 * (1 - 2 * errors / len(both))


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the Fréchet distance of two Gaussians with the means and covariances of the features (Dowson & Landau 1982).

    The distance is ‖μ − ν‖² + tr(Σ + Τ − 2(ΣΤ)^½). The trace of the square root is the nuclear norm of the product of the
    centered features. Few images make the distance too large, above all if n < d. Compare values only at equal n and d (Chong &
    Forsyth 2020).

    Args:
        x: features [n, d].
        y: features [m, d].
    """
    means = x.mean(0) - y.mean(0)
    a, b = ((sample - sample.mean(0)) / np.sqrt(len(sample) - 1) for sample in (x, y))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(means @ means + (a**2).sum() + (b**2).sum() - 2 * root)


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the linear CKA of two feature sets of the same examples (Kornblith et al. 2019).

    It is 1 if one set is a rotation of the other. It has no meaning for different examples. With n < d it is near 1 for any
    features.

    Args:
        x: features [n, d].
        y: features [n, e].

    Returns:
        A number from 0 to 1, or NaN if either set has no variance.
    """
    a, b = x - x.mean(0), y - y.mean(0)
    norm = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(a.T @ b) ** 2 / norm) if norm > 0 else float("nan")


def logme(x: np.ndarray, labelings: np.ndarray) -> np.ndarray:
    """Compute LogME (You et al. 2021), the mean log evidence of the features for one class against the rest.

    The targets 0 and 1 of each class are modeled by Bayesian linear regression on the raw features, without an offset. The
    evidence determines its two precisions. The score grows with the number of classes, because rare classes are easy to fit.

    Args:
        x: features [n, d].
        labelings: labels [P, n].

    Returns:
        The mean over classes and examples, [P].
    """
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    evidence = [
        [_log_evidence(u, s**2, x.shape, (labels == label).astype(float)) for label in np.unique(labels)]
        for labels in labelings
    ]
    return np.array([np.mean(by_class) for by_class in evidence])


def _log_evidence(u: np.ndarray, squares: np.ndarray, shape: tuple[int, ...], y: np.ndarray) -> float:
    """Compute the log evidence per example of targets [n], at the precisions α and β of MacKay's fixed point."""
    n, d = shape
    projected = (u.T @ y) ** 2
    orthogonal = max(float(y @ y - projected.sum()), 0.0)
    alpha = beta = 1.0
    for _ in range(LOGME_ITERATIONS):
        ratio = alpha / beta
        effective = (squares / (squares + ratio)).sum()
        weight_norm = max(float((squares * projected / (squares + ratio) ** 2).sum()), 1e-12)  # ‖m‖²
        residual = max(float((projected * (ratio / (squares + ratio)) ** 2).sum()) + orthogonal, 1e-12)  # ‖y − Fm‖²
        alpha, beta, previous = effective / weight_norm, max(n - effective, 1e-6) / residual, ratio
        if abs(alpha / beta / previous - 1) < 1e-4:
            break
    determinant = (np.log(alpha + beta * squares)).sum() + (d - len(squares)) * np.log(alpha)
    ratio = alpha / beta
    weight_norm = float((squares * projected / (squares + ratio) ** 2).sum())
    residual = float((projected * (ratio / (squares + ratio)) ** 2).sum()) + orthogonal
    evidence = (
        n * np.log(beta) + d * np.log(alpha) - n * np.log(2 * np.pi) - beta * residual - alpha * weight_norm - determinant
    )
    return float(evidence / (2 * n))


def h_score(x: np.ndarray, labelings: np.ndarray) -> np.ndarray:
    """Compute the H-score tr(cov(f)⁻¹ cov(E[f | y])) (Bao et al. 2019).

    The inverse is the pseudo-inverse. If n ≤ d, the features separate any labels and the score is at its maximum for any
    features (Ibrahim et al. 2021). Compare scores only for one target.

    Args:
        x: features [n, d].
        labelings: labels [P, n].

    Returns:
        Numbers from 0 to the number of classes minus 1, [P].
    """
    centered = x - x.mean(0)
    inverse = np.linalg.pinv(centered.T @ centered / len(x), rcond=1e-8, hermitian=True)
    scores = []
    for labels in labelings:
        _, class_index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        means = np.stack([centered[class_index == index].mean(0) for index in range(len(sizes))])
        scores.append((sizes * ((means @ inverse) * means).sum(1)).sum() / len(x))
    return np.array(scores)


def leep(p: np.ndarray, labelings: np.ndarray) -> np.ndarray:
    """Compute LEEP (Nguyen et al. 2020), the mean log of Σ_z P(y | z) p(z | x).

    P(y | z) is estimated on the same examples, so the score is too high with many source classes and few examples.

    Args:
        p: probabilities [n, Z] of the source head.
        labelings: labels [P, n].

    Returns:
        Numbers of at most 0, [P].
    """
    scores = []
    for labels in labelings:
        classes, class_index = np.unique(labels, return_inverse=True)
        joint = np.stack([p[class_index == index].sum(0) for index in range(len(classes))])
        conditional = joint / np.clip(joint.sum(0), 1e-12, None)
        scores.append(np.log(np.clip((p * conditional[class_index]).sum(1), 1e-12, None)).mean())
    return np.array(scores)
