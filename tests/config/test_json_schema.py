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
from test_loader import RECIPES, WRONG, written

from xferbench.config import json_schema, loader, render
from xferbench.core.errors import UserError

SCHEMA = json.loads((loader.shipped_folder() / "schema.json").read_text(encoding="utf-8"))
KINDS = {"string": str, "integer": int, "number": (int, float), "array": list, "object": dict, "boolean": bool}
CHECKS = {
    "type": lambda v, kind: isinstance(v, KINDS[kind]) and (kind == "boolean" or not isinstance(v, bool)),
    "enum": lambda v, words: v in words,
    "const": lambda v, one: v == one and type(v) is type(one),
    "pattern": lambda v, form: not isinstance(v, str) or re.search(form, v),
    "minLength": lambda v, least: not isinstance(v, str) or len(v) >= least,
    "minimum": lambda v, least: not number(v) or v >= least,
    "maximum": lambda v, most: not number(v) or v <= most,
    "exclusiveMinimum": lambda v, least: not number(v) or v > least,
    "exclusiveMaximum": lambda v, most: not number(v) or v < most,
    "minItems": lambda v, least: not isinstance(v, list) or len(v) >= least,
    "maxItems": lambda v, most: not isinstance(v, list) or len(v) <= most,
    "uniqueItems": lambda v, _: not isinstance(v, list) or all(one not in v[:place] for place, one in enumerate(v)),
    "items": lambda v, one: not isinstance(v, list) or all(fits(item, one) for item in v),
    "anyOf": lambda v, several: any(fits(v, one) for one in several),
    "oneOf": lambda v, several: sum(fits(v, one) for one in several) == 1,
    "minProperties": lambda v, least: not isinstance(v, dict) or len(v) >= least,
    "required": lambda v, names: not isinstance(v, dict) or set(names) <= set(v),
    "properties": lambda v, keys: not isinstance(v, dict) or all(fits(v[key], one) for key, one in keys.items() if key in v),
    "additionalProperties": None,  # it needs its neighbour
}
SILENT = {"$schema", "title", "description", "default"}


def number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def fits(value, one):
    """Whether a value keeps to a schema, as far as the words go that this one uses; an unknown word is an error."""
    assert set(one) <= set(CHECKS) | SILENT, set(one) - set(CHECKS) - SILENT
    if not all(CHECKS[word](value, said) for word, said in one.items() if CHECKS.get(word)):
        return False
    rest = one.get("additionalProperties")
    others = [value[key] for key in value if key not in one.get("properties", {})] if isinstance(value, dict) else []
    return rest is None or not others or (rest is not False and all(fits(other, rest) for other in others))


def accepted(table):
    """Whether the rules take a suite's table."""
    try:
        loader.parse_suite(table, Path("ants.toml"))
    except UserError:
        return False
    return True


def tables(one, path=""):
    """Every table of a schema, by its dotted path; entries of an array too."""
    yield path, one
    for key, inner in one.get("properties", {}).items():
        inside = inner.get("items", inner)
        if "properties" in inside:
            yield from tables(inside, f"{path}.{key}".strip("."))


KEYS = {f"{path}.{key}".strip("."): said for path, one in tables(SCHEMA) for key, said in one["properties"].items()}
# What only a rule can say: of two keys together, of an order, of a number within a word, of how TOML writes a number.
BEYOND = {
    "margin = nan",
    "margin = inf",
    "margin = 2",
    "looks = [10, 5]",
    "seed = 999990",
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
    '[recipe] augment = "flip"\n[backbone] preprocessing = { kind = "spectrogram" }',
    '[backbone] preprocessing = { kind = "spectrogram", crop = 8 }',
    '[backbone] preprocessing = { kind = "spectrogram", std = 0 }',
    '[backbone] preprocessing = { kind = "spectrogram", mean = [1] }',
    '[backbone] preprocessing = { kind = "spectrogram" }\n[recipe.serve_preprocessing] mean = [0.5]',
}


def test_the_committed_schema_is_what_the_rules_say_today():
    do = "python -m xferbench.config.json_schema > suites/schema.json"
    assert (loader.shipped_folder() / "schema.json").read_text(encoding="utf-8") == json_schema.schema_text(), do


def test_one_command_prints_it():
    done = subprocess.run(
        [sys.executable, "-m", "xferbench.config.json_schema"],
        capture_output=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert json.loads(done.stdout) == SCHEMA


@pytest.mark.parametrize("name", loader.shipped_suites())
def test_a_shipped_suite_fits_and_names_the_schema(name):
    text = loader.find_suite(name).read_text(encoding="utf-8")
    assert fits(tomllib.loads(text), SCHEMA)
    assert text.startswith("#:schema ./schema.json\n")


def test_the_schema_is_no_suite():
    assert "schema" not in loader.shipped_suites()


@pytest.mark.parametrize("changes", [row[0] for row in WRONG], ids=lambda one: one[:40])
def test_what_the_rules_refuse_the_schema_refuses_as_far_as_it_can(changes):
    table = tomllib.loads(written(changes))
    assert not accepted(table)
    if changes not in BEYOND:
        assert not fits(table, SCHEMA)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_says_what_it_is_for_and_by_its_own_rules(key):
    said = KEYS[key]
    assert said.get("description") or said.get("enum")
    assert "default" not in said or fits(said["default"], said)


def test_every_table_is_closed_and_every_leaf_says_something():
    assert all(one["additionalProperties"] is False for _, one in tables(SCHEMA))
    assert all({"type", "enum", "anyOf"} & set(said) for said in KEYS.values())


def test_every_description_belongs_to_a_key():
    tails = {tail for key in KEYS for tail in (key, ".".join(key.split(".")[-2:]), key.split(".")[-1])}
    assert set(json_schema.KEY_DESCRIPTIONS) <= tails


def test_defaults_are_told():
    told = {key: KEYS[key].get("default") for key in ("margin", "budget", "looks", "recipe.lr", "recipe.init", "scratch.steps")}
    assert told == {
        "margin": 0.02,
        "budget": "20m",
        "looks": [5, 10, 20],
        "recipe.lr": 1e-3,
        "recipe.init": "pretrained",
        "scratch.steps": 500,
    }


NUMBERS = st.integers(-2, 10**7) | st.floats() | st.sampled_from([0, 1, 2, 0.5, 1.0])
WORDS = st.text(max_size=4) | st.sampled_from(
    [word for said in KEYS.values() for word in said.get("enum", ())]
    + ["head", "top:2", "top:0", "ghost:2", "momentum:0.1", "90s", "1.5 h", "ants-2", "digits", "head\n", "momentum:.5e-3"]
)
SINGLE = NUMBERS | WORDS | st.booleans()
VALUES = SINGLE | st.lists(SINGLE, max_size=4) | st.dictionaries(WORDS, SINGLE, max_size=2)


@settings(deadline=None, max_examples=500)
@given(key=st.sampled_from([key for key in KEYS if "phases." not in key]), value=VALUES)
def test_whatever_the_rules_take_the_schema_takes(key, value):
    table = tomllib.loads(written())
    here = table
    *way, last = key.split(".")
    for name in way:
        here = here.setdefault(name, {"data": "digits"} if name in {"source", "shifted"} else {})
    here[last] = value
    assert fits(table, SCHEMA) or not accepted(table)


@settings(deadline=None, max_examples=50)
@given(recipe=RECIPES)
def test_every_recipe_that_can_be_written_down_fits(recipe):
    assert fits(tomllib.loads(written() + "\n".join(render.recipe_patch(None, recipe))), SCHEMA)
