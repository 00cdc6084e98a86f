"""Fingerprints of images by which copies are found again: of the pixels exactly, and of the picture whatever its file was.

An image is shrunk to a thumbnail of 32×32 and described by its lowest frequencies (as pHash does: Zauner 2010, Implementation
and benchmarking of perceptual image hash functions). No network is needed, so that fingerprints can be compared between
machines and versions. In a cosine basis a horizontal flip only changes the sign of every odd horizontal frequency; so one
fingerprint serves both ways round.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.core import files
from xferbench.design import digest
from xferbench.lab import pixels, sources
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from xferbench.design import Data
    from xferbench.lab.raw import Raw

VERSION = 1  # raised when the same image would have other fingerprints
SIDE = 32  # of the thumbnail, whatever the shape of the image
FINE, COARSE, COLOUR = 16, 8, 4  # frequencies a side: of the bits, of the embedding's luminance and of its two chrominances
CONTRAST = 1.0  # grey levels, root mean square over the embedding's frequencies, below which an image is called blank
STRUCTURE = 3.0  # frequencies that effectively make up an image, below which it is called plain
BATCH = 2**22  # values of images that are worked on together, about
YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)  # as in JPEG

_down, _across = np.mgrid[:FINE, :FINE]
_low = np.stack([np.maximum(_down, _across) < side for side in (COARSE, COLOUR, COLOUR)])
_low[:, 0, 0] = False  # brightness and tint of the whole tell little and change easily
_used = np.flatnonzero(_low)
_used = _used[np.argsort(_used % 2, kind="stable")]  # FINE is even, so that the parity is that of the horizontal frequency
SIZE, EVEN = len(_used), int((_used % 2 == 0).sum())  # of an embedding, and of its part that a flip leaves as it is
FLIP = np.packbits(_across.ravel() % 2 == 1)  # the bits that a flip turns over


@dataclass(frozen=True, slots=True, kw_only=True)
class Prints:
    """Fingerprints of N images, in their order.

    Attributes:
        exact: [N] uint64, a digest of size and pixels; ``mirrored`` that of the image flipped horizontally.
        bits: [N, 32] uint8, the packed signs of 256 frequencies of luminance; ``bits ^ FLIP`` are those of the flipped image.
        embedding: [N, SIZE] float16 of unit length, low frequencies whitened by 1/f; the flipped image's has the opposite sign
            from column EVEN on. All zero for an image too plain to be told from others by it; a blank one has no bits either.
    """

    exact: np.ndarray
    mirrored: np.ndarray
    bits: np.ndarray
    embedding: np.ndarray

    def __len__(self) -> int:
        return len(self.exact)

    @property
    def plain(self) -> np.ndarray:
        """Which images are of one colour, or so simple that only the very same pixels tell a copy: [N]."""
        return np.asarray(~self.embedding.any(1))

    @property
    def blank(self) -> np.ndarray:
        """Which images are of one colour, or as good as, so that not even the same pixels tell a copy: [N]."""
        return np.asarray(~self.bits.any(1))


def of(images: Any) -> Prints:
    """Fingerprints of a batch [n, 3, H, W] of 8-bit RGB, an array or a tensor on the CPU; any H and W.

    Raises:
        Problem: for anything else.
    """
    given = np.asarray(images)
    if given.dtype != np.uint8 or given.ndim != 4 or given.shape[1] != 3 or 0 in given.shape[2:]:
        raise Problem("no batch of images", found=f"{given.dtype} {given.shape}", expected="uint8 [n, 3, H, W]")
    return joined(_of(given[at].transpose(0, 2, 3, 1)) for at in _slices(len(given), given[:1].size))


def of_raw(raw: Raw) -> tuple[Prints, np.ndarray, tuple[str, ...]]:
    """Fingerprints of a split as it was before any preprocessing: :func:`of_images` of its images."""
    return of_images(raw.images, raw.names)


def of_images(images: Iterable[Path | np.ndarray], names: Sequence[str] = ()) -> tuple[Prints, np.ndarray, tuple[str, ...]]:
    """Fingerprints of image files or arrays H×W(×1, ×3) of 8 or 16 bits, one after the other in memory.

    Returns them, the indices of the images that could be read, and the names of the others with the reason.

    Raises:
        Problem: for arrays that are no images.
    """
    kept: list[int] = []
    left_out: list[str] = []

    def decoded() -> Iterator[np.ndarray]:
        for index, image in enumerate(images):
            found, why = pixels.opened(image, pixels.rgb) if isinstance(image, Path) else (pixels.rgb(image), "")
            if found is None:
                left_out.append(f"{names[index]}: {why}")
            else:
                kept.append(index)
                yield found

    prints = streamed(decoded())
    return prints, np.array(kept, np.int64), tuple(left_out)


def streamed(images: Iterable[np.ndarray]) -> Prints:
    """Fingerprints of images uint8 H×W×3 that come one by one, of any sizes; only a few are held at a time."""

    def batches() -> Iterator[Prints]:
        for _, run in groupby(images, lambda image: image.shape):
            held: list[np.ndarray] = []
            for image in run:
                held.append(image)
                if len(held) * image.size >= BATCH:
                    yield _of(np.stack(held))
                    held.clear()
            if held:
                yield _of(np.stack(held))

    return joined(batches())


def joined(parts: Iterable[Prints]) -> Prints:
    """All images of several sets, one after the other."""
    none = Prints(
        exact=np.empty(0, np.uint64),
        mirrored=np.empty(0, np.uint64),
        bits=np.empty((0, len(FLIP)), np.uint8),
        embedding=np.empty((0, SIZE), np.float16),
    )
    held = [none, *parts]
    return Prints(**{one.name: np.concatenate([getattr(part, one.name) for part in held]) for one in fields(Prints)})


def taken(prints: Prints, index: np.ndarray | slice) -> Prints:
    """Some of the images."""
    return Prints(**{one.name: getattr(prints, one.name)[index] for one in fields(Prints)})


def prints_of(data: Data, split: str, cache: Path, test_size: int | None = None) -> Prints:
    """Fingerprints of a dataset's ``train``, ``validation`` or ``test``, from the cache or put there.

    They are in the order of :func:`xferbench.lab.data.load`, whatever its preprocessing: what cannot be read is left out there
    too.

    Raises:
        Problem: for a dataset that cannot be used, or has no such split.
    """
    generated = max(test_size or 0, sources.GENERATED["test"]) if data.spec.startswith("synthetic:") else None
    place = cache / "prints" / f"{digest((VERSION, data.digest, split, generated))[:32]}.npz"
    if not place.is_file():
        splits = sources.read(data.spec, generated)[1]
        if split not in splits:
            raise Problem(f"{data.spec}: no such split", found=split, expected=", ".join(splits))
        made, _, _ = of_raw(splits[split])
        place.parent.mkdir(parents=True, exist_ok=True)
        save(place, {one.name: getattr(made, one.name) for one in fields(Prints)})
    with np.load(place) as held:
        found = Prints(**{name: held[name] for name in held.files})
    return taken(found, slice(test_size)) if split == "test" else found


def save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an npz file whole or not at all."""
    with files.replace_atomically(file) as part, part.open("wb") as opened:
        np.savez(opened, **arrays)  # type: ignore[arg-type] # NumPy types further names as its own option


def _slices(count: int, size: int) -> Iterator[slice]:
    step = max(1, BATCH // max(size, 1))
    return (slice(start, start + step) for start in range(0, count, step))


def _of(images: np.ndarray) -> Prints:
    """Fingerprints of images [n, H, W, 3] of one size."""
    waves = _frequencies(images)
    low = waves.reshape(len(images), -1)[:, _used]
    whitened = low * np.hypot(_down, _across).ravel().astype(np.float32)[_used % FINE**2]
    length = np.linalg.norm(whitened, axis=1, keepdims=True)
    unit = whitened / np.maximum(length, 1e-6)
    seen = np.square(low).sum(1) >= (CONTRAST * SIDE) ** 2
    told = seen & (STRUCTURE * (unit**4).sum(1) <= 1)
    bits = waves[:, 0].reshape(len(images), -1) > 0
    return Prints(
        exact=_digests(images),
        mirrored=_digests(images[:, :, ::-1]),
        bits=np.packbits(bits & seen[:, None], axis=1),
        embedding=np.where(told[:, None], unit, 0).astype(np.float16),
    )


def _digests(images: np.ndarray) -> np.ndarray:
    size = np.array(images.shape[1:3], "<u4").tobytes()
    held = (hashlib.blake2b(size + image.tobytes(), digest_size=8).digest() for image in images)
    return np.array([int.from_bytes(one, "little") for one in held], np.uint64)


def _frequencies(images: np.ndarray) -> np.ndarray:
    """The lowest frequencies [n, 3, FINE, FINE] of the thumbnails of images [n, H, W, 3], in luminance and two chrominances."""
    values = images.transpose(0, 3, 1, 2).astype(np.float32)
    waves = _waves(images.shape[1]) @ values @ _waves(images.shape[2]).T
    mixed: np.ndarray = np.einsum("kc,ncuv->nkuv", YCC, waves)
    mixed[:, 0, 0, 0] = 0  # the mean's bit is always the same
    return mixed


@lru_cache(maxsize=256)
def _waves(side: int) -> np.ndarray:
    """From ``side`` pixels to the lowest frequencies of SIDE of them: [FINE, side].

    Pixels are averaged by area where there are more than SIDE, and read between where there are fewer.
    """
    at = np.arange(SIDE + 1) * side / SIDE
    if side >= SIDE:
        pixel = np.arange(side)
        shrunk = np.clip(np.minimum(at[1:, None], pixel + 1) - np.maximum(at[:-1, None], pixel), 0, None) * SIDE / side
    else:
        middle = np.clip((at[1:] + at[:-1]) / 2 - 0.5, 0, side - 1)
        shrunk = np.clip(1 - np.abs(middle[:, None] - np.arange(side)), 0, None)
    cosines = np.cos(np.pi * np.arange(FINE)[:, None] * (np.arange(SIDE) + 0.5) / SIDE) * np.sqrt(2 / SIDE)
    cosines[0] /= np.sqrt(2)
    made: np.ndarray = (cosines @ shrunk).astype(np.float32)
    return made
