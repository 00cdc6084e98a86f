"""Select the datasets and preprocessings of a study and a few sample images of each. Reads and writes the cache."""

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

VERSION = 1  # raise when the lab's result for the same request changes
EXAMPLES = 6
MOST = 24  # entries; of a study with many preprocessings, only the first ones are shown
BROKEN = (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error)
Seen = tuple[str, str, str]  # plugin, arm, and "train" or "serve"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A dataset with one preprocessing, and the arms that use it."""

    role: str
    data: Data
    preprocessing: Ready
    arms: tuple[Seen, ...]


def gathered(
    study: Study, step: Step, engine: Callable[[], Callable[..., Future[Any]]], cache: Path
) -> tuple[tuple[Samples, ...], tuple[str, ...]]:
    """Return the sample images of a finished study, from the cache or a worker, and a note for each failure."""
    recorded = study.facts.preprocessing
    requests = wanted(step)
    most_used = {
        role: max((request for request in requests if request.role == role), key=lambda request: len(request.arms))
        for role in dict.fromkeys(request.role for request in requests)
    }
    counts = Counter(request.role for request in requests)
    target_arms = {arm for request in requests if request.role == "target" for arm in request.arms}
    samples, notes = [], []
    for request in requests[:MOST]:
        try:
            images, labels = _cached(request, recorded, engine, cache)
        except Exception as error:  # noqa: BLE001 - a failure here must not cost the run its verdicts
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            notes.append(f"no sample images of {request.role} ({differences(request.preprocessing, recorded)}): {last}")
            continue
        title = f"{name(request.data)}, {differences(request.preprocessing, recorded)}"
        if counts[request.role] == 1:
            arms: tuple[str, ...] = ("all arms",)
        else:
            arms = ("all others",) if request is most_used[request.role] else spoken(request.arms, target_arms)
        samples.append(Samples(role=request.role, title=title, arms=arms, images=images, labels=labels))
    if len(requests) > MOST:
        notes.append(f"sample images are shown of {MOST} of {len(requests)} datasets and preprocessings")
    return tuple(samples), tuple(dict.fromkeys(notes))


def wanted(step: Step) -> tuple[Wanted, ...]:
    """Return each dataset and preprocessing that the networks of a step used.

    The target is listed by arm; the others are listed if any trial used them.
    """
    arms_by_input: dict[tuple[str, Data, Ready], dict[Seen, None]] = {}
    for role, data, preprocessing, arm in (*_target_inputs(step), *_other_inputs(step)):
        arms_by_input.setdefault((role, data, preprocessing), {})[arm] = None
    roles = ("target", "source", "shifted")
    return tuple(
        Wanted(role=role, data=data, preprocessing=preprocessing, arms=tuple(arms))
        for (role, data, preprocessing), arms in sorted(arms_by_input.items(), key=lambda item: roles.index(item[0][0]))
    )


def _target_inputs(step: Step) -> Iterator[tuple[str, Data, Ready, Seen]]:
    for case in step.cases:
        for arm, settled in case.arms.items():
            if (pipeline := settled.pipeline) is not None:
                yield "target", pipeline.target, pipeline.train_preprocessing, (case.plugin.id, arm, "train")
                yield "target", pipeline.target, pipeline.serve_preprocessing, (case.plugin.id, arm, "serve")
                if pipeline.recipe.init in MADE_HERE and pipeline.source:
                    yield "source", pipeline.source.data, pipeline.train_preprocessing, (case.plugin.id, arm, "train")


def _other_inputs(step: Step) -> Iterator[tuple[str, Data, Ready, Seen]]:
    for request in step.asked:
        role = VIEWS[request.view].domain if request.view in VIEWS else ""
        view = request.trial.view
        if role and view.domain is not None:
            yield role, view.domain.data, view.preprocessing, (request.plugin, request.arm, "serve")


def spoken(arm_views: Sequence[Seen], all_arm_views: set[Seen]) -> tuple[str, ...]:
    """Return short names of the arms: a shared arm by its own name, the others as ``plugin: arm, arm``."""
    stages_by_arm: dict[tuple[str, str], set[str]] = {}
    for plugin, arm, stage in arm_views:
        stages_by_arm.setdefault((plugin, arm), set()).add(stage)
    plugins = sorted({plugin for plugin, _, _ in all_arm_views})
    shared = [
        arm
        for arm in ("subject", "scratch")
        if len(plugins) > 1
        and all(stages_by_arm.get((plugin, arm)) == stages_by_arm.get((plugins[0], arm)) is not None for plugin in plugins)
    ]
    names = [_arm_with_stage(arm, stages_by_arm[plugins[0], arm]) for arm in shared]
    for plugin in dict.fromkeys(plugin for plugin, _ in stages_by_arm):
        arms = [
            _arm_with_stage(arm, stages)
            for (owner, arm), stages in stages_by_arm.items()
            if owner == plugin and arm not in shared
        ]
        if arms:
            names.append(f"{plugin}: {', '.join(arms)}")
    return tuple(names)


def _arm_with_stage(arm: str, stages: set[str]) -> str:
    label = arm.removeprefix("induced:")
    return label if len(stages) == 2 else f"{label} ({'in training' if 'train' in stages else 'at test'})"


def name(data: Data) -> str:
    """Return the short name of a dataset: the last part of its path, or its spelling in the suite."""
    kind, _, rest = data.spec.partition(":")
    return rest.rstrip("/\\").replace("\\", "/").rpartition("/")[2] if kind in {"folder", "npz"} and rest else data.spec


def _cached(
    request: Wanted, recorded: Ready, engine: Callable[[], Callable[..., Future[Any]]], cache: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the images and labels of a request, from its file in the cache; an unreadable file is replaced."""
    key = digest((VERSION, request.data, request.preprocessing, recorded, EXAMPLES))[:32]
    file = cache / "samples" / f"{key}.npz"
    with suppress(*BROKEN), file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return arrays["images"], tuple(json.loads(arrays["labels"].tobytes()))
    images, labels = engine()(
        "xferbench.lab.samples:samples", request.data, request.preprocessing, EXAMPLES, recorded, cache
    ).result()
    with suppress(OSError):  # with a full disk, the next run computes the images again
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.replace_atomically(file) as temporary, temporary.open("wb") as output:
            np.savez_compressed(output, images=images, labels=np.frombuffer(json.dumps(labels).encode(), np.uint8))
    return images, labels
