"""The shape of ``results.json``, of the evidence and of the index of ``predictions.npz``, for files that are not trusted. Pure.

It names what readers need. Keys with a question mark are those that older files lack.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from xferbench.core.comparison import DECISIONS
from xferbench.core.json_shape import check_shape
from xferbench.core.run import CONTROLS, VERDICTS

if TYPE_CHECKING:
    from xferbench.core.json_shape import Shape

OPTIONAL_NUMBER, OPTIONAL_COUNT, OPTIONAL_TEXT = (None, float), (None, int), (None, str)
SETTING = (None, bool, float, str, [object], {str: object})  # a value of a suite that is only printed
NUMBERS = {str: OPTIONAL_NUMBER}

ESTIMATE = {
    "metric": str,
    "unit": str,
    **dict.fromkeys(("harm", "low", "high", "p_fail", "p_pass", "margin"), OPTIONAL_NUMBER),
    "seeds": int,
    "examples": int,
    "exposed": bool,
}
FINDING = {
    **dict.fromkeys(("id", "plugin", "contrast", "variant", "reason"), str),
    **ESTIMATE,
    "verdict": frozenset(VERDICTS),
    "kind": frozenset(("experiment", "audit")),
    "control": frozenset(CONTROLS),
    "symptom_of?": str,
    "remedy": (None, {"text?": str, "patch?": [str], "verified?": (None, bool)}),
    **dict.fromkeys(("control_harm", "control_low", "control_high", "benefit_retained"), OPTIONAL_NUMBER),
    "failed_runs?": OPTIONAL_COUNT,
    "failed_share_low?": OPTIONAL_NUMBER,
    "failed_share_high?": OPTIONAL_NUMBER,
    "accuracy": {str: float},
    "measures": NUMBERS,
}
SUITE: Shape = {
    **dict.fromkeys(("name", "arch", "target", "metric"), str),
    "margin": float,
    "alpha": float,
    "looks": [int],
    **dict.fromkeys(("path?", "source?", "shifted?", "after?", "before?", "weights?", "manifest?"), OPTIONAL_TEXT),
    **{name: [str] for name in ("plugins?", "overrides?", "command?", "unsearched_copies?")},
    **dict.fromkeys(("train_size?", "test_size?", "tuning_seeds?"), OPTIONAL_COUNT),
    str: SETTING,
}
MATRIX_SUITE = {
    "tasks": [str],
    "recipes": {str: object},
    "against": OPTIONAL_TEXT,
    "similar": (None, {str: bool}),
    "plugins": [str],
}
ENVIRONMENT = {"packages?": {str: OPTIONAL_TEXT}, str: (None, str, float, {str: OPTIONAL_TEXT})}
COUNTS = {"asked?": int, "unique": int, "run": int, "reused": int}
COST = {
    "fits?": COUNTS,
    "trials?": COUNTS,
    "seconds?": {str: float},
    "checks?": {str: float},
}
CANDIDATE = {"recipe": str, "validation?": OPTIONAL_NUMBER, "chosen?": bool, "curve?": [[OPTIONAL_NUMBER]], str: SETTING}
ARM = {"recipe?": str, "patch?": [str], "edge?": str, "weighed?": [CANDIDATE]}
INPUT = {"key": str, "digest": str, "given": OPTIONAL_TEXT, "files?": OPTIONAL_COUNT, "bytes?": OPTIONAL_COUNT}
EVIDENCE = {
    **dict.fromkeys(("command?", "begun?", "ended?", "hash?"), OPTIONAL_TEXT),
    "inputs?": [INPUT],
    "plugin_sources?": {str: str},
    "intervention_sources?": {str: str},
    "repair?": (None, {"said?": OPTIONAL_TEXT, "sha256?": OPTIONAL_TEXT}),
}
ACCEPTED_EVIDENCE = EVIDENCE | {"inputs?": [{"key": str, "digest": str}]}  # without locations
PLUGIN = {
    "version?": int,
    "source?": str,
    "contrasts": [{"name": str, "weights": [[(float, str)]], "metric": str, "margin": OPTIONAL_NUMBER}],
}
DUPLICATE = {**dict.fromkeys(("test", "original", "dataset", "kind"), str), "similarity": float}
OUTCOME = {
    **dict.fromkeys(("id", "plugin", "reason", "verdict", "accepted", "metric", "unit"), str),
    "decision": frozenset(DECISIONS),
    **dict.fromkeys(("margin", "before", "now", "change", "low", "high", "p_worse", "p_not_worse", "flipped"), OPTIONAL_NUMBER),
    "seeds": int,
    "examples": int,
    "compared": bool,
}
GATE = {"accepted": {str: OPTIONAL_TEXT}, "outcomes": [OUTCOME], "notes": [str]}
MATRIX_TEXTS = ("task", "recipe", "against", "said", "error", "name", "claim", "source", "contrast", "view", "measure", "unit")
MATRIX_ENTRY = {f"{name}?": OPTIONAL_TEXT for name in MATRIX_TEXTS} | {str: (None, bool, float, str)}
MATRIX = {
    "rows": [{"task": str, "recipe": str, "seed": int, "error": str, str: (None, float, str)}],
    "skipped": [{"task": str, "recipe": str, "reason": str}],
    "comparisons": [MATRIX_ENTRY],
    "claims": [MATRIX_ENTRY],
    "inputs": [INPUT],
    "command": str,
}
RESULTS = {
    "schema": int,
    "xferbench?": str,
    "suite": SUITE,
    "environment": ENVIRONMENT,
    "findings": [FINDING],
    "cost": COST,
    "arms": {str: {str: ARM}},
    "notes": [str],
    "duplicates?": [DUPLICATE],
    "expected_false_alarms": float,
    "plan": str,
    "frozen?": (None, {"hash": str, "written": str, "file?": str}),
    "evidence?": (None, EVIDENCE),
    "plugins?": (None, {str: PLUGIN}),
    "gate?": (None, GATE),
    "matrix?": (None, MATRIX),
}
ACCEPTED_RESULTS = RESULTS | {"evidence?": ACCEPTED_EVIDENCE}
CELL = {**dict.fromkeys(("plugin", "arm", "variant", "view", "recipe", "key"), str), "seed": int}
RECORD = {
    **dict.fromkeys(("fit", "place", "error"), str),
    "scalars": NUMBERS,
    "curve": [[OPTIONAL_NUMBER]],
    "seconds": float,
    "fit_seconds": float,
}
INDEX = {"run": str, "cells": [CELL], "records": {str: RECORD}}
SAMPLES_INDEX = {"run": str, "samples": [{"role": str, "title": str, "arms": [str], "labels": [str]}]}


def check_run(results: dict[str, Any], shape: Shape = RESULTS) -> None:
    """Check that a value is the content of ``results.json``, with rules that can decide.

    Raises:
        ValueError: if it is not.
    """
    check_shape(results, shape)
    suite = results["suite"]
    if results.get("matrix") is not None:
        check_shape(suite, MATRIX_SUITE, "suite")
    looks = [0, *suite["looks"]]
    if len(looks) < 2 or any(later <= earlier for earlier, later in pairwise(looks)):
        raise ValueError(f"suite.looks: {suite['looks']!r:.40}, expected increasing numbers of seeds")
    if not 0 < suite["alpha"] < 1:
        raise ValueError(f"suite.alpha: {suite['alpha']!r:.40}, expected a number between 0 and 1")
