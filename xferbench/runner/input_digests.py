"""Digest each input of a suite, file by file, and compare the digests with a frozen plan. Reads files and the store."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from xferbench.core import files
from xferbench.core.errors import UserError
from xferbench.data import inputs
from xferbench.runner import discovery, preregistration, store
from xferbench.runner.preregistration import FileDigest, InputDigest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xferbench.core.suite import Suite

    Digester: TypeAlias = Callable[[Path], str]
    Row: TypeAlias = tuple[str, str, Path | None, Callable[[Digester], str]]  # key, value, folder of its files, digest function


def input_digests(suite: Suite, digester: Digester = files.sha256) -> tuple[InputDigest, ...]:
    """Return the digest of every input that a suite names, and of the suite file, which does not count for a plan.

    Raises:
        UserError: if an input is missing or cannot be read.
    """
    inputs.check_inputs(suite)
    suite_file = Path(suite.invocation.path)
    digests = [_digest_input(*row, digester) for row in (*_data_rows(suite), *_weights_rows(suite), *_code_rows(suite))]
    if suite_file.is_file():  # the suite of an audit may come from options alone
        sha256 = digester(suite_file)
        file_digests = _file_digests({suite_file: sha256}, None)
        digests.append(InputDigest(key="suite", value=suite.invocation.path, digest=sha256, files=file_digests, counts=False))
    return tuple(digests)


def verify_inputs(suite: Suite, path: Path, plan: Path | None) -> tuple[tuple[InputDigest, ...], dict[str, str]]:
    """Return the inputs of a suite, and the hash, time and file digest of a plan that it agrees with; {} without a plan.

    Without a plan, the store at ``path`` provides the digest of a file with the same size and time. With a plan, every byte is
    read.

    Raises:
        UserError: if the suite differs from the plan; the message names the differences.
    """
    if plan is None:
        with store.open_store(path) as db:
            return input_digests(suite, store.cached_digester(db, files.sha256)), {}
    frozen = preregistration.read_plan(plan)
    digests = input_digests(suite)
    preregistration.check_plan(frozen, plan, suite, digests, discovery.suite_plugins(suite))
    return digests, {name: frozen[name] for name in ("hash", "written", "file")}


def assert_unchanged(suite: Suite, path: Path, before: tuple[InputDigest, ...]) -> None:
    """Refuse the results of inputs that changed during the run, by the size and time of their files.

    Raises:
        UserError: that names the inputs.
    """
    now = {entry.key: entry.digest for entry in verify_inputs(suite, path, None)[0]}
    changed = [entry.key for entry in before if entry.counts and now.get(entry.key) != entry.digest]
    if changed:
        raise UserError(
            "inputs of the frozen plan changed during the run",
            found=", ".join(changed),
            expected="inputs that no other program writes to",
            do=preregistration.NEW_PLAN_ADVICE,
        )


def _digest_input(
    key: str, value: str, base: Path | None, compute: Callable[[Digester], str], digester: Digester
) -> InputDigest:
    """Return the digest of an input; its files are those that the digest function reads."""
    digests: dict[Path, str] = {}

    def recording_digester(path: Path) -> str:
        digests[path] = digester(path)
        return digests[path]

    digest = compute(recording_digester)
    return InputDigest(key=key, value=value, digest=digest, files=_file_digests(digests, base))


def _data_rows(suite: Suite) -> Iterator[Row]:
    for role in ("target", "source", "shifted"):
        if spec := getattr(suite.data, role):
            kind, _, location = spec.partition(":")
            base = {"folder": location, "torchvision": location.partition(":")[2]}.get(kind)
            yield f"{role}.data", spec, Path(base) if base else None, partial(_data_digest, spec)


def _data_digest(spec: str, digester: Digester) -> str:
    return inputs.digest_data(spec, digester).digest


def _weights_rows(suite: Suite) -> Iterator[Row]:
    pretrained = None if suite.is_audit else inputs.digest_weights(suite, str).path
    paths = {
        "backbone.weights": pretrained,
        "checkpoint.after": suite.checkpoint.after,
        "checkpoint.before": suite.checkpoint.before,
    }
    for key, path in paths.items():
        if path:
            yield key, path, None, partial(_weights_digest, Path(path))
    if manifest := suite.data.manifest:
        yield "source.manifest", manifest, None, partial(_file_digest, Path(manifest))


def _weights_digest(path: Path, digester: Digester) -> str:
    return inputs.digest_weights_file(path, digester).digest


def _file_digest(path: Path, digester: Digester) -> str:
    return digester(path)


def _code_rows(suite: Suite) -> Iterator[Row]:
    keys = ("backbone.arch", "recipe.training")
    for index, (key, code) in enumerate(zip(keys, inputs.digest_code(suite, str), strict=True)):
        if code is not None:
            yield key, code.spec, Path(code.path), partial(_code_digest, suite, index)


def _code_digest(suite: Suite, index: int, digester: Digester) -> str:
    code = inputs.digest_code(suite, digester)[index]
    return code.digest if code else ""


def _file_digests(digests: dict[Path, str], base: Path | None) -> tuple[FileDigest, ...]:
    return tuple(
        FileDigest(name=_relative_name(path, base), size=path.stat().st_size, sha256=sha256) for path, sha256 in digests.items()
    )


def _relative_name(path: Path, base: Path | None) -> str:
    if base is None:
        return path.name
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()
