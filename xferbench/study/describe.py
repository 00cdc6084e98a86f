"""Arms in words, for the report. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.config.render import describe_pipeline, describe_recipe
from xferbench.study.selection import ResolvedArm, peak_lr

if TYPE_CHECKING:
    from xferbench.core.pipeline import Pipeline
    from xferbench.core.transforms import InputTransform
    from xferbench.study.selection import CandidateScore


def describe_arm(arm: ResolvedArm, recorded: InputTransform) -> dict[str, object]:
    """Return a resolved arm in words; ``recorded`` is the preprocessing that is not mentioned."""
    if arm.pipeline is None:
        return {"recipe": "", "error": arm.error}
    weighed = [_describe_candidate(candidate, arm.pipeline, recorded) for candidate in arm.candidates]
    return {"recipe": describe_pipeline(arm.pipeline, recorded), "weighed": weighed, "edge": arm.at_edge}


def _describe_candidate(candidate: CandidateScore, selected: Pipeline, recorded: InputTransform) -> dict[str, object]:
    pipeline = candidate.pipeline
    return {
        "recipe": describe_pipeline(pipeline, recorded) if pipeline.checkpoint else describe_recipe(pipeline.recipe),
        "rate": peak_lr(pipeline),
        "validation": candidate.score,
        "kept": candidate.keeping,
        "diverged": candidate.diverged,
        "confidence": candidate.confidence,
        "curve": candidate.curve,
        "chosen": pipeline == selected,
    }
