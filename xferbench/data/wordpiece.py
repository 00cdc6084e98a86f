"""Token ids of texts by BERT's WordPiece, from a ``vocab.txt``. Reads that file; the rest is pure.

As in the library ``tokenizers``, characters are lowered one by one: a final Σ becomes σ; in the published code of BERT, ς.

References:
    Devlin, Chang, Lee, Toutanova. BERT: pre-training of deep bidirectional transformers for language understanding. NAACL 2019.
    Wu et al. Google's neural machine translation system. arXiv:1609.08144, section 4.1 (WordPiece).
"""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"  # begins a token that continues a word
MAX_WORD_LENGTH = 100  # characters; a longer word is unknown
MAX_CACHED_WORDS = 200_000
ASCII_PUNCTUATION = frozenset(string.punctuation)  # with $, + and others that Unicode calls symbols
REPLACEMENT = "\ufffd"  # stands for bytes that could not be decoded
IDEOGRAPHS = (
    range(0x3400, 0x4DC0),
    range(0x4E00, 0xA000),
    range(0xF900, 0xFB00),
    range(0x20000, 0x2A6E0),
    range(0x2A700, 0x2CEB0),
    range(0x2F800, 0x2FA20),
)
EXPECTED = f"UTF-8 text with one token a line, each once, with {' '.join(SPECIAL_TOKENS)}"
DO = "give the vocab.txt that belongs to the checkpoint"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model.

    Attributes:
        ids: The id of each token.
        pad: The id of ``[PAD]``.
        unknown: The id of ``[UNK]``.
        start: The id of ``[CLS]``.
        separator: The id of ``[SEP]``.
        mask: The id of ``[MASK]``.
    """

    ids: Mapping[str, int]
    pad: int
    unknown: int
    start: int
    separator: int
    mask: int
    _cache: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)


def build_vocabulary(tokens: Sequence[str]) -> Vocabulary:
    """Return the vocabulary of some tokens; ids are their positions.

    Raises:
        UserError: If a special token is missing, or a token occurs twice.
    """
    ids = {token: position for position, token in enumerate(tokens)}
    if missing := [token for token in SPECIAL_TOKENS if token not in ids]:
        found = f"{len(tokens)} tokens without {' '.join(missing)}"
        raise UserError("a vocabulary without special tokens", found=found, expected=EXPECTED, do=DO)
    if len(ids) < len(tokens):
        token, count = Counter(tokens).most_common(1)[0]
        found = f"{len(tokens) - len(ids)} repeated tokens, such as {token!r} ({count} times)"
        raise UserError("a vocabulary with repeated tokens", found=found, expected=EXPECTED, do=DO)
    return Vocabulary(ids, *(ids[token] for token in SPECIAL_TOKENS))


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a ``vocab.txt``: one token a line; the first line has id 0.

    Raises:
        UserError: If the file cannot be read, is empty or not UTF-8, lacks a special token or repeats a token.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read", found=str(error), expected=EXPECTED, do=DO) from error
    except UnicodeDecodeError as error:
        found = f"{error.reason} at byte {error.start}"
        raise UserError(f"{path}: not UTF-8", found=found, expected=EXPECTED, do=DO) from error
    if not text.strip():
        raise UserError(f"{path}: no tokens", found="an empty file", expected=EXPECTED, do=DO)
    # str.splitlines would also split at tokens such as U+2028.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    try:
        return build_vocabulary(lines)
    except UserError as error:
        raise error.at(f"{path}: {error.what}") from None


def encode(vocabulary: Vocabulary, text: str, *, lowercase: bool) -> list[int]:
    """Return the ids of the tokens of a text, without special tokens.

    Names of special tokens in the text, such as ``[SEP]``, are ordinary text.

    Args:
        vocabulary: The vocabulary.
        text: The text.
        lowercase: Whether to lower all letters and remove accents, as uncased models expect.
    """
    ids: list[int] = []
    cache = vocabulary._cache  # noqa: SLF001 - the field exists for this function
    for word in text.translate(UNCASED if lowercase else CASED).split():
        pieces = cache.get(word)
        if pieces is None:
            pieces = _word_ids(vocabulary, word)
            if len(cache) < MAX_CACHED_WORDS:
                cache[word] = pieces
        ids += pieces
    return ids


def _word_ids(vocabulary: Vocabulary, word: str) -> tuple[int, ...]:
    """Return the ids of the longest tokens that make up a word from its left, or that of ``[UNK]``."""
    if len(word) > MAX_WORD_LENGTH:
        return (vocabulary.unknown,)
    pieces: list[int] = []
    start = 0
    while start < len(word):
        prefix = CONTINUATION if start else ""
        for end in range(len(word), start, -1):
            piece = vocabulary.ids.get(prefix + word[start:end])
            if piece is not None:
                break
        else:
            return (vocabulary.unknown,)
        pieces.append(piece)
        start = end
    return tuple(pieces)


class _Normalization(dict[int, str]):
    """A table for ``str.translate`` that adds characters as they occur. Each punctuation mark and ideograph becomes a word."""

    def __init__(self, *, lowercase: bool) -> None:
        super().__init__()
        self.lowercase = lowercase

    def __missing__(self, code: int) -> str:
        self[code] = result = _normalize(chr(code), lowercase=self.lowercase)
        return result


CASED, UNCASED = _Normalization(lowercase=False), _Normalization(lowercase=True)


def _normalize(character: str, *, lowercase: bool) -> str:
    """Return what replaces a character: nothing for a control character, a space for white space, words between spaces."""
    if character in "\t\n\r":
        return " "
    if character in {"\0", REPLACEMENT} or unicodedata.category(character).startswith("C"):
        return ""
    if character.isspace():
        return " "
    letters = character
    if lowercase:
        letters = "".join(
            part.lower() for part in unicodedata.normalize("NFD", character) if unicodedata.category(part) != "Mn"
        )
    parts = "".join(f" {part} " if _is_punctuation(part) else part for part in letters)
    return f" {parts} " if any(ord(character) in block for block in IDEOGRAPHS) else parts


def _is_punctuation(character: str) -> bool:
    return character in ASCII_PUNCTUATION or unicodedata.category(character).startswith("P")
