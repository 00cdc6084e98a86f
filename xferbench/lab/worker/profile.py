"""Profiles a backbone and its datasets by running them once, before any training. Imports torch; reads files."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from xferbench.core.errors import UserError
from xferbench.core.plugin import DataProfile, ModelProfile, Profile, ProfileRequest, Timing, UserCodeProfile
from xferbench.core.transforms import INPUT_KINDS, InputTransform, Preprocessing, Tokens, complete_tokens
from xferbench.data import sources, user_code
from xferbench.lab.data import batch, datasets, domains, tokens
from xferbench.lab.data.preprocessing import to_tensor
from xferbench.lab.models import (
    added_parameters,
    backbones,
    checkpoint_reader,
    checkpoints,
    dropout,
    finished,
    finished_heads,
    heads,
    published_preprocessing,
    token_embeddings,
    transformers_models,
)
from xferbench.lab.training import user_training

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractContextManager

    from xferbench.core.finished_head import FinishedHead
    from xferbench.core.pipeline import Data, UserCode, WeightsFile

IMAGENET_MEAN_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The preprocessing with which the published weights of He et al.'s CIFAR networks were trained.
CIFAR_PREPROCESSING = Preprocessing(resize=32, crop=32, mean=IMAGENET_MEAN_STD[0], std=IMAGENET_MEAN_STD[1])
COMMON_LENGTHS = (32, 64, 128, 256, 512)  # of texts, in tokens
COMMON_SIZES = (32, 48, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384)  # sides of square images in pixels
TIMED_IMAGES = 32  # images in a batch
NO_TOKENIZER_ADVICE = "save the tokenizer into the folder of the weights, or state images as the kind of preprocessing"
FORM_OF_TEXTS = ("lowercase", "special", "truncation", "padding", "extra_padding", "masked", "shuffled")
NORMALIZATION_TOLERANCE = 0.01  # of a mean or a standard deviation; records are rounded differently
REPEATED_TIMINGS = 3
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


def checkpoint_preprocessing(arch: str, weights: WeightsFile) -> tuple[Preprocessing | Tokens | None, str]:
    """Return the preprocessing of a checkpoint, and a note if it is only an assumption.

    The preprocessing is known if the file or its folder records it, or if torchvision or timm publishes it. Otherwise that
    of the published weights of the architecture is the best guess.

    Returns:
        The preprocessing, or None if nothing is known about it; and the note, which is "" if the preprocessing is certain.
    """
    exact = checkpoints.recorded_preprocessing(Path(weights.path)) or published_preprocessing.published_preprocessing(
        arch, weights.digest
    )
    if exact is not None:
        return exact, ""
    if (recorded_tokens := tokens.recorded_tokens(Path(weights.path))) is not None:
        return recorded_tokens, ""
    saved, note = transformers_models.recorded_preprocessing(Path(weights.path))
    if saved is not None:
        return saved, note
    guess = CIFAR_PREPROCESSING if arch.startswith("cifar-resnet") else published_preprocessing.published_preprocessing(arch)
    if guess is None:
        return None, "preprocessing: recorded nowhere, so images are only scaled to [0, 1]"
    return guess, f"preprocessing: not recorded with these weights; that of the published weights of {arch} is used"


def profile(request: ProfileRequest, cache: Path) -> Profile:
    """Load the checkpoint and the datasets, and run the network forward and backward on a few images.

    Args:
        request: what the profile is computed from.
        cache: the cache folder of the store.

    Returns:
        The profile. If user code crashes, the profile holds only the message.

    Raises:
        UserError: if the checkpoint does not fit, the head is not found, or a dataset cannot be used.
    """
    try:
        result = _load_and_profile(request, cache)
        if request.training is None:
            return result
        return replace(result, user_code=replace(result.user_code, supports=user_training.supported_fields(request.training)))
    except user_code.UserCodeError as crash:
        return Profile(
            model=ModelProfile(parameters=0, groups=(), head="", batchnorm=()),
            data=DataProfile(classes=(), train=0, validation=0, test=0, test_groups=None),
            user_code=UserCodeProfile(crash=str(crash)),
            preprocessing=Preprocessing(),
        )


def _load_and_profile(request: ProfileRequest, cache: Path) -> Profile:
    arch, weights, code, checkpoint = request.arch, request.weights, request.code, request.checkpoint
    source, shifted, outputs_by_class = request.source, request.shifted, dict(request.source_classes)
    _require_normalization(arch, weights, request.preprocessing)
    if checkpoint is None:  # a finished network may have been trained with other values than those it started from
        _refuse_contradiction(arch, weights, request.preprocessing)
    transform, trust = _preprocessing(request)
    limit = 0
    if isinstance(transform, Tokens):
        limit, transform = transform.max_length, _fit_length(transform, request)
    test_size = request.test_size
    dataset = datasets.load_dataset(request.target, transform, None if checkpoint else test_size, cache)
    train, validation = _subset(dataset, request)
    module, layout = _build_network(request, dataset, transform)
    if isinstance(transform, Tokens):
        splits = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
        token_embeddings.check_ids(module, {name: split.images[:, 0] for name, split in splits.items() if split is not None})
    state, reading_note = checkpoint_reader.read_with_note(Path(weights.path))
    pretrained_notes = (reading_note, checkpoints.match_names(module, state, layout.head)[1])
    head, summary = checkpoints.head_tensors(module, state, layout.head), None
    if checkpoint:
        summary = finished.inspect_checkpoint(module, layout.head, checkpoint, state, len(dataset.classes), arch)
        pretrained_notes = (*(pretrained_notes if checkpoint.before else ()), *summary.notes)
        if finished_head := summary.head.finished:
            is_replaced_alone = finished_head.place == layout.head and not finished_head.has_max_pooling
            head = head if checkpoint.before and is_replaced_alone else {}
            layout = _put_on(arch, module, finished_head, datasets.input_shape(dataset, transform))
    else:
        checkpoints.load_backbone(module, state, layout.head)
    unsupported, (forward, step) = _run_network(module, layout, code, dataset, transform, request.device)
    outputs, source_error = domains.source_outputs(source, outputs_by_class, transform, arch, head, cache)
    order_note = "" if outputs_by_class else _order_note(outputs)
    result = Profile(
        model=ModelProfile(
            parameters=layout.parameters,
            groups=tuple(group.name for group in layout.groups),
            head=layout.head,
            batchnorm=layout.batchnorm,
            size=dataset.test.images.shape[-2:],
            accepted_sizes=_accepted_sizes(module, transform, limit),
            outputs=summary.head.outputs if summary else 0,
            finished_head=summary.head.finished if summary else None,
            body_unchanged=bool(summary and summary.body_unchanged),
            unsupported=(*unsupported, *_missing_unlabelled(shifted, transform, cache)),
        ),
        data=DataProfile(
            classes=dataset.classes,
            train=len(train),
            validation=len(validation if dataset.validation is None else dataset.validation.labels),
            test=min(len(dataset.test.labels), test_size or len(dataset.test.labels)),
            test_groups=len(np.unique(dataset.test.groups)) if len(dataset.test.groups) else None,
            dropped_examples=dataset.left_out,
            rotated=dataset.rotated,
            sixteen_bit=dataset.sixteen_bit,
            highest=dataset.highest,
            truncated=_count_truncated(transform, request),
            source=outputs,
            source_error=source_error,
            shifted=domains.shifted_classes(shifted, dataset.classes, transform, cache),
        ),
        timing=Timing(seconds_forward=forward, seconds_step=step),
        preprocessing=transform,
        recorded=not trust,
        trust=tuple(dict.fromkeys(note for note in (trust, *pretrained_notes, order_note) if note)),
    )
    sigmoid_note = f"head: its one output is the logit of {dataset.classes[-1]}, for a sigmoid"
    return replace(result, trust=(*result.trust, sigmoid_note)) if result.has_sigmoid else result


def _preprocessing(request: ProfileRequest) -> tuple[InputTransform, str]:
    """Return the preprocessing of the backbone, and a note if nothing confirms it.

    A statement needs no note if the weights have a record, which it does not contradict, or if an audit tests it.
    """
    weights = request.checkpoint.after if request.checkpoint else request.weights
    saved = tokens.recorded_tokens(Path(weights.path))
    recorded, note = (saved, "") if saved else checkpoint_preprocessing(request.arch, request.weights)
    stated = request.preprocessing
    if isinstance(recorded, Tokens):
        stated = stated or recorded
        if not isinstance(stated, Tokens):
            found, expected = INPUT_KINDS[type(stated)], "text, the kind of the weights"
            raise UserError("[backbone] preprocessing: kind", found=found, expected=expected, do="leave preprocessing out")
        tokens.check_length(complete_tokens(stated, recorded), recorded.max_length)
        return complete_tokens(stated, recorded), ""
    if isinstance(stated, Tokens) or request.arch == "tiny-bert":
        found, expected = "no tokenizer next to the weights", "a folder with config.json, the weights and the tokenizer"
        raise UserError(f"{weights.path}: its network cannot get texts", found=found, expected=expected, do=NO_TOKENIZER_ADVICE)
    if stated is None:
        return recorded or Preprocessing(), note
    is_confirmed = request.checkpoint is not None or (isinstance(stated, Preprocessing) and recorded is not None and not note)
    return stated, "" if is_confirmed else "preprocessing: stated under [backbone], and not recorded with these weights"


def _fit_length(transform: Tokens, request: ProfileRequest) -> Tokens:
    """Return a transform that is as long as the longest text of all datasets of a request."""
    longest = 0
    for role, data in (("target", request.target), ("source", request.source), ("shifted", request.shifted)):
        splits = sources.read_dataset(data.spec, request.test_size)[1] if data is not None else {}
        try:
            fitted = tokens.fit_length(transform, [example for split in splits.values() for example in split.images])
        except UserError as error:
            raise error.at(f"[{role}] data: {error.what}") from error
        longest = max(longest, fitted.max_length)
    return replace(transform, max_length=longest)


def _count_truncated(transform: InputTransform, request: ProfileRequest) -> int:
    """Return the number of test texts that are cut; 0 for images."""
    if not isinstance(transform, Tokens):
        return 0
    raw = sources.read_dataset(request.target.spec, request.test_size)[1]["test"]
    return tokens.count_truncated(transform, raw.images[: request.test_size])


def _build_network(
    request: ProfileRequest, dataset: datasets.Dataset, transform: InputTransform
) -> tuple[torch.nn.Module, backbones.LayerLayout]:
    """Build the network with random weights, and find its layers.

    Raises:
        UserError: if the head does not have one output for each class.
    """
    module = backbones.build(request.arch, len(dataset.classes), request.code, request.pooling)
    with _name_user_code(request.code):
        layout = backbones.layer_layout(module, datasets.input_shape(dataset, transform))
    if layout.classes != len(dataset.classes):
        expected = f"{len(dataset.classes)}, one for each class"
        raise UserError(f"{request.arch}: a head of the wrong size", found=f"{layout.classes} outputs", expected=expected)
    return module, layout


def _put_on(arch: str, module: torch.nn.Module, head: FinishedHead, shape: batch.Shape) -> backbones.LayerLayout:
    """Put the head of a finished network on a network, and return the layers of the result.

    Raises:
        UserError: if the network does not run with this head.
    """
    width = heads.head_width(module, head.place)
    try:
        heads.replace_by_finished(module, head, head.outputs)
        return backbones.layer_layout(module, shape, head.place)
    except UserError as error:
        names = [layer.name for layer in head.layers if layer.name]
        raise finished_heads.unreadable_head(arch, head.place, width, names) from error


def _run_network(
    module: torch.nn.Module,
    layout: backbones.LayerLayout,
    code: UserCode | None,
    dataset: datasets.Dataset,
    transform: InputTransform,
    device: str,
) -> tuple[list[str], tuple[float, float]]:
    """Run the network. Return the kinds of layers that it lacks, and the times of :func:`_measure_seconds`."""
    with _name_user_code(code):
        places = added_parameters.places(module, layout, datasets.input_shape(dataset, transform))
        names_by_kind: dict[str, Collection[str]] = {**backbones.names_by_kind(layout, module), **places}
        seconds = _measure_seconds(module, dataset, transform, device)
    layers_by_kind = names_by_kind | {"dropout": set(dropout.dropout_layers(module, layout.head))}
    return [kind for kind, names in layers_by_kind.items() if not names], seconds


def _accepted_sizes(module: torch.nn.Module, transform: InputTransform, limit: int) -> tuple[int, ...]:
    """Return the common sizes of images, or lengths of texts and their recorded limit, that a network accepts.

    Position embeddings of a fixed number, for example, limit them.
    """
    if isinstance(transform, Tokens):
        lengths = sorted({length for length in COMMON_LENGTHS if length <= limit} | {limit})
        return tuple(length for length in lengths if _accepts_text(module, length))
    sizes = COMMON_SIZES if isinstance(transform, Preprocessing) else ()
    return tuple(size for size in sizes if _accepts(module, (3, size, size)))


def _accepts_text(module: torch.nn.Module, length: int) -> bool:
    """Return whether a network accepts a text of so many tokens. Only a run with values meets the end of the positions."""
    try:
        with torch.no_grad():
            module(to_tensor(torch.zeros(1, 2, length, dtype=torch.int32), Tokens()))
    except Exception:  # noqa: BLE001 - whatever a network raises, it does not accept the length
        return False
    return True


def _accepts(module: torch.nn.Module, shape: batch.Shape) -> bool:
    try:
        backbones.trace_modules(module, shape)
    except Exception:  # noqa: BLE001 - whatever a network raises, it does not accept the size
        return False
    return True


def _order_note(outputs: tuple[int, ...]) -> str:
    """Return a note if the outputs of the pretrained head are assumed to have the order of the source classes."""
    is_in_order = outputs and outputs == tuple(range(len(outputs)))
    return "source classes: those of the source, in order, are the outputs of the pretrained head" if is_in_order else ""


def _missing_unlabelled(shifted: Data | None, transform: InputTransform, cache: Path) -> tuple[str, ...]:
    """Return ``unlabelled`` if a shifted dataset has no training images."""
    has_images = shifted is None or len(datasets.load_dataset(shifted, transform, None, cache).train.labels)
    return () if has_images else ("unlabelled",)


def _subset(dataset: datasets.Dataset, request: ProfileRequest) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and validation examples, empty ones for an audit without training images."""
    if len(dataset.train.labels):
        return datasets.train_validation_indices(dataset, request.train_size, 0)
    if not request.checkpoint:
        expected = "train/ and val/ or test/, each with one folder of images for each class; or metadata.csv; or arrays of both"
        raise UserError(f"{request.target.spec}: no training images", found="only a test set", expected=expected)
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
            do="state them, or leave out preprocessing",
        )


def _refuse_contradiction(arch: str, weights: WeightsFile, stated: InputTransform | None) -> None:
    """Refuse stated values or channels of pixels that differ from those recorded for these very weights.

    The cured arm uses the statement, so a wrong one would pass as the right preprocessing.
    """
    recorded, note = checkpoint_preprocessing(arch, weights)
    if isinstance(recorded, Tokens) and isinstance(stated, Tokens):
        _refuse_other_form(stated, recorded)
    if note or not isinstance(recorded, Preprocessing) or not isinstance(stated, Preprocessing):
        return
    pairs = zip(_normalization(stated), _normalization(recorded), strict=True)
    has_other_values = any(abs(value - expected) > NORMALIZATION_TOLERANCE for value, expected in pairs)
    if has_other_values or {stated.channels, recorded.channels} == {"rgb", "bgr"}:
        raise UserError(
            "[backbone] preprocessing: it contradicts the record of these weights",
            found=_describe_values(stated),
            expected=_describe_values(recorded),
            do="leave out preprocessing; if your training uses other values, state them as [recipe] train_preprocessing",
        )


def _refuse_other_form(stated: Tokens, recorded: Tokens) -> None:
    """Refuse a stated form of texts that differs from the one saved with these weights, which the cured arm would use."""
    completed = complete_tokens(stated, recorded)
    names = [name for name in FORM_OF_TEXTS if getattr(completed, name) != getattr(recorded, name)]
    if names:
        found, expected = (", ".join(f"{name} = {getattr(form, name)}" for name in names) for form in (completed, recorded))
        do = "leave them out; state another form of training or serving as [recipe] train_preprocessing or serve_preprocessing"
        what = "[backbone] preprocessing: it contradicts the tokenizer that is saved with these weights"
        raise UserError(what, found=found, expected=expected, do=do)


def _normalization(transform: Preprocessing) -> tuple[float, ...]:
    """Return mean and standard deviation of three channels, for pixels from 0 to 1; one value stands for all channels."""
    white = 255 * transform.scale
    return tuple(value / white for values in (transform.mean, transform.std) for value in (values * 3)[:3])


def _describe_values(transform: Preprocessing) -> str:
    scale = "" if transform.scale == Preprocessing().scale else f", scale = {transform.scale:g}"
    channels = "" if transform.channels == Preprocessing().channels else f', channels = "{transform.channels}"'
    return f"mean = {list(transform.mean)}, std = {list(transform.std)}{scale}{channels}"


def _name_user_code(code: UserCode | None) -> AbstractContextManager[None]:
    return nullcontext() if code is None else user_code.name_errors(code)


def _time_batch(module: torch.nn.Module, images: batch.Batch, labels: torch.Tensor) -> tuple[float, float]:
    """Return the seconds of a forward pass and of a training step; reading a number waits for the device.

    On a CPU these are seconds of the processor, which a busy machine does not lengthen, so that a budget affords the same work.
    """
    clock = process_time if labels.device.type == "cpu" else perf_counter
    start = clock()
    with torch.no_grad():
        float(module(images).sum())
    middle = clock()
    F.cross_entropy(module(images), labels).backward()
    first = next(parameter for parameter in module.parameters() if parameter.grad is not None)
    float(first.grad.sum())
    return middle - start, clock() - middle


def _measure_seconds(
    module: torch.nn.Module, dataset: datasets.Dataset, transform: InputTransform, device: str
) -> tuple[float, float]:
    """Measure the seconds per image of a forward pass and of a training step on a device.

    A batch of the usual size is timed only if a small batch was quick.
    """
    module.eval().to(device)
    forward = step = 0.0
    for batch_size in (TIMED_IMAGES // 8, TIMED_IMAGES):
        count = min(batch_size, len(dataset.test.labels))
        images = to_tensor(torch.from_numpy(np.array(dataset.test.images[:count])).to(device), transform)
        labels = torch.from_numpy(dataset.test.labels[:count]).to(device)
        F.cross_entropy(module(images), labels).backward()  # a warm-up
        times = [_time_batch(module, images, labels) for _ in range(REPEATED_TIMINGS)]
        forward, step = (min(column) / count for column in zip(*times, strict=True))  # other work can only add to a time
        if step * TIMED_IMAGES > SLOW_SECONDS:
            break
    module.cpu()
    return forward, step
