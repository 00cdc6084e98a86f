"""Build the suite that the options of ``xferbench audit`` describe. Reads files; a worker may read the checkpoint.

The options form the table that a suite file with ``[checkpoint]`` would contain.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.cli.suite_template import detect_arch, suite_slug
from xferbench.config import loader
from xferbench.core.errors import UserError
from xferbench.core.transforms import Tokens
from xferbench.data import inputs

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from xferbench.core.suite import Suite

PREPROCESSING_OPTIONS = ("mean", "std", "interpolation", "crop_pct", "img_size", "channels", "orientation", "bits")
DIRECT_OPTIONS = ("mean", "std", "interpolation", "channels", "orientation", "bits")  # those that are keys of a suite
TEXT_OPTIONS = ("lowercase", "max_length", "truncation", "padding", "special", "masked", "extra_padding")  # of serving
COMMAND_LINE = "command line"  # replaces the path of the suite file
REQUIRED_OPTIONS = ("after", "data")


def audit_suite(arguments: argparse.Namespace) -> Suite:
    """Return the suite of an audit: that of a file, or the one that the options describe.

    Raises:
        UserError: for a file without ``[checkpoint]``, for missing options, for options combined with a file, and as for
            :func:`xferbench.config.loader.parse_suite`.
    """
    if arguments.suite is None:
        return suite_from_options(arguments)
    options = [name for name in _audit_options(arguments) if name != "limit"]
    if options:
        do = "write it into the file, or omit the file"
        raise UserError(
            f"--{options[0].replace('_', '-')} cannot be combined with a suite file",
            found=arguments.suite,
            expected="either options or a file",
            do=do,
        )
    path = loader.find_suite(arguments.suite)
    loaded = loader.load_suite(path, [f"target.test_size={arguments.limit}"] if arguments.limit else [])
    if not loaded.is_audit:
        do = "use `xferbench run` for a suite without one"
        raise UserError(f"{path}: [checkpoint] is missing", expected='[checkpoint] with after = "path/to/weights"', do=do)
    return loaded


def _audit_options(arguments: argparse.Namespace) -> list[str]:
    """Return the names of the options that describe an audit and have a value."""
    names = [
        "arch",
        *REQUIRED_OPTIONS,
        "before",
        "source",
        "keep_source",
        "shifted",
        "manifest",
        "believed",
        "metric",
        "margin",
        "max_duplicates",
    ]
    names += [
        "checks",
        "limit",
        "scratch",
        "serve_mode",
        *PREPROCESSING_OPTIONS,
        *(f"serve_{name}" for name in (*PREPROCESSING_OPTIONS, *TEXT_OPTIONS)),
    ]
    return [name for name in names if getattr(arguments, name) is not None]


def suite_from_options(arguments: argparse.Namespace) -> Suite:
    """Return the suite that the options describe; a worker reads the checkpoint if its architecture is needed."""
    from xferbench.core.suite import replace_invocation

    options = {name: getattr(arguments, name) for name in _audit_options(arguments)}
    for name in REQUIRED_OPTIONS:
        if name not in options:
            found = ", ".join(f"--{option}" for option in options) or "no options"
            raise UserError(f"--{name} is missing", found=found, expected="--after FILE --data DATA, or a suite file")
    arch = options.get("arch") or _detect_and_print_arch(options["after"])
    table = _suite_table(options, arch)
    path = Path.cwd() / COMMAND_LINE
    try:
        suite = loader.parse_suite(table, path)
        return replace_invocation(suite, path=COMMAND_LINE, command=_typed_options(options))
    except UserError as problem:
        raise problem.at(problem.what.replace(str(path), COMMAND_LINE, 1)) from problem  # there is no such file to look for


def _detect_and_print_arch(weights: Path) -> str:
    arch = detect_arch(weights, "--after")
    print(f"architecture: {arch}, detected from the tensors", file=sys.stderr)
    return arch


def _suite_table(options: Mapping[str, Any], arch: str) -> dict[str, Any]:
    checkpoint = {name: str(options[name]) for name in ("after", "before") if name in options}
    checkpoint |= {name: options[name] for name in ("believed", "scratch") if name in options}
    train = {name: options[name] for name in PREPROCESSING_OPTIONS if name in options}
    serve = {name: options[f"serve_{name}"] for name in PREPROCESSING_OPTIONS if f"serve_{name}" in options}
    base = _recorded_preprocessing(arch, Path(options.get("before") or options["after"])) if train or serve else {}
    preprocessing = adjust_preprocessing(base, train)
    recipe = {"serve_preprocessing": adjust_preprocessing(preprocessing, serve)} if serve else {}
    if text := {name: options[f"serve_{name}"] for name in TEXT_OPTIONS if f"serve_{name}" in options}:
        recipe = {"serve_preprocessing": {**recipe.get("serve_preprocessing", {}), "kind": "text", **text}}
    recipe |= {"serve_mode": options["serve_mode"]} if "serve_mode" in options else {}
    source = {"data": options["source"]} if "source" in options else {}
    source |= {"keep": True} if "keep_source" in options else {}
    source |= {"manifest": str(options["manifest"])} if "manifest" in options else {}
    target = {"data": options["data"]} | ({"test_size": options["limit"]} if "limit" in options else {})
    return {
        "schema": 1,
        "name": suite_slug(Path(options["after"]).stem),
        "plugins": options.get("checks", ["all"]),
        **{name: options[name] for name in ("metric", "margin", "max_duplicates") if name in options},
        "backbone": {"arch": arch} | ({"preprocessing": preprocessing} if train or serve else {}),
        "target": target,
        "checkpoint": checkpoint,
        **({"source": source} if source else {}),
        **({"shifted": {"data": options["shifted"]}} if "shifted" in options else {}),
        **({"recipe": recipe} if recipe else {}),
    }


def adjust_preprocessing(base: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of preprocessing in which timm's options replace values.

    The shorter side becomes the crop size divided by ``crop_pct``. Without that option, the ratio of the two stays.
    """
    table = dict(base) | {name: options[name] for name in DIRECT_OPTIONS if name in options}
    crop, resize = base.get("crop"), base.get("resize")
    size = options.get("img_size", crop)
    if size and ("img_size" in options or "crop_pct" in options):
        ratio = options.get("crop_pct", crop / resize if crop and resize else 1.0)
        table |= {"crop": size, "resize": floor(size / ratio)}
    return table


def _recorded_preprocessing(arch: str, weights: Path) -> dict[str, Any]:
    """Return the preprocessing recorded for a checkpoint or its architecture, as a suite's table; options modify it."""
    from xferbench.runner.engines import local

    weights_file = inputs.digest_weights_file(weights)
    with local.start_workers(1) as call:
        recorded, _ = call("xferbench.lab.worker.profile:checkpoint_preprocessing", arch, weights_file).result()
    if isinstance(recorded, Tokens):
        do = "state the serving of texts by --serve-max-length, --serve-padding and the like"
        raise UserError("options of images for a network that takes text", found=str(weights), expected="none of them", do=do)
    table = asdict(recorded) if recorded else {}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in table.items() if value is not None}


def _typed_options(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options as a user would type them."""
    typed = []
    for name, value in options.items():
        values = [] if isinstance(value, bool) else value if isinstance(value, list) else [value]
        typed += [
            f"--{'no-' if value is False else ''}{name.replace('_', '-')}",
            *(shlex.quote(f"{item:g}" if isinstance(item, float) else str(item)) for item in values),
        ]
    return tuple(typed)
