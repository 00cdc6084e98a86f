"""The source code of installed modules and a digest of it. Reads files, and imports at most the packages above a module."""

from __future__ import annotations

import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGE = __name__.partition(".")[0]


def digest_source(modules: Iterable[str]) -> str:
    """Compute one SHA-256 over the source of some modules, as hexadecimal.

    The source of a package is all Python files below it; the source of any other module is its file. The digest does not depend
    on the path of the package, so the same version of a plugin has the same digest on every machine.

    Raises:
        ImportError: if a module has no source that can be read.
    """
    content = hashlib.sha256()
    files = {name: data for module in modules for name, data in read_source(module).items()}
    for name, data in sorted(files.items()):
        content.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\0".encode())
    return content.hexdigest()


def read_source(module: str) -> dict[str, bytes]:
    """Read the source files of a module, by name.

    Raises:
        ImportError: if there are none, or one cannot be read.
    """
    try:
        spec = find_spec(module)
        if spec is None:
            raise ImportError(f"no module named {module!r}", name=module)
        if spec.submodule_search_locations is not None:
            roots = [Path(location) for location in spec.submodule_search_locations]
            files = {f"{module}/{path.relative_to(root).as_posix()}": path for root in roots for path in root.rglob("*.py")}
            sources = {name: path.read_bytes() for name, path in files.items()}
        else:
            get_data = getattr(spec.loader, "get_data", None)  # a module in a zip archive has no path
            sources = {module: get_data(spec.origin)} if get_data and spec.origin else {}
    except (OSError, ValueError) as error:  # find_spec raises ValueError for __main__
        raise ImportError(f"the source of module {module!r} cannot be read: {error}", name=module) from error
    if not sources:
        raise ImportError(f"module {module!r} has no source files", name=module)
    return sources


def is_third_party(module: str) -> bool:
    """Check whether a module belongs neither to this package nor to the standard library."""
    top = module.partition(".")[0]
    return top != PACKAGE and top not in sys.stdlib_module_names
