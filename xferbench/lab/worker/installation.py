"""Reports in lines of JSON what of torch works on this machine: ``python -m xferbench.lab.worker.installation``. Imports torch.

It runs in its own process, because the import of a broken installation may end the process. Each line is flushed before the
next attempt, so the last line shows how far it came.
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib import import_module
from typing import Any

IMPORTED_PACKAGES = ("torch", "torchvision")


def main() -> None:
    """Import each package, then look for accelerators."""
    for name in IMPORTED_PACKAGES:
        _print_line({"trying": name})
        try:
            _print_line({"package": name, "version": str(import_module(name).__version__)})
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a broken package may raise anything, and that is the result
            _print_line({"package": name, "error": f"{type(error).__name__}: {error}"})
    if "torch" in sys.modules:
        _print_line({"trying": "devices"})
        _print_line({"devices": _list_devices(sys.modules["torch"])})


def _list_devices(torch: Any) -> list[dict[str, Any]]:
    """Return the accelerators with name and memory in bytes, and torch's warnings about those that it cannot use."""
    with warnings.catch_warnings(record=True) as caught_warnings:
        warnings.simplefilter("always")
        devices = []
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                properties = torch.cuda.get_device_properties(index)
                torch.zeros(1, device=f"cuda:{index}").add_(1).item()  # fails if torch has no code for the device
                devices.append({"kind": "cuda", "name": properties.name, "memory": properties.total_memory})
        if torch.backends.mps.is_available():
            devices.append({"kind": "mps", "name": "Apple GPU", "memory": torch.mps.recommended_max_memory()})
    messages = sorted({str(warning.message).partition("\n")[0] for warning in caught_warnings})
    return devices + [{"kind": "unusable", "name": message, "memory": 0} for message in messages]


def _print_line(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
