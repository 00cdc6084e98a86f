"""What a suite was given, input by input and file by file, with digests; without torch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from xferbench import discover, frozen, store
from xferbench.core import files
from xferbench.frozen import File, Input
from xferbench.lab import inputs
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xferbench.design import Suite

    Digester: TypeAlias = Callable[[Path], str]
    Row: TypeAlias = tuple[str, str, Path | None, Callable[[Digester], str]]  # key, word, folder of its files, digest


def given(suite: Suite, digester: Digester = files.sha256) -> tuple[Input, ...]:
    """Every input that a suite names, by its key; then the suite's own file, of which only what it says counts.

    Raises:
        Problem: for what is missing or cannot be read.
    """
    inputs.check(suite)
    own = Path(suite.path)
    found = [_taken(*row, digester) for row in (*_data(suite), *_weights(suite), *_code(suite))]
    if own.is_file():  # an audit may have been told by options alone
        sha256 = digester(own)
        files = _files({own: sha256}, None)
        found.append(Input(key="suite", given=suite.path, digest=sha256, files=files, counts=False))
    return tuple(found)


def checked(asked: Suite, place: Path, plan: Path | None) -> tuple[tuple[Input, ...], dict[str, str]]:
    """The inputs of a suite, and what is told of a frozen plan, if it is what is about to be carried out; {} without one.

    What the store at ``place`` remembers of a file goes by its size and time; against a plan every byte is read anew.

    Raises:
        Problem: where the plan is another one, naming what differs.
    """
    if plan is None:
        with store.opened(place) as db:
            return given(asked, store.remembered(db, files.sha256)), {}
    then = frozen.read(plan)
    found = given(asked)
    frozen.check(then, plan, asked, found, discover.of(asked))
    return found, {name: then[name] for name in ("hash", "written", "file")}


def unchanged(asked: Suite, place: Path, before: tuple[Input, ...]) -> None:
    """Refuse results of inputs that changed while they were looked at, by the size and time of their files.

    Raises:
        Problem: naming which.
    """
    now = {one.key: one.digest for one in checked(asked, place, None)[0]}
    changed = [one.key for one in before if one.counts and now.get(one.key) != one.digest]
    if changed:
        what = "what was frozen has changed while it was carried out"
        raise Problem(what, found=", ".join(changed), expected="inputs that nobody writes to", do=frozen.AGAIN)


def _taken(key: str, word: str, base: Path | None, ask: Callable[[Digester], str], digester: Digester) -> Input:
    """An input whose files are those that its digest asks for."""
    seen: dict[Path, str] = {}

    def noted(path: Path) -> str:
        seen[path] = digester(path)
        return seen[path]

    digest = ask(noted)
    return Input(key=key, given=word, digest=digest, files=_files(seen, base))


def _data(suite: Suite) -> Iterator[Row]:
    for role in ("target", "source", "shifted"):
        if spec := getattr(suite, role):
            kind, _, place = spec.partition(":")
            base = {"folder": place, "torchvision": place.partition(":")[2]}.get(kind)
            yield f"{role}.data", spec, Path(base) if base else None, partial(_digest, spec)


def _digest(spec: str, digester: Digester) -> str:
    return inputs.data(spec, digester).digest


def _weights(suite: Suite) -> Iterator[Row]:
    pretrained = None if suite.after else inputs.weights(suite, str).path
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
    for number, (key, found) in enumerate(zip(("backbone.arch", "recipe.training"), inputs.code(suite, str), strict=True)):
        if found is not None:
            yield key, found.spec, Path(found.path), partial(_of_code, suite, number)


def _of_code(suite: Suite, number: int, digester: Digester) -> str:
    found = inputs.code(suite, digester)[number]
    return found.digest if found else ""


def _files(seen: dict[Path, str], base: Path | None) -> tuple[File, ...]:
    return tuple(File(name=_name(path, base), size=path.stat().st_size, sha256=sha256) for path, sha256 in seen.items())


def _name(path: Path, base: Path | None) -> str:
    if base is None:
        return path.name
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()
