"""Interventions as frozen values: each kind states its spelling, the range of its numbers, and its words. Pure.

No import registers a kind: each group of :data:`GROUPS` names its built-in kinds, and the lab finds an implementation
by a value's type, or imports the one that the value names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.core.interventions.base import *  # noqa: F403 - each module lists its public names
from xferbench.core.interventions.data import *  # noqa: F403
from xferbench.core.interventions.data import DataIntervention, InjectedDuplicates
from xferbench.core.interventions.edits import *  # noqa: F403
from xferbench.core.interventions.edits import Edit, Finish
from xferbench.core.interventions.initialization import *  # noqa: F403
from xferbench.core.interventions.initialization import Initialization, LayerTransfer
from xferbench.core.interventions.modes import *  # noqa: F403
from xferbench.core.interventions.modes import BatchNormMode, ServingMode
from xferbench.core.interventions.training import *  # noqa: F403
from xferbench.core.interventions.training import Augmentation, Head, Regularizer, Trainable

if TYPE_CHECKING:
    from xferbench.core.interventions.base import Intervention

GROUPS: tuple[type[Intervention], ...] = (
    DataIntervention,
    InjectedDuplicates,
    Initialization,
    LayerTransfer,
    Head,
    Trainable,
    BatchNormMode,
    Augmentation,
    Regularizer,
    Finish,
    Edit,
    ServingMode,
)
EXTENSIBLE_GROUPS: tuple[type[Intervention], ...] = (DataIntervention, Augmentation, Regularizer, Edit)  # packages add kinds
