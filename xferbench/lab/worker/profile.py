"""Profiles a backbone and its datasets by running them once, before any training. Imports torch; reads files."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from xferbench.core.errors import UserError
from xferbench.core.pipeline import InputTransform, Preprocessing
from xferbench.core.plugin import DataProfile, ModelProfile, Profile, Timing, UserCodeProfile
from xferbench.data import user_code
from xferbench.lab.data import datasets, domains
from xferbench.lab.data.preprocessing import to_tensor
from xferbench.lab.models import backbones, bottleneck_adapters, checkpoint_reader, checkpoints, published_preprocessing
from xferbench.lab.models import finished as checkpoint_models
from xferbench.lab.training import user_training

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from xferbench.core.pipeline import Checkpoint, Data, UserCode, WeightsFile

IMAGENET_MEAN_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The preprocessing with which the published weights of He et al.'s CIFAR networks were trained.
CIFAR_PREPROCESSING = Preprocessing(resize=32, crop=32, mean=IMAGENET_MEAN_STD[0], std=IMAGENET_MEAN_STD[1])
TIMED_IMAGES = 32  # images in a batch
SLOW_SECONDS = 0.5  # predicted duration of a batch, above which only a smaller batch is timed


def resolve_device(name: str) -> str:
    """Resolve a device name. ``auto`` is the first available one of cuda, mps and cpu.

    Raises:
        UserError: if torch does not find the device.
    """
    accelerators = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [kind for kind, is_available in accelerators.items() if is_available]
    if name not in {"auto", *available}:
        raise UserError(f"--device {name}: not found here", expected=f"auto, or {' or '.join(available)}")
    return available[0] if name == "auto" else name


def checkpoint_preprocessing(arch: str, weights: WeightsFile) -> tuple[Preprocessing | None, str]:
    """Return the preprocessing of a checkpoint, and a note if it is only an assumption.

    The preprocessing is known if the file records it, or if torchvision or timm publishes the file. Otherwise the preprocessing
    of the architecture's published weights is the best guess.

    Returns:
        The preprocessing, or None if nothing is known about it; and the note, which is "" if the preprocessing is certain.
    """
    exact = checkpoints.recorded_preprocessing(Path(weights.path)) or published_preprocessing.published_preprocessing(
        arch, weights.digest
    )
    if exact is not None:
        return exact, ""
    guess = CIFAR_PREPROCESSING if arch.startswith("cifar-resnet") else published_preprocessing.published_preprocessing(arch)
    if guess is None:
        return None, "preprocessing: recorded nowhere, so images are only scaled to [0, 1]"
    return guess, f"preprocessing: not recorded with these weights; that of the published weights of {arch} is used"


def profile(
    arch: str,
    weights: WeightsFile,
    target: Data,
    preprocessing: InputTransform | None,
    sizes: tuple[int | None, int | None],
    auxiliary: tuple[Data | None, tuple[tuple[str, int], ...], Data | None],
    cache: Path,
    code: UserCode | None = None,
    training: UserCode | None = None,
    finished: Checkpoint | None = None,
) -> Profile:
    """Load the checkpoint and the datasets, and run the network forward and backward on a few images.

    Args:
        arch: the architecture, as in the suite file.
        weights: the pretrained checkpoint.
        target: the dataset.
        preprocessing: the preprocessing of the suite, or None for that of the checkpoint.
        sizes: the sizes of the training subset and of the test set.
        auxiliary: the source dataset, the outputs of the pretrained head for its classes if the suite maps them, and the
            shifted dataset.
        cache: the cache folder of the store.
        code: user code that builds the network.
        training: user code that trains it.
        finished: a checkpoint that is audited, not trained. ``weights`` is then the checkpoint before training, or itself.

    Returns:
        The profile. If user code crashes, the profile holds only the message.

    Raises:
        UserError: if the checkpoint does not fit, the head is not found, or a dataset cannot be used.
    """
    try:
        result = _load_and_profile(arch, weights, target, preprocessing, sizes, auxiliary, cache, code, finished)
        return (
            result
            if training is None
            else replace(result, user_code=replace(result.user_code, supports=user_training.supported_fields(training)))
        )
    except user_code.UserCodeError as crash:
        return Profile(
            model=ModelProfile(parameters=0, groups=(), head="", batchnorm=()),
            data=DataProfile(classes=(), train=0, validation=0, test=0, test_groups=None),
            user_code=UserCodeProfile(crash=str(crash)),
            preprocessing=Preprocessing(),
        )


def _load_and_profile(
    arch: str,
    weights: WeightsFile,
    target: Data,
    preprocessing: InputTransform | None,
    sizes: tuple[int | None, int | None],
    auxiliary: tuple[Data | None, tuple[tuple[str, int], ...], Data | None],
    cache: Path,
    code: UserCode | None,
    finished: Checkpoint | None,
) -> Profile:
    train_size, test_size = sizes
    source, outputs_by_class, shifted = auxiliary
    _require_normalization(arch, weights, preprocessing)
    chosen, trust = (preprocessing, "") if preprocessing else checkpoint_preprocessing(arch, weights)
    ready = chosen or Preprocessing()
    dataset = datasets.load_dataset(target, ready, None if finished else test_size, cache)
    train, validation = _subset(dataset, train_size, target, finished)
    module, layout = _build_network(arch, code, dataset, ready)
    state, reading_note = checkpoint_reader.read_with_note(Path(weights.path))
    name_note = checkpoints.match_names(module, state, layout.head)[1]
    head_outputs, is_unchanged = _load_state(module, layout, state, finished, len(dataset.classes))
    unsupported, (forward, step) = _run_network(module, layout, code, dataset, ready)
    head = checkpoints.head_tensors(module, state, layout.head)
    outputs, source_error = domains.source_outputs(source, dict(outputs_by_class), ready, arch, head, cache)
    order_note = "" if outputs_by_class else _order_note(outputs)
    return Profile(
        model=ModelProfile(
            parameters=layout.parameters,
            groups=tuple(group.name for group in layout.groups),
            head=layout.head,
            batchnorm=layout.batchnorm,
            size=dataset.test.images.shape[-2:],
            outputs=head_outputs,
            body_unchanged=is_unchanged,
            unsupported=(*unsupported, *_missing_unlabelled(shifted, ready, cache)),
        ),
        data=DataProfile(
            classes=dataset.classes,
            train=len(train),
            validation=len(validation if dataset.validation is None else dataset.validation.labels),
            test=min(len(dataset.test.labels), test_size or len(dataset.test.labels)),
            test_groups=len(np.unique(dataset.test.groups)) if len(dataset.test.groups) else None,
            dropped_examples=dataset.left_out,
            source=outputs,
            source_error=source_error,
            shifted=domains.shifted_classes(shifted, dataset.classes, ready, cache),
        ),
        timing=Timing(seconds_forward=forward, seconds_step=step),
        preprocessing=ready,
        recorded=not trust,
        trust=tuple(note for note in (trust, reading_note, name_note, order_note) if note),
    )


def _build_network(
    arch: str, code: UserCode | None, dataset: datasets.Dataset, ready: InputTransform
) -> tuple[torch.nn.Module, backbones.LayerLayout]:
    """Build the network with random weights, and find its layers.

    Raises:
        UserError: if the head does not have one output for each class.
    """
    module = backbones.build(arch, len(dataset.classes), code)
    with _name_user_code(code):
        layout = backbones.layer_layout(module, datasets.input_shape(dataset, ready))
    if layout.classes != len(dataset.classes):
        expected = f"{len(dataset.classes)}, one for each class"
        raise UserError(f"{arch}: a head of the wrong size", found=f"{layout.classes} outputs", expected=expected)
    return module, layout


def _load_state(
    module: torch.nn.Module,
    layout: backbones.LayerLayout,
    state: Mapping[str, torch.Tensor],
    finished: Checkpoint | None,
    classes: int,
) -> tuple[int, bool]:
    """Load the pretrained weights; or, for an audit, check the sizes of both checkpoints without loading them.

    Returns:
        For an audit, the number of outputs of the checkpoint's head, and whether nothing below the head has changed; otherwise
        0 and False.
    """
    if finished:
        return checkpoint_models.head_sizes(module, layout.head, finished, state, classes)
    checkpoints.load_backbone(module, state, layout.head)
    return 0, False


def _run_network(
    module: torch.nn.Module,
    layout: backbones.LayerLayout,
    code: UserCode | None,
    dataset: datasets.Dataset,
    ready: InputTransform,
) -> tuple[list[str], tuple[float, float]]:
    """Run the network. Return the trainable kinds that it has no tensor for, and the times of :func:`_measure_seconds`."""
    with _name_user_code(code):
        adapter_places = bottleneck_adapters.adapter_places(module, layout, datasets.input_shape(dataset, ready))
        names_by_kind = backbones.names_by_kind(layout, module) | {"adapter": adapter_places}
        seconds = _measure_seconds(module, dataset, ready)
    return [kind for kind, names in names_by_kind.items() if not names], seconds


def _order_note(outputs: tuple[int, ...]) -> str:
    """Return a note if the outputs of the pretrained head are assumed to have the order of the source classes."""
    is_in_order = outputs and outputs == tuple(range(len(outputs)))
    return "source classes: those of the source, in order, are the outputs of the pretrained head" if is_in_order else ""


def _missing_unlabelled(shifted: Data | None, ready: InputTransform, cache: Path) -> tuple[str, ...]:
    """Return ``unlabelled`` if a shifted dataset has no training images."""
    has_images = shifted is None or len(datasets.load_dataset(shifted, ready, None, cache).train.labels)
    return () if has_images else ("unlabelled",)


def _subset(
    dataset: datasets.Dataset, train_size: int | None, target: Data, finished: Checkpoint | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and validation examples, empty ones for an audit without training images."""
    if len(dataset.train.labels):
        return datasets.train_validation_indices(dataset, train_size, 0)
    if not finished:
        expected = "train/ and val/ or test/, each with one folder of images for each class; or metadata.csv; or arrays of both"
        raise UserError(f"{target.spec}: no training images", found="only a test set", expected=expected)
    return np.empty(0, np.int64), np.empty(0, np.int64)


def _require_normalization(arch: str, weights: WeightsFile, stated: InputTransform | None) -> None:
    """Refuse a preprocessing without mean and standard deviation if the checkpoint was trained with known ones.

    Without this check, images would silently not be normalized.
    """
    default = Preprocessing()
    if not isinstance(stated, Preprocessing) or (stated.mean, stated.std) != (default.mean, default.std):
        return
    original, _ = checkpoint_preprocessing(arch, weights)
    if isinstance(original, Preprocessing) and (original.mean, original.std) != (default.mean, default.std):
        raise UserError(
            "[backbone] preprocessing: mean and std are left out",
            found="a table without them",
            expected=f"those of these weights, mean = {list(original.mean)}, std = {list(original.std)}",
            do="state them, or mean = [0] and std = [1] for no normalization",
        )


def _name_user_code(code: UserCode | None) -> AbstractContextManager[None]:
    return nullcontext() if code is None else user_code.name_errors(code)


def _measure_seconds(module: torch.nn.Module, dataset: datasets.Dataset, ready: InputTransform) -> tuple[float, float]:
    """Measure the seconds per image of a forward pass and of a training step.

    A batch of the usual size is timed only if a small batch was quick.
    """
    module.eval()
    forward = step = 0.0
    for batch_size in (TIMED_IMAGES // 8, TIMED_IMAGES):
        count = min(batch_size, len(dataset.test.labels))
        images = to_tensor(torch.from_numpy(np.array(dataset.test.images[:count])), ready)
        labels = torch.from_numpy(dataset.test.labels[:count])
        F.cross_entropy(module(images), labels).backward()  # a warm-up
        start = perf_counter()
        with torch.no_grad():
            module(images)
        middle = perf_counter()
        F.cross_entropy(module(images), labels).backward()
        forward, step = (middle - start) / count, (perf_counter() - middle) / count
        if step * TIMED_IMAGES > SLOW_SECONDS:
            break
    return forward, step
