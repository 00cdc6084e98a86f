"""The resources that a machine grants a process: memory, processors and the kind of file system of a path. Reads files."""

from __future__ import annotations

import os
import re
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
MOUNTS_FILE = Path("/proc/mounts")
NETWORK_FILE_SYSTEMS = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|lustre|beegfs|gpfs|glusterfs|fuse\.(sshfs|s3fs|rclone|glusterfs|ceph\S*)"
)


def total_memory() -> int | None:
    """Return the bytes of installed memory; None if the system does not report them."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def memory_limit(membership: str | None = None, root: Path = CGROUP_ROOT) -> int | None:
    """Return the bytes that the control groups of this process allow, the minimum of all; None if there is no limit.

    Args:
        membership: content of ``/proc/self/cgroup``; it is read by default.
        root: folder where control groups are mounted.
    """
    limits = [
        text
        for folder in _cgroup_folders("memory", membership, root)
        for text in _read_files(folder, "memory.max", "memory.limit_in_bytes")
    ]
    least = min((int(text) for text in limits if text.isdecimal()), default=1 << 62)
    return least if least < 1 << 60 else None  # version 1 spells no limit as a number near 2^63


def processor_limit(membership: str | None = None, root: Path = CGROUP_ROOT) -> float | None:
    """Return the number of processors that the control groups allow, possibly a fraction; None if there is no limit.

    Args:
        membership: content of ``/proc/self/cgroup``; it is read by default.
        root: folder where control groups are mounted.
    """
    limits = []
    for folder in _cgroup_folders("cpu", membership, root):
        quota = [
            *" ".join(_read_files(folder, "cpu.max")).split(),
            *_read_files(folder, "cpu.cfs_quota_us", "cpu.cfs_period_us"),
        ]
        if len(quota) == 2 and quota[0].isdecimal() and quota[1].isdecimal():
            limits.append(int(quota[0]) / int(quota[1]))
    return min(limits, default=None)


def file_system(path: Path, mounts: str | None = None) -> str:
    """Return the kind of file system of a path as ``/proc/mounts`` names it; "" if it is not listed."""
    text = "".join(_read_files(MOUNTS_FILE.parent, MOUNTS_FILE.name)) if mounts is None else mounts
    kinds = {_unescape(parts[1]): parts[2] for line in text.splitlines() if len(parts := line.split()) > 2}
    real_path = Path(os.path.realpath(path))
    return next((kinds[str(folder)] for folder in (real_path, *real_path.parents) if str(folder) in kinds), "")


def is_network_file_system(kind: str) -> bool:
    """Return whether a file system is a network share, where SQLite's locks and write-ahead log are not reliable."""
    return NETWORK_FILE_SYSTEMS.fullmatch(kind) is not None


def nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest existing folder above it."""
    folders = (path, *path.absolute().parents)
    return next(folder for folder in folders if os.path.exists(folder))  # noqa: PTH110 - Path.exists raises without permission


def _cgroup_folders(controller: str, membership: str | None, root: Path) -> list[Path]:
    """Return the folders of the control groups of this process, version 1 or 2, up to the root."""
    text = "".join(_read_files(Path("/proc/self"), "cgroup")) if membership is None else membership
    folders = []
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        if not names or controller in names.split(","):
            top = root / controller if names else root
            folder = top / path.strip("/")
            folders += [folder, *(parent for parent in folder.parents if parent.is_relative_to(top))]
    return folders


def _read_files(folder: Path, *names: str) -> list[str]:
    """Return the contents of those files that can be read."""
    contents = []
    for name in names:
        try:
            contents.append((folder / name).read_text(encoding="utf-8", errors="replace").strip())
        except OSError:
            continue
    return contents


def _unescape(mount: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount)
