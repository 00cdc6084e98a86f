"""Load a suite file into a :class:`~xferbench.core.suite.Suite`. Reads the file.

Every key must be known and every value possible; otherwise there is one clear message.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.analysis.metrics import METRICS
from xferbench.config import overrides, validation
from xferbench.config.fields import DURATION, PIPELINE_KEYS, RECIPE, REQUIRED_TABLES, duration_seconds, suite_rules
from xferbench.config.matrix import parse_matrix
from xferbench.config.render import RECIPE_KEYS
from xferbench.core import files
from xferbench.core.errors import UserError, suggest
from xferbench.core.interventions import RANDOM, TRANSFER_ALL, InterpolatePhase, SourcePretraining
from xferbench.core.pipeline import Phase, Recipe
from xferbench.core.sections import from_flat
from xferbench.core.strategies import DEFAULT_RATES, STRATEGIES, check_warmup, is_mlp_head
from xferbench.core.suite import Suite, replace_invocation
from xferbench.core.transforms import INPUT_KINDS, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SELECTION_SEED_START = 1_000_000  # the first seed for selection; the seeds of verdicts are below
MAX_SUITE_BYTES = 10_000_000
MAX_DEPTH = 12  # of nested tables and arrays
TRAINING_KEYS = ("looks", "seed", "tuning_seeds", "budget", "scratch")  # keys that have no effect on a finished network


def shipped_folder() -> Path:
    """Return the folder of the shipped suites: in the wheel, or at the top of a checkout."""
    inside = Path(__file__).parents[1] / "suites"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "suites"


def shipped_suites() -> tuple[str, ...]:
    """Return the names of the shipped suites."""
    return tuple(sorted(path.stem for path in shipped_folder().glob("*.toml")))


def find_suite(name: str) -> Path:
    """Return the suite file for a command-line argument: a path, or the name of a shipped suite.

    Raises:
        UserError: if it is neither.
    """
    if name in shipped_suites():
        return shipped_folder() / f"{name}.toml"
    path, problem = Path(name), "neither a file nor a shipped suite"
    try:
        if path.is_file():
            return path
        problem = "a folder" if path.is_dir() else problem
    except OSError as error:
        problem = error.strerror or problem
    expected = f"a path to a .toml file, or a shipped suite ({suggest(name[:80], shipped_suites())})"
    raise UserError(f"no suite {validation.format_value(name)}", found=problem, expected=expected)


def load_suite(path: Path, changes: Sequence[str] = ()) -> Suite:
    """Read and check a suite file; ``changes`` such as ``recipe.lr=1e-3`` override its keys.

    Raises:
        UserError: with the file, the key, what was found and what was expected.
    """
    try:
        data = files.read_file(path, MAX_SUITE_BYTES)
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot be read", found=found, expected="a suite file") from error
    try:
        table = tomllib.loads(data.decode("utf-8-sig"))
        _check_values(table)
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits is a ValueError as well
        advice = f"compare {shipped_folder() / 'quick.toml'}"
        raise UserError(f"{path}: not a TOML file", found=str(error), expected="a suite file in UTF-8", do=advice) from error
    return parse_suite(table, path.resolve(), changes)


def _check_values(table: Mapping[str, Any]) -> None:
    """Raise ValueError for integers beyond the 64 bits of TOML, or a nesting that no suite needs."""
    level: list[Any] = [table]
    for _ in range(MAX_DEPTH):
        level = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
        if any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in level):
            raise ValueError("an integer of more than 64 bits")
        level = [value for value in level if isinstance(value, dict | list)]
    if level:
        raise ValueError(f"tables or arrays that are nested more than {MAX_DEPTH} levels deep")


def parse_suite(table: Mapping[str, Any], path: Path, changes: Sequence[str] = ()) -> Suite:
    """Check a suite's table and return the suite. Paths in the table and in ``changes`` are relative to the file.

    Raises:
        UserError: with the file, the key, what was found and what was expected.
    """
    changed_table = overrides.apply_overrides(table, changes)
    try:
        return replace_invocation(_parse(changed_table, path), overrides=tuple(changes))
    except UserError as error:
        raise error.at(overrides.locate_error(error.what, path, changes)) from error


def _parse(table: Mapping[str, Any], path: Path) -> Suite:
    """Return a suite, with or without a matrix."""
    if "matrix" in table:
        return parse_matrix(table, path, _parse_single, parse_recipe, _check_recipe)
    suite = _parse_single(table, path)
    if not suite.plugins:
        raise UserError("plugins", found="[]", expected='a list of plugins, or ["all"]; an empty list needs [matrix]')
    return suite


def _parse_single(table: Mapping[str, Any], path: Path) -> Suite:
    """Return a suite without a matrix."""
    top = validation.validate_table(table, suite_rules(path.parent), required=REQUIRED_TABLES)
    del top["schema"]
    backbone, target, recipe = top.pop("backbone"), top.pop("target"), dict(top.pop("recipe", {}))
    source = top.pop("source", {})
    source_values = {"source_classes": tuple(source.pop("classes", {}).items()), "manifest": source.get("manifest")}
    source_values |= {"keep_source": source["keep"]} if "keep" in source else {}
    roles = {"source": source.get("data"), "shifted": top.pop("shifted", {}).get("data"), "target": target.pop("data")}
    serving_values = {name: recipe.pop(name) for name in PIPELINE_KEYS if name in recipe}
    audit_values = _audit_values(top.pop("checkpoint"), table, recipe) if "checkpoint" in top else {}
    built = _build_recipe(recipe) if "recipe" in table and not audit_values else None
    tables = backbone | target | roles | source_values | top | serving_values | audit_values
    suite = from_flat(Suite, tables | {"path": str(path), "recipe": built})
    if suite.recipe is not None:
        _check_roles(suite.recipe, suite)
        _check_recipe(suite.recipe, suite)
    _check_input_kinds(suite)
    span = METRICS[suite.rules.metric].span
    if suite.rules.margin >= span:
        expected = f"less than {span:g}, for example 0.02"
        raise UserError("margin", found=f"{suite.rules.margin:g}", expected=expected)
    return check_seed_range(suite)


def _check_roles(recipe: Recipe, suite: Suite) -> None:
    """Refuse a recipe that needs a dataset which the suite does not have."""
    requirements = [("init", "source")] if isinstance(recipe.init, SourcePretraining) else []
    if recipe.regularizer:
        requirements += [("regularizer", role) for role in ("source", "shifted") if role in recipe.regularizer.requires]
    for name, role in requirements:
        if getattr(suite.data, role) is None:
            expected = f"a value that needs no [{role}], or a table [{role}]"
            raise UserError(f"recipe.{name}", found=str(getattr(recipe, name)), expected=expected)


def _audit_values(checkpoint: Mapping[str, Any], table: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an audit.

    An audit evaluates one network once, so keys of training would have no effect and are refused.
    """
    refused = [key for key in TRAINING_KEYS if key in table] + [f"recipe.{key}" for key in recipe]
    refused += ["recipe.training"] if "training" in table.get("recipe", {}) else []
    refused += ["target.interventions"] if "interventions" in table["target"] else []
    refused += ["backbone.weights"] if "weights" in table["backbone"] else []
    if refused:
        do = (
            "leave it out; the expected training goes into [checkpoint] believed"
            if refused[0] != "backbone.weights"
            else "name the file as [checkpoint] before"
        )
        raise UserError(
            refused[0], found="a key of training in a suite with [checkpoint]", expected="only a finished network", do=do
        )
    values = dict(checkpoint)
    return {"looks": (1,), "tuning_seeds": 1, "scratch_budget": values.pop("scratch", None), **values}


def _check_recipe(recipe: Recipe, suite: Suite) -> None:
    """Refuse combinations of values in a recipe, or with the rest of the suite, that cannot work."""
    regularizer = recipe.regularizer
    requires = regularizer.requires if regularizer else ()
    if "plain-head" in requires and is_mlp_head(recipe.head):
        expected = "l2-sp, ewc or distill, or a linear head: the source's head cannot follow another layer"
        raise UserError("recipe.regularizer", found=f"{regularizer} with head {recipe.head}", expected=expected)
    if {"teacher", "shifted"} & {*requires} and suite.training:
        missing = "teacher" if "teacher" in requires else "images of another domain"
        expected = f"xferbench's own training loop: user training code gets no {missing}"
        raise UserError("recipe.regularizer", found=f"{regularizer} with user training code", expected=expected)
    if isinstance(recipe.finish, InterpolatePhase) and suite.training:
        expected = "xferbench's own training loop: the start of the last phase of user code is unknown"
        raise UserError("recipe.finish", found=f"{recipe.finish} with user training code", expected=expected)
    transform = suite.data.train_preprocessing or suite.backbone.preprocessing or Preprocessing()
    if recipe.augment and not isinstance(transform, Preprocessing):
        found = f"{recipe.augment} of {INPUT_KINDS[type(transform)]}s"
        raise UserError("recipe.augment", found=found, expected="images", do="leave it out")


def _check_input_kinds(suite: Suite) -> None:
    """Refuse a pipeline that is trained on one kind of input and serves another."""
    preprocessings = {
        "backbone.preprocessing": suite.backbone.preprocessing,
        "recipe.train_preprocessing": suite.data.train_preprocessing,
        "recipe.serve_preprocessing": suite.serving.preprocessing,
    }
    kinds = {key: INPUT_KINDS[type(value)] for key, value in preprocessings.items() if value is not None}
    different = next((key for key in kinds if kinds[key] != next(iter(kinds.values()))), None)
    if different:
        first, kind = next(iter(kinds.items()))
        raise UserError(f"{different}.kind", found="a kind other than that of " + first, expected=f'kind = "{kind}"')


def check_seed_range(suite: Suite) -> Suite:
    """Return the suite if the seeds of its verdicts are below those for selection.

    Raises:
        UserError: if they are not.
    """
    if suite.rules.seed + suite.rules.looks[-1] > SELECTION_SEED_START:
        found = f"{suite.rules.seed}, with {suite.rules.looks[-1]} seeds at the last look"
        raise UserError(
            "seed", found=found, expected=f"seeds below {SELECTION_SEED_START}, because selection uses the seeds from there"
        )
    return suite


def parse_duration(text: str) -> float:
    """Return the seconds of a text such as 90s, 20m or 2h.

    Raises:
        UserError: for any other text.
    """
    if not DURATION.fullmatch(text):
        raise UserError("budget", found=text, expected="a duration such as 90s, 20m or 2h")
    return duration_seconds(text)


def parse_recipe(table: Mapping[str, Any]) -> Recipe:
    """Return a recipe from the keys of [recipe] alone.

    Raises:
        UserError: for an unknown key, or a value that is not possible.
    """
    return _build_recipe(validation.validate_value("recipe", table, validation.table(RECIPE)))


def _build_recipe(table: Mapping[str, Any]) -> Recipe:
    """Return a recipe: one phase, several phases, or a named strategy with the settings of one phase."""
    phase_fields = dict(table)
    epochs = phase_fields.pop("epochs", None) if "strategy" in table else None
    if any({"steps", "epochs"} <= phase.keys() for phase in (table, *table.get("phases", ()))):
        raise UserError("recipe.epochs", found="both steps and epochs", expected="one of the two")
    if any({"warmup", "warmup_ratio"} <= phase.keys() for phase in (table, *table.get("phases", ()))):
        raise UserError("recipe.warmup_ratio", found="both warmup and warmup_ratio", expected="one of the two")
    recipe_fields = {name: phase_fields.pop(name) for name in RECIPE_KEYS if name in phase_fields}
    phases, strategy = phase_fields.pop("phases", [{}]), phase_fields.pop("strategy", None)
    default_lr = DEFAULT_RATES.get(strategy, Phase().lr) if strategy else Phase().lr
    common = replace(Phase(lr=default_lr), **phase_fields)
    phases = [_without_overridden(phase) for phase in phases]
    recipe = Recipe(phases=tuple(replace(common, **phase) for phase in phases), **recipe_fields)
    if strategy and "phases" in table:
        raise UserError("recipe.strategy", found="both strategy and phases", expected="one of the two")
    if strategy:
        recipe = replace(STRATEGIES[strategy](common), **recipe_fields)
        if epochs is not None:  # the strategy divides the steps among its phases, and the epochs in proportion
            steps = sum(phase.steps for phase in recipe.phases)
            phases = tuple(replace(phase, epochs=epochs * phase.steps / steps) for phase in recipe.phases)
            recipe = replace(recipe, phases=phases)
        _check_effective(strategy, STRATEGIES[strategy](common), table)
    if recipe.init == RANDOM and recipe.transferred != TRANSFER_ALL:
        expected = "all, because nothing is transferred"
        raise UserError("recipe.transferred", found=str(recipe.transferred), expected=expected, do="leave it out, or init")
    check_warmup(recipe)
    return recipe


def _without_overridden(phase: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a phase, where its steps and warm-up replace the epochs and the warm-up of all phases."""
    overridden = {"steps": "epochs", "warmup": "warmup_ratio"}
    return {other: None for name, other in overridden.items() if name in phase} | dict(phase)


def _check_effective(strategy: str, built: Recipe, table: Mapping[str, Any]) -> None:
    """Refuse a key that has no effect because the strategy sets it; ``steps`` is divided among the strategy's phases."""
    for name in table.keys() - {"strategy", "steps", "epochs", "augment", "stop"}:
        is_recipe_field = name in RECIPE_KEYS
        values = {getattr(built, name)} if is_recipe_field else {getattr(phase, name) for phase in built.phases}
        kind = str(table[name]).partition(":")[0]  # mlp:64 is of the same kind as the strategy's head
        is_free = is_recipe_field and (
            values == {getattr(Recipe(), name)} or kind in {str(value).partition(":")[0] for value in values}
        )
        if table[name] not in values and not is_free:
            expected = f"{' or '.join(sorted(map(validation.format_value, values)))}, as the strategy {strategy} sets it"
            found = validation.format_value(table[name])
            raise UserError(f"recipe.{name}", found=found, expected=expected, do=f"leave {name} or strategy out")
