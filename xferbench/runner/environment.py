"""The environment of a run: versions, platform and git revision. Reads files; packages are not imported."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
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
# variables of git that name the files of the user's own configuration; others may name programs or another repository
GIT_FILES = {"GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM"}
USER_SCOPES = {"system", "global", "command"}  # configuration of git that the repository does not contain
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
    """Return the commit of the current folder, followed by ``+changes`` if files differ; None outside a repository.

    The repository may be somebody else's, so nothing that its configuration names is run. If it configures filters of its own,
    which git would run to compare files, the files are not compared and the commit is followed by ``+unchecked``.
    """
    git = _find_git()
    if git is None:
        return None
    try:
        commit = _run_git(git, "rev-parse", "HEAD")
        scopes = _run_git(git, "config", "--null", "--show-scope", "--name-only", "--list").split("\0")
        has_filters = any(
            name.lower().startswith("filter.") and scope not in USER_SCOPES
            for scope, name in zip(scopes[::2], scopes[1::2], strict=False)
        )
        status = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all", "--no-renames")
        changes = "" if has_filters else _run_git(git, *status)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+unchecked" if has_filters else "+changes" if changes else "")


def _find_git() -> str | None:
    """Return the installed git; a program of this name in the current folder is not run, not even if PATH names the folder."""
    folders = [folder for folder in os.get_exec_path() if Path(folder).is_absolute()]
    git = shutil.which("git", path=os.pathsep.join(folders))
    return git if git and Path(git).parent.resolve() != Path.cwd() else None


def _run_git(git: str, *arguments: str) -> str:
    # Reading the status must neither write into the user's repository nor run a hook, a monitor, a pager or a transport.
    safe = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", "--no-pager", "--no-optional-locks")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in GIT_FILES}
    return subprocess.run(  # noqa: S603 - fixed words
        [git, *safe, *arguments],
        env=variables | {"GIT_ALLOW_PROTOCOL": "", "GIT_TERMINAL_PROMPT": "0"},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=True,
        timeout=10,
    ).stdout.strip()
