"""Code of the user, ``python:module:callable``: found and digested without running it, and run in workers only.

Reads files.
"""

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

from xferbench.core.errors import UserError
from xferbench.core.files import sha256
from xferbench.core.pipeline import UserCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from importlib.machinery import ModuleSpec

PREFIX = "python:"
CALLABLE_PATTERN = re.compile(r"python:([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")


class UserCodeError(RuntimeError):
    """An error in code of the user. The message names the callable, the error and its line."""


def find_callable(spec: str, folder: Path, digester: Callable[[Path], str]) -> UserCode:
    """Find the module behind ``python:module:callable`` and digest the source files of its top-level package.

    If the module is a single file, the files that it imports from its folder count as well. The module is searched first in
    ``folder``, then on Python's path. Nothing is imported.

    Raises:
        UserError: If the spec has another form, or the module does not exist.
    """
    match = CALLABLE_PATTERN.fullmatch(spec)
    if match is None:
        raise UserError("not a callable", found=spec, expected="python:module:callable, such as python:mine.models:build")
    package, hasher = match[1].partition(".")[0], hashlib.sha256()
    files = _source_files(package, folder)
    if not files:
        expected = f"{package}.py or a package {package} in {folder}, or on Python's path"
        do = "put it in the folder of the suite file, or install it in the environment of xferbench"
        raise UserError(f"no module {package!r} with source files", found=spec, expected=expected, do=do)
    for name, path in sorted(files.items()):
        hasher.update(f"{name}\0{digester(path)}\0".encode())
    return UserCode(spec=spec, digest=hasher.hexdigest(), path=str(folder))


def _source_files(package: str, folder: Path) -> dict[str, Path]:
    """Return the source files of a package by name, with those it imports from its own folder or the suite's folder."""
    files: dict[str, Path] = {}
    visited, pending, search_folders = set(), [package], {folder: None}
    while pending:
        name = pending.pop()
        spec = _find_spec(name, folder) if name == package else PathFinder.find_spec(name, [*map(str, search_folders)])
        if name in visited or spec is None:
            continue
        visited.add(name)
        if spec.submodule_search_locations is not None:
            module_files = {
                f"{name}/{path.relative_to(location).as_posix()}": path
                for location in spec.submodule_search_locations
                for path in Path(location).rglob("*.py")
            }
        elif spec.origin is not None and Path(spec.origin).is_file():
            module_files = {Path(spec.origin).name: Path(spec.origin)}
            if name == package and "site-packages" not in spec.origin:  # files in the same folder belong to the module
                search_folders[Path(spec.origin).parent] = None
        else:
            module_files = {}
        files |= module_files
        pending += {
            imported
            for path in module_files.values()
            if not search_folders.keys().isdisjoint(path.parents)
            for imported in _imported_packages(path)
        }
    return files


def _find_spec(package: str, folder: Path) -> ModuleSpec | None:
    try:
        return PathFinder.find_spec(package, [str(folder), *sys.path]) or find_spec(package)
    except ValueError:  # __main__ has no spec
        return None


def _imported_packages(path: Path) -> set[str]:
    """Return the top-level names that a file imports; none for a file with invalid syntax, which fails later when it runs."""
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (SyntaxError, ValueError):
        return set()
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in names}


@lru_cache
def load_callable(code: UserCode) -> Any:
    """Return the callable. This runs the user's module.

    Raises:
        UserError: If the callable does not exist, or its files are not those that were digested.
        UserCodeError: If the module raises.
    """
    module, name = code.spec.removeprefix(PREFIX).split(":")
    package, folder = module.partition(".")[0], Path(code.path)
    if find_callable(code.spec, folder, sha256).digest != code.digest:
        raise UserError(f"{code.spec}: its files have changed since the run began", do="run it again")
    if code.path not in sys.path:
        sys.path.insert(0, code.path)
    module_spec, loaded = _find_spec(package, folder), sys.modules.get(package)
    if loaded is not None and module_spec is not None and getattr(loaded, "__file__", None) != module_spec.origin:
        found = f"{package}, of {getattr(loaded, '__file__', None) or 'Python itself'}"
        raise UserError(f"{code.spec}: another module of this name is loaded", found=found, do="rename your module")
    try:
        with name_errors(code):
            target: Any = importlib.import_module(module)
    except UserCodeError as crash:
        missing = crash.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name and f"{module}.".startswith(f"{missing.name}."):
            raise UserError(f"{code.spec}: no such module", found=str(missing), expected=f"a module {module}") from crash
        raise
    for attribute in name.split("."):
        target = getattr(target, attribute, None)
    if not callable(target):
        raise UserError(f"{code.spec}: not a callable", found=repr(target)[:80], expected=f"a function {name} in {module}")
    return target


@contextmanager
def name_errors(code: UserCode) -> Iterator[None]:
    """Turn every error of the user's code into a :class:`~xferbench.data.user_code.UserCodeError` that names the code.

    That includes disk errors and ``SystemExit``.
    """
    try:
        yield
    except (UserError, UserCodeError):
        raise
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
        raise UserCodeError(f"{code.spec} crashed: {message}") from error


def call_user_code(code: UserCode, *arguments: Any) -> Any:
    """Call the user's callable and return its result.

    Raises:
        UserCodeError: If it raises.
        UserError: If it does not exist.
    """
    function = load_callable(code)
    with name_errors(code):
        return function(*arguments)
