"""The words of ``xferbench audit`` as a suite: the table that a file with ``[checkpoint]`` would have held."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench import suite as suites
from xferbench.core import files
from xferbench.init import arch as guessed
from xferbench.init import slug
from xferbench.problem import Problem

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from xferbench.design import Suite

OPTIONS = ("mean", "std", "interpolation", "crop_pct", "img_size", "channels")
WORDS = "command line"  # stands for the file that there is none of
REQUIRED = ("after", "data")


def suite(arguments: argparse.Namespace) -> Suite:
    """The suite that an audit's arguments mean: a file's, or the one that they describe.

    Raises:
        Problem: for a file without ``[checkpoint]``, for arguments that are missing, or beside a file; and whatever
            :func:`xferbench.suite.parse` finds.
    """
    if arguments.suite is None:
        return described(arguments)
    beside = [name for name in _own(arguments) if name != "limit"]
    if beside:
        do = "write it into the file, or leave the file out"
        raise Problem(
            f"--{beside[0].replace('_', '-')} beside a suite file", found=arguments.suite, expected="one of both", do=do
        )
    path = suites.find(arguments.suite)
    asked = suites.load(path, [f"target.test_size={arguments.limit}"] if arguments.limit else [])
    if asked.after is None:
        do = "`xferbench run` is for suites without one"
        raise Problem(f"{path}: [checkpoint] is missing", expected='[checkpoint] with after = "path/to/weights"', do=do)
    return asked


def _own(arguments: argparse.Namespace) -> list[str]:
    """The options given that describe an audit."""
    names = ["arch", *REQUIRED, "before", "source", "shifted", "manifest", "believed", "metric", "margin", "max_duplicates"]
    names += ["checks", "limit", "scratch", "serve_mode", *OPTIONS, *(f"serve_{name}" for name in OPTIONS)]
    return [name for name in names if getattr(arguments, name) is not None]


def described(arguments: argparse.Namespace) -> Suite:
    """The suite that the options alone describe; where a checkpoint has to be looked into for it, a worker does."""
    given = {name: getattr(arguments, name) for name in _own(arguments)}
    for name in REQUIRED:
        if name not in given:
            found = ", ".join(f"--{one}" for one in given) or "no option at all"
            raise Problem(f"--{name} is missing", found=found, expected="--after FILE --data DATA, or a suite file")
    arch = given.get("arch") or guessed(given["after"], "--after")
    table = _table(given, arch)
    place = Path.cwd() / WORDS
    try:
        return replace(suites.parse(table, place), path=WORDS, command=_words(given))
    except Problem as problem:
        raise problem.at(problem.what.replace(str(place), WORDS, 1)) from problem  # no file of that name is to be looked for


def _table(given: Mapping[str, Any], arch: str) -> dict[str, Any]:
    checkpoint = {name: str(given[name]) for name in ("after", "before") if name in given}
    checkpoint |= {name: given[name] for name in ("believed", "scratch") if name in given}
    train = {name: given[name] for name in OPTIONS if name in given}
    serve = {name: given[f"serve_{name}"] for name in OPTIONS if f"serve_{name}" in given}
    base = _recorded(arch, Path(given.get("before") or given["after"])) if train or serve else {}
    own = adjusted(base, train)
    recipe = {"serve_preprocessing": adjusted(own, serve)} if serve else {}
    recipe |= {"serve_mode": given["serve_mode"]} if "serve_mode" in given else {}
    source = {"data": given["source"]} if "source" in given else {}
    source |= {"manifest": str(given["manifest"])} if "manifest" in given else {}
    target = {"data": given["data"]} | ({"test_size": given["limit"]} if "limit" in given else {})
    return {
        "schema": 1,
        "name": slug(Path(given["after"]).stem),
        "plugins": given["checks"].split(",") if "checks" in given else ["all"],
        **{name: given[name] for name in ("metric", "margin", "max_duplicates") if name in given},
        "backbone": {"arch": arch} | ({"preprocessing": own} if train or serve else {}),
        "target": target,
        "checkpoint": checkpoint,
        **({"source": source} if source else {}),
        **({"shifted": {"data": given["shifted"]}} if "shifted" in given else {}),
        **({"recipe": recipe} if recipe else {}),
    }


def adjusted(base: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A preprocessing's table with timm's options in the place of its values.

    The shorter side becomes the size of the crop over ``crop_pct``; without that, their ratio stays as it was.
    """
    told = dict(base) | {name: options[name] for name in ("mean", "std", "interpolation", "channels") if name in options}
    crop, resize = base.get("crop"), base.get("resize")
    size = options.get("img_size", crop)
    if size and ("img_size" in options or "crop_pct" in options):
        share = options.get("crop_pct", crop / resize if crop and resize else 1.0)
        told |= {"crop": size, "resize": floor(size / share)}
    return told


def _recorded(arch: str, weights: Path) -> dict[str, Any]:
    """What is recorded for a checkpoint or its architecture, as a suite's table; that is what options are changes of."""
    from xferbench.design import Weights
    from xferbench.engines import local

    if not weights.is_file():
        raise Problem(f"{weights}: cannot be read as weights", found="no such file", expected="a file", do="check the path")
    named = Weights(digest=files.sha256(weights), path=str(weights))
    with local.workers(1) as call:
        found, _ = call("xferbench.lab.probe:recorded", arch, named).result()
    table = asdict(found) if found else {}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in table.items() if value is not None}


def _words(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The options as they would be typed again."""
    words = []
    for name, value in given.items():
        values = value if isinstance(value, list) else [value]
        words += [
            f"--{name.replace('_', '-')}",
            *(shlex.quote(f"{one:g}" if isinstance(one, float) else str(one)) for one in values),
        ]
    return tuple(words)
