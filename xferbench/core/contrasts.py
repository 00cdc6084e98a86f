"""Constructors of contrasts: which arm is compared with which, in one line. Pure."""

from __future__ import annotations

from xferbench.core.plugin import Contrast

Term = tuple[str, str]  # arm, view


def harm(name: str, more: Term, less: Term, meaning: str = "", metric: str = "", margin: float | None = None) -> Contrast:
    """Create a difference that is judged against the margin: a positive value, ``more`` above ``less``, is harm."""
    weights = {more: 1.0, less: -1.0}
    return Contrast(name=name, weights=weights, meaning=meaning, metric=metric, margin=margin)


def info(name: str, more: Term, less: Term, meaning: str = "", metric: str = "") -> Contrast:
    """Create a difference that is only measured and never leads to a verdict."""
    return Contrast(name=name, kind="info", weights={more: 1.0, less: -1.0}, meaning=meaning, metric=metric)


def failed_share(name: str, meaning: str, *, view: str = "test", allowed: str = "max_failed_runs") -> Contrast:
    """Create the share of the subject's runs that fail in a view, which is compared with a field of the suite.

    A run is compared with the other runs of its arm and with those of the cured arm; see
    :mod:`xferbench.analysis.seed_failures`.

    Args:
        name: the name of the contrast.
        meaning: the share in words.
        view: the view that the runs are seen in.
        allowed: the suite's field with the allowed share.
    """
    return Contrast(name=name, kind="share", weights={("subject", view): 1.0}, meaning=meaning, allowed=allowed)


def invariant(
    name: str, meaning: str, *, measure: str = "", allowed: str = "", controlled: bool = True, effect: str = ""
) -> Contrast:
    """Create an invariant: a measure of the subject must be 0, or at most the value of a field of the suite.

    Args:
        name: the name of the contrast.
        meaning: the invariant in words.
        measure: the name of the plugin's measure, by default the name of the contrast.
        allowed: the suite's field with the largest allowed value.
        controlled: whether the induced variants should break it.
        effect: the name of the measurement of what a broken invariant changes.
    """
    weights = {("subject", measure or name): 1.0}
    return Contrast(
        name=name, kind="exact", weights=weights, meaning=meaning, allowed=allowed, controlled=controlled, effect=effect
    )
