"""A suite file as frozen values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from xferbench.core.interventions import EVAL_MODE, ServingMode
from xferbench.core.pipeline import DEFAULT_SCRATCH_GRID, InputTransform, Recipe, ScratchGrid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.core.interventions import DataIntervention


LOCATION_KEYS = frozenset({"target", "source", "shifted", "weights", "after", "before", "manifest"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeGrid:
    """A recipe of a matrix at each rate of its search; () stands for the default recipe or the tuned from-scratch baseline."""

    tag: ClassVar[str] = "Compared"
    name: str
    recipes: tuple[Recipe, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim about one number of a matrix.

    The number is a plugin's ``contrast`` (the cost of a variant, or else the measurement or the harm), or the difference
    between ``recipe`` and the recipe ``against`` in a view, in the metric, or a ``measure`` of ``recipe`` alone.

    Attributes:
        name: the name of the claim.
        claim: the claim in words.
        source: the publication.
        task: the task of the matrix that the claim is checked on.
        contrast: the id of a contrast or variant, or "".
        recipe, against: names of recipes, or "".
        view: the view of the two recipes.
        measure: a key of :data:`xferbench.study.claims.CLAIM_UNITS`, or "".
        published: the published number, or None if only a direction was published.
        at_least, at_most: bounds of the claimed number; one of them may be None.
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
    """The tasks (targets × sizes × backbones), the recipes compared on each of them, and claims about the results.

    Attributes:
        tasks: each task as a suite.
        compared: the recipes.
        against: name of the reference recipe.
        effects: the claims.
        similar: whether a task is similar to the source, by name, for the tasks whose suite states it.
    """

    tag: ClassVar[str] = "Matrix"
    tasks: tuple[Suite, ...]
    compared: tuple[RecipeGrid, ...]
    against: str
    effects: tuple[Claim, ...] = ()
    similar: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A validated suite file. Paths are absolute.

    Attributes:
        recipe: the user's recipe; None means the healthy default.
        budget: the budget in recorded seconds.
        scratch: the from-scratch grid.
        overrides: the command line's replacements of keys of the file (``recipe.lr=1e-3``).
        allow_code: whether user code may run. The caller decides it, never the file.
        after, before: the checkpoints of an audit. An audit trains only a from-scratch baseline.
        believed: the recipe that an audited checkpoint is believed to be trained with.
        scratch_budget: the budget of an audit's from-scratch baseline in seconds; None for no baseline.
        command: the command line that replaces a file.
        matrix: the tasks of the suite, which share the other fields. Only the tasks are run. None for a suite of one task.
        interventions: changes of the target's training examples.
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
    serve_mode: ServingMode = EVAL_MODE
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
