"""How far two sets of features lie apart, and how much a pretrained network's features tell of labels. Numpy alone.

All are estimates from few images, and biased by it; each says how.
"""

from __future__ import annotations

import numpy as np

FOLDS = 5
RIDGE = 1e-2  # of the proxy's classifier, in units of a standardised feature's variance
ROUNDS = 100  # of LogME's fixed point, which has settled long before


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy of features [n, d] and [m, d], by a Gaussian kernel as wide as their median distance.

    The U-statistic of Gretton et al. 2012 (JMLR 13): its mean is 0 where both come from one distribution, so that it may be
    below 0.
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
    found: np.ndarray = np.clip(norms[:, None] + norms[None] - 2 * x @ x.T, 0, None)
    return found


def proxy_a(x: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    """Proxy A-distance of features [n, d] and [n, d]: 2(1 − 2ε) of a linear classifier that tells them apart (Ben-David 2007).

    ε is its error in five-fold cross-validation, so that it is about 0 where nothing tells them apart (by chance below) and 2
    where everything does; from few images a classifier is worse than it could be, and the distance too small. The classifier is
    ridge regression on standardised features.
    """
    both = np.concatenate([x, y])
    sign = np.repeat([1.0, -1.0], [len(x), len(y)])
    order = np.random.default_rng(seed).permutation(len(both))
    wrong = 0
    for held in np.array_split(order, FOLDS):
        own = np.setdiff1d(order, held)
        mean, scale = both[own].mean(0), both[own].std(0) + 1e-6
        a, b = (both[own] - mean) / scale, (both[held] - mean) / scale
        offset = sign[own].mean()
        weight = np.linalg.solve(a.T @ a + RIDGE * len(own) * np.eye(a.shape[1]), a.T @ (sign[own] - offset))
        wrong += int(((b @ weight + offset) * sign[held] <= 0).sum())
    return 2 * (1 - 2 * wrong / len(both))


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance of two Gaussians with the means and covariances of features [n, d] and [m, d] (Dowson & Landau 1982).

    ‖μ − ν‖² + tr(Σ + Τ − 2(ΣΤ)^½), the trace of the root being the nuclear norm of the product of the centred features.
    Few images make it too large, above all where n < d; numbers are compared only at equal n and d (Chong & Forsyth 2020).
    """
    means = x.mean(0) - y.mean(0)
    a, b = ((one - one.mean(0)) / np.sqrt(len(one) - 1) for one in (x, y))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(means @ means + (a**2).sum() + (b**2).sum() - 2 * root)


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of features [n, d] and [n, e] of the same n examples (Kornblith et al. 2019): 1 where one is the other turned.

    It means nothing between different examples. With n < d it is near 1 whatever the features; NaN where either does not
    vary.
    """
    a, b = x - x.mean(0), y - y.mean(0)
    size = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(a.T @ b) ** 2 / size) if size > 0 else float("nan")


def logme(x: np.ndarray, labels: np.ndarray) -> float:
    """LogME (You et al. 2021): mean over classes and examples of the log evidence of features [n, d] for one class or not.

    Each class's 0 and 1 are taken for a Bayesian linear regression on the features as they are, without an offset, its two
    precisions chosen by the evidence. It grows with the number of classes, for rare classes are easy to fit.
    """
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    classes = np.unique(labels)
    return float(np.mean([_evidence(u, s**2, x.shape, (labels == one).astype(float)) for one in classes]))


def _evidence(u: np.ndarray, squares: np.ndarray, shape: tuple[int, ...], y: np.ndarray) -> float:
    """Log evidence an example of targets [n], at the precisions α and β of a fixed point (MacKay's)."""
    n, d = shape
    along = (u.T @ y) ** 2
    outside = max(float(y @ y - along.sum()), 0.0)
    alpha = beta = 1.0
    for _ in range(ROUNDS):
        ratio = alpha / beta
        effective = (squares / (squares + ratio)).sum()
        length = max(float((squares * along / (squares + ratio) ** 2).sum()), 1e-12)  # ‖m‖²
        rest = max(float((along * (ratio / (squares + ratio)) ** 2).sum()) + outside, 1e-12)  # ‖y − Fm‖²
        alpha, beta, before = effective / length, max(n - effective, 1e-6) / rest, ratio
        if abs(alpha / beta / before - 1) < 1e-4:
            break
    determinant = (np.log(alpha + beta * squares)).sum() + (d - len(squares)) * np.log(alpha)
    ratio = alpha / beta
    length = float((squares * along / (squares + ratio) ** 2).sum())
    rest = float((along * (ratio / (squares + ratio)) ** 2).sum()) + outside
    whole = n * np.log(beta) + d * np.log(alpha) - n * np.log(2 * np.pi) - beta * rest - alpha * length - determinant
    return float(whole / (2 * n))


def h_score(x: np.ndarray, labels: np.ndarray) -> float:
    """H-score (Bao et al. 2019): tr(cov(f)⁻¹ cov(E[f | y])) of features [n, d], from 0 to the number of classes less one.

    The inverse is the pseudo-inverse. With n ≤ d features tell any labels, and it is at its greatest whatever they are worth
    (Ibrahim et al. 2021); it is compared only within one target.
    """
    centred = x - x.mean(0)
    classes, place = np.unique(labels, return_inverse=True)
    means = np.stack([centred[place == one].mean(0) for one in range(len(classes))])
    between = means[place]
    inverse = np.linalg.pinv(centred.T @ centred / len(x), rcond=1e-8, hermitian=True)
    return float(np.trace(inverse @ (between.T @ between / len(x))))


def leep(p: np.ndarray, labels: np.ndarray) -> float:
    """LEEP (Nguyen et al. 2020): mean log of Σ_z P(y | z) p(z | x), p [n, Z] being the source head's probabilities.

    0 at best. P(y | z) is counted on the same examples, so that with many source classes and few examples it is too good.
    """
    classes, place = np.unique(labels, return_inverse=True)
    joint = np.stack([p[place == one].sum(0) for one in range(len(classes))])
    given = joint / np.clip(joint.sum(0), 1e-12, None)
    return float(np.log(np.clip((p * given[place]).sum(1), 1e-12, None)).mean())
