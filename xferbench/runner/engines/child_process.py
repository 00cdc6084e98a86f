"""The command and the environment of a child process that runs a module of this package.

Python puts the current folder first on its import path, for ``-m`` and for an empty entry of PYTHONPATH. A file ``torch.py``
next to a suite would then run in each worker. A child process therefore finds modules only where they are installed, and where
PYTHONPATH names a folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The package may be importable only because of the caller's own import path, as in a notebook in its checkout. Its folder comes
# last, because it may contain any other module too.
START_MODULE = """
import runpy, sys
module, folder = sys.argv[1:3]
sys.path.append(folder)
del sys.argv[1:3]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
PACKAGE_PARENT = Path(__file__).parents[3]


def child_command(module: str) -> list[str]:
    """Return the command that runs a module of this package without the current folder on the import path."""
    return [sys.executable, "-I" if sys.flags.isolated else "-P", "-c", START_MODULE, module, str(PACKAGE_PARENT)]


def child_environment() -> dict[str, str]:
    """Return this process's environment without empty entries of PYTHONPATH, each of which means the current folder."""
    folders = os.pathsep.join(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return others | ({"PYTHONPATH": folders} if folders else {})
