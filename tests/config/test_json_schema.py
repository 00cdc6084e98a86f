from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loader import suite_text
from test_loader_errors import INVALID
from test_render import RECIPES

from xferbench.config import json_schema, loader, render
from xferbench.core.errors import UserError

SCHEMA = json.loads((loader.shipped_folder() / "schema.json").read_text(encoding="utf-8"))
KINDS = {"string": str, "integer": int, "number": (int, float), "array": list, "object": dict, "boolean": bool}
CHECKS = {
    "type": lambda v, kind: isinstance(v, KINDS[kind]) and (kind == "boolean" or not isinstance(v, bool)),
    "enum": lambda v, keywords: v in keywords,
    "const": lambda v, schema: v == schema and type(v) is type(schema),
    "pattern": lambda v, form: not isinstance(v, str) or re.search(form, v),
    "minLength": lambda v, least: not isinstance(v, str) or len(v) >= least,
    "minimum": lambda v, least: not is_number(v) or v >= least,
    "maximum": lambda v, most: not is_number(v) or v <= most,
    "exclusiveMinimum": lambda v, least: not is_number(v) or v > least,
    "exclusiveMaximum": lambda v, most: not is_number(v) or v < most,
    "minItems": lambda v, least: not isinstance(v, list) or len(v) >= least,
    "maxItems": lambda v, most: not isinstance(v, list) or len(v) <= most,
    "uniqueItems": lambda v, _: not isinstance(v, list) or all(item not in v[:place] for place, item in enumerate(v)),
    "items": lambda v, schema: not isinstance(v, list) or all(is_valid(item, schema) for item in v),
    "anyOf": lambda v, several: any(is_valid(v, schema) for schema in several),
    "oneOf": lambda v, several: sum(is_valid(v, schema) for schema in several) == 1,
    "minProperties": lambda v, least: not isinstance(v, dict) or len(v) >= least,
    "required": lambda v, names: not isinstance(v, dict) or set(names) <= set(v),
    "properties": lambda v, keys: (
        not isinstance(v, dict) or all(is_valid(v[key], schema) for key, schema in keys.items() if key in v)
    ),
    "additionalProperties": None,  # is_valid checks it together with properties
}
ANNOTATIONS = {"$schema", "title", "description", "default"}


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_valid(value, schema):
    """Return whether a value matches a schema; a keyword that this validator does not know is an error."""
    assert set(schema) <= set(CHECKS) | ANNOTATIONS, set(schema) - set(CHECKS) - ANNOTATIONS
    if not all(CHECKS[keyword](value, keyword_schema) for keyword, keyword_schema in schema.items() if CHECKS.get(keyword)):
        return False
    rest = schema.get("additionalProperties")
    others = [value[key] for key in value if key not in schema.get("properties", {})] if isinstance(value, dict) else []
    return rest is None or not others or (rest is not False and all(is_valid(other_value, rest) for other_value in others))


def is_accepted(table):
    """Return whether the loader accepts the table of a suite."""
    try:
        loader.parse_suite(table, Path("ants.toml"))
    except UserError:
        return False
    return True


def tables(schema, path=""):
    """Yield every table of a schema and its dotted path, including entries of an array."""
    yield path, schema
    for key, inner in schema.get("properties", {}).items():
        inside = inner.get("items", inner)
        if "properties" in inside:
            yield from tables(inside, f"{path}.{key}".strip("."))


KEYS = {
    f"{path}.{key}".strip("."): keyword_schema
    for path, schema in tables(SCHEMA)
    for key, keyword_schema in schema["properties"].items()
}
# Only the loader can check two keys together, an order, a number within a string, and how TOML writes a number.
BEYOND_SCHEMA = {
    "margin = nan",
    "margin = inf",
    "margin = 2",
    "looks = [10, 5]",
    "seed = 999995",
    '[backbone] weights = "~nobody-at-all/w.pth"',
    '[backbone] weights = "a\\u0000b"',
    '[recipe] batchnorm = "momentum:2"',
    '[recipe] batchnorm = "momentum:0"',
    "[recipe] warmup = 100\n[recipe] steps = 100",
    '[recipe] init = "shuffled-source"',
    '[recipe] transferred = "low:1"\n[recipe] init = "random"',
    '[recipe] strategy = "linear-probe"\n[recipe] trainable = "all"',
    '[recipe] strategy = "scratch"\n[recipe] init = "pretrained"',
    '[recipe] strategy = "discriminative"\n[recipe] layer_decay = 0.7',
    '[recipe] strategy = "full"\n[[recipe.phases]]; lr = 1',
    '[recipe] strategy = "mlp-head"\n[recipe] head = "zero"',
    '[recipe] strategy = "distillation"\n[recipe] regularizer = "ewc:1"',
    '[recipe] regularizer = "lwf:1"\n[recipe] head = "mlp:8"',
    '[recipe] regularizer = "distill:1"\n[recipe] training = "python:mine.loop:train"',
    '[recipe] regularizer = "dann:1"',
    '[recipe] strategy = "adabn"\n[recipe] finish = "interpolate:0.5"',
    '[recipe] finish = "interpolate:0.5"\n[recipe] training = "python:mine.loop:train"',
    '[recipe] regularizer = "dann:1"\n[shifted] data = "digits"\n[recipe] training = "python:mine.loop:train"',
    '[recipe] augment = "rotate"',
    '[recipe] finish = "interpolated:0.5"',
    '[recipe] augment = "flip"\n[backbone] preprocessing = { kind = "spectrogram" }',
    '[backbone] preprocessing = { kind = "spectrogram", crop = 8 }',
    '[backbone] preprocessing = { kind = "spectrogram", std = 0 }',
    '[backbone] preprocessing = { kind = "spectrogram", mean = [1] }',
    '[backbone] preprocessing = { kind = "spectrogram" }\n[recipe.serve_preprocessing] mean = [0.5]',
}


def test_the_committed_schema_matches_the_loader():
    command = "python -m xferbench.config.json_schema > suites/schema.json"
    assert (loader.shipped_folder() / "schema.json").read_text(encoding="utf-8") == json_schema.schema_text(), command


def test_the_module_prints_the_schema():
    process = subprocess.run(
        [sys.executable, "-m", "xferbench.config.json_schema"],
        capture_output=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert json.loads(process.stdout) == SCHEMA


@pytest.mark.parametrize("name", loader.shipped_suites())
def test_a_shipped_suite_is_valid_and_names_the_schema(name):
    text = loader.find_suite(name).read_text(encoding="utf-8")
    assert is_valid(tomllib.loads(text), SCHEMA)
    assert text.startswith("#:schema ./schema.json\n")


def test_the_schema_is_not_a_shipped_suite():
    assert "schema" not in loader.shipped_suites()


@pytest.mark.parametrize("changes", [row[0] for row in INVALID], ids=lambda text: text[:40])
def test_the_schema_refuses_what_the_loader_refuses_except_rules_beyond_it(changes):
    table = tomllib.loads(suite_text(changes))
    assert not is_accepted(table)
    if changes not in BEYOND_SCHEMA:
        assert not is_valid(table, SCHEMA)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_a_description_and_a_valid_default(key):
    keyword_schema = KEYS[key]
    assert keyword_schema.get("description") or keyword_schema.get("enum")
    assert "default" not in keyword_schema or is_valid(keyword_schema["default"], keyword_schema)


def test_every_table_is_closed_and_every_key_has_a_type():
    assert all(schema["additionalProperties"] is False for _, schema in tables(SCHEMA))
    assert all({"type", "enum", "anyOf"} & set(keyword_schema) for keyword_schema in KEYS.values())


def test_every_description_belongs_to_a_key():
    tails = {tail for key in KEYS for tail in (key, ".".join(key.split(".")[-2:]), key.split(".")[-1])}
    assert set(json_schema.KEY_DESCRIPTIONS) <= tails


def test_defaults_are_in_the_schema():
    defaults = {
        key: KEYS[key].get("default") for key in ("margin", "budget", "looks", "recipe.lr", "recipe.init", "scratch.steps")
    }
    assert defaults == {
        "margin": 0.02,
        "budget": "20m",
        "looks": [5, 10],
        "recipe.lr": 1e-3,
        "recipe.init": "pretrained",
        "scratch.steps": 500,
    }


NUMBERS = st.integers(-2, 10**7) | st.floats() | st.sampled_from([0, 1, 2, 0.5, 1.0])
WORDS = st.text(max_size=4) | st.sampled_from(
    [keyword for keyword_schema in KEYS.values() for keyword in keyword_schema.get("enum", ())]
    + ["head", "top:2", "top:0", "ghost:2", "momentum:0.1", "90s", "1.5 h", "ants-2", "digits", "head\n", "momentum:.5e-3"]
)
SINGLE = NUMBERS | WORDS | st.booleans()
VALUES = SINGLE | st.lists(SINGLE, max_size=4) | st.dictionaries(WORDS, SINGLE, max_size=2)


@settings(deadline=None, max_examples=500)
@given(key=st.sampled_from([key for key in KEYS if "phases." not in key]), value=VALUES)
def test_the_schema_accepts_every_table_that_the_loader_accepts(key, value):
    table = tomllib.loads(suite_text())
    inner = table
    *parents, last = key.split(".")
    for name in parents:
        inner = inner.setdefault(name, {"data": "digits"} if name in {"source", "shifted"} else {})
    inner[last] = value
    assert is_valid(table, SCHEMA) or not is_accepted(table)


@settings(deadline=None, max_examples=50)
@given(recipe=RECIPES)
def test_every_recipe_is_valid_in_the_schema(recipe):
    assert is_valid(tomllib.loads(suite_text() + "\n".join(render.recipe_patch(None, recipe))), SCHEMA)
