"""Is this installation sound? One line a check, each that is not with what to do; what to paste into a bug report."""

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

from xferbench import __version__, discover, environment, machine, store
from xferbench.engines import local
from xferbench.report import text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

OK, WARN, FAIL = "OK", "WARN", "FAIL"
PATIENCE = 180.0  # seconds that torch may take to be imported from a slow disk
EXTRAS = ("timm", "peft", "safetensors", "scikit-learn", "pillow")
OLDEST = (2, 6)  # of torch; before it, weights_only=True could be bypassed (CVE-2025-32434)
INSTALL = "pip install 'xferbench[torch]'"
WORKER = 1 << 30  # bytes of memory that a worker may need
ROOM = (100 << 20, 2 << 30)  # bytes of free disk below which nothing works, and below which decoded images may not fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One check: its state, what was found, and what to do where it is not OK."""

    check: str
    state: str = OK
    found: str
    do: str = ""


def lines(path: Path) -> Iterator[Line]:
    """Every check, of a store at a path."""
    yield Line(check="xferbench", found=f"{__version__} at {home(Path(__file__).parent)}")
    yield Line(check="python", found=f"{platform.python_version()} at {home(Path(sys.executable))}")
    yield Line(check="platform", found=f"{platform.platform()}, {environment.processor()}")
    yield from resources(local.cores(), machine.memory(), machine.processor_limit(), machine.memory_limit())
    told, ended = asked()
    yield from torch_lines(told, ended)
    yield Line(check="packages", found=", ".join(f"{name} {one}" for name in EXTRAS if (one := _version(name))) or "none")
    yield from plugins()
    yield from kept(path)


def resources(cores: int, memory: int | None, quota: float | None, limit: int | None) -> Iterator[Line]:
    """Processors and memory, and what a control group leaves of them."""
    few = quota is not None and quota < cores
    found = f"{cores}" + (f", of which a control group allows {quota:g}" if quota is not None and few else "")
    do = f"use -j {max(1, int(quota or 1))}, since one worker is started a core"
    yield Line(check="cores", found=found, state=WARN if few else OK, do=do if few else "")
    usable = min(one for one in (memory, limit, 1 << 62) if one is not None)
    if usable == 1 << 62:
        yield Line(check="memory", found="not known")
        return
    small = usable < cores * WORKER
    held = f", of which a control group allows {size(limit)}" if limit is not None and limit == usable else ""
    do = f"use -j {max(1, usable // WORKER)}, where workers are killed"
    found = f"{size(memory or usable)}{held}"
    yield Line(check="memory", found=found, state=WARN if small else OK, do=do if small else "")


def asked() -> tuple[list[dict[str, Any]], str]:
    """What another process says of torch, line by line, and how it ended where that was not well."""
    command = [sys.executable, "-m", "xferbench.lab.installed"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)  # noqa: S603 - fixed words
    except subprocess.TimeoutExpired as late:
        return _told(late.stdout or b""), f"took more than {PATIENCE:g} s"
    last = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
    return _told(done.stdout), "" if not done.returncode else ": ".join(filter(None, (_end(done.returncode), last)))


def _end(code: int) -> str:
    """How a process ended."""
    known = {one.value for one in signal.Signals}
    return f"ended by {signal.Signals(-code).name}" if -code in known else f"ended with exit status {code}"


def _told(said: bytes) -> list[dict[str, Any]]:
    """The lines that are JSON objects; a library may print among them."""
    found = []
    for line in said.decode(errors="replace").splitlines():
        try:
            read = json.loads(line)
        except ValueError:
            continue
        found += [read] if isinstance(read, dict) else []
    return found


def torch_lines(told: Sequence[Mapping[str, Any]], ended: str) -> Iterator[Line]:
    """What was said of torch, torchvision and the devices; where the process ended early, that of what it was trying."""
    said = {str(one["package"]): one for one in told if "package" in one}
    for name, one in said.items():
        if "version" in one:
            yield _aged(name, str(one["version"]))
        else:
            missing = one["error"] == f"ModuleNotFoundError: No module named '{name}'"
            do = f"{INSTALL}; without it reports can be written again, and nothing can be run" if missing else _anew(name)
            yield Line(check=name, state=WARN if missing else FAIL, found=text.line(one["error"]), do=do)
    if ended:
        tried = [str(one["trying"]) for one in told if "trying" in one]
        name = tried[-1] if tried else "torch"
        yield Line(check=name, state=FAIL, found=text.line(f"the process that looks {ended}"), do=_anew(name))
    if all("version" in said.get(name, {}) for name in ("torch", "torchvision")):
        torch, vision = (str(said[name]["version"]) for name in ("torch", "torchvision"))
        yield paired(torch, vision, next((one for one in _requires("torchvision") if re.match(r"torch\b", one)), ""))
    yield from _devices([one for line in told for one in line.get("devices", ())])


def _anew(name: str) -> str:
    return f"install {'torch' if name == 'devices' else name} anew, for this Python and this machine: https://pytorch.org"


def _aged(name: str, told: str) -> Line:
    old = name == "torch" and numbers(told)[:2] < OLDEST
    do = "upgrade torch: before 2.6 a checkpoint can run code (CVE-2025-32434)"
    return Line(check=name, found=told, state=FAIL if old else OK, do=do if old else "")


def paired(torch: str, vision: str, wanted: str) -> Line:
    """Whether torchvision was built for this torch: by what it says it requires, else by the rule 2.N and 0.(N+15)."""
    demand = re.match(r"torch\s*\(?\s*(==|>=)\s*([\d.]+)", wanted)
    have = numbers(torch)
    if demand:
        least = numbers(demand[2])
        good, expected = (have == least if demand[1] == "==" else have >= least), f"torch{demand[1]}{demand[2]}"
    else:
        minor = numbers(vision)[1:2]
        good, expected = minor == (have[1] + 15,) if have[:1] == (2,) else True, f"torchvision 0.{have[1] + 15}"
    found = f"torch {torch} and torchvision {vision}" + ("" if good else f", which expects {expected}" if demand else "")
    do = "" if good else f"install the pair that belongs together: {expected}, see https://pytorch.org"
    return Line(check="pair", found=found, state=OK if good else WARN, do=do)


def numbers(told: str) -> tuple[int, ...]:
    """The numbers a version begins with: (2, 6, 0) of ``2.6.0+cu124``; at least two."""
    found = tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", told, maxsplit=1)[0]))
    return (*found, 0, 0)[: max(2, len(found))]


def _devices(found: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    for one in found:
        if one["kind"] == "unusable":
            yield Line(
                check="device",
                state=WARN,
                found=str(one["name"]),
                do="compare the driver with torch's CUDA, or use --device cpu",
            )
        else:
            yield Line(check="device", found=f"{one['kind']}: {one['name']}, {size(int(one['memory']))}")
    if not found:
        yield Line(check="device", found="cpu")


def plugins() -> Iterator[Line]:
    """The plugins, and those among them that cannot be loaded."""
    found = discover.plugins(["all"])
    good = [one.id for one in found if one.version]
    do = "" if good else "install xferbench anew: pip install --force-reinstall --no-deps xferbench"
    yield Line(check="plugins", found=", ".join(good) or "none", state=OK if good else FAIL, do=do)
    for one in found:
        if not one.version:
            yield Line(
                check=one.id, state=FAIL, found=text.line(one.question), do="upgrade or uninstall the package that brings it"
            )


def kept(path: Path) -> Iterator[Line]:
    """The store: what is in it, whether it can be written, what room and which disk it has."""
    yield _store(path)
    near = machine.existing(path.parent)
    do = f"{store.ELSEWHERE}, or set XDG_CACHE_HOME"
    try:
        with tempfile.TemporaryFile(dir=near):
            yield Line(check="cache", found=f"{home(near)} can be written")
    except OSError as error:
        yield Line(check="cache", state=FAIL, found=f"{home(near)}: {error.strerror or error}", do=do)
    free = shutil.disk_usage(near).free
    state = FAIL if free < ROOM[0] else WARN if free < ROOM[1] else OK
    yield Line(check="disk", state=state, found=f"{size(free)} free", do="" if state == OK else f"free some space, or {do}")
    kind = machine.file_system(near)
    shared = machine.is_network(kind)
    found = f"{kind or 'not known'}{', shared over a network, where SQLite is not safe' if shared else ''}"
    yield Line(
        check="file system", state=WARN if shared else OK, found=found, do=f"{do}, on a disk of this machine" if shared else ""
    )


def _store(path: Path) -> Line:
    """What a store holds; it is opened for reading only, and not made."""
    if machine.existing(path) != path:
        return Line(check="store", found=f"{home(path)}: none yet")
    do = f"let another run end, upgrade xferbench, or {store.ELSEWHERE}"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as db:
            schema = db.execute("pragma user_version").fetchone()[0]
            made = schema or db.execute("select count(*) from sqlite_master").fetchone()[0]
            records = db.execute("select count(*) from records").fetchone()[0] if made else 0
    except sqlite3.Error as error:
        return Line(check="store", state=FAIL, found=f"{home(path)}: {error}", do=do)
    beside = sum(file.stat().st_size for file in store.cache(path).rglob("*") if file.is_file())
    found = f"{home(path)}: {records} records, {size(path.stat().st_size)} and {size(beside)} of cache, schema {schema}"
    newer = schema > store.VERSION
    return Line(check="store", state=FAIL if newer else OK, found=found, do=do if newer else "")


def size(count: int) -> str:
    """Bytes in words: ``1.5 GiB``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def home(path: Path) -> str:
    """A path without the user's name, which is nobody's business in a bug report."""
    own = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where there is none
    whole = text.line(path)
    return f"~{whole.removeprefix(own)}" if own not in {"~", "/"} and whole.startswith(f"{own}{os.sep}") else whole


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _requires(name: str) -> Sequence[str]:
    try:
        return requires(name) or ()
    except PackageNotFoundError:
        return ()
