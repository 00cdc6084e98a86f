"""The provenance of a run: a SHA-256 manifest of all inputs and outputs. Pure. It claims no compliance with any standard."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from xferbench.core.json_shape import read_json
from xferbench.core.record import json_values
from xferbench.core.results_shape import EVIDENCE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

    from xferbench.core.run import Run

EVIDENCE_SCHEMA = 1
# keys of the file that are not part of the evidence of the run
RESERVED_KEYS = ("schema", "claim", "run", "frozen", "environment", "outputs")
EVIDENCE_FILE, CHECKSUMS_FILE = "evidence.json", "SHA256SUMS"
DISCLAIMER = "This report claims no compliance with any standard."


def render_evidence(run: Run, run_digest: str, outputs: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the two provenance files of a run; empty for a run without evidence.

    Args:
        run: the run.
        run_digest: digest of its results, which the files next to them contain.
        outputs: content of every other file of the run, by name.
    """
    provenance = run.provenance
    if not provenance.evidence:
        return {}
    header = {
        "schema": EVIDENCE_SCHEMA,
        "claim": DISCLAIMER,
        "run": run_digest,
        "frozen": provenance.preregistration or None,
        "environment": provenance.environment,
        "outputs": [{"name": name, "bytes": len(data), "sha256": _sha256(data)} for name, data in outputs.items()],
    }
    content = (json.dumps(json_values({**header, **provenance.evidence}), allow_nan=False, indent=1) + "\n").encode()
    return {
        EVIDENCE_FILE: content,
        CHECKSUMS_FILE: checksums({**outputs, EVIDENCE_FILE: content}).encode("utf-8", "surrogateescape"),
    }


def checksums(files: Mapping[str, bytes]) -> str:
    """Return lines for ``sha256sum --check``; backslashes and line ends in names are escaped as in coreutils."""
    return "".join(checksum_line(name, _sha256(data)) for name, data in files.items())


def checksum_line(name: str, sha256: str) -> str:
    """Return one line for ``sha256sum --check``."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{chr(92) if escaped != name else ''}{sha256}  {escaped}\n"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_evidence(file: BinaryIO) -> tuple[str, tuple[dict[str, Any]]]:
    """Return the digest of the results that a provenance file belongs to, and the evidence of the run.

    Raises:
        ValueError, KeyError, TypeError: if the file is damaged.
    """
    values = read_json(file.read(), {"run": str, **EVIDENCE})
    return values["run"], ({name: value for name, value in values.items() if name not in RESERVED_KEYS},)
