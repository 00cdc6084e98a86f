"""Text and tables in LaTeX: escaped text, in which no character is a command, and booktabs floats. Pure.

The output is ASCII, so that every LaTeX engine can read it.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from xferbench.report import format

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REQUIRED_PACKAGES = "% needs \\usepackage{booktabs}\n"
LIGATURE_BREAK = "\0"  # between two characters that LaTeX would join; no printable line contains it
COLUMN_CHARACTERS, PAGE_CHARACTERS = 48, 96  # width of one column and of both columns of a paper, in characters
# Characters with a command, by its form: \text…, \… or mathematics.
SYMBOLS = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "|": "bar"}
PUNCTUATION = {"–": "endash", "—": "emdash", '"': "quotedblright", "“": "quotedblleft", "”": "quotedblright", "‘": "quoteleft"}
LETTERS = {"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L"}
MATH = {"−": "-", "×": "\\times", "±": "\\pm", "≤": "\\le", "≥": "\\ge", "·": "\\cdot", "→": "\\to", "√": "\\surd"}
MATH |= {"°": "^\\circ", "µ": "\\mu"}
SOURCES = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    # LaTeX takes [ or * at the start of a row as an argument of the \\ of the row before.
    **{character: f"{{{character}}}" for character in "[]*`"},
    **{character: f"\\text{name}{{}}" for character, name in (SYMBOLS | PUNCTUATION).items()},
    **{character: f"\\{name}{{}}" for character, name in LETTERS.items()},
    **{character: f"${name}$" for character, name in MATH.items()},
    "’": "'",
    "…": "\\ldots{}",
    "\u00a0": "~",
    LIGATURE_BREAK: "{}",
}
ACCENTS = dict(zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327", "`'^~=u.\"rHvc", strict=True))


def escape(value: object) -> str:
    """Return a text as one line of LaTeX that shows every character.

    A character that plain LaTeX lacks is shown as its code point, such as ``[U+4E2D]``.
    """
    line = re.sub(r"([-'])(?=\1)", rf"\g<1>{LIGATURE_BREAK}", format.one_line(value))
    return "".join(map(_escape_character, unicodedata.normalize("NFC", line)))


def _escape_character(character: str) -> str:
    if character in SOURCES or character.isascii():
        return SOURCES.get(character, character)
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[1] in ACCENTS and parts[0].isascii():
        return f"\\{ACCENTS[parts[1]]}{{{parts[0]}}}"
    return f"{{[}}U+{ord(character):04X}{{]}}"


def escape_number(number: str) -> str:
    """Escape a formatted number or interval, and write its minus signs in math mode.

    Brackets are not escaped, so the cell must not be the first of its row.
    """
    source = escape(number).replace("{[}", "[").replace("{]}", "]")
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", source)


def latex_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    columns: str,
    caption: str,
    label: str,
    notes: Sequence[str] = (),
    max_characters: int | None = None,
) -> str:
    """Return a float with a table, which spans both columns of a paper only if it does not fit into one.

    Args:
        head: cells of the heading in LaTeX, as :func:`escape` returns them.
        rows: cells of each row in LaTeX. If the table is split, each part repeats the first cell.
        columns: alignment of each column: ``l``, ``c`` or ``r``.
        caption: caption in LaTeX.
        label: label of the float.
        notes: plain texts below the table, in a smaller size.
        max_characters: width above which the table is split into parts below each other; None for any width.
    """
    widths = [max(map(len, map(_visible_text, cells))) + 2 for cells in zip(head, *rows, strict=True)]
    parts = list(_split_columns(widths, max_characters))
    widest = max(sum(widths[column] for column in part) for part in parts)
    environment = "table*" if widest > COLUMN_CHARACTERS else "table"
    body = "\n\\par\\medskip\n".join(_tabular(head, rows, columns, part) for part in parts)
    note = escape("; ".join(text.rstrip(".") for text in notes))
    footer = (
        f"\\par\\smallskip\n\\begin{{minipage}}{{\\linewidth}}\\footnotesize\nNotes: {note}.\n\\end{{minipage}}\n"
        if note
        else ""
    )
    name = re.sub(r"[^A-Za-z0-9:]+", "-", label).strip("-")
    begin = f"\\begin{{{environment}}}[tb]\n\\centering\\small\n\\caption{{{caption}}}\n\\label{{{name}}}\n"
    return f"{begin}{body}\n{footer}\\end{{{environment}}}\n"


def _visible_text(cell: str) -> str:
    """Return approximately the characters that LaTeX prints for a cell."""
    return re.sub(r"\\[A-Za-z]+(\{\})?|[{}$\\]", "", cell.replace("\\textbackslash{}", "x"))


def _split_columns(widths: Sequence[int], max_characters: int | None) -> Iterator[list[int]]:
    """Yield the columns of each part of a table; each part begins with the first column."""
    part = [0]
    for column in range(1, len(widths)):
        too_wide = max_characters is not None and sum(widths[index] for index in [*part, column]) > max_characters
        if too_wide and len(part) > 1:
            yield part
            part = [0]
        part.append(column)
    yield part


def _tabular(head: Sequence[str], rows: Sequence[Sequence[str]], columns: str, part: Sequence[int]) -> str:
    lines = [" & ".join(row[column] for column in part) + " \\\\" for row in (head, *rows)]
    begin = f"\\begin{{tabular}}{{@{{}}{''.join(columns[column] for column in part)}@{{}}}}"
    return "\n".join([begin, "\\toprule", lines[0], "\\midrule", *lines[1:], "\\bottomrule", "\\end{tabular}"])
