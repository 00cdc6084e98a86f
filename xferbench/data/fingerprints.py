"""Fingerprints of images, by which duplicates are found: of the exact pixels, and of the picture in any file format.

An image is reduced to a 32×32 thumbnail and described by its lowest frequencies, as in pHash (Zauner 2010, Implementation and
benchmarking of perceptual image hash functions); a horizontal flip only changes the sign of the odd horizontal frequencies, so
one fingerprint serves both orientations. Reads files and writes to the cache, without torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.core import cached_files, files
from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.data import sources
from xferbench.data.images import open_image, to_rgb
from xferbench.data.raw import TextExample, text_error
from xferbench.data.raw import take as take_raw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from xferbench.core.pipeline import Data
    from xferbench.data.raw import RawSplit

VERSION = 1  # raise it when the fingerprints of an image change
SIDE = 32  # pixels of a side of the thumbnail, for images of any shape
FINE, COARSE, COLOR = 16, 8, 4  # frequencies per side: bits, luminance and chrominances of the embedding
MIN_CONTRAST = 1.0  # gray levels (root mean square over the embedding's frequencies); an image below is blank
MIN_STRUCTURE = 3.0  # effective number of frequencies in an image; an image below is plain
BATCH_VALUES = 2**22  # values of the images in a batch, about
RGB_TO_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)  # as in JPEG

_down, _across = np.mgrid[:FINE, :FINE]
_low = np.stack([np.maximum(_down, _across) < side for side in (COARSE, COLOR, COLOR)])
_low[:, 0, 0] = False  # mean brightness and tint say little and change easily
USED = np.flatnonzero(_low)
USED = USED[np.argsort(USED % 2, kind="stable")]  # FINE is even, so the parity is that of the horizontal frequency
EMBEDDING_SIZE = len(USED)
EVEN_COLUMNS = int((USED % 2 == 0).sum())  # length of the part of an embedding that a flip does not change
FLIP = np.packbits(_across.ravel() % 2 == 1)  # the bits that a flip inverts


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprints:
    """Fingerprints of N images, in their order.

    Attributes:
        exact: [N] uint64, a digest of size and pixels.
        mirrored: [N] uint64, the same of the image flipped horizontally.
        bits: [N, 32] uint8, the packed signs of 256 frequencies of luminance; ``bits ^ FLIP`` are those of the flipped image.
        embedding: [N, d] float16 of unit length, low frequencies whitened by 1/f. A flip changes the sign of the odd
            frequencies, which are the last columns. A plain image has a zero embedding; a blank image has zero bits, too.
    """

    exact: np.ndarray
    mirrored: np.ndarray
    bits: np.ndarray
    embedding: np.ndarray

    def __len__(self) -> int:
        return len(self.exact)

    @property
    def plain(self) -> np.ndarray:
        """[N] bool: whether an image is so simple that only identical pixels identify a duplicate."""
        return np.asarray(~self.embedding.any(1))

    @property
    def blank(self) -> np.ndarray:
        """[N] bool: whether an image is of one color, or nearly so; then not even identical pixels identify a duplicate."""
        return np.asarray(~self.bits.any(1))


def fingerprint(images: Any) -> Fingerprints:
    """Compute the fingerprints of a batch [n, 3, H, W] of 8-bit RGB images, an array or a CPU tensor, with any H and W.

    Raises:
        UserError: If the input is anything else.
    """
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] != 3 or 0 in array.shape[2:]:
        raise UserError("not a batch of images", found=f"{array.dtype} {array.shape}", expected="uint8 [n, 3, H, W]")
    return concatenate(
        _fingerprint_batch(array[batch_slice].transpose(0, 2, 3, 1)) for batch_slice in _slices(len(array), array[:1].size)
    )


def fingerprint_split(raw: RawSplit) -> tuple[Fingerprints, np.ndarray, tuple[str, ...]]:
    """Compute the fingerprints of a split before any preprocessing; see :func:`fingerprint_images`."""
    images = [image for image in raw.images if not isinstance(image, TextExample)]
    if len(images) < len(raw.images):
        raise text_error("images")
    return fingerprint_images(images, raw.names)


def fingerprint_images(
    images: Iterable[Path | bytes | np.ndarray], names: Sequence[str] = ()
) -> tuple[Fingerprints, np.ndarray, tuple[str, ...]]:
    """Compute the fingerprints of image files or arrays H×W(×1, ×3) of 8 or 16 bits, with one image in memory at a time.

    Returns:
        The fingerprints, the indices of the images that could be read, and a note for each of the others.

    Raises:
        UserError: If an array is not an image.
    """
    kept_indices: list[int] = []
    left_out: list[str] = []

    def decode_images() -> Iterator[np.ndarray]:
        for index, image in enumerate(images):
            decoded, reason = open_image(image, to_rgb) if isinstance(image, Path | bytes) else (to_rgb(image), "")
            if decoded is None:
                left_out.append(f"{names[index]}: {reason}")
            else:
                kept_indices.append(index)
                yield decoded

    prints = fingerprint_stream(decode_images())
    return prints, np.array(kept_indices, np.int64), tuple(left_out)


def fingerprint_stream(images: Iterable[np.ndarray]) -> Fingerprints:
    """Compute the fingerprints of a stream of images uint8 H×W×3 of any sizes, with a few of them in memory."""

    def batch_fingerprints() -> Iterator[Fingerprints]:
        for _, same_shape in groupby(images, lambda image: image.shape):
            batch: list[np.ndarray] = []
            for image in same_shape:
                batch.append(image)
                if len(batch) * image.size >= BATCH_VALUES:
                    yield _fingerprint_batch(np.stack(batch))
                    batch.clear()
            if batch:
                yield _fingerprint_batch(np.stack(batch))

    return concatenate(batch_fingerprints())


def concatenate(parts: Iterable[Fingerprints]) -> Fingerprints:
    """Concatenate fingerprints."""
    empty = Fingerprints(
        exact=np.empty(0, np.uint64),
        mirrored=np.empty(0, np.uint64),
        bits=np.empty((0, len(FLIP)), np.uint8),
        embedding=np.empty((0, EMBEDDING_SIZE), np.float16),
    )
    all_parts = [empty, *parts]
    return Fingerprints(
        **{field.name: np.concatenate([getattr(part, field.name) for part in all_parts]) for field in fields(Fingerprints)}
    )


def take(prints: Fingerprints, index: np.ndarray | slice) -> Fingerprints:
    """Return the fingerprints at the given indices."""
    return Fingerprints(**{field.name: getattr(prints, field.name)[index] for field in fields(Fingerprints)})


def dataset_fingerprints(data: Data, split: str, cache: Path, test_size: int | None = None) -> Fingerprints:
    """Return the fingerprints of a dataset's ``train``, ``validation`` or ``test`` split, from the cache if they are there.

    They have the order of :func:`xferbench.lab.data.datasets.load_dataset` for any preprocessing: both leave out the
    images that cannot be read.

    Raises:
        UserError: If the dataset cannot be used, or has no such split.
    """
    members = _fingerprint_arrays(data, split, cache, test_size)
    fingerprints = Fingerprints(**{field.name: members[field.name] for field in fields(Fingerprints)})
    return take(fingerprints, slice(test_size)) if split == "test" else fingerprints


def readable_split(data: Data, split: str, cache: Path, test_size: int | None = None) -> RawSplit:
    """Return a split without the images that cannot be read, in the order of its fingerprints. Nothing is decoded."""
    members = _fingerprint_arrays(data, split, cache, test_size)
    return take_raw(sources.read_split(data, split, test_size), members["readable"])


def read_images(data: Data, split: str, index: np.ndarray, cache: Path, test_size: int | None = None) -> Iterator[np.ndarray]:
    """Yield the images uint8 H×W×3 at some places of the fingerprints of a dataset."""
    split_data = readable_split(data, split, cache, test_size)
    images = split_data.images
    for position in index:
        stored = images[position]
        image, reason = open_image(stored, to_rgb) if isinstance(stored, Path | bytes) else (stored, "")
        if image is None:
            raise UserError(
                f"{split_data.names[position]}: it can no longer be read", found=reason, expected="the image of the first run"
            )
        yield to_rgb(image)


def _fingerprint_arrays(data: Data, split: str, cache: Path, test_size: int | None) -> dict[str, np.ndarray]:
    """Return the fingerprints of a split and which of its images are ``readable``, from the cache if they are there."""
    path = (
        cache
        / "prints"
        / f"{digest((VERSION, 'readable', data.digest, split, sources.generated_size(data.spec, test_size)))[:32]}.npz"
    )
    names = ("readable", *(field.name for field in fields(Fingerprints)))

    def compute() -> dict[str, np.ndarray]:
        fingerprints, readable, _ = fingerprint_split(sources.read_split(data, split, test_size))
        return {"readable": readable, **{field.name: getattr(fingerprints, field.name) for field in fields(Fingerprints)}}

    return cached_arrays(path, names, compute)


def cached_arrays(path: Path, names: Sequence[str], compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return arrays from an npz file of the cache, or compute and write them if the file is missing or damaged."""

    def read(path: Path) -> dict[str, np.ndarray]:
        with path.open("rb") as file, np.load(file) as members:  # NumPy leaves a damaged file open
            return {name: members[name] for name in names}

    arrays = cached_files.read_or_discard(path, read)
    if arrays is None:
        arrays = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_npz(path, arrays)
    return arrays


def save_npz(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an npz file. An interrupted write leaves no file."""
    with files.replace_atomically(file) as part, part.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type] # NumPy's stub takes other keywords for its own option


def _slices(count: int, size: int) -> Iterator[slice]:
    step = max(1, BATCH_VALUES // max(size, 1))
    return (slice(start, start + step) for start in range(0, count, step))


def _fingerprint_batch(images: np.ndarray) -> Fingerprints:
    """Compute the fingerprints of images [n, H, W, 3] of one size."""
    frequencies = _frequencies(images)
    used = frequencies.reshape(len(images), -1)[:, USED]
    whitened = used * np.hypot(_down, _across).ravel().astype(np.float32)[USED % FINE**2]
    length = np.linalg.norm(whitened, axis=1, keepdims=True)
    unit = whitened / np.maximum(length, 1e-6)
    has_contrast = np.square(used).sum(1) >= (MIN_CONTRAST * SIDE) ** 2
    bits = frequencies[:, 0].reshape(len(images), -1) > 0
    return Fingerprints(
        exact=_digests(images),
        mirrored=_digests(images[:, :, ::-1]),
        bits=np.packbits(bits & has_contrast[:, None], axis=1),
        embedding=np.where((has_contrast & has_structure(unit))[:, None], unit, 0).astype(np.float16),
    )


def has_structure(unit: np.ndarray) -> np.ndarray:
    """Return whether embeddings [n, d] of unit length have enough frequencies to identify an image: [n] bool."""
    is_structured: np.ndarray = MIN_STRUCTURE * (unit**4).sum(1) <= 1
    return is_structured


def _digests(images: np.ndarray) -> np.ndarray:
    size = np.array(images.shape[1:3], "<u4").tobytes()
    digests = (hashlib.blake2b(size + image.tobytes(), digest_size=8).digest() for image in images)
    return np.array([int.from_bytes(value, "little") for value in digests], np.uint64)


def _frequencies(images: np.ndarray) -> np.ndarray:
    """Return the lowest frequencies [n, 3, FINE, FINE] of the thumbnails of images [n, H, W, 3].

    The channels are luminance and two chrominances.
    """
    values = images.transpose(0, 3, 1, 2).astype(np.float32)
    rgb_frequencies = _waves(images.shape[1]) @ values @ _waves(images.shape[2]).T
    frequencies: np.ndarray = np.einsum("kc,ncuv->nkuv", RGB_TO_YCC, rgb_frequencies)
    frequencies[:, 0, 0, 0] = 0  # the bit of the mean is constant
    return frequencies


@lru_cache(maxsize=256)
def _waves(side: int) -> np.ndarray:
    """Return the matrix [FINE, side] from ``side`` pixels to the lowest frequencies of SIDE pixels.

    Pixels are averaged by area if there are more than SIDE, and interpolated if there are fewer.
    """
    edges = np.arange(SIDE + 1) * side / SIDE
    if side >= SIDE:
        pixel = np.arange(side)
        overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
        resampling = np.clip(overlap, 0, None) * SIDE / side
    else:
        centers = np.clip((edges[1:] + edges[:-1]) / 2 - 0.5, 0, side - 1)
        resampling = np.clip(1 - np.abs(centers[:, None] - np.arange(side)), 0, None)
    cosines = np.cos(np.pi * np.arange(FINE)[:, None] * (np.arange(SIDE) + 0.5) / SIDE) * np.sqrt(2 / SIDE)
    cosines[0] /= np.sqrt(2)
    waves: np.ndarray = (cosines @ resampling).astype(np.float32)
    return waves
