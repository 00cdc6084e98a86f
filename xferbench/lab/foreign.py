"""Code that a user brings, ``python:module:callable``: found and digested without being run, and run in workers only."""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import sys
import traceback
from contextlib import contextmanager
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.core.files import sha256
from xferbench.design import Code
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from importlib.machinery import ModuleSpec

PREFIX = "python:"
FORM = re.compile(r"python:([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")


class Crashed(RuntimeError):  # noqa: N818 - what happened, not whose error it was
    """A user's code raised something; the message names the callable, the error and its line."""


def find(word: str, folder: Path, digester: Callable[[Path], str]) -> Code:
    """The content behind ``python:module:callable``: all source files of the module's outermost package.

    Of a module that is one file, the files beside it that it imports count too. The module is looked for in ``folder``
    first, then on Python's path; nothing of it is imported.

    Raises:
        Problem: for a word of another form, or a module that is not there.
    """
    parts = FORM.fullmatch(word)
    if parts is None:
        raise Problem("not a callable", found=word, expected="python:module:callable, such as python:mine.models:build")
    top, content = parts[1].partition(".")[0], hashlib.sha256()
    files = _files(top, folder)
    if not files:
        expected = f"{top}.py or a package {top} in {folder}, or on Python's path"
        do = "put it beside the suite file, or install it where xferbench is installed"
        raise Problem(f"no module {top!r} with source files", found=word, expected=expected, do=do)
    for name, path in sorted(files.items()):
        content.update(f"{name}\0{digester(path)}\0".encode())
    return Code(spec=word, digest=content.hexdigest(), path=str(folder))


def _files(top: str, folder: Path) -> dict[str, Path]:
    """Source files by their name in the module's own folder, and of what they import from there or from the suite's folder."""
    found: dict[str, Path] = {}
    seen, left, homes = set(), [top], {folder: None}
    while left:
        name = left.pop()
        spec = _spec(name, folder) if name == top else PathFinder.find_spec(name, [*map(str, homes)])
        if name in seen or spec is None:
            continue
        seen.add(name)
        if spec.submodule_search_locations is not None:
            new = {
                f"{name}/{path.relative_to(place).as_posix()}": path
                for place in spec.submodule_search_locations
                for path in Path(place).rglob("*.py")
            }
        elif spec.origin is not None and Path(spec.origin).is_file():
            new = {Path(spec.origin).name: Path(spec.origin)}
            if name == top and "site-packages" not in spec.origin:  # where it lies, its neighbours are its own
                homes[Path(spec.origin).parent] = None
        else:
            new = {}
        found |= new
        left += {one for path in new.values() if not homes.keys().isdisjoint(path.parents) for one in _imported(path)}
    return found


def _spec(top: str, folder: Path) -> ModuleSpec | None:
    try:
        return PathFinder.find_spec(top, [str(folder), *sys.path]) or find_spec(top)
    except ValueError:  # __main__ has none
        return None


def _imported(path: Path) -> set[str]:
    """The outermost names of what a file imports; of one that is no Python, its crash will tell more."""
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (SyntaxError, ValueError):
        return set()
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in names}


@lru_cache
def load(code: Code) -> Any:
    """The callable itself. This runs the user's module.

    Raises:
        Problem: where it is not there, or its files are not those that were digested. Crashed: where its module raises.
    """
    module, name = code.spec.removeprefix(PREFIX).split(":")
    top, folder = module.partition(".")[0], Path(code.path)
    if find(code.spec, folder, sha256).digest != code.digest:
        raise Problem(f"{code.spec}: its files have changed since the run began", do="run it again")
    if code.path not in sys.path:
        sys.path.insert(0, code.path)
    there, held = _spec(top, folder), sys.modules.get(top)
    if held is not None and there is not None and getattr(held, "__file__", None) != there.origin:
        found = f"{top}, of {getattr(held, '__file__', None) or 'Python itself'}"
        raise Problem(f"{code.spec}: a module of this name is loaded already", found=found, do="rename yours")
    try:
        with naming(code):
            found_: Any = importlib.import_module(module)
    except Crashed as crash:
        missing = crash.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name and f"{module}.".startswith(f"{missing.name}."):
            raise Problem(f"{code.spec}: no such module", found=str(missing), expected=f"a module {module}") from crash
        raise
    for part in name.split("."):
        found_ = getattr(found_, part, None)
    if not callable(found_):
        raise Problem(f"{code.spec}: not a callable", found=repr(found_)[:80], expected=f"a function {name} in {module}")
    return found_


@contextmanager
def naming(code: Code) -> Iterator[None]:
    """Whatever a user's code raises becomes a crash that names it, a disk error or the end of the process too."""
    try:
        yield
    except (Problem, Crashed):
        raise
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        raise Crashed(f"{code.spec} crashed: {said}") from error


def called(code: Code, *arguments: Any) -> Any:
    """What the callable returns.

    Raises:
        Crashed: where it raises. Problem: where it is not there.
    """
    function = load(code)
    with naming(code):
        return function(*arguments)
