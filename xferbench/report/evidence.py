"""What goes with a report for those who must sign it: a SHA-256 manifest of all inputs and outputs. It claims no compliance."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from xferbench.record import plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

    from xferbench.record import Run

SCHEMA = 1
OWN = ("schema", "claim", "run", "frozen", "environment", "outputs")  # keys of the file that are not the run's evidence
EVIDENCE, SUMS = "evidence.json", "SHA256SUMS"
CLAIM = "This report claims no compliance with any standard."


def render(run: Run, of_run: str, outputs: Mapping[str, bytes]) -> dict[str, bytes]:
    """The two files of a run's evidence; none for a run that has none, as of an older version.

    Args:
        run: what was run, on what, with which plan.
        of_run: digest of its results, as the files beside them have it.
        outputs: every other file of the run, as it is about to be written.
    """
    if not run.evidence:
        return {}
    own = {
        "schema": SCHEMA,
        "claim": CLAIM,
        "run": of_run,
        "frozen": run.frozen or None,
        "environment": run.environment,
        "outputs": [{"name": name, "bytes": len(data), "sha256": _sha256(data)} for name, data in outputs.items()],
    }
    told = (json.dumps(plain({**own, **run.evidence}), allow_nan=False, indent=1) + "\n").encode()
    return {EVIDENCE: told, SUMS: sums({**outputs, EVIDENCE: told}).encode("utf-8", "surrogateescape")}


def sums(files: Mapping[str, bytes]) -> str:
    """Lines for ``sha256sum --check``; a name with a backslash or an end of line is escaped as coreutils escape it."""
    return "".join(line(name, _sha256(data)) for name, data in files.items())


def line(name: str, sha256: str) -> str:
    """One such line."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{chr(92) if escaped != name else ''}{sha256}  {escaped}\n"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(file: BinaryIO) -> tuple[str, tuple[dict[str, Any]]]:
    """Of which results a file of evidence is, and what it says of the run beside them.

    Raises:
        ValueError, KeyError, TypeError: where it is broken.
    """
    told = json.load(file)
    return told["run"], ({name: value for name, value in told.items() if name not in OWN},)
