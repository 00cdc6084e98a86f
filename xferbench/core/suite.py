"""A suite file as frozen values. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from xferbench.core.interventions import EVAL_MODE, ServingMode
from xferbench.core.pipeline import DEFAULT_SCRATCH_GRID, Recipe, ScratchGrid
from xferbench.core.sections import section_field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.core.interventions import DataIntervention
    from xferbench.core.transforms import InputTransform


COPY_KINDS = ("flipped", "recompressed", "resized", "recolored", "cropped")  # altered copies of a test image
TEXT_COPY_KINDS = ("repunctuated", "misspelled", "shortened", "truncated", "extended", "swapped")  # of a test text
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
class Invocation:
    """Where a suite comes from, and what the caller adds.

    Attributes:
        path: the suite file.
        command: the command line that replaces a file.
        overrides: the command line's replacements of keys of the file (``recipe.lr=1e-3``).
        allow_code: whether user code may run. The caller decides it, never the file.
    """

    path: str = ""
    command: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    allow_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSection:
    """The table [backbone].

    Attributes:
        arch: the architecture.
        weights: the file of its weights.
        preprocessing: their preprocessing, if it is not the recorded one.
        pooling: as in :class:`xferbench.core.pipeline.Backbone`.
    """

    arch: str
    weights: str | None = None
    preprocessing: InputTransform | None = None
    pooling: str = field(default="", metadata={"added": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSection:
    """The tables [target], [source] and [shifted].

    Attributes:
        target, source, shifted: the datasets, as the file spells them.
        train_size, test_size: numbers of target images that are used; None for all.
        train_preprocessing: the preprocessing in training; None for that of the backbone.
        source_classes: the output of the pretrained head for each class of the source.
        manifest: a manifest of the pretraining data.
        interventions: changes of the target's training examples.
    """

    target: str
    train_size: int | None = None
    test_size: int | None = None
    train_preprocessing: InputTransform | None = None
    source: str | None = None
    source_classes: tuple[tuple[str, int], ...] = ()
    shifted: str | None = None
    manifest: str | None = None
    interventions: tuple[DataIntervention, ...] = field(default=(), metadata={"added": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSection:
    """How the adapted network serves: the preprocessing (None for that of training), and the mode of the network."""

    preprocessing: InputTransform | None = field(default=None, metadata={"key": "serve_preprocessing"})
    mode: ServingMode = field(default=EVAL_MODE, metadata={"key": "serve_mode"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How verdicts are taken, and what they may cost.

    Attributes:
        metric: the metric.
        margin: the largest harm that is accepted, in the metric's unit.
        alpha: the level of the tests.
        looks: numbers of seeds at which a verdict may be taken.
        budget: the budget in recorded seconds.
        seed: the first seed of verdicts.
        tuning_seeds: number of seeds that candidates are compared on.
        keep_source: whether the skill on the source matters, so that its loss is judged.
        max_duplicates: the allowed share of test examples that have an altered copy; an identical copy is never allowed.
        max_failed_runs: the allowed share of the runs of a recipe that fail.
        unsearched_copies: the kinds of copies, of :data:`COPY_KINDS` or :data:`TEXT_COPY_KINDS`, that a PASS of
            ``data-leakage`` says nothing about.
    """

    metric: str = "accuracy"
    margin: float = 0.02
    alpha: float = 0.05
    looks: tuple[int, ...] = (5, 10)
    budget: float = 1200.0
    seed: int = 0
    tuning_seeds: int = 3
    keep_source: bool = field(default=False, metadata={"added": True})
    max_duplicates: float = 0.01
    unsearched_copies: tuple[str, ...] = field(default=(), metadata={"added": True})
    max_failed_runs: float = field(default=0.2, metadata={"added": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSection:
    """The table [checkpoint] of an audit.

    Attributes:
        after, before: the checkpoints after and before training; without ``after``, the suite is no audit.
        expected_training: the recipe that the checkpoint is believed to be trained with.
        scratch_budget: the budget of the from-scratch baseline in seconds; None for no baseline.
    """

    after: str | None = None
    before: str | None = None
    expected_training: Recipe | None = field(default=None, metadata={"key": "believed"})
    scratch_budget: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A validated suite file. Paths are absolute.

    Attributes:
        name: the name.
        plugins: ids of plugins, or ``all``.
        invocation: where the suite comes from, and what the caller adds.
        backbone, data, serving, checkpoint: the pipeline, or the finished network of an audit.
        recipe: the user's recipe; None means the healthy default.
        training: the user's training code, or None for the loop of the lab.
        rules: how verdicts are taken, and what they may cost.
        scratch: the from-scratch grid.
        matrix: the tasks of the suite, which share the other fields. Only the tasks are run. None for a suite of one task.
    """

    tag: ClassVar[str] = "Suite"
    name: str
    plugins: tuple[str, ...]
    invocation: Invocation = section_field(Invocation, default=Invocation())
    backbone: BackboneSection = section_field(BackboneSection)
    data: DataSection = section_field(DataSection)
    recipe: Recipe | None = None
    training: str | None = None
    serving: ServingSection = section_field(ServingSection, default=ServingSection())
    rules: Rules = section_field(Rules, default=Rules())
    scratch: ScratchGrid = DEFAULT_SCRATCH_GRID
    checkpoint: CheckpointSection = section_field(CheckpointSection, default=CheckpointSection())
    matrix: Matrix | None = None

    @property
    def is_audit(self) -> bool:
        """Whether a finished network is audited, and no network is adapted."""
        return self.checkpoint.after is not None


def replace_rules(suite: Suite, **changes: Any) -> Suite:
    """Return a suite with other values of its rules."""
    return replace(suite, rules=replace(suite.rules, **changes))


def replace_invocation(suite: Suite, **changes: Any) -> Suite:
    """Return a suite with another path or command line, or with other permissions."""
    return replace(suite, invocation=replace(suite.invocation, **changes))
