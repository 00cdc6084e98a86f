"""Convert texts to token ids by the tokenizer that is saved with the weights. Reads files; imports torch."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xferbench.core.errors import UserError
from xferbench.core.transforms import Tokens
from xferbench.data import weights_settings
from xferbench.data.raw import TextExample
from xferbench.lab.data.batch import example_shape
from xferbench.lab.data.tokenizers import Tokenizer, load_tokenizer, recorded_lowercase, tokenizer_digest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from xferbench.data.raw import DecodedExample, RawExample
    from xferbench.lab.data.batch import Batch, Shape

DEFAULT_MAX_LENGTH = 512  # tokens, if neither the tokenizer nor the network has a limit
NO_LIMIT = 10**6  # transformers writes a number such as 1e30 for a tokenizer without a limit
LENGTH_MULTIPLE = 8  # a length is rounded up to it, as in the padding of a Trainer
# Networks whose first positions belong to padding, and how many.
WITH_PADDING_POSITIONS, PADDING_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "roformer"), 2
NO_SEGMENT = -1  # marks padding in stored examples
SHUFFLE_SEED = 0


def recorded_tokens(weights: Path) -> Tokens | None:
    """Return the transform of the tokenizer that is saved next to a file of weights; None if there is no tokenizer.

    Its ``max_length`` is the limit of the tokenizer or the network.
    """
    config = weights_settings.transformers_config(weights)
    if not weights_settings.takes_text(config, weights.parent):
        return None
    folder = weights_settings.tokenizer_folder(weights.parent)
    settings = weights_settings.read_json(folder / weights_settings.TOKENIZER_CONFIG_FILE)
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if config["model_type"] in WITH_PADDING_POSITIONS and isinstance(positions, int):
        positions -= PADDING_POSITIONS
    limits = [settings.get("model_max_length"), positions]
    usable = [int(limit) for limit in limits if isinstance(limit, int | float) and 1 < limit < NO_LIMIT]
    return Tokens(
        tokenizer=tokenizer_digest(folder),
        tokenizer_path=str(folder),
        lowercase=recorded_lowercase(folder),
        max_length=min(usable, default=DEFAULT_MAX_LENGTH),
        padding="left" if settings.get("padding_side") == "left" else "right",
        truncation="left" if settings.get("truncation_side") == "left" else "right",
    )


def check_length(transform: Tokens, limit: int) -> None:
    """Refuse a text that is longer than the limit of the network.

    Raises:
        UserError: If it is.
    """
    length = transform.max_length + transform.extra_padding
    if length > limit:
        do = f"set max_length to {limit - transform.extra_padding} or less"
        raise UserError("preprocessing: max_length", found=f"{length} tokens", expected=f"at most {limit}, the limit", do=do)


def fit_length(transform: Tokens, examples: Iterable[RawExample]) -> Tokens:
    """Return a transform whose ``max_length`` is that of the longest text, if it is shorter.

    Raises:
        UserError: If an example is no text, or the tokenizer cannot be read.
    """
    tokenizer = _load(transform)
    texts = map(_require_text, examples)
    longest = max((len(_ids_and_segments(tokenizer, transform, text)[0]) for text in texts), default=0)
    rounded = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return replace(transform, max_length=min(transform.max_length, max(rounded, LENGTH_MULTIPLE)))


def count_truncated(transform: Tokens, examples: Iterable[RawExample]) -> int:
    """Return how many texts are cut."""
    tokenizer, longer = _load(transform), replace(transform, max_length=NO_LIMIT)
    lengths = (len(_ids_and_segments(tokenizer, longer, _require_text(example))[0]) for example in examples)
    return sum(length > transform.max_length for length in lengths)


def geometry_key(transform: Tokens) -> Tokens:
    """Return the geometry of a text: the mask is computed from the stored ids."""
    return replace(transform, masked=True)


def store_example(transform: Tokens, example: DecodedExample) -> np.ndarray:
    """Return a text as [2, L] int32: token ids, and the segment of each token, which is -1 for padding.

    Raises:
        UserError: If the example is no text, or the tokenizer cannot be read.
    """
    tokenizer = _load(transform)
    ids, segments = _ids_and_segments(tokenizer, transform, _require_text(example))
    length = transform.max_length + transform.extra_padding
    stored = np.full((2, length), NO_SEGMENT, np.int32)
    stored[0] = tokenizer.padding
    position = slice(length - len(ids), length) if transform.padding == "left" else slice(0, len(ids))
    stored[:, position] = ids, segments
    return stored


def prepare_batch(transform: Tokens, batch: Tensor) -> Batch:
    """Return a batch [B, 2, L] as the mapping of ids, mask and segments, each [B, L] int64."""
    ids, segments = batch[..., 0, :].long(), batch[..., 1, :].long()
    mask = (segments != NO_SEGMENT).long() if transform.masked else torch.ones_like(segments)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments.clamp(min=0)}


def trim_padding(transform: Tokens, batch: Tensor) -> Tensor:
    """Return stored texts [B, 2, L] with the padding that a batch of them needs: up to the longest, and the extra padding."""
    longest = int((batch[:, 1] != NO_SEGMENT).sum(1).max()) + transform.extra_padding
    return batch[..., batch.shape[-1] - longest :] if transform.padding == "left" else batch[..., :longest]


def input_shape(length: int) -> Shape:
    """Return the shape of a text of so many tokens as the input of a network."""
    return example_shape(prepare_batch(Tokens(), torch.zeros(1, 2, length, dtype=torch.int32)))


def _require_text(example: RawExample | DecodedExample) -> TextExample:
    if not isinstance(example, TextExample):
        do = "name a table of texts, csv:FILE, jsonl:FILE or datasets:DIR, or a backbone that takes images"
        raise UserError("an image for a network that takes text", found="an image", expected="a text", do=do)
    return example


def _ids_and_segments(tokenizer: Tokenizer, transform: Tokens, example: TextExample) -> tuple[list[int], list[int]]:
    """Return the token ids of a text or a pair and their segments, without padding."""
    first, second = (list(tokenizer.encode(text, bool(transform.lowercase))) for text in example)
    has_pair = bool(example.pair)
    repeats = {"none": 0, "single": 1, "twice": 2}[transform.special]
    before, between, after = (repeats * part for part in (tokenizer.before, tokenizer.between, tokenizer.after))
    between = between if has_pair else ()
    room = max(0, transform.max_length - len(before) - len(between) - len(after))
    first, second = _truncate(first, second, room, transform.truncation)
    if transform.shuffled:
        other = _other_vocabulary(tokenizer.size, tokenizer.special)
        first, second = ([int(other[token]) for token in part] for part in (first, second))
    ids = [*before, *first, *between, *second, *after]
    split = len(before) + len(first) + len(between) if has_pair else len(ids)
    return ids[: transform.max_length], [int(place >= split) for place in range(len(ids))][: transform.max_length]


def _truncate(first: list[int], second: list[int], room: int, side: str) -> tuple[list[int], list[int]]:
    """Cut two texts to a number of tokens in all, the longer one first."""
    excess = len(first) + len(second) - room
    if excess <= 0:
        return first, second
    kept_first = min(len(first), max(room - len(second), (room + 1) // 2))
    parts = (first, kept_first), (second, room - kept_first)
    first, second = (part[len(part) - kept :] if side == "left" else part[:kept] for part, kept in parts)
    return first, second


@lru_cache(maxsize=1)
def _other_vocabulary(size: int, special: frozenset[int]) -> np.ndarray:
    """Return for each id that of another token; special tokens keep theirs."""
    ordinary = np.array([token for token in range(size) if token not in special])
    other = np.arange(size)
    other[ordinary] = np.random.default_rng(SHUFFLE_SEED).permutation(ordinary)
    return other


def _load(transform: Tokens) -> Tokenizer:
    return load_tokenizer(transform.tokenizer_path, transform.tokenizer)
