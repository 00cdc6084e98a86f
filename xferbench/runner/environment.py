"""The environment of a run: versions, platform and git revision. Reads files; packages are not imported."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from xferbench.core import files
from xferbench.core.errors import UserError
from xferbench.core.version import __version__

INSTRUCTION_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
)  # variables of torch, oneDNN and MKL
VECTOR_FLAGS = {"AVX-512": "avx512f", "AVX2": "avx2", "SVE": "sve", "NEON": "asimd"}
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "pandas", "scikit-learn", "pillow", "safetensors")


def torch_version() -> str:
    """Return the major and minor version of the installed torch.

    Raises:
        UserError: if torch is not installed.
    """
    if find_spec("torch") is None:
        raise UserError("running experiments needs PyTorch", found="no torch", do="pip install 'xferbench[torch]'")
    return ".".join(version("torch").split(".")[:2])


def package_source_digest() -> str:
    """Return the SHA-256 of this package's source code."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0{files.sha256(file)}\0".encode())
    return digest.hexdigest()


def describe_environment(device: str, workers: int) -> dict[str, object]:
    """Return versions, platform, processor, device and the git revision of the current folder."""
    return {
        "xferbench": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "instructions": vector_instructions(),
        "device": device,
        "workers": workers,
        "packages": {name: installed for name in PACKAGES if (installed := _installed_version(name))},
        "git": git_revision(),
    }


def _installed_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def processor_name() -> str:
    """Return the name of the processor as the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def vector_instructions() -> str:
    """Return the widest vector instructions that torch may use here, and the variables that restrict its libraries."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()}
    widest = next((name for name, flag in VECTOR_FLAGS.items() if flag in flags), platform.machine())
    restrictions = [f"{name}={os.environ[name]}" for name in INSTRUCTION_VARIABLES if os.environ.get(name)]
    return ", ".join([widest, *restrictions])


def git_revision() -> str | None:
    """Return the commit of the current folder, followed by ``+changes`` if files differ; None outside a repository."""
    try:
        commit, changes = (_run_git("rev-parse", "HEAD"), _run_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")


def _run_git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", *arguments]  # reading the status must not write into the user's repository
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603 - fixed words
