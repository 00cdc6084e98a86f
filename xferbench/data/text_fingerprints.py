"""Fingerprints of texts, by which duplicates are found: of the normalized text, and of its words.

A text is normalized as in CCNet (Wenzek et al. 2019, arXiv:1911.00359, section 3.1), except that digits and accents stay. Its
words are shingles of length one (Broder 1997, On the resemblance and containment of documents). Reads files and writes to the
cache, without torch.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.data import sources
from xferbench.data.fingerprints import cached_arrays
from xferbench.data.raw import TextExample

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from xferbench.core.pipeline import Data

VERSION = 1  # raise it when the fingerprints of a text change
BATCH_CHARACTERS = 2**20  # of the texts in a batch, about
# Thai, Lao, Burmese, Khmer, kana and ideographs: scripts without spaces between words
SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
RUNS = re.compile(f"([{SPACELESS}]+)|[^{SPACELESS}]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFingerprints:
    """Fingerprints of N texts or pairs of texts, in their order.

    Attributes:
        exact: [N] uint64, a digest of the normalized text, or of both texts of a pair.
        swapped: [N] uint64, the same of the pair in the other order.
        counts: [N, 2] int64, the numbers of different words of both texts; 0 for the second text of a single text.
        words: [counts.sum()] uint32, the digests of the words of each text, in the order of ``counts``.
    """

    exact: np.ndarray
    swapped: np.ndarray
    counts: np.ndarray
    words: np.ndarray

    def __len__(self) -> int:
        return len(self.exact)


class _Marks(dict[int, str | None]):
    """A table for ``str.translate`` that adds characters as they occur.

    A punctuation mark becomes a space; a control or format character, such as a soft hyphen, disappears.
    """

    def __missing__(self, code: int) -> str | None:
        category = unicodedata.category(chr(code))
        replacement = " " if category.startswith("P") else None if category in {"Cc", "Cf"} else chr(code)
        self[code] = chr(code) if chr(code).isspace() else replacement
        return self[code]


MARKS = _Marks()


def normalize(text: str) -> str:
    """Return a text without differences of case, white space, punctuation and compatible characters (Unicode's NFKC).

    A punctuation mark separates words, so ``don't`` becomes ``don t``. A text of punctuation alone keeps it.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(MARKS).split()) or " ".join(folded.split())


def fingerprint_texts(examples: Iterable[TextExample]) -> TextFingerprints:
    """Compute the fingerprints of texts or pairs of texts, with a few thousand texts in memory."""
    return concatenate(map(_fingerprint_batch, _batches(examples)))


def concatenate(parts: Iterable[TextFingerprints]) -> TextFingerprints:
    """Concatenate fingerprints."""
    empty = TextFingerprints(
        exact=np.empty(0, np.uint64),
        swapped=np.empty(0, np.uint64),
        counts=np.empty((0, 2), np.int64),
        words=np.empty(0, np.uint32),
    )
    all_parts = [empty, *parts]
    return TextFingerprints(
        **{field.name: np.concatenate([getattr(part, field.name) for part in all_parts]) for field in fields(TextFingerprints)}
    )


def take(prints: TextFingerprints, index: np.ndarray | slice) -> TextFingerprints:
    """Return the fingerprints at the given indices."""
    lengths = prints.counts.sum(1)
    starts = (np.cumsum(lengths) - lengths)[index]
    lengths = lengths[index]
    new_starts = np.cumsum(lengths) - lengths
    position = np.repeat(starts - new_starts, lengths) + np.arange(lengths.sum())
    return TextFingerprints(
        exact=prints.exact[index],
        swapped=prints.swapped[index],
        counts=prints.counts[index],
        words=prints.words[position],
    )


def dataset_fingerprints(data: Data, split: str, cache: Path, test_size: int | None = None) -> TextFingerprints:
    """Return the fingerprints of a split of a dataset of texts, from the cache if they are there.

    They have the order of :func:`xferbench.lab.data.datasets.load_dataset`.

    Raises:
        UserError: If the dataset cannot be used, has no such split, or has other examples than texts.
    """
    size = sources.generated_size(data.spec, test_size)
    path = cache / "prints" / f"{digest((VERSION, 'text', data.digest, split, size))[:32]}.npz"
    names = tuple(field.name for field in fields(TextFingerprints))

    def compute() -> dict[str, np.ndarray]:
        prints = fingerprint_texts(read_texts(data, split, test_size))
        return {name: getattr(prints, name) for name in names}

    prints = TextFingerprints(**cached_arrays(path, names, compute))
    return take(prints, slice(test_size)) if split == "test" else prints


def read_texts(data: Data, split: str, test_size: int | None = None) -> list[TextExample]:
    """Return the texts of a split.

    Raises:
        UserError: If the dataset cannot be used, has no such split, or has other examples than texts.
    """
    texts = [example for example in sources.read_split(data, split, test_size).images if isinstance(example, TextExample)]
    if not texts:
        do = "name texts: csv:FILE, jsonl:FILE or datasets:DIR"
        raise UserError(f"{data.spec}: compared with texts", found="images", expected="texts", do=do)
    return texts


def _batches(examples: Iterable[TextExample]) -> Iterator[list[TextExample]]:
    batch, size = list[TextExample](), 0
    for example in examples:
        batch.append(example)
        size += sum(map(len, example))
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _fingerprint_batch(examples: Sequence[TextExample]) -> TextFingerprints:
    pairs = [(normalize(example.text), normalize(example.pair)) for example in examples]
    words = [
        sorted({zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in _words(text)}) for pair in pairs for text in pair
    ]
    return TextFingerprints(
        exact=np.array([_digest(first, second) for first, second in pairs], np.uint64),
        swapped=np.array([_digest(second, first) for first, second in pairs], np.uint64),
        counts=np.array([len(digests) for digests in words], np.int64).reshape(-1, 2),
        words=np.array([digest for digests in words for digest in digests], np.uint32),
    )


def _words(text: str) -> Iterator[str]:
    """Yield the words of a normalized text; of a script without spaces, all pairs of neighboring characters."""
    for word in text.split():
        for run in RUNS.finditer(word):
            if run[1] and len(run[1]) > 1:
                yield from map("".join, pairwise(run[1]))
            else:
                yield run[0]


def _digest(first: str, second: str) -> int:
    content = f"{first}\0{second}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
