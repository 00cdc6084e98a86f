"""What a machine lets a process have: memory, processors, and the kind of file system that a path lies on."""

from __future__ import annotations

import os
import re
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MOUNTS = Path("/proc/mounts")
NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|lustre|beegfs|gpfs|glusterfs|fuse\.(sshfs|s3fs|rclone|glusterfs|ceph\S*)"
)


def memory() -> int | None:
    """Bytes of memory that are built in; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def memory_limit(told: str | None = None, root: Path = CGROUPS) -> int | None:
    """Bytes that this process's control groups allow it, the least of them; None where they set no limit.

    Args:
        told: the content of ``/proc/self/cgroup``. root: where control groups are mounted.
    """
    limits = [text for folder in _groups("memory", told, root) for text in _read(folder, "memory.max", "memory.limit_in_bytes")]
    least = min((int(text) for text in limits if text.isdecimal()), default=1 << 62)
    return least if least < 1 << 60 else None  # version 1 writes no limit as a number near 2^63


def processor_limit(told: str | None = None, root: Path = CGROUPS) -> float | None:
    """Processors that this process's control groups allow it, a fraction perhaps; None where they set no limit."""
    found = []
    for folder in _groups("cpu", told, root):
        quota = [*" ".join(_read(folder, "cpu.max")).split(), *_read(folder, "cpu.cfs_quota_us", "cpu.cfs_period_us")]
        if len(quota) == 2 and quota[0].isdecimal() and quota[1].isdecimal():
            found.append(int(quota[0]) / int(quota[1]))
    return min(found, default=None)


def file_system(path: Path, mounts: str | None = None) -> str:
    """The kind of file system that a path lies on, as ``/proc/mounts`` names it; "" where nothing does."""
    text = "".join(_read(MOUNTS.parent, MOUNTS.name)) if mounts is None else mounts
    kinds = {_unescaped(words[1]): words[2] for line in text.splitlines() if len(words := line.split()) > 2}
    here = Path(os.path.realpath(path))
    return next((kinds[str(place)] for place in (here, *here.parents) if str(place) in kinds), "")


def is_network(kind: str) -> bool:
    """Whether a file system is shared over a network, where SQLite's locks and its write-ahead log cannot be relied on."""
    return NETWORK.fullmatch(kind) is not None


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    places = (path, *path.absolute().parents)
    return next(place for place in places if os.path.exists(place))  # noqa: PTH110 - Path.exists raises where one may not look


def _groups(controller: str, told: str | None, root: Path) -> list[Path]:
    """The folders of this process's control groups, version 1 or 2, up to the root."""
    text = "".join(_read(Path("/proc/self"), "cgroup")) if told is None else told
    found = []
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        if not names or controller in names.split(","):
            top = root / controller if names else root
            own = top / path.strip("/")
            found += [own, *(place for place in own.parents if place.is_relative_to(top))]
    return found


def _read(folder: Path, *names: str) -> list[str]:
    """The files' contents, as far as they can be read."""
    found = []
    for name in names:
        try:
            found.append((folder / name).read_text(encoding="utf-8", errors="replace").strip())
        except OSError:
            continue
    return found


def _unescaped(mount: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount)
