"""Canonical JSON of frozen values, and the digests that are keys. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import field, is_dataclass
from math import isfinite
from typing import Any

from xferbench.core.interventions import Intervention, field_value, intervention_key
from xferbench.core.sections import flat_fields, flat_name


def location_field() -> Any:
    """Return a dataclass field for the location of some content. It is neither compared nor part of a key."""
    return field(default="", compare=False, metadata={"place": True})


SOURCE_KEY_LENGTH = 16  # hexadecimal digits of the source digest in the key of a measure
MEASURE_ALIASES = {  # key of a measure → its older name, which the keys of records contain
    "lab/cost@2": "xferbench.lab.cost:measured@2",
    "audit/head-size/head-size@1": "xferbench.checks.head_size:spare@1",
    "train-serve-skew/batch-dependence@1": "xferbench.checks.train_serve_skew:batch_dependence@1",
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
    """Return the key of a plugin's measure, ``plugin-id/name@version``, which does not depend on the function's module.

    The key of a function of the lab begins with ``lab`` instead of a plugin, so that all plugins that use it share its records.
    The key of a third-party plugin's measure ends with ``#`` and the start of the digest of its source, so that changed code
    with an unchanged version does not read the records of the earlier code.

    Args:
        plugin: id of the plugin.
        name: name of the measure.
        reference: ``module:function@version``.
        source: digest of the source of a third-party plugin, or "".
    """
    version = reference.partition("@")[2]
    if reference.startswith("xferbench.lab."):
        return f"lab/{name}@{version}"
    return f"{plugin}/{name}@{version}" + (f"#{source[:SOURCE_KEY_LENGTH]}" if source else "")


def canonical(value: Any) -> Any:
    """Return the content of a value that its key is computed from, as JSON types.

    Floats are rounded to 6 significant digits. Locations are left out.

    Raises:
        TypeError: if a value has no canonical form, such as NaN.
    """
    if isinstance(value, Intervention):
        return intervention_key(value)
    if is_dataclass(value) and not isinstance(value, type):
        if (tag := getattr(value, "tag", None)) is None:
            raise TypeError(f"no canonical form for {value!r}: its class has no tag")
        return {"noun": tag} | _canonical_fields(value)
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


def _canonical_fields(value: Any) -> dict[str, Any]:
    """Return the canonical form of each field of a dataclass that is part of its key."""
    items = {}
    for field_, item in flat_fields(value):
        metadata = field_.metadata
        if "place" in metadata or ("added" in metadata and item == field_.default):
            continue
        content = canonical(field_value(field_, item))
        items[flat_name(field_)] = metadata["alias"].get(content, content) if "alias" in metadata else content
    return items


def digest(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of a value, as hexadecimal."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
