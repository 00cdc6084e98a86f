"""The provenance of a run: a SHA-256 manifest of all inputs and outputs. Pure. It claims no compliance with any standard."""

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
OWN = ("schema", "claim", "run", "frozen", "environment", "outputs")  # keys of the file that are not the run's provenance
EVIDENCE, SUMS = "evidence.json", "SHA256SUMS"
CLAIM = "This report claims no compliance with any standard."


def render(run: Run, of_run: str, outputs: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the two provenance files of a run; empty for a run of an older version without provenance.

    Args:
        run: the run.
        of_run: digest of its results, as in the files next to it.
        outputs: every other file of the run, with the content to be written.
    """
    if not run.evidence:
        return {}
    header = {
        "schema": SCHEMA,
        "claim": CLAIM,
        "run": of_run,
        "frozen": run.frozen or None,
        "environment": run.environment,
        "outputs": [{"name": name, "bytes": len(data), "sha256": _sha256(data)} for name, data in outputs.items()],
    }
    content = (json.dumps(plain({**header, **run.evidence}), allow_nan=False, indent=1) + "\n").encode()
    return {EVIDENCE: content, SUMS: sums({**outputs, EVIDENCE: content}).encode("utf-8", "surrogateescape")}


def sums(files: Mapping[str, bytes]) -> str:
    """Return lines for ``sha256sum --check``; backslashes and line ends in names are escaped as in coreutils."""
    return "".join(line(name, _sha256(data)) for name, data in files.items())


def line(name: str, sha256: str) -> str:
    """Return one line for ``sha256sum --check``."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{chr(92) if escaped != name else ''}{sha256}  {escaped}\n"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(file: BinaryIO) -> tuple[str, tuple[dict[str, Any]]]:
    """Return the digest of the results that a provenance file belongs to, and its statements about the run.

    Raises:
        ValueError, KeyError, TypeError: if the file is damaged.
    """
    values = json.load(file)
    return values["run"], ({name: value for name, value in values.items() if name not in OWN},)
