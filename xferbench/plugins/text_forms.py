"""Forms in which networks get texts, as values: common mistakes, and what an audit tries. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xferbench.plugin import InputTransform, Tokens

TEXT_MISTAKES = (
    "unmasked",
    "padded-left",
    "no-special-tokens",
    "special-tokens-twice",
    "other-case",
    "other-vocabulary",
    "truncated",
)
EXTRA_PADDING = 16  # tokens, as a longer text in the same batch would add
KEPT_SHARE = 4  # a truncated text keeps this part of the tokens
MIN_LENGTH = 4  # tokens of a truncated text, with the special ones


def text_mistakes(transform: Tokens, limit: int) -> dict[str, InputTransform]:
    """Return common mistakes with texts by name. Where padding matters, every text gets more of it, up to ``limit`` tokens."""
    room = max(0, min(EXTRA_PADDING, limit - transform.max_length - transform.extra_padding))
    return {
        "unmasked": replace(transform, extra_padding=transform.extra_padding + room, masked=False),
        "padded-left": replace(transform, padding="left"),
        "no-special-tokens": replace(transform, special="none"),
        "special-tokens-twice": replace(transform, special="twice"),
        "other-case": replace(transform, lowercase=not transform.lowercase),
        "other-vocabulary": replace(transform, shuffled=True),
        "truncated": replace(transform, max_length=max(MIN_LENGTH, transform.max_length // KEPT_SHARE)),
    }


def text_forms(form: Tokens) -> Iterator[Tokens]:
    """Yield the forms that differ in one setting: case, special tokens, mask, and the sides of padding and truncation."""
    yield replace(form, lowercase=not form.lowercase)
    yield from (replace(form, special=special) for special in ("single", "none", "twice") if special != form.special)
    yield replace(form, masked=not form.masked)
    yield replace(form, padding=_other_side(form.padding))
    yield replace(form, truncation=_other_side(form.truncation))


def _other_side(side: str) -> str:
    return "left" if side == "right" else "right"
