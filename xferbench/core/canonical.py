"""Canonical JSON of frozen values, and the digests that are keys. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from math import isfinite
from typing import Any

from xferbench.core.interventions import Intervention, field_value, intervention_key


def location_field() -> Any:
    """Return a field that says where a content lies; it is neither compared nor part of a key."""
    return field(default="", compare=False, metadata={"place": True})


SOURCE_KEY_LENGTH = 16  # hexadecimal digits of a source's digest in the key of a measure
MEASURE_ALIASES = {  # measures by their keys → the words that stand for them in keys of records
    "lab/cost@2": "xferbench.lab.cost:measured@2",
    "audit/collapse/collapse@1": "xferbench.checks.collapse:collapse@1",
    "audit/head-size/head-size@1": "xferbench.checks.head_size:spare@1",
    "audit/reload/reload@1": "xferbench.checks.reload:reload@1",
    "train-serve-skew/batch-dependence@1": "xferbench.checks.train_serve_skew:batch_dependence@1",
    "domain-gap/logme@1": "xferbench.plugins.domain_gap:logme@1",
    "data-leakage/copies@1": "xferbench.plugins.data_leakage:copies@1",
    "data-leakage/groups@1": "xferbench.plugins.data_leakage:groups@1",
    "feature-distortion/distortion@2": "xferbench.plugins.feature_distortion:distortion@2",
    "train-serve-skew/batch-dependence@2": "xferbench.plugins.train_serve_skew:batch_dependence@2",
    "freeze-integrity/integrity@1": "xferbench.plugins.freeze_integrity:integrity@1",
    "head-shock/shock@2": "xferbench.plugins.head_shock:shock@2",
    "batchnorm-drift/drift@1": "xferbench.plugins.batchnorm_drift:drift@1",
    "strategy-regret/trainable@1": "xferbench.plugins.strategy_regret:trainable@1",
}


def measure_key(plugin: str, name: str, reference: str, source: str = "") -> str:
    """Key of a plugin's measure, ``plugin-id/name@version``, whatever module its function stands in.

    A function of the lab belongs to no plugin; its owner is ``lab``, so that all who use it share its records. The key of a
    third-party plugin's measure ends with ``#`` and the start of the digest of its ``source``, so that code which changes
    while its version stays does not read the records of the code before.
    """
    version = reference.partition("@")[2]
    if reference.startswith("xferbench.lab."):
        return f"lab/{name}@{version}"
    return f"{plugin}/{name}@{version}" + (f"#{source[:SOURCE_KEY_LENGTH]}" if source else "")


def _aliased(measure: str) -> str:
    return MEASURE_ALIASES.get(measure, measure)


def canonical(value: Any) -> Any:
    """The part of a value that makes its key, as JSON's types: fractions to 6 significant digits, places left out.

    Raises:
        TypeError: for a value that has no canonical form, a NaN among them.
    """
    if isinstance(value, Intervention):
        return intervention_key(value)
    if is_dataclass(value) and not isinstance(value, type):
        named = {
            f.metadata.get("key", f.name): _aliased(getattr(value, f.name))
            if "alias" in f.metadata
            else field_value(f, getattr(value, f.name))
            for f in fields(value)
            if not ("place" in f.metadata or ("added" in f.metadata and getattr(value, f.name) == f.default))
        }
        if (tag := getattr(value, "tag", None)) is None:
            raise TypeError(f"no canonical form for {value!r}: its class has no tag")
        return {"noun": tag} | {name: canonical(item) for name, item in named.items()}
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float) and isfinite(value):
        rounded = float(f"{value:.6g}")
        return int(rounded) if rounded.is_integer() else rounded
    if isinstance(value, tuple | list):
        return [canonical(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    message = f"no canonical form for {value!r}"
    raise TypeError(message)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, as hexadecimal."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
