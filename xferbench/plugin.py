"""Everything that the author of a plugin imports, in one place. Imports no torch.

``MeasureContext`` names the argument of a measure in annotations only: its class lives with torch in the worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xferbench import pictures as plotting
from xferbench import strategies
from xferbench.core import interventions
from xferbench.core.contrasts import harm, info, invariant
from xferbench.core.requirements import (
    always_applies,
    leave_unchanged,
    requires_batchnorm,
    requires_pretrained,
    requires_several_steps,
    requires_source,
    unrecorded_preprocessing,
)
from xferbench.design import (
    HARM,
    Arm,
    Choice,
    Contrast,
    Facts,
    Phase,
    Pipeline,
    Plugin,
    Preprocessing,
    Ready,
    Recipe,
    Spectrogram,
)
from xferbench.plugins import records
from xferbench.record import Record, Run
from xferbench.strategies import each as map_phases
from xferbench.strategies import rephased as with_phases
from xferbench.strategies import whole as full_finetune_phase

if TYPE_CHECKING:
    from xferbench.lab.viewed import Seen as MeasureContext
else:
    MeasureContext = Any

__all__ = [
    "HARM",
    "Arm",
    "Choice",
    "Contrast",
    "Facts",
    "MeasureContext",
    "Phase",
    "Pipeline",
    "Plugin",
    "Preprocessing",
    "Ready",
    "Recipe",
    "Record",
    "Run",
    "Spectrogram",
    "always_applies",
    "full_finetune_phase",
    "harm",
    "info",
    "interventions",
    "invariant",
    "leave_unchanged",
    "map_phases",
    "plotting",
    "records",
    "requires_batchnorm",
    "requires_pretrained",
    "requires_several_steps",
    "requires_source",
    "strategies",
    "unrecorded_preprocessing",
    "with_phases",
]
