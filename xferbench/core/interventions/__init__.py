"""Interventions as frozen values: each kind states its spelling, the range of its numbers, and its words. Pure.

No import registers a kind: the built-in kinds are those of :data:`BUILT_IN`, and the lab finds an implementation
by a value's type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.core.interventions.base import *  # noqa: F403 - each module lists its public names
from xferbench.core.interventions.data import *  # noqa: F403
from xferbench.core.interventions.data import DATA_INTERVENTIONS, DataIntervention
from xferbench.core.interventions.edits import *  # noqa: F403
from xferbench.core.interventions.edits import EDITS, FINISHES, Edit, Finish
from xferbench.core.interventions.training import *  # noqa: F403
from xferbench.core.interventions.training import (
    AUGMENTATIONS,
    HEADS,
    REGULARIZERS,
    TRAINABLES,
    Augmentation,
    Head,
    Regularizer,
    Trainable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.core.interventions.base import Intervention

BUILT_IN: Mapping[type[Intervention], tuple[type[Intervention], ...]] = {
    DataIntervention: DATA_INTERVENTIONS,
    Trainable: TRAINABLES,
    Head: HEADS,
    Augmentation: AUGMENTATIONS,
    Regularizer: REGULARIZERS,
    Finish: FINISHES,
    Edit: EDITS,
}
