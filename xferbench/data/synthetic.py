"""Small generated image datasets on which failures of transfer can be demonstrated in seconds. Pure.

The pictures are the same bytes on every machine: only sums, products, quotients and roots of IEEE numbers are used, in a fixed
order, and only the uniform and the raw stream of numpy's generators.

A picture has a class, and much that does not depend on the class: pose, colors, background and noise.

- ``source`` has striped contours. It teaches a network to recognize them in any rotation and color.
- ``near`` has other contours of the same kind.
- ``tinted`` has the contours of ``near``, all in reds on blue: a shift of ``near`` that ``source`` covers.
- ``sketch`` has gray outlines; one half of the classes is the other half, tilted.
- ``spectra`` has chirps in a plane of time and pitch; one half of the classes is the other half, mirrored.

In the last two, the classes differ by what the source taught the network to ignore. :data:`VERSION` is part of each seed.

References:
    Zahn, Roskies. Fourier descriptors for plane closed curves. IEEE Transactions on Computers C-21(3), 1972.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from xferbench.data.generated import check_request, random_stream

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = 1
SIDE = 32
BLOCK = 200  # pictures generated from one seed; a multiple of every number of classes
ORDERS = range(2, 7)  # orders of the harmonics of a contour; the first would only shift it

Array: TypeAlias = np.ndarray

_across = (np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2) / (SIDE / 2)
X, Y = np.tile(_across, SIDE), np.repeat(_across, SIDE)  # [SIDE²], from -1 at the left and top to 1 at the right and bottom


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticDataset:
    """What the pictures of a dataset have in common.

    Attributes:
        classes: The class names.
        forms: [classes, parameters], the parameters that make the classes.
        draw: A function that takes a generator and the forms [BLOCK, parameters] of a block, and returns its pictures
            [BLOCK, 1 or 3 channels, SIDE²], in 0 … 1.
        noise: The range of the strength of the noise.
    """

    classes: tuple[str, ...]
    forms: Array
    draw: Callable[[np.random.Generator, Array], Array]
    noise: tuple[float, float]


def generate(name: str, split: str, count: int) -> tuple[Array, Array]:
    """Generate the first ``count`` pictures of a split (``train`` or ``test``).

    The pictures depend only on name, split and :data:`VERSION`. A shorter request returns the beginning of a longer one, and in
    every beginning the counts of any two classes differ by at most one.

    Returns:
        The pictures, uint8 [N, 32, 32, 3], and their labels, int64 [N].

    Raises:
        UserError: If the name or split is unknown, or the count is negative.
    """
    check_request("synthetic", name, NAMES, split, count)
    images, labels = np.empty((count, SIDE, SIDE, 3), np.uint8), np.empty(count, np.int64)
    for start in range(0, count, BLOCK):
        rows = slice(start, min(start + BLOCK, count))
        images[rows], labels[rows] = (block[: rows.stop - start] for block in _generate_block(name, split, start // BLOCK))
    return images, labels


def _generate_block(name: str, split: str, block_index: int) -> tuple[Array, Array]:
    """Generate block ``block_index`` of a split.

    Each run of as many pictures as there are classes contains every class once.
    """
    dataset, rng = DATASETS[name], _generator(name, split, block_index)
    classes = len(dataset.classes)
    labels = rng.random((BLOCK // classes, classes)).argsort(axis=1).reshape(BLOCK)
    pictures = dataset.draw(rng, dataset.forms[labels])
    random_bytes = np.frombuffer(rng.bytes(2 * pictures.size), np.uint8).reshape(2, *pictures.shape)
    # The sum of two bytes has a triangular distribution: close enough to a normal one, at a tenth of the cost.
    noise = (random_bytes[0].astype(np.float32) + random_bytes[1] - 255) * _uniform(rng, *dataset.noise, 1, 1)
    levels = np.clip(pictures * 255 + noise + 0.5, 0, 255).astype(np.uint8)
    return np.broadcast_to(levels, (BLOCK, 3, SIDE * SIDE)).reshape(BLOCK, 3, SIDE, SIDE).transpose(0, 2, 3, 1), labels


def _generator(*purpose: str | int) -> np.random.Generator:
    return random_stream(VERSION, *purpose)


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Array:
    """Draw numbers [BLOCK, *shape] uniformly between ``low`` and ``high``."""
    return (low + (high - low) * rng.random((BLOCK, *shape))).astype(np.float32)


def _directions(rng: np.random.Generator, *shape: int) -> tuple[Array, Array]:
    """Draw the cosines and sines of angles that are nearly uniform over the circle."""
    # The sum of three uniform numbers is so close to normal that the plane has almost no preferred direction. A sine would
    # not do: unlike the last bit of a root, the last bit of a sine differs between machines.
    u, v = rng.random((2, 3, *shape)).sum(axis=1) - 1.5
    length = np.sqrt(u * u + v * v)
    return (u / length).astype(np.float32), (v / length).astype(np.float32)


def _any_colors(rng: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Draw colors [BLOCK, 3, 1]: the background at either side, the glyph and its stripes."""
    left, right = _uniform(rng, 0, 1, 3, 1), _uniform(rng, 0, 1, 3, 1)
    body = _contrasting_colors(rng, (left + right) / 2)
    return left, right, body, _contrasting_colors(rng, body)


def _reds_on_blue(rng: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Draw colors as :func:`_any_colors`: red glyphs and stripes on a blue background."""

    def saturated(channel: int) -> Array:
        color, strength = _uniform(rng, 0, 0.35, 3, 1), _uniform(rng, 0.6, 1, 1)
        color[:, channel] = strength
        return color

    return saturated(2), saturated(2), saturated(0), saturated(0)


def _glyphs(rng: np.random.Generator, forms: Array, colors: Callable[..., tuple[Array, ...]] = _any_colors) -> Array:
    """Draw striped contours in any rotation and color, on a background that blends two colors."""
    x, y, pixels = _pose(rng, *_directions(rng, BLOCK, 1))
    cover = np.clip(_depth(x, y, forms) * pixels + 0.5, 0, 1)[:, None]
    along = x * forms[:, -3, None] + y * forms[:, -2, None] + _uniform(rng, 0, 1, 1)
    wave = np.abs(2 * (along - np.floor(along)) - 1)
    stripe = np.clip((wave - forms[:, -1, None]) * 4 + 0.5, 0, 1)[:, None]
    left, right, body, line = colors(rng)
    c, s = _directions(rng, BLOCK, 1)
    ground = left + (right - left) * np.clip((X * c + Y * s) / 2 + 0.5, 0, 1)[:, None]
    pictures: Array = ground + (body + (line - body) * stripe - ground) * cover
    return pictures


def _outlines(rng: np.random.Generator, forms: Array) -> Array:
    """Draw nearly upright contours with a thin gray pen on lighter paper."""
    lean = _uniform(rng, -0.1, 0.1, 1)
    upright = 1 / np.sqrt(1 + lean * lean)
    x, y, pixels = _pose(rng, upright, lean * upright)
    ink = np.clip(_uniform(rng, 1.2, 1.7, 1) - np.abs(_depth(x, y, forms)) * pixels, 0, 1)
    pictures: Array = _uniform(rng, 0.5, 1, 1) - _uniform(rng, 0.1, 0.38, 1) * ink
    return pictures[:, None]


def _chirps(rng: np.random.Generator, forms: Array) -> Array:
    """Draw faint ridges whose pitch (upwards) changes with time (to the right), on black."""
    time = X - _uniform(rng, -0.2, 0.2, 1)
    course = forms[:, 0, None] * time + forms[:, 1, None] * (time * time - 0.3)
    pitch = _uniform(rng, -0.2, 0.2, 1) + _uniform(rng, 0.7, 1.2, 1) * course
    off = (pitch + Y) / _uniform(rng, 0.06, 0.15, 1)
    pictures: Array = _uniform(rng, 0.12, 0.4, 1) / (1 + off * off)
    return pictures[:, None]


def _pose(rng: np.random.Generator, c: Array, s: Array) -> tuple[Array, Array, Array]:
    """Return coordinates [BLOCK, SIDE²] along the axes of a glyph, in units of its mean radius, and that radius in pixels."""
    radius = _uniform(rng, 0.45, 0.7, 1)
    x, y = X - _uniform(rng, -0.2, 0.2, 1), Y - _uniform(rng, -0.2, 0.2, 1)
    return (x * c + y * s) / radius, (y * c - x * s) / radius, radius * (SIDE / 2)


def _depth(x: Array, y: Array, forms: Array) -> Array:
    """Return how far the contour is beyond each point on the ray from the center; negative outside."""
    length = np.sqrt(x * x + y * y) + 1e-6
    c1, s1 = x / length, y / length
    depth: Array = 1 - length
    c, s = c1, s1
    for i in range(len(ORDERS)):
        c, s = c * c1 - s * s1, c * s1 + s * c1
        depth += forms[:, i, None] * c + forms[:, i + len(ORDERS), None] * s
    return depth


def _contrasting_colors(rng: np.random.Generator, colors: Array) -> Array:
    """Draw colors that differ from the given ones [BLOCK, 3, 1] by at least a quarter in every channel."""
    others: Array = colors + _uniform(rng, 0.25, 0.75, 3, 1)
    others -= np.floor(others)
    return others


def _contours(name: str, classes: int) -> Array:
    """Return the forms of glyphs: real parts, imaginary parts of the harmonics; wave vector and duty of the stripes.

    They are those of many random contours that are farthest from each other in any rotation.
    """
    rng, candidates = _generator(name, "forms"), 40 * classes
    size = rng.random((candidates, len(ORDERS))) ** 2
    size *= 0.6 / size.sum(axis=1, keepdims=True)
    chosen = [0]
    while len(chosen) < classes:
        chosen.append(int(np.abs(size[:, None] - size[chosen]).sum(axis=2).min(axis=1).argmax()))
    c, s = _directions(rng, *size.shape)
    wave = np.concatenate(_directions(rng, candidates, 1), axis=1) * (1.5 + 3 * rng.random((candidates, 1)))
    duty = 0.3 + 0.4 * rng.random((candidates, 1))
    return np.concatenate([size * c, size * s, wave, duty], axis=1).astype(np.float32)[chosen]


def _tilt(forms: Array) -> Array:
    """Rotate contours by an eighth of a turn.

    The k-th harmonic turns by k eighths, so that a star of any order changes.
    """
    tilted, n, root = forms.copy(), len(ORDERS), float(np.sqrt(0.5))
    c, s = root, root
    for i in range(n):
        c, s = (c - s) * root, (c + s) * root
        real, imaginary = forms[:, i], forms[:, i + n]
        tilted[:, i], tilted[:, i + n] = real * c - imaginary * s, real * s + imaginary * c
    return tilted


CHIRPS = {  # slope and bow of the pitch
    "rise": (1, 0),
    "fall": (-1, 0),
    "slow-rise": (0.4, 0),
    "slow-fall": (-0.4, 0),
    "cup": (0, 1),
    "cap": (0, -1),
    "late-rise": (0.7, 0.7),
    "early-rise": (0.7, -0.7),
    "early-fall": (-0.7, 0.7),
    "late-fall": (-0.7, -0.7),
}


def _datasets() -> dict[str, SyntheticDataset]:
    outlines = _contours("sketch", 5)
    return {
        "source": SyntheticDataset(
            classes=tuple(f"source-{i}" for i in range(20)), forms=_contours("source", 20), draw=_glyphs, noise=(0.05, 0.38)
        ),
        "near": SyntheticDataset(
            classes=tuple(f"near-{i}" for i in range(10)), forms=_contours("near", 10), draw=_glyphs, noise=(0.05, 0.38)
        ),
        "tinted": SyntheticDataset(
            classes=tuple(f"near-{i}" for i in range(10)),
            forms=_contours("near", 10),
            draw=partial(_glyphs, colors=_reds_on_blue),
            noise=(0.05, 0.38),
        ),
        "sketch": SyntheticDataset(
            classes=tuple(f"sketch-{i}-{tilt}" for tilt in ("upright", "tilted") for i in range(5)),
            forms=np.concatenate([outlines, _tilt(outlines)]),
            draw=_outlines,
            noise=(0.005, 0.04),
        ),
        "spectra": SyntheticDataset(
            classes=tuple(CHIRPS), forms=np.array([*CHIRPS.values()], np.float32), draw=_chirps, noise=(0.01, 0.06)
        ),
    }


DATASETS = _datasets()
NAMES = tuple(DATASETS)
CLASSES = {name: dataset.classes for name, dataset in DATASETS.items()}
