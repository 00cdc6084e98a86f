"""Text that others control, as printable text: file names, keys, class names, messages of libraries. Pure."""

from __future__ import annotations

import re

# control characters, line breaks, direction marks, surrogates and code points that are no characters
UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]+"
)


def one_line(text: object) -> str:
    """Return a text as one printable line; control characters, line breaks and direction marks become spaces."""
    return UNPRINTABLE.sub(" ", str(text)).strip()


def printable_block(text: object) -> str:
    """Return a text with its line breaks; other unprintable characters become spaces."""
    return "\n".join(UNPRINTABLE.sub(" ", line).rstrip() for line in str(text).splitlines())
