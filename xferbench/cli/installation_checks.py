"""Check the installation, and print one line for each check with its remedy. Reads files; torch runs in another process.

The output is what a user pastes into a bug report.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.cli import machine
from xferbench.core.version import __version__
from xferbench.report import format
from xferbench.runner import discovery, environment, store
from xferbench.runner.engines import local
from xferbench.runner.engines.child_process import child_command, child_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

OK, WARN, FAIL = "OK", "WARN", "FAIL"
TIMEOUT_SECONDS = 180.0  # torch may take long to import from a slow disk
UNKNOWN = "could not tell: "  # start of a failure that says nothing about the installation
EXTRAS = ("timm", "peft", "safetensors", "scikit-learn", "pillow")
MIN_TORCH = (2, 6)  # oldest safe torch; weights_only=True could be bypassed before it (CVE-2025-32434)
INSTALL = "pip install 'xferbench[torch]'"
WORKER_BYTES = 1 << 30  # bytes of memory that a worker may need
FREE_BYTES = (100 << 20, 2 << 30)  # free bytes below which nothing works, and below which decoded images may not fit


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorCheck:
    """The result of one check: its state, what was found, and the remedy if the state is not OK."""

    check: str
    state: str = OK
    found: str
    do: str = ""


def run_checks(path: Path) -> Iterator[DoctorCheck]:
    """Yield all checks, for the store at a path."""
    yield DoctorCheck(check="xferbench", found=f"{__version__} at {hide_home(Path(__file__).parents[1])}")
    yield DoctorCheck(check="python", found=f"{platform.python_version()} at {hide_home(Path(sys.executable))}")
    yield DoctorCheck(check="platform", found=f"{platform.platform()}, {environment.processor_name()}")
    yield from check_resources(
        local.available_cores(), machine.total_memory(), machine.processor_limit(), machine.memory_limit()
    )
    report, failure = installation_report()
    yield from check_torch(report, failure)
    yield DoctorCheck(
        check="packages",
        found=", ".join(f"{name} {number}" for name in EXTRAS if (number := _installed_version(name))) or "none",
    )
    yield from check_plugins()
    yield from check_store(path)


def check_resources(cores: int, memory: int | None, quota: float | None, limit: int | None) -> Iterator[DoctorCheck]:
    """Check processors and memory, and the limits of control groups."""
    is_limited = quota is not None and quota < cores
    found = f"{cores}" + (f", limited to {quota:g} by a control group" if quota is not None and is_limited else "")
    do = f"use -j {max(1, int(quota or 1))}, because one worker starts for each core"
    yield DoctorCheck(check="cores", found=found, state=WARN if is_limited else OK, do=do if is_limited else "")
    usable = min(count for count in (memory, limit, 1 << 62) if count is not None)
    if usable == 1 << 62:
        yield DoctorCheck(check="memory", found="not known")
        return
    is_small = usable < cores * WORKER_BYTES
    limited = f", limited to {format_bytes(limit)} by a control group" if limit is not None and limit == usable else ""
    do = f"use -j {max(1, usable // WORKER_BYTES)}, if workers are killed"
    found = f"{format_bytes(memory or usable)}{limited}"
    yield DoctorCheck(check="memory", found=found, state=WARN if is_small else OK, do=do if is_small else "")


def installation_report() -> tuple[list[dict[str, Any]], str]:
    """Return what a separate process reports about torch, one entry a line, and how it failed, or ""."""
    command, variables = child_command("xferbench.lab.worker.installation"), child_environment()
    try:
        process = subprocess.run(command, env=variables, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)  # noqa: S603 - fixed words
    except subprocess.TimeoutExpired as expired:
        return _json_lines(expired.stdout or b""), f"{UNKNOWN}took more than {TIMEOUT_SECONDS:g} s"
    last = (process.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
    return _json_lines(process.stdout), "" if not process.returncode else ": ".join(
        filter(None, (_describe_exit(process.returncode), last))
    )


def _describe_exit(code: int) -> str:
    """Return how a process ended."""
    numbers = {member.value for member in signal.Signals}
    return f"ended by {signal.Signals(-code).name}" if -code in numbers else f"ended with exit status {code}"


def _json_lines(output: bytes) -> list[dict[str, Any]]:
    """Return the lines that are JSON objects; a library may print other lines between them."""
    objects = []
    for line in output.decode(errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        objects += [value] if isinstance(value, dict) else []
    return objects


def check_torch(report: Sequence[Mapping[str, Any]], failure: str) -> Iterator[DoctorCheck]:
    """Check torch, torchvision and the devices from the report of the process.

    If the process ended early, the step that it was trying fails.
    """
    packages = {str(entry["package"]): entry for entry in report if "package" in entry}
    for name, entry in packages.items():
        if "version" in entry:
            yield _check_version(name, str(entry["version"]))
        else:
            missing = entry["error"] == f"ModuleNotFoundError: No module named '{name}'"
            do = f"{INSTALL}; without it, reports can be written again but nothing can be run" if missing else _reinstall(name)
            yield DoctorCheck(check=name, state=WARN if missing else FAIL, found=format.one_line(entry["error"]), do=do)
    if failure:
        tried = [str(entry["trying"]) for entry in report if "trying" in entry]
        name = tried[-1] if tried else "torch"
        found = f"the process that imports it {failure.removeprefix(UNKNOWN)}"
        if failure.startswith(UNKNOWN):
            do = "run it again when the machine and its disk are less busy"
            yield DoctorCheck(check=name, state=WARN, found=f"{UNKNOWN}{found}", do=do)
        else:
            yield DoctorCheck(check=name, state=FAIL, found=format.one_line(found), do=_reinstall(name))
    if all("version" in packages.get(name, {}) for name in ("torch", "torchvision")):
        torch, vision = (str(packages[name]["version"]) for name in ("torch", "torchvision"))
        yield check_torchvision(
            torch, vision, next((entry for entry in _requirements("torchvision") if re.match(r"torch\b", entry)), "")
        )
    yield from _check_devices([device for entry in report for device in entry.get("devices", ())])


def _reinstall(name: str) -> str:
    return f"reinstall {'torch' if name == 'devices' else name} for this Python and this machine: https://pytorch.org"


def _check_version(name: str, number: str) -> DoctorCheck:
    is_old = name == "torch" and version_numbers(number)[:2] < MIN_TORCH
    do = "upgrade torch: before version 2.6, a checkpoint can run code (CVE-2025-32434)"
    return DoctorCheck(check=name, found=number, state=FAIL if is_old else OK, do=do if is_old else "")


def check_torchvision(torch: str, vision: str, requirement: str) -> DoctorCheck:
    """Check that torchvision was built for this torch.

    The check uses the version that torchvision requires, or else the rule that torch 2.N goes with torchvision 0.(N+15).
    """
    required = re.match(r"torch\s*\(?\s*(==|>=)\s*([\d.]+)", requirement)
    installed = version_numbers(torch)
    if required:
        minimum = version_numbers(required[2])
        matches, expected = (
            (installed == minimum if required[1] == "==" else installed >= minimum),
            f"torch{required[1]}{required[2]}",
        )
    else:
        minor = version_numbers(vision)[1:2]
        matches, expected = (
            minor == (installed[1] + 15,) if installed[:1] == (2,) else True,
            f"torchvision 0.{installed[1] + 15}",
        )
    found = f"torch {torch} and torchvision {vision}" + ("" if matches else f", which expects {expected}" if required else "")
    do = "" if matches else f"install a matching pair: {expected}, see https://pytorch.org"
    return DoctorCheck(check="pair", found=found, state=OK if matches else WARN, do=do)


def version_numbers(version_text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, at least two: (2, 6, 0) for ``2.6.0+cu124``."""
    parts = tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version_text, maxsplit=1)[0]))
    return (*parts, 0, 0)[: max(2, len(parts))]


def _check_devices(devices: Sequence[Mapping[str, Any]]) -> Iterator[DoctorCheck]:
    for device in devices:
        if device["kind"] == "unusable":
            yield DoctorCheck(
                check="device",
                state=WARN,
                found=str(device["name"]),
                do="check that the driver matches torch's CUDA version, or use --device cpu",
            )
        else:
            yield DoctorCheck(
                check="device", found=f"{device['kind']}: {device['name']}, {format_bytes(int(device['memory']))}"
            )
    if not devices:
        yield DoctorCheck(check="device", found="cpu")


def check_plugins() -> Iterator[DoctorCheck]:
    """Check that all plugins can be loaded."""
    plugins = discovery.load_plugins(["all"])
    loaded = [plugin.id for plugin in plugins if plugin.version]
    do = "" if loaded else "reinstall xferbench: pip install --force-reinstall --no-deps xferbench"
    yield DoctorCheck(check="plugins", found=", ".join(loaded) or "none", state=OK if loaded else FAIL, do=do)
    for plugin in plugins:
        if not plugin.version:
            yield DoctorCheck(
                check=plugin.id,
                state=FAIL,
                found=format.one_line(plugin.question),
                do="upgrade or uninstall the package that contains it",
            )


def check_store(path: Path) -> Iterator[DoctorCheck]:
    """Check the store: its content, whether it can be written, the free disk space and the file system."""
    yield _check_store_content(path)
    folder = machine.nearest_existing(path.parent)
    do = f"{store.STORE_ADVICE}, or set XDG_CACHE_HOME"
    try:
        with tempfile.TemporaryFile(dir=folder):
            yield DoctorCheck(check="cache", found=f"{hide_home(folder)} can be written")
    except OSError as error:
        yield DoctorCheck(check="cache", state=FAIL, found=f"{hide_home(folder)}: {error.strerror or error}", do=do)
    free = shutil.disk_usage(folder).free
    state = FAIL if free < FREE_BYTES[0] else WARN if free < FREE_BYTES[1] else OK
    yield DoctorCheck(
        check="disk", state=state, found=f"{format_bytes(free)} free", do="" if state == OK else f"free some space, or {do}"
    )
    kind = machine.file_system(folder)
    is_shared = machine.is_network_file_system(kind)
    found = f"{kind or 'not known'}{', shared over a network, where SQLite is not safe' if is_shared else ''}"
    yield DoctorCheck(
        check="file system",
        state=WARN if is_shared else OK,
        found=found,
        do=f"{do}, on a disk of this machine" if is_shared else "",
    )


def _check_store_content(path: Path) -> DoctorCheck:
    """Check the content of a store; it is opened for reading only and never created."""
    if machine.nearest_existing(path) != path:
        return DoctorCheck(check="store", found=f"{hide_home(path)}: none yet")
    do = f"let another run end, upgrade xferbench, or {store.STORE_ADVICE}"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as db:
            schema = db.execute("pragma user_version").fetchone()[0]
            has_tables = schema or db.execute("select count(*) from sqlite_master").fetchone()[0]
            records = db.execute("select count(*) from records").fetchone()[0] if has_tables else 0
    except sqlite3.Error as error:
        return DoctorCheck(check="store", state=FAIL, found=f"{hide_home(path)}: {error}", do=do)
    cache_bytes = sum(file.stat().st_size for file in store.cache_folder(path).rglob("*") if file.is_file())
    sizes = f"{format_bytes(path.stat().st_size)} and {format_bytes(cache_bytes)} of cache"
    found = f"{hide_home(path)}: {records} records, {sizes}, schema {schema}"
    is_newer = schema > store.STORE_VERSION
    return DoctorCheck(check="store", state=FAIL if is_newer else OK, found=found, do=do if is_newer else "")


def format_bytes(count: int) -> str:
    """Format a number of bytes, for example ``1.5 GiB``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def hide_home(path: Path) -> str:
    """Replace the user's home folder by ``~``, because a bug report should not contain the user's name."""
    home_path = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises without a home folder
    full_path = format.one_line(path)
    return (
        f"~{full_path.removeprefix(home_path)}"
        if home_path not in {"~", "/"} and full_path.startswith(f"{home_path}{os.sep}")
        else full_path
    )


def _installed_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _requirements(name: str) -> Sequence[str]:
    try:
        return requires(name) or ()
    except PackageNotFoundError:
        return ()
