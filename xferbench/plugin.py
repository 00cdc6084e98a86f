"""Everything that the author of a plugin imports. Imports no torch.

``MeasureContext`` is only for annotations of a measure's argument, because its class imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xferbench.core import interventions, strategies
from xferbench.core.contrasts import failed_share, harm, info, invariant
from xferbench.core.pipeline import Arm, Phase, Pipeline, Recipe, Selection, replace_data, replace_serving
from xferbench.core.plugin import HARM, Contrast, Plugin, Profile
from xferbench.core.record import Record
from xferbench.core.requirements import (
    always_applies,
    leave_unchanged,
    requires_batchnorm,
    requires_pretrained,
    requires_several_steps,
    requires_source,
    unrecorded_preprocessing,
)
from xferbench.core.run import Run
from xferbench.core.strategies import full_finetune_phase, map_phases, replace_phases
from xferbench.core.transforms import InputTransform, Preprocessing, Spectrogram, Tokens
from xferbench.report import plotting, records

if TYPE_CHECKING:
    from xferbench.lab.evaluation.context import MeasureContext
else:
    MeasureContext = Any

__all__ = [
    "HARM",
    "Arm",
    "Contrast",
    "InputTransform",
    "MeasureContext",
    "Phase",
    "Pipeline",
    "Plugin",
    "Preprocessing",
    "Profile",
    "Recipe",
    "Record",
    "Run",
    "Selection",
    "Spectrogram",
    "Tokens",
    "always_applies",
    "failed_share",
    "full_finetune_phase",
    "harm",
    "info",
    "interventions",
    "invariant",
    "leave_unchanged",
    "map_phases",
    "plotting",
    "records",
    "replace_data",
    "replace_phases",
    "replace_serving",
    "requires_batchnorm",
    "requires_pretrained",
    "requires_several_steps",
    "requires_source",
    "strategies",
    "unrecorded_preprocessing",
]
