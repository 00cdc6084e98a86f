"""Which datasets a study showed to its networks, under which preprocessings, and a few images of each for the report."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.core import files
from xferbench.design import MADE_HERE, Data, digest
from xferbench.plan import VIEWS
from xferbench.record import Samples
from xferbench.wording import differences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from xferbench.design import Ready
    from xferbench.looks import Step
    from xferbench.plan import Study

VERSION = 1  # raised when the lab would answer the same question in another way
EXAMPLES = 6
MOST = 24  # entries; a study that varies the preprocessing is shown by the first ones
BROKEN = (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error)
Seen = tuple[str, str, str]  # plugin, arm, and "train" or "serve"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A dataset under one preprocessing, and who sees it so."""

    role: str
    data: Data
    preprocessing: Ready
    seen: tuple[Seen, ...]


def gathered(
    study: Study, step: Step, engine: Callable[[], Callable[..., Future[Any]]], cache: Path
) -> tuple[tuple[Samples, ...], tuple[str, ...]]:
    """The samples of a finished study, from the cache or a worker, and a note for each that could not be made."""
    recorded = study.facts.preprocessing
    asked = wanted(step)
    most = {
        one.role: max((other for other in asked if other.role == one.role), key=lambda other: len(other.seen)) for one in asked
    }
    counts = Counter(one.role for one in asked)
    everyone = {seen for one in asked if one.role == "target" for seen in one.seen}
    found, notes = [], []
    for one in asked[:MOST]:
        try:
            images, labels = _kept(one, recorded, engine, cache)
        except Exception as error:  # noqa: BLE001 - pictures of the data must not lose a run's verdicts
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            notes.append(f"no sample images of {one.role} ({differences(one.preprocessing, recorded)}): {last}")
            continue
        title = f"{name(one.data)}, {differences(one.preprocessing, recorded)}"
        arms = (
            ("all arms",) if counts[one.role] == 1 else ("all others",) if one is most[one.role] else spoken(one.seen, everyone)
        )
        found.append(Samples(role=one.role, title=title, arms=arms, images=images, labels=labels))
    if len(asked) > MOST:
        notes.append(f"sample images are shown of {MOST} of {len(asked)} datasets and preprocessings")
    return tuple(found), tuple(dict.fromkeys(notes))


def wanted(step: Step) -> tuple[Wanted, ...]:
    """Each dataset and preprocessing that a step's networks saw: the target's by arm, the others' where one was asked."""
    found: dict[tuple[str, Data, Ready], dict[Seen, None]] = {}
    for role, data, preprocessing, seen in (*_of_target(step), *_beside(step)):
        found.setdefault((role, data, preprocessing), {})[seen] = None
    roles = ("target", "source", "shifted")
    return tuple(
        Wanted(role=role, data=data, preprocessing=preprocessing, seen=tuple(seen))
        for (role, data, preprocessing), seen in sorted(found.items(), key=lambda item: roles.index(item[0][0]))
    )


def _of_target(step: Step) -> Iterator[tuple[str, Data, Ready, Seen]]:
    for case in step.cases:
        for arm, settled in case.arms.items():
            if (one := settled.pipeline) is not None:
                yield "target", one.target, one.train_preprocessing, (case.plugin.id, arm, "train")
                yield "target", one.target, one.serve_preprocessing, (case.plugin.id, arm, "serve")
                if one.recipe.init in MADE_HERE and one.source:
                    yield "source", one.source.data, one.train_preprocessing, (case.plugin.id, arm, "train")


def _beside(step: Step) -> Iterator[tuple[str, Data, Ready, Seen]]:
    for one in step.asked:
        role = VIEWS[one.view].domain if one.view in VIEWS else ""
        if role and one.trial.view.domain is not None:
            yield role, one.trial.view.domain.data, one.trial.view.preprocessing, (one.plugin, one.arm, "serve")


def spoken(seen: Sequence[Seen], everyone: set[Seen]) -> tuple[str, ...]:
    """Name the arms briefly: one shared by all plugins by its own name, else ``plugin: arm, arm``."""
    own: dict[tuple[str, str], set[str]] = {}
    for plugin, arm, stage in seen:
        own.setdefault((plugin, arm), set()).add(stage)
    plugins = sorted({plugin for plugin, _, _ in everyone})
    shared = [
        arm
        for arm in ("subject", "scratch")
        if len(plugins) > 1 and all(own.get((plugin, arm)) == own.get((plugins[0], arm)) is not None for plugin in plugins)
    ]
    told = [_staged(arm, own[plugins[0], arm]) for arm in shared]
    for plugin in dict.fromkeys(plugin for plugin, _ in own):
        arms = [_staged(arm, stages) for (of, arm), stages in own.items() if of == plugin and arm not in shared]
        if arms:
            told.append(f"{plugin}: {', '.join(arms)}")
    return tuple(told)


def _staged(arm: str, stages: set[str]) -> str:
    word = arm.removeprefix("induced:")
    return word if len(stages) == 2 else f"{word} ({'in training' if 'train' in stages else 'at test'})"


def name(data: Data) -> str:
    """A dataset's short name: the end of its path, or the suite's word for it."""
    kind, _, rest = data.spec.partition(":")
    return rest.rstrip("/\\").replace("\\", "/").rpartition("/")[2] if kind in {"folder", "npz"} and rest else data.spec


def _kept(
    one: Wanted, recorded: Ready, engine: Callable[[], Callable[..., Future[Any]]], cache: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The images and labels of an entry, from its file in the cache; a file that cannot be read is made again."""
    key = digest((VERSION, one.data, one.preprocessing, recorded, EXAMPLES))[:32]
    file = cache / "samples" / f"{key}.npz"
    with suppress(*BROKEN), file.open("rb") as opened, np.load(opened, allow_pickle=False) as held:
        return held["images"], tuple(json.loads(held["labels"].tobytes()))
    images, labels = engine()("xferbench.lab.samples:samples", one.data, one.preprocessing, EXAMPLES, recorded, cache).result()
    with suppress(OSError):  # a full disk costs the next run a moment
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.replace_atomically(file) as part, part.open("wb") as written:
            np.savez_compressed(written, images=images, labels=np.frombuffer(json.dumps(labels).encode(), np.uint8))
    return images, labels
