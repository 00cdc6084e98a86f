"""Select the datasets and preprocessings of a study and a few sample images of each. Reads and writes the cache."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.config.render import describe_preprocessing
from xferbench.core import files
from xferbench.core.canonical import digest
from xferbench.core.interventions import SourcePretraining
from xferbench.core.run import SampleImages
from xferbench.core.transforms import Tokens
from xferbench.data.npz import READ_ERRORS
from xferbench.study.trials import VIEWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from xferbench.core.pipeline import Data
    from xferbench.core.transforms import InputTransform
    from xferbench.study.schedule import Schedule
    from xferbench.study.study import Study

SAMPLES_VERSION = 1  # raise when the lab's result for the same request changes
IMAGES_PER_SAMPLE = 6
MAX_SAMPLES = 24  # requests; a study with more preprocessings shows only the first ones
ArmView = tuple[str, str, str]  # plugin, arm, and "train" or "serve"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """A dataset with one preprocessing, and the arms that use it."""

    role: str
    data: Data
    preprocessing: InputTransform
    arms: tuple[ArmView, ...]


def collect_sample_images(
    study: Study, step: Schedule, engine: Callable[[], Callable[..., Future[Any]]], cache: Path
) -> tuple[tuple[SampleImages, ...], tuple[str, ...]]:
    """Return the sample images of a finished study, from the cache or a worker, and a note for each failure."""
    recorded = study.profile.preprocessing
    if isinstance(recorded, Tokens):
        return (), ()
    requests = sample_requests(step)
    most_used = {
        role: max((request for request in requests if request.role == role), key=lambda request: len(request.arms))
        for role in dict.fromkeys(request.role for request in requests)
    }
    counts = Counter(request.role for request in requests)
    target_arms = {arm for request in requests if request.role == "target" for arm in request.arms}
    samples, notes = [], []
    for request in requests[:MAX_SAMPLES]:
        try:
            images, labels = _cached_images(request, recorded, engine, cache)
        except Exception as error:  # noqa: BLE001 - a failure here must not cost the run its verdicts
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            notes.append(
                f"no sample images of {request.role} ({describe_preprocessing(request.preprocessing, recorded)}): {last}"
            )
            continue
        title = f"{dataset_name(request.data)}, {describe_preprocessing(request.preprocessing, recorded)}"
        if counts[request.role] == 1:
            arms: tuple[str, ...] = ("all arms",)
        else:
            arms = ("all others",) if request is most_used[request.role] else arm_names(request.arms, target_arms)
        samples.append(SampleImages(role=request.role, title=title, arms=arms, images=images, labels=labels))
    if len(requests) > MAX_SAMPLES:
        notes.append(f"sample images are shown of {MAX_SAMPLES} of {len(requests)} datasets and preprocessings")
    return tuple(samples), tuple(dict.fromkeys(notes))


def sample_requests(step: Schedule) -> tuple[SampleRequest, ...]:
    """Return each dataset and preprocessing that the networks of a step used.

    The target is listed by arm; the others are listed if any trial used them.
    """
    arms_by_input: dict[tuple[str, Data, InputTransform], dict[ArmView, None]] = {}
    for role, data, preprocessing, arm in (*_target_inputs(step), *_other_inputs(step)):
        arms_by_input.setdefault((role, data, preprocessing), {})[arm] = None
    roles = ("target", "source", "shifted")
    return tuple(
        SampleRequest(role=role, data=data, preprocessing=preprocessing, arms=tuple(arms))
        for (role, data, preprocessing), arms in sorted(arms_by_input.items(), key=lambda item: roles.index(item[0][0]))
    )


def _target_inputs(step: Schedule) -> Iterator[tuple[str, Data, InputTransform, ArmView]]:
    for state in step.states:
        for arm, resolved in state.arms.items():
            if (pipeline := resolved.pipeline) is not None:
                yield "target", pipeline.data.target, pipeline.data.train_preprocessing, (state.plugin.id, arm, "train")
                yield "target", pipeline.data.target, pipeline.serving.preprocessing, (state.plugin.id, arm, "serve")
                if isinstance(pipeline.recipe.init, SourcePretraining) and pipeline.data.source:
                    yield (
                        "source",
                        pipeline.data.source.data,
                        pipeline.data.train_preprocessing,
                        (state.plugin.id, arm, "train"),
                    )


def _other_inputs(step: Schedule) -> Iterator[tuple[str, Data, InputTransform, ArmView]]:
    for request in step.requests:
        role = VIEWS[request.view].domain if request.view in VIEWS else ""
        view = request.trial.view
        if role and view.domain is not None:
            yield role, view.domain.data, view.preprocessing, (request.plugin, request.arm, "serve")


def arm_names(arm_views: Sequence[ArmView], all_arm_views: set[ArmView]) -> tuple[str, ...]:
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


def dataset_name(data: Data) -> str:
    """Return the short name of a dataset: the last part of its path, or its spelling in the suite."""
    kind, _, rest = data.spec.partition(":")
    return rest.rstrip("/\\").replace("\\", "/").rpartition("/")[2] if kind in {"folder", "npz"} and rest else data.spec


def _cached_images(
    request: SampleRequest, recorded: InputTransform, engine: Callable[[], Callable[..., Future[Any]]], cache: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the images and labels of a request, from its file in the cache; an unreadable file is replaced."""
    key = digest((SAMPLES_VERSION, request.data, request.preprocessing, recorded, IMAGES_PER_SAMPLE))[:32]
    file = cache / "samples" / f"{key}.npz"
    with suppress(*READ_ERRORS), file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return arrays["images"], tuple(json.loads(arrays["labels"].tobytes()))
    images, labels = engine()(
        "xferbench.lab.data.sample_images:sample_images",
        request.data,
        request.preprocessing,
        IMAGES_PER_SAMPLE,
        recorded,
        cache,
    ).result()
    with suppress(OSError):  # with a full disk, the next run computes the images again
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.replace_atomically(file) as temporary, temporary.open("wb") as output:
            np.savez_compressed(output, images=images, labels=np.frombuffer(json.dumps(labels).encode(), np.uint8))
    return images, labels
