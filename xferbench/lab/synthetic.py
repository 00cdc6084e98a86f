"""A small world of drawn pictures in which the ways for transfer to fail can be shown in seconds.

A picture has a class and much that is not class: pose, colours, ground and noise. ``source`` teaches a network to tell striped
contours apart whatever their rotation and colours. ``near`` has other contours, drawn in the same way; ``tinted`` has these in
reds on blue alone, so that ``near`` is a shift of it that the source has covered. ``sketch`` has grey
outlines, half of them the others tilted, and ``spectra`` has chirps in a plane of time and pitch, half of them the others
mirrored: there, what the source taught to overlook is what tells the classes apart.

Of arithmetic only sums, products, quotients and roots of IEEE numbers are used, in a fixed order, and of numpy's generators
only the uniform and the raw stream; so the pictures are the same bytes on every machine. :data:`VERSION` is part of each seed.

References:
    Zahn, Roskies. Fourier descriptors for plane closed curves. IEEE Transactions on Computers C-21(3), 1972.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from xferbench.problem import Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = 1
SPLITS = ("train", "test")
SIDE = 32
BLOCK = 200  # pictures drawn together, from one seed; a multiple of every number of classes
ORDERS = range(2, 7)  # of the harmonics of a contour; the first would only shift it

Array: TypeAlias = np.ndarray

_across = (np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2) / (SIDE / 2)
X, Y = np.tile(_across, SIDE), np.repeat(_across, SIDE)  # [SIDE²]: -1 at the left and at the top, 1 at the right and below


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What a dataset's pictures have in common.

    ``forms`` [classes, parameters] is what makes the classes; ``draw`` takes a generator and the forms [BLOCK, parameters] of
    a block and gives its pictures [BLOCK, 1 or 3 channels, SIDE²], in 0 … 1; ``noise`` is the range of the noise's strength.
    """

    classes: tuple[str, ...]
    forms: Array
    draw: Callable[[np.random.Generator, Array], Array]
    noise: tuple[float, float]


def generate(name: str, split: str, count: int) -> tuple[Array, Array]:
    """Draw the first ``count`` pictures of a split (``train`` or ``test``): uint8 [N, 32, 32, 3], and their int64 labels [N].

    They depend on name, split and :data:`VERSION` alone, a shorter request is the beginning of a longer one, and in every
    beginning the numbers of pictures of any two classes differ by one at most.

    Raises:
        Problem: for an unknown name or split, or a negative count.
    """
    for what, given, known in (("dataset", name, NAMES), ("split", split, SPLITS)):
        if given not in known:
            raise Problem(f"no such synthetic {what}", found=given, expected=nearest(given, known), do="take a known one")
    if count < 0:
        raise Problem("a negative number of examples", found=str(count), do="ask for 0 or more")
    images, labels = np.empty((count, SIDE, SIDE, 3), np.uint8), np.empty(count, np.int64)
    for start in range(0, count, BLOCK):
        here = slice(start, min(start + BLOCK, count))
        images[here], labels[here] = (whole[: here.stop - start] for whole in _block(name, split, start // BLOCK))
    return images, labels


def _block(name: str, split: str, number: int) -> tuple[Array, Array]:
    """Block ``number`` of a split. Each run of as many pictures as there are classes holds every class once."""
    world, rng = WORLD[name], _generator(name, split, number)
    classes = len(world.classes)
    labels = rng.random((BLOCK // classes, classes)).argsort(axis=1).reshape(BLOCK)
    pictures = world.draw(rng, world.forms[labels])
    grain = np.frombuffer(rng.bytes(2 * pictures.size), np.uint8).reshape(2, *pictures.shape)
    # The sum of two bytes is spread like a triangle: near enough to a normal distribution, at a tenth of its price.
    noise = (grain[0].astype(np.float32) + grain[1] - 255) * _uniform(rng, *world.noise, 1, 1)
    levels = np.clip(pictures * 255 + noise + 0.5, 0, 255).astype(np.uint8)
    return np.broadcast_to(levels, (BLOCK, 3, SIDE * SIDE)).reshape(BLOCK, 3, SIDE, SIDE).transpose(0, 2, 3, 1), labels


def _generator(*purpose: str | int) -> np.random.Generator:
    told = hashlib.sha256("/".join(map(str, (VERSION, *purpose))).encode()).digest()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(int.from_bytes(told, "big"))))


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Array:
    """Numbers [BLOCK, *shape], equally likely between ``low`` and ``high``."""
    return (low + (high - low) * rng.random((BLOCK, *shape))).astype(np.float32)


def _directions(rng: np.random.Generator, *shape: int) -> tuple[Array, Array]:
    """Cosines and sines of angles that are nearly equally likely all round."""
    # Sums of three uniform numbers are so nearly normal that the plane has nearly no preferred direction; and the last
    # bit of a sine, other than that of a root, is not the same on every machine.
    u, v = rng.random((2, 3, *shape)).sum(axis=1) - 1.5
    length = np.sqrt(u * u + v * v)
    return (u / length).astype(np.float32), (v / length).astype(np.float32)


def _any_colours(rng: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Colours [BLOCK, 3, 1] of the ground at either side, of a glyph and of its stripes."""
    left, right = _uniform(rng, 0, 1, 3, 1), _uniform(rng, 0, 1, 3, 1)
    body = _apart(rng, (left + right) / 2)
    return left, right, body, _apart(rng, body)


def _reds_on_blue(rng: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """The same with glyphs and stripes in reds, and a ground of blues."""

    def strong(channel: int) -> Array:
        weak, high = _uniform(rng, 0, 0.35, 3, 1), _uniform(rng, 0.6, 1, 1)
        weak[:, channel] = high
        return weak

    return strong(2), strong(2), strong(0), strong(0)


def _glyphs(rng: np.random.Generator, forms: Array, colours: Callable[..., tuple[Array, ...]] = _any_colours) -> Array:
    """Striped contours in any rotation and colours, on a ground that passes from one colour to another."""
    x, y, pixels = _pose(rng, *_directions(rng, BLOCK, 1))
    cover = np.clip(_depth(x, y, forms) * pixels + 0.5, 0, 1)[:, None]
    along = x * forms[:, -3, None] + y * forms[:, -2, None] + _uniform(rng, 0, 1, 1)
    wave = np.abs(2 * (along - np.floor(along)) - 1)
    stripe = np.clip((wave - forms[:, -1, None]) * 4 + 0.5, 0, 1)[:, None]
    left, right, body, line = colours(rng)
    c, s = _directions(rng, BLOCK, 1)
    ground = left + (right - left) * np.clip((X * c + Y * s) / 2 + 0.5, 0, 1)[:, None]
    pictures: Array = ground + (body + (line - body) * stripe - ground) * cover
    return pictures


def _outlines(rng: np.random.Generator, forms: Array) -> Array:
    """Contours nearly upright, drawn with a thin grey pen on lighter paper."""
    lean = _uniform(rng, -0.1, 0.1, 1)
    upright = 1 / np.sqrt(1 + lean * lean)
    x, y, pixels = _pose(rng, upright, lean * upright)
    ink = np.clip(_uniform(rng, 1.2, 1.7, 1) - np.abs(_depth(x, y, forms)) * pixels, 0, 1)
    pictures: Array = _uniform(rng, 0.5, 1, 1) - _uniform(rng, 0.1, 0.38, 1) * ink
    return pictures[:, None]


def _chirps(rng: np.random.Generator, forms: Array) -> Array:
    """Faint ridges whose pitch (upwards) moves with time (to the right), on black."""
    time = X - _uniform(rng, -0.2, 0.2, 1)
    course = forms[:, 0, None] * time + forms[:, 1, None] * (time * time - 0.3)
    pitch = _uniform(rng, -0.2, 0.2, 1) + _uniform(rng, 0.7, 1.2, 1) * course
    off = (pitch + Y) / _uniform(rng, 0.06, 0.15, 1)
    pictures: Array = _uniform(rng, 0.12, 0.4, 1) / (1 + off * off)
    return pictures[:, None]


def _pose(rng: np.random.Generator, c: Array, s: Array) -> tuple[Array, Array, Array]:
    """Coordinates [BLOCK, SIDE²] along a glyph's own axes, in units of its mean radius; and that radius in pixels."""
    radius = _uniform(rng, 0.45, 0.7, 1)
    x, y = X - _uniform(rng, -0.2, 0.2, 1), Y - _uniform(rng, -0.2, 0.2, 1)
    return (x * c + y * s) / radius, (y * c - x * s) / radius, radius * (SIDE / 2)


def _depth(x: Array, y: Array, forms: Array) -> Array:
    """How far the contour lies beyond each point on its ray from the middle; below 0 outside."""
    length = np.sqrt(x * x + y * y) + 1e-6
    c1, s1 = x / length, y / length
    depth: Array = 1 - length
    c, s = c1, s1
    for i in range(len(ORDERS)):
        c, s = c * c1 - s * s1, c * s1 + s * c1
        depth += forms[:, i, None] * c + forms[:, i + len(ORDERS), None] * s
    return depth


def _apart(rng: np.random.Generator, colours: Array) -> Array:
    """Colours that differ from the given ones [BLOCK, 3, 1] by at least a quarter in every channel."""
    others: Array = colours + _uniform(rng, 0.25, 0.75, 3, 1)
    others -= np.floor(others)
    return others


def _contours(name: str, classes: int) -> Array:
    """Forms of glyphs: real parts, then imaginary parts of the harmonics; wave vector and duty of the stripes.

    Of many random contours these are the ones that lie farthest from each other in any rotation.
    """
    rng, many = _generator(name, "forms"), 40 * classes
    size = rng.random((many, len(ORDERS))) ** 2
    size *= 0.6 / size.sum(axis=1, keepdims=True)
    taken = [0]
    while len(taken) < classes:
        taken.append(int(np.abs(size[:, None] - size[taken]).sum(axis=2).min(axis=1).argmax()))
    c, s = _directions(rng, *size.shape)
    wave = np.concatenate(_directions(rng, many, 1), axis=1) * (1.5 + 3 * rng.random((many, 1)))
    duty = 0.3 + 0.4 * rng.random((many, 1))
    return np.concatenate([size * c, size * s, wave, duty], axis=1).astype(np.float32)[taken]


def _tilted(forms: Array) -> Array:
    """Turn contours by an eighth: their k-th harmonic by k eighths, so that a star of any order changes."""
    turned, n, root = forms.copy(), len(ORDERS), float(np.sqrt(0.5))
    c, s = root, root
    for i in range(n):
        c, s = (c - s) * root, (c + s) * root
        real, imaginary = forms[:, i], forms[:, i + n]
        turned[:, i], turned[:, i + n] = real * c - imaginary * s, real * s + imaginary * c
    return turned


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


def _world() -> dict[str, Dataset]:
    outlines = _contours("sketch", 5)
    return {
        "source": Dataset(
            classes=tuple(f"source-{i}" for i in range(20)), forms=_contours("source", 20), draw=_glyphs, noise=(0.05, 0.38)
        ),
        "near": Dataset(
            classes=tuple(f"near-{i}" for i in range(10)), forms=_contours("near", 10), draw=_glyphs, noise=(0.05, 0.38)
        ),
        "tinted": Dataset(
            classes=tuple(f"near-{i}" for i in range(10)),
            forms=_contours("near", 10),
            draw=partial(_glyphs, colours=_reds_on_blue),
            noise=(0.05, 0.38),
        ),
        "sketch": Dataset(
            classes=tuple(f"sketch-{i}-{way}" for way in ("upright", "tilted") for i in range(5)),
            forms=np.concatenate([outlines, _tilted(outlines)]),
            draw=_outlines,
            noise=(0.005, 0.04),
        ),
        "spectra": Dataset(
            classes=tuple(CHIRPS), forms=np.array([*CHIRPS.values()], np.float32), draw=_chirps, noise=(0.01, 0.06)
        ),
    }


WORLD = _world()
NAMES = tuple(WORLD)
CLASSES = {name: dataset.classes for name, dataset in WORLD.items()}
