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
from xferbench.data import weights_folder, wordpiece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

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
    return load_tokenizer(str(folder), digest_files(folder / name for name in weights_folder.TOKENIZER_FILES))


@lru_cache(maxsize=4)
def load_tokenizer(folder: str, digest: str) -> Tokenizer:
    """Read the tokenizer in a folder.

    Raises:
        UserError: If it cannot be read, or differs from the one that was profiled.
    """
    files = [Path(folder, name) for name in weights_folder.TOKENIZER_FILES]
    if digest_files(files) != digest:
        found = "other files" if weights_folder.has_tokenizer(Path(folder)) else "no tokenizer"
        do = "keep it unchanged during a run"
        raise UserError(f"{folder}: the tokenizer changed", found=found, expected="that of the profile", do=do)
    fast = weights_folder.read_json(files[0])
    if is_plain_bert(fast):
        vocab: Mapping[str, int] = fast["model"]["vocab"]
        return _wordpiece(wordpiece.build_vocabulary(sorted(vocab, key=lambda token: vocab[token])))
    if not fast and files[1].is_file():
        return _wordpiece(wordpiece.read_vocabulary(files[1]))
    return _from_library(files[0], weights_folder.read_json(files[-1]))


def is_plain_bert(fast: Mapping[str, Any]) -> bool:
    """Return whether a ``tokenizer.json`` does exactly what BERT's published code does, so that no library is needed."""
    model, normalizer, pre_tokenizer = (fast.get(name) or {} for name in ("model", "normalizer", "pre_tokenizer"))
    vocab, after = model.get("vocab"), fast.get("post_processor") or {}
    if not isinstance(vocab, dict) or sorted(vocab.values(), key=str) != sorted(range(len(vocab)), key=str):
        return False
    has_model = model.get("type", "WordPiece") == "WordPiece" and {
        "unk_token": model.get("unk_token", "[UNK]"),
        "continuing_subword_prefix": model.get("continuing_subword_prefix", wordpiece.CONTINUATION),
    } == {"unk_token": "[UNK]", "continuing_subword_prefix": wordpiece.CONTINUATION}
    has_normalizer = normalizer.get("type", "BertNormalizer") == "BertNormalizer" and (
        normalizer.get("clean_text", True),
        normalizer.get("handle_chinese_chars", True),
        normalizer.get("strip_accents"),
    ) == (True, True, None)
    added = {token.get("content") for token in fast.get("added_tokens") or ()}
    around = after.get("special_tokens", {"[CLS]": 0, "[SEP]": 0}).keys()
    return (
        has_model
        and has_normalizer
        and pre_tokenizer.get("type", "BertPreTokenizer") == "BertPreTokenizer"
        and after.get("type", "BertProcessing") in {"BertProcessing", "TemplateProcessing"}
        and set(around) == {"[CLS]", "[SEP]"}
        and added <= set(wordpiece.SPECIAL_TOKENS)
    )


def recorded_lowercase(folder: Path) -> bool | None:
    """Return whether BERT's tokenizer converts texts to lower case; None for another tokenizer, whose file decides.

    The setting is in ``tokenizer_config.json``, or in the normalizer of ``tokenizer.json``. transformers takes lower case if
    neither has it.
    """
    fast = weights_folder.read_json(folder / weights_folder.TOKENIZER_FILES[0])
    if fast and not is_plain_bert(fast):
        return None
    stated = weights_folder.read_json(folder / weights_folder.TOKENIZER_CONFIG_FILE).get("do_lower_case")
    value = (fast.get("normalizer") or {}).get("lowercase", True) if stated is None else stated
    return bool(value)


def digest_files(files: Iterable[Path]) -> str:
    """Return a digest of the names and the content of the files that exist."""
    hasher = hashlib.sha256()
    for file in files:
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


def _from_library(file: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer of a ``tokenizer.json``.

    Raises:
        UserError: If the library is not installed, or cannot read the file.
    """
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
    stated = weights_folder.read_json(file.with_name(weights_folder.CONFIG_FILE)).get("pad_token_id")
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
