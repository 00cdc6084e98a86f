"""Populations of seeds and examples whose true harm is known, and how often verdicts on samples of them are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from xferbench.analysis import intervals, metrics, multiplicity

ALPHA = 0.05
LOOKS = (5, 10, 20)
SEEDS = (1, 3, 5, 10, 20)
EXAMPLES = (50, 153, 500, 2000)
MAX_NUMBERS = 2_000_000  # numbers of one D that are in memory together

Draw = Callable[[np.random.Generator, tuple[int, int, int], Sequence[float]], list[np.ndarray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A population of seeds and examples.

    Attributes:
        name: the name.
        says: the world in words.
        draw: takes a shape [R, S, N] and harms, and returns for each harm R independent [S, N] tables with this expectation.
        margin: the margin of verdicts.
        span: the range of D.
        seeds: numbers of seeds.
        sequence: whether the first few of its seeds are a sample of that many.
        groups: takes a number of examples, and returns the group of each [N]; None if there are no groups.
        apart: whether it breaks the assumptions of the interval.
    """

    name: str
    says: str
    draw: Draw
    margin: float = 0.02
    span: float = 1.0
    seeds: tuple[int, ...] = SEEDS
    sequence: bool = True
    groups: Callable[[int], np.ndarray] | None = None
    apart: bool = False


def probit(
    generator: np.random.Generator,
    shape: tuple[int, int, int],
    harms: Sequence[float],
    *,
    accuracy: float = 0.8,
    common: float,
    item: float = 0.0,
    seed: float = 0.0,
    group: float = 0.0,
    groups: Callable[[int], np.ndarray] = np.arange,
) -> list[np.ndarray]:
    """Draw the correctness of two arms as a threshold on a standard normal; the expected harm is exact for all parameters.

    The parameters are shares of the variance. ``common`` belongs to the example, for both arms and all seeds; ``item`` to the
    arm and the example, for all seeds; ``seed`` to the arm and the seed, for all examples; ``group`` is like ``item``, for
    all examples of a group together. The rest is independent at every seed and example.
    """
    R, S, N = shape

    def normal(variance: float, *of: int) -> np.ndarray:
        return np.float32(np.sqrt(max(variance, 0.0))) * generator.standard_normal(of, dtype=np.float32)

    shared = normal(common, R, 1, N)
    arms = []
    for _ in range(2):
        score = normal(1 - common - item - seed - group, R, S, N)
        score += shared + normal(item, R, 1, N)
        score += normal(seed, R, S, 1)
        member = groups(N)
        score += normal(group, R, 1, int(member.max()) + 1)[:, :, member]
        arms.append(score)
    cured = (arms[0] > quantile(1 - accuracy)).astype(np.float64)
    return [cured - (arms[1] > quantile(1 - accuracy + harm)) for harm in harms]


def quantile(share: float | np.ndarray) -> Any:
    """Return a quantile of the standard normal."""
    from scipy.special import ndtri

    return ndtri(share)


def groups_of_ten(N: int) -> np.ndarray:
    """Return the group of each example, ten examples a group."""
    return np.arange(N) // 10


def unequal_groups(N: int) -> np.ndarray:
    """Return the group of each example; the groups have 1 to 30 examples."""
    sizes = np.tile([1, 2, 3, 5, 9, 30], N // 50 + 1)
    return np.repeat(np.arange(len(sizes)), sizes)[:N]


def twenty_groups(N: int) -> np.ndarray:
    """Return the group of each example, twenty groups of equal size."""
    return np.arange(N) * 20 // N


def rare(
    generator: np.random.Generator, shape: tuple[int, int, int], harms: Sequence[float], *, fresh: bool
) -> list[np.ndarray]:
    """Draw D, which is 1 with the harm as its probability and else 0: by example or, if ``fresh``, by seed and example."""
    R, S, N = shape
    uniform = generator.random((R, S if fresh else 1, N))
    return [np.broadcast_to(uniform < harm, shape).astype(np.float64) for harm in harms]


def diverged(
    generator: np.random.Generator, shape: tuple[int, int, int], harms: Sequence[float], *, rate: float | None
) -> list[np.ndarray]:
    """Draw a two-class task; at diverged seeds the subject predicts one class, with accuracy .5, while the cured arm has .8.

    Each seed diverges independently with probability ``rate``; None means exactly one random seed of the S. The accuracy of the
    subject at its other seeds follows from the requested harm, which is the expectation over seeds of both kinds.
    """
    R, S, N = shape
    probability = 1 / S if rate is None else rate
    if rate is None:
        hit = (np.arange(S) == generator.integers(S, size=(R, 1)))[:, :, None]
    else:
        hit = generator.random((R, S, 1)) < rate
    healthy = [(harm - 0.3 * probability) / (1 - probability) for harm in harms]
    tables = probit(generator, shape, [*healthy, 0.8], **ORDINARY)
    cured = tables.pop()  # if the other arm is never correct, D is the correctness of the cured arm
    majority = generator.random((R, 1, N)) < 0.5
    return [np.where(hit, cured - majority, differences) for differences in tables]


def skewed(
    generator: np.random.Generator, shape: tuple[int, int, int], harms: Sequence[float], *, sign: float
) -> list[np.ndarray]:
    """Draw differences of a loss: exponential by example (half of the variance) and by seed and example, normal by seed."""
    R, S, N = shape
    noise = generator.standard_exponential((R, S, N)) + generator.standard_exponential((R, 1, N)) - 2
    return [harm + sign * 0.3 * noise + 0.02 * generator.standard_normal((R, S, 1)) for harm in harms]


ORDINARY: dict[str, Any] = {"common": 0.77, "item": 0.08, "seed": 0.002}
GROUPED: dict[str, Any] = {"common": 0.60, "item": 0.04, "seed": 0.001, "group": 0.2}
WORLDS = (
    World(name="ordinary", says="both arms near .80 accuracy", draw=partial(probit, **ORDINARY)),
    World(
        name="ordinary, margin .10",
        says="the same, judged with a margin that few examples can decide",
        draw=partial(probit, **ORDINARY),
        margin=0.1,
    ),
    World(
        name="noisy seeds",
        says="the harm itself varies much from seed to seed",
        draw=partial(probit, common=0.75, item=0.08, seed=0.03),
    ),
    World(
        name="fixed disagreement",
        says="the arms disagree on the same examples at every seed, and seeds add nothing",
        draw=partial(probit, common=0.8, item=0.2),
    ),
    World(
        name="fresh disagreement", says="the arms disagree on other examples at every seed", draw=partial(probit, common=0.8)
    ),
    World(name="many disagreements", says="hardly anything in common", draw=partial(probit, common=0.2, item=0.2, seed=0.004)),
    World(
        name="ties",
        says="accuracy .97, arms that agree nearly everywhere",
        draw=partial(probit, accuracy=0.97, common=0.95, item=0.02, seed=0.0005),
    ),
    World(
        name="nearly all zero, fixed",
        says="D is 1 on a share H of the examples, at every seed, and else 0",
        draw=partial(rare, fresh=False),
    ),
    World(
        name="nearly all zero, fresh",
        says="D is 1 with probability H at every seed and example, and else 0",
        draw=partial(rare, fresh=True),
    ),
    World(
        name="one diverged seed",
        says="exactly one of the S subject runs predicts the majority class; H is the mean over such sets",
        draw=partial(diverged, rate=None),
        seeds=SEEDS[1:],
        sequence=False,
    ),
    World(
        name="groups of ten",
        says="ten correlated images a group; N images, judged by group",
        draw=partial(probit, groups=groups_of_ten, **GROUPED),
        groups=groups_of_ten,
    ),
    World(
        name="unequal groups",
        says="groups of 1 to 30 correlated images, judged by group",
        draw=partial(probit, groups=unequal_groups, **GROUPED),
        groups=unequal_groups,
    ),
    World(
        name="twenty groups",
        says="the images of twenty patients, whose harms differ, judged by patient with a margin of .05",
        draw=partial(probit, groups=twenty_groups, common=0.60, item=0.04, seed=0.001, group=0.02),
        margin=0.05,
        groups=twenty_groups,
    ),
    World(
        name="small test set",
        says="both arms near .80 accuracy, which disagree on a tenth of the examples, margin .05",
        draw=partial(probit, common=0.88, item=0.06, seed=0.002),
        margin=0.05,
    ),
    World(
        name="loss, skewed to harm",
        says="an NLL with exponential tails towards harm, margin 0.1 nats",
        draw=partial(skewed, sign=1.0),
        margin=0.1,
        span=metrics.METRICS["nll"].span,
    ),
    World(
        name="loss, skewed to benefit",
        says="the same with the tails the other way",
        draw=partial(skewed, sign=-1.0),
        margin=0.1,
        span=metrics.METRICS["nll"].span,
    ),
    World(
        name="groups of ten, ignored",
        says="the same images, judged as if they were independent; judging by group prevents this",
        draw=partial(probit, groups=groups_of_ten, **GROUPED),
        apart=True,
    ),
    World(
        name="rarely diverging seeds",
        says="each subject run by itself predicts the majority class with probability .10",
        draw=partial(diverged, rate=0.1),
        apart=True,
    ),
    World(
        name="very rarely diverging seeds", says="the same with probability .02", draw=partial(diverged, rate=0.02), apart=True
    ),
)


def batches(replicates: int, numbers: int) -> Iterator[int]:
    """Cut replicates into batches of at most ``MAX_NUMBERS`` numbers."""
    step = max(1, MAX_NUMBERS // numbers)
    for done in range(0, replicates, step):
        yield min(step, replicates - done)


def cell(number: int, S: int, N: int, replicates: int, seed: int) -> dict[str, Any]:
    """Return the rates, as shares of the replicates, in the world of that number with S seeds and N examples."""
    generator = np.random.default_rng([seed, number, S, N])
    world = WORLDS[number]
    groups = None if world.groups is None else world.groups(N)
    m, p_values = world.margin, partial(intervals.p_values, span=world.span, groups=groups)
    totals: dict[str, float] = {}
    for R in batches(replicates, S * N):
        null, edge, double = world.draw(generator, (R, S, N), (0.0, m, 2 * m))
        fail, passed = p_values(edge, m)
        counts = {
            "wrong_fail": (fail < ALPHA).sum(),
            "wrong_pass": (passed < ALPHA).sum(),
            "power_pass": (p_values(null, m)[1] < ALPHA).sum(),
            "power_fail": (p_values(double, m)[0] < ALPHA).sum(),
        }
        if S > 1:
            _, seeds, examples, rest = intervals.mean_squares(edge)
            variances = {"seed": (seeds - rest) / N, "item": (examples - rest) / S, "rest": rest}
            counts |= {f"variance_{name}": variance.sum() for name, variance in variances.items()}
        if world.sequence and max(LOOKS) == S:
            levels = np.array(multiplicity.look_levels(LOOKS, ALPHA))
            looks = np.array([p_values(edge[:, :look], m) for look in LOOKS])  # [looks, ways, R]
            wrong_fail, wrong_pass = (looks < levels[:, None, None]).any(0).sum(-1)
            counts |= {"sequential_wrong_fail": wrong_fail, "sequential_wrong_pass": wrong_pass}
        totals = {name: totals.get(name, 0.0) + float(count) for name, count in counts.items()}
    shares = {name: total / replicates for name, total in totals.items()}
    setting = {"world": world.name, "metric": "mean", "margin": m, "seeds": S, "examples": N, "replicates": replicates}
    return setting | shares
