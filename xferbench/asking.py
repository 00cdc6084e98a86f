"""What many plugins ask alike: where they apply, what they leave as it is, and how one arm is held against another. Pure."""

from __future__ import annotations

from xferbench.design import Contrast, Facts, Pipeline


def always(_pipeline: Pipeline, _facts: Facts) -> str:
    """Ask about every pipeline."""
    return ""


def adapted(pipeline: Pipeline, _facts: Facts) -> str:
    """Ask where something pretrained is adapted; else the reason why not."""
    return "" if pipeline.recipe.init == "pretrained" else "nothing pretrained is adapted"


def batchnorm(pipeline: Pipeline, facts: Facts) -> str:
    """Ask where a pretrained backbone with BatchNorm is adapted."""
    return adapted(pipeline, facts) if facts.has_batchnorm else "the backbone has no BatchNorm layer"


def source(pipeline: Pipeline, facts: Facts) -> str:
    """Ask where something pretrained is adapted, and the classes of its source are known."""
    unknown = "" if facts.source else facts.no_source or "the suite has no [source] whose classes are known"
    return adapted(pipeline, facts) or unknown


def several(pipeline: Pipeline, facts: Facts, wanted: str) -> str:
    """Ask where something pretrained is adapted in more steps than one; what is ``wanted`` of them is told else."""
    one = sum(phase.steps for phase in pipeline.recipe.phases) < 2
    return adapted(pipeline, facts) or (f"a single step leaves none {wanted}" if one else "")


def recorded(_pipeline: Pipeline, facts: Facts) -> str:
    """What is taken on trust where nobody recorded a preprocessing with the weights."""
    return "" if facts.recorded else "no preprocessing is recorded with these weights; state it under [backbone]"


def unchanged(pipeline: Pipeline, _facts: Facts) -> Pipeline:
    """The cure where there is none: what is only measured, or is an invariant."""
    return pipeline


def judged(
    name: str, more: tuple[str, str], less: tuple[str, str], meaning: str = "", metric: str = "", margin: float | None = None
) -> Contrast:
    """A difference between two (arm, view) that is held against the margin: harm where the first has more."""
    weights = {more: 1.0, less: -1.0}
    return Contrast(name=name, weights=weights, meaning=meaning, metric=metric, margin=margin)


def measured(name: str, more: tuple[str, str], less: tuple[str, str], meaning: str = "", metric: str = "") -> Contrast:
    """A difference between two (arm, view) that never leads to a verdict."""
    return Contrast(name=name, kind="info", weights={more: 1.0, less: -1.0}, meaning=meaning, metric=metric)


def exact(name: str, meaning: str, *, measure: str = "", allowed: str = "", controlled: bool = True) -> Contrast:
    """An invariant: a measure of the subject, of the same name if not said, is 0, or at most what the suite allows."""
    weights = {("subject", measure or name): 1.0}
    return Contrast(name=name, kind="exact", weights=weights, meaning=meaning, allowed=allowed, controlled=controlled)
