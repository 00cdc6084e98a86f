"""A suite file as frozen values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from xferbench.core.pipeline import DEFAULT_SCRATCH_GRID, InputTransform, Recipe, ScratchGrid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.core.interventions import DataIntervention


LOCATION_KEYS = frozenset({"target", "source", "shifted", "weights", "after", "before", "manifest"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeGrid:
    """A recipe that a matrix compares: it, at each rate that it is tuned over; () is the default recipe or tuned scratch."""

    tag: ClassVar[str] = "Compared"
    name: str
    recipes: tuple[Recipe, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim about one number of a matrix, and what it says that number is.

    The number is a plugin's ``contrast`` (of a variant what it costs, else the measurement or the harm); or what ``recipe`` has
    more than the recipe ``against`` in a view, in the metric; or of ``recipe`` alone a ``measure``, one of
    :data:`xferbench.study.claims.CLAIM_UNITS`. ``published`` is its size as it was published, None where only a direction was.

    Attributes:
        claim: in words. source: where it stands. task: on which it is measured here.
        at_least, at_most: what the number is claimed to be, between them or on one side of one of them.
    """

    tag: ClassVar[str] = "Effect"
    name: str
    claim: str
    source: str
    task: str
    contrast: str = ""
    recipe: str = ""
    against: str = ""
    view: str = "test"
    measure: str = ""
    published: float | None = None
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Targets × sizes × backbones, each a suite of its own; the recipes that are compared on each; the claims about them.

    ``against`` is the recipe that the others are held against; ``similar`` tells of tasks, by name,
    whether they are like the source, as far as somebody has said so.
    """

    tag: ClassVar[str] = "Matrix"
    tasks: tuple[Suite, ...]
    compared: tuple[RecipeGrid, ...]
    against: str
    effects: tuple[Claim, ...] = ()
    similar: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A suite file, read and checked. Paths are absolute. ``recipe`` None means the healthy default.

    ``budget`` is in recorded seconds. ``scratch`` holds what a suite changes of the from-scratch grid. ``overrides`` are the
    words (``recipe.lr=1e-3``) that stood in the place of the file's keys. ``allow_code`` is said by whoever runs a suite, never
    by its file. ``after`` and ``before`` are the checkpoints of an audit, which trains nothing but a from-scratch baseline
    of ``scratch_budget`` seconds; ``command`` are the words that stood in the place of a file. Of a ``matrix`` only its tasks
    are carried out, which have the other fields in common. ``interventions`` change the target's training examples.
    """

    tag: ClassVar[str] = "Suite"
    name: str
    path: str
    plugins: tuple[str, ...]
    arch: str
    target: str
    weights: str | None = None
    preprocessing: InputTransform | None = None
    train_preprocessing: InputTransform | None = None
    serve_preprocessing: InputTransform | None = None
    serve_mode: str = "eval"
    recipe: Recipe | None = None
    source: str | None = None
    source_classes: tuple[tuple[str, int], ...] = ()
    shifted: str | None = None
    train_size: int | None = None
    test_size: int | None = None
    metric: str = "accuracy"
    margin: float = 0.02
    alpha: float = 0.05
    looks: tuple[int, ...] = (5, 10, 20)
    budget: float = 1200.0
    seed: int = 0
    tuning_seeds: int = 3
    scratch: ScratchGrid = DEFAULT_SCRATCH_GRID
    overrides: tuple[str, ...] = ()
    training: str | None = None
    allow_code: bool = False
    after: str | None = None
    before: str | None = None
    believed: Recipe | None = None
    manifest: str | None = None
    max_duplicates: float = 0.0
    scratch_budget: float | None = None
    command: tuple[str, ...] = ()
    matrix: Matrix | None = None
    interventions: tuple[DataIntervention, ...] = field(default=(), metadata={"added": True})
