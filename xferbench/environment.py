"""What a run ran on: versions, platform and revision; read without importing what is named."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from xferbench import __version__
from xferbench.core import files
from xferbench.problem import Problem

HELD = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")  # of torch, oneDNN and MKL
WIDEST = {"AVX-512": "avx512f", "AVX2": "avx2", "SVE": "sve", "NEON": "asimd"}
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "pandas", "scikit-learn", "pillow", "safetensors")


def torch_version() -> str:
    """Major and minor of the installed torch.

    Raises:
        Problem: where it is not installed.
    """
    if find_spec("torch") is None:
        raise Problem("running experiments needs PyTorch", found="no torch", do="pip install 'xferbench[torch]'")
    return ".".join(version("torch").split(".")[:2])


def code() -> str:
    """SHA-256 of this package's own code, which is another one wherever it would act otherwise."""
    root = Path(__file__).parent
    found = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        found.update(f"{file.relative_to(root).as_posix()}\0{files.sha256(file)}\0".encode())
    return found.hexdigest()


def environment(device: str, workers: int) -> dict[str, object]:
    """Versions, platform, processor, device and the git revision of the current folder."""
    return {
        "xferbench": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "instructions": instructions(),
        "device": device,
        "workers": workers,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git": revision(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def processor() -> str:
    """The processor's name as the system tells it."""
    told = Path("/proc/cpuinfo")
    if told.is_file():
        names = [line.partition(":")[2].strip() for line in told.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def instructions() -> str:
    """The widest vector instructions that torch may choose here, and what its libraries are held to."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()}
    widest = next((name for name, flag in WIDEST.items() if flag in flags), platform.machine())
    asked = [f"{name}={os.environ[name]}" for name in HELD if os.environ.get(name)]
    return ", ".join([widest, *asked])


def revision() -> str | None:
    """The commit of the current folder, with ``+changes`` where files differ from it; None outside a repository."""
    try:
        commit, changed = (_git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(*words: str) -> str:
    command = ["git", "--no-optional-locks", *words]  # to look must not write into the user's repository
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603 - fixed words
