"""What of torch works here, told in lines of JSON: ``python -m xferbench.lab.installed``.

A process of its own, since an installation may be so broken that importing it ends the process; each line is out before the
next thing is tried, so that the last one says how far it came.
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib import import_module
from typing import Any

PACKAGES = ("torch", "torchvision")


def main() -> None:
    """Import each package, then look for accelerators."""
    for name in PACKAGES:
        _say({"trying": name})
        try:
            _say({"package": name, "version": str(import_module(name).__version__)})
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a broken package raises is the answer
            _say({"package": name, "error": f"{type(error).__name__}: {error}"})
    if "torch" in sys.modules:
        _say({"trying": "devices"})
        _say({"devices": _devices(sys.modules["torch"])})


def _devices(torch: Any) -> list[dict[str, Any]]:
    """Accelerators by name, with memory in bytes, and what torch says of one that it cannot use."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = []
        if torch.cuda.is_available():
            for number in range(torch.cuda.device_count()):
                about = torch.cuda.get_device_properties(number)
                torch.zeros(1, device=f"cuda:{number}").add_(1).item()  # a device that torch has no code for fails here
                found.append({"kind": "cuda", "name": about.name, "memory": about.total_memory})
        if torch.backends.mps.is_available():
            found.append({"kind": "mps", "name": "Apple GPU", "memory": torch.mps.recommended_max_memory()})
    said = sorted({str(one.message).partition("\n")[0] for one in caught})
    return found + [{"kind": "unusable", "name": one, "memory": 0} for one in said]


def _say(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
