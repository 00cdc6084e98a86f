"""Arms in words. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.config.render import describe_pipeline, describe_recipe
from xferbench.study.selection import ResolvedArm, peak_lr

if TYPE_CHECKING:
    from xferbench.core.pipeline import InputTransform


def describe_arm(arm: ResolvedArm, recorded: InputTransform) -> dict[str, object]:
    """A settled arm in words, for the report; ``recorded`` is the preprocessing that needs none."""
    if arm.pipeline is None:
        return {"recipe": "", "error": arm.error}
    weighed = [
        {
            "recipe": describe_pipeline(one.pipeline, recorded)
            if one.pipeline.finished
            else describe_recipe(one.pipeline.recipe),
            "rate": peak_lr(one.pipeline),
            "validation": one.score,
            "kept": one.keeping,
            "diverged": one.diverged,
            "confidence": one.confidence,
            "curve": one.curve,
            "chosen": one.pipeline == arm.pipeline,
        }
        for one in arm.weighed
    ]
    return {"recipe": describe_pipeline(arm.pipeline, recorded), "weighed": weighed, "edge": arm.at_edge}
