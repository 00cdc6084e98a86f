"""How copies are searched, for each kind of example. Reads files and writes to the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.core.suite import COPY_KINDS, TEXT_COPY_KINDS
from xferbench.data import (
    altered_copies,
    altered_texts,
    duplicates,
    fingerprints,
    inputs,
    manifest,
    sources,
    text_duplicates,
    text_fingerprints,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from xferbench.core.pipeline import Data
    from xferbench.data.duplicates import DuplicateMatches


@dataclass(frozen=True, slots=True, kw_only=True)
class CopySearch:
    """The functions that search copies of one kind of example. Each kind has fingerprints of its own type.

    Attributes:
        noun: the kind of example.
        copy_kinds: the kinds of altered copies whose recall is measured.
        versions: the versions of the fingerprints and of the search, for the names of cached results.
        expected_false: the expected number of false matches in all searches together.
        dataset_fingerprints: returns the fingerprints of a split: data, split, cache folder, number of test examples.
        take: returns the fingerprints at some indices.
        concatenate: concatenates fingerprints.
        find_duplicates: as :func:`xferbench.data.duplicates.find_duplicates`.
        altered_fingerprints: returns the fingerprints of altered copies of some test examples: data, their indices, the kind of
            each copy, a random generator, cache folder, number of test examples.
        read_manifest: returns the name and the fingerprints of a manifest.
        example_names: returns the file or line of the examples of a split by index, as far as they have one: data, split, cache
            folder, number of test examples.
        similarity: returns the similarity, at most 1, for a distance.
    """

    noun: str
    copy_kinds: tuple[str, ...]
    versions: tuple[int | str, ...]
    expected_false: float
    dataset_fingerprints: Callable[[Data, str, Path, int | None], Any]
    take: Callable[[Any, np.ndarray], Any]
    concatenate: Callable[[Iterable[Any]], Any]
    find_duplicates: Callable[..., DuplicateMatches]
    altered_fingerprints: Callable[[Data, np.ndarray, Sequence[str], np.random.Generator, Path, int | None], Any]
    read_manifest: Callable[[Path], tuple[str, Any]]
    example_names: Callable[[Data, str, Path, int | None], Mapping[int, str]]
    similarity: Callable[[float], float]


def search_for(data: Data) -> CopySearch:
    """Return how copies of the examples of a dataset are searched."""
    return TEXTS if inputs.holds_texts(data.spec) else IMAGES


def _altered_images(
    data: Data, chosen: np.ndarray, kinds: Sequence[str], rng: np.random.Generator, cache: Path, limit: int | None
) -> fingerprints.Fingerprints:
    images = fingerprints.read_images(data, "test", chosen, cache, limit)
    return fingerprints.fingerprint_stream(
        altered_copies.alter_image(altered_copies.reduce_image(image), kind, rng)
        for kind, image in zip(kinds, images, strict=True)
    )


def _altered_texts(
    data: Data, chosen: np.ndarray, kinds: Sequence[str], rng: np.random.Generator, _: Path, limit: int | None
) -> text_fingerprints.TextFingerprints:
    texts = text_fingerprints.read_texts(data, "test", limit)
    donors = np.roll(chosen, 1)
    return text_fingerprints.fingerprint_texts(
        altered_texts.alter_text(texts[index], kind, rng, texts[donor])
        for index, kind, donor in zip(chosen, kinds, donors, strict=True)
    )


def _read_image_manifest(path: Path) -> tuple[str, fingerprints.Fingerprints]:
    pretraining_set = manifest.read_manifest(path)
    return pretraining_set.name, pretraining_set.prints


def _refuse_manifest(path: Path) -> tuple[str, Any]:
    raise inputs.manifest_error(str(path))


def _image_names(data: Data, split: str, cache: Path, limit: int | None = None) -> Mapping[int, str]:
    readable = fingerprints.readable_split(data, split, cache, limit)
    names = {index: str(image) for index, image in enumerate(readable.images) if isinstance(image, Path)}
    return names | {index: readable.names[index] for index, image in enumerate(readable.images) if isinstance(image, bytes)}


def _text_names(data: Data, split: str, _: Path, limit: int | None = None) -> Mapping[int, str]:
    return dict(enumerate(sources.read_split(data, split, limit).names))


IMAGES = CopySearch(
    noun="image",
    copy_kinds=COPY_KINDS,
    versions=(fingerprints.VERSION, duplicates.VERSION),
    expected_false=duplicates.EXPECTED_FALSE_MATCHES,
    dataset_fingerprints=fingerprints.dataset_fingerprints,
    take=fingerprints.take,
    concatenate=fingerprints.concatenate,
    find_duplicates=duplicates.find_duplicates,
    altered_fingerprints=_altered_images,
    read_manifest=_read_image_manifest,
    example_names=_image_names,
    similarity=lambda distance: 1 - distance**2 / 2,  # the cosine of two embeddings
)
TEXTS = CopySearch(
    noun="text",
    copy_kinds=TEXT_COPY_KINDS,
    versions=("text", text_fingerprints.VERSION, text_duplicates.VERSION),
    expected_false=text_duplicates.EXPECTED_FALSE_MATCHES,
    dataset_fingerprints=text_fingerprints.dataset_fingerprints,
    take=text_fingerprints.take,
    concatenate=text_fingerprints.concatenate,
    find_duplicates=text_duplicates.find_duplicates,
    altered_fingerprints=_altered_texts,
    read_manifest=_refuse_manifest,
    example_names=_text_names,
    similarity=lambda distance: 1 - distance,  # the weighted Jaccard index
)
