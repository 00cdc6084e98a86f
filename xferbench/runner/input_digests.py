"""What a suite was given, input by input and file by file, with digests; without torch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from xferbench.core.errors import UserError
from xferbench.core.files import sha256 as sha256_
from xferbench.data import inputs
from xferbench.runner import discovery, preregistration, store
from xferbench.runner.preregistration import FileDigest, InputDigest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xferbench.core.suite import Suite

    Digester: TypeAlias = Callable[[Path], str]
    Row: TypeAlias = tuple[str, str, Path | None, Callable[[Digester], str]]  # key, word, folder of its files, digest


def input_digests(suite: Suite, digester: Digester = sha256_) -> tuple[InputDigest, ...]:
    """Every input that a suite names, by its key; then the suite's own file, of which only what it says counts.

    Raises:
        UserError: for what is missing or cannot be read.
    """
    inputs.check_inputs(suite)
    own = Path(suite.path)
    found = [_taken(*row, digester) for row in (*_data(suite), *_weights(suite), *_code(suite))]
    if own.is_file():  # an audit may have been told by options alone
        sha256 = digester(own)
        files = _files({own: sha256}, None)
        found.append(InputDigest(key="suite", given=suite.path, digest=sha256, files=files, counts=False))
    return tuple(found)


def verify_inputs(asked: Suite, place: Path, plan: Path | None) -> tuple[tuple[InputDigest, ...], dict[str, str]]:
    """The inputs of a suite, and what is told of a frozen plan, if it is what is about to be carried out; {} without one.

    What the store at ``place`` remembers of a file goes by its size and time; against a plan every byte is read anew.

    Raises:
        UserError: where the plan is another one, naming what differs.
    """
    if plan is None:
        with store.open_store(place) as db:
            return input_digests(asked, store.cached_digester(db, sha256_)), {}
    then = preregistration.read_plan(plan)
    found = input_digests(asked)
    preregistration.check_plan(then, plan, asked, found, discovery.suite_plugins(asked))
    return found, {name: then[name] for name in ("hash", "written", "file")}


def assert_unchanged(asked: Suite, place: Path, before: tuple[InputDigest, ...]) -> None:
    """Refuse results of inputs that changed while they were looked at, by the size and time of their files.

    Raises:
        UserError: naming which.
    """
    now = {one.key: one.digest for one in verify_inputs(asked, place, None)[0]}
    changed = [one.key for one in before if one.counts and now.get(one.key) != one.digest]
    if changed:
        what = "what was frozen has changed while it was carried out"
        raise UserError(
            what, found=", ".join(changed), expected="inputs that nobody writes to", do=preregistration.NEW_PLAN_ADVICE
        )


def _taken(key: str, word: str, base: Path | None, ask: Callable[[Digester], str], digester: Digester) -> InputDigest:
    """An input whose files are those that its digest asks for."""
    seen: dict[Path, str] = {}

    def noted(path: Path) -> str:
        seen[path] = digester(path)
        return seen[path]

    digest = ask(noted)
    return InputDigest(key=key, given=word, digest=digest, files=_files(seen, base))


def _data(suite: Suite) -> Iterator[Row]:
    for role in ("target", "source", "shifted"):
        if spec := getattr(suite, role):
            kind, _, place = spec.partition(":")
            base = {"folder": place, "torchvision": place.partition(":")[2]}.get(kind)
            yield f"{role}.data", spec, Path(base) if base else None, partial(_digest, spec)


def _digest(spec: str, digester: Digester) -> str:
    return inputs.digest_data(spec, digester).digest


def _weights(suite: Suite) -> Iterator[Row]:
    pretrained = None if suite.after else inputs.digest_weights(suite, str).path
    named = {
        "backbone.weights": pretrained,
        "checkpoint.after": suite.after,
        "checkpoint.before": suite.before,
        "source.manifest": suite.manifest,
    }
    for key, file in named.items():
        if file:
            yield key, file, None, partial(_of_file, Path(file))


def _of_file(path: Path, digester: Digester) -> str:
    return digester(path)


def _code(suite: Suite) -> Iterator[Row]:
    for number, (key, found) in enumerate(
        zip(("backbone.arch", "recipe.training"), inputs.digest_code(suite, str), strict=True)
    ):
        if found is not None:
            yield key, found.spec, Path(found.path), partial(_of_code, suite, number)


def _of_code(suite: Suite, number: int, digester: Digester) -> str:
    found = inputs.digest_code(suite, digester)[number]
    return found.digest if found else ""


def _files(seen: dict[Path, str], base: Path | None) -> tuple[FileDigest, ...]:
    return tuple(FileDigest(name=_name(path, base), size=path.stat().st_size, sha256=sha256) for path, sha256 in seen.items())


def _name(path: Path, base: Path | None) -> str:
    if base is None:
        return path.name
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()
