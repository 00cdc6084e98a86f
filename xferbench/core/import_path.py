"""Keep the current folder out of the import path of ``python -m xferbench`` and of the command ``xferbench``.

``xferbench/__init__.py`` imports this module before any other. This module imports only what Python has loaded already, and
not even ``__future__``, because a file of that name in the current folder would run.
"""

import os
import sys

PACKAGE = __name__.partition(".")[0]


def clean_import_path() -> None:
    """Remove the current folder from the import path, if the program is one of this package. Changes sys.path."""
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    if program == "-m":  # Python imports the package because it was started with -m and a module of it
        is_ours = sys.orig_argv[-len(sys.argv)].removeprefix("-m").partition(".")[0] == PACKAGE
    else:
        is_ours = os.path.basename(program).partition(".")[0] in {PACKAGE, f"{PACKAGE}-script"}  # noqa: PTH119
    if is_ours:
        sys.path[:] = without_current_folder(sys.path)


def without_current_folder(path: list[str]) -> list[str]:
    """Return an import path without the current folder, unless PYTHONPATH or an installed ``.pth`` file names it.

    ``python -m`` puts the current folder first, and so does an empty entry of PYTHONPATH, as in ``PYTHONPATH=:/opt/lib``. The
    folders of ``.pth`` files stand after Python's own library.
    """
    try:
        here = os.path.realpath(os.curdir)
    except OSError:  # the folder was deleted
        return path
    named = [os.path.realpath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    library = os.path.dirname(os.__file__)  # noqa: PTH120 - pathlib is not loaded yet
    end = path.index(library) if library in path else len(path)
    first = path[:end] if here in named else [entry for entry in path[:end] if os.path.realpath(entry or os.curdir) != here]
    return first + path[end:]
