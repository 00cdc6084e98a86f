"""Read the tokenizer in a folder. Reads files.

The vocabulary of BERT-like models (WordPiece) is read without another library. Other tokenizers need the library
``tokenizers``, which transformers installs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.core.errors import UserError
from xferbench.data import weights_settings, wordpiece

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# What the file of BERT's own tokenizer has, in addition to its vocabulary and its special tokens.
PLAIN_BERT: Mapping[str, Mapping[str, Any]] = {
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": wordpiece.CONTINUATION},
    "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
}
PROBE = "a"  # a text that every tokenizer knows, by which the special tokens around a text are found


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """A tokenizer.

    Attributes:
        encode: the function from a text, and whether it is converted to lower case, to token ids without special tokens.
        before, between, after: the special tokens before the first text, between a pair, and at the end.
        padding: the id of the padding token.
        special: the ids of all special tokens.
        size: the number of tokens.
    """

    encode: Callable[[str, bool], Sequence[int]]
    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    padding: int
    special: frozenset[int]
    size: int


def load_from_folder(folder: Path) -> Tokenizer:
    """Read the tokenizer that is now in a folder.

    Raises:
        UserError: If it cannot be read.
    """
    return load_tokenizer(str(folder), tokenizer_digest(folder))


@lru_cache(maxsize=4)
def load_tokenizer(location: str, digest: str) -> Tokenizer:
    """Read the tokenizer in a folder.

    Raises:
        UserError: If it cannot be read, or differs from the one that was profiled.
    """
    folder = Path(location)
    if tokenizer_digest(folder) != digest:
        found = "other files" if weights_settings.has_tokenizer(folder) else "no tokenizer"
        do = "keep it unchanged during a run"
        raise UserError(f"{folder}: the tokenizer changed", found=found, expected="that of the profile", do=do)
    fast = weights_settings.read_json(folder / weights_settings.FAST_TOKENIZER_FILE)
    if is_plain_bert(fast):
        vocab: Mapping[str, int] = fast["model"]["vocab"]
        return _wordpiece(wordpiece.build_vocabulary(sorted(vocab, key=lambda token: vocab[token])))
    vocabulary = folder / weights_settings.VOCABULARY_FILE
    if not fast and vocabulary.is_file():
        return _wordpiece(wordpiece.read_vocabulary(vocabulary))
    return _from_library(folder)


def is_plain_bert(fast: Mapping[str, Any]) -> bool:
    """Return whether a ``tokenizer.json`` does exactly what BERT's published code does, so that no library is needed."""
    parts: dict[str, Any] = {name: fast.get(name) for name in (*PLAIN_BERT, "post_processor")}
    if not all(isinstance(part, dict) for part in parts.values()):
        return False
    parts["model"] = {"type": "WordPiece"} | parts["model"]  # old files leave it out
    vocab, around = parts["model"].get("vocab"), parts["post_processor"]
    added = fast.get("added_tokens") or []
    return (
        all(part.items() <= parts[name].items() for name, part in PLAIN_BERT.items())
        and isinstance(vocab, dict)
        and all(isinstance(number, int) for number in vocab.values())
        and set(vocab.values()) == set(range(len(vocab)))
        and (around.get("type") == "BertProcessing" or around.get("special_tokens", {}).keys() == {"[CLS]", "[SEP]"})
        and all(isinstance(token, dict) and token.get("content") in wordpiece.SPECIAL_TOKENS for token in added)
    )


def recorded_lowercase(folder: Path) -> bool | None:
    """Return whether BERT's tokenizer converts texts to lower case; None for another tokenizer, whose file decides.

    The setting is in ``tokenizer_config.json``, or in the normalizer of ``tokenizer.json``. transformers takes lower case if
    neither has it.
    """
    fast = weights_settings.read_json(folder / weights_settings.FAST_TOKENIZER_FILE)
    if fast and not is_plain_bert(fast):
        return None
    stated = weights_settings.read_json(folder / weights_settings.TOKENIZER_CONFIG_FILE).get("do_lower_case")
    if stated is None:
        stated = fast["normalizer"].get("lowercase", True) if fast else True
    return bool(stated)


def tokenizer_digest(folder: Path) -> str:
    """Return a digest of the names and the content of the files of a tokenizer."""
    hasher = hashlib.sha256()
    for file in (folder / name for name in weights_settings.TOKENIZER_FILES):
        if file.is_file():
            hasher.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return hasher.hexdigest()


def _wordpiece(vocabulary: wordpiece.Vocabulary) -> Tokenizer:
    specials = (vocabulary.pad, vocabulary.unknown, vocabulary.start, vocabulary.separator, vocabulary.mask)
    return Tokenizer(
        encode=lambda text, lowercase: wordpiece.encode(vocabulary, text, lowercase=lowercase),
        before=(vocabulary.start,),
        between=(vocabulary.separator,),
        after=(vocabulary.separator,),
        padding=vocabulary.pad,
        special=frozenset(specials),
        size=len(vocabulary.ids),
    )


def _from_library(folder: Path) -> Tokenizer:
    """Return the tokenizer of a ``tokenizer.json``.

    Raises:
        UserError: If the library is not installed, or cannot read the file.
    """
    file = folder / weights_settings.FAST_TOKENIZER_FILE
    try:
        import tokenizers
    except ImportError as error:
        found, do = "a tokenizer that is not WordPiece", "pip install 'xferbench[transformers]'"
        raise UserError(f"{file}: needs the library tokenizers", found=found, expected=str(error), do=do) from error
    try:
        library = tokenizers.Tokenizer.from_file(str(file))
        library.no_truncation()
        library.no_padding()
        before, between, after = _special_tokens(library)
    except Exception as error:  # the library raises plain exceptions
        found = next(iter(str(error).splitlines()), "")[:200]
        raise UserError(f"{file}: cannot be read", found=found, expected="a file of the library tokenizers") from error
    added = library.get_added_tokens_decoder()
    special = {number for number, token in added.items() if token.special}
    settings = weights_settings.read_json(folder / weights_settings.TOKENIZER_CONFIG_FILE)
    stated = weights_settings.read_json(folder / weights_settings.CONFIG_FILE).get("pad_token_id")
    padding = stated if isinstance(stated, int) else library.token_to_id(_token_text(settings.get("pad_token")))

    def encode(text: str, lowercase: bool) -> Sequence[int]:
        ids: Sequence[int] = library.encode(text.lower() if lowercase else text, add_special_tokens=False).ids
        return ids

    return Tokenizer(
        encode=encode,
        before=before,
        between=between,
        after=after,
        padding=padding if padding is not None else min(special, default=0),
        special=frozenset(special),
        size=library.get_vocab_size(with_added_tokens=True),
    )


def _special_tokens(library: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens before a text, between a pair and at the end."""
    plain = library.encode(PROBE, add_special_tokens=False).ids
    single, pair = library.encode(PROBE).ids, library.encode(PROBE, PROBE).ids
    start = next(place for place in range(len(single)) if single[place : place + len(plain)] == plain)
    before, after = tuple(single[:start]), tuple(single[start + len(plain) :])
    between = tuple(pair[start + len(plain) : len(pair) - len(after) - len(plain)])
    return before, between, after


def _token_text(token: Any) -> str:
    """Return a special token of ``tokenizer_config.json``, which is a text or a table with ``content``."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""
