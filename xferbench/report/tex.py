"""LaTeX by hand: texts in which nothing is a command, and booktabs tables. All of it is ASCII: every engine reads it."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from xferbench.report import format

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NEEDS = "% needs \\usepackage{booktabs}\n"
BREAK = "\0"  # within a pair that would become one character; no printable line has it
NARROW, BROAD = 48, 96  # characters of a column of a paper in two columns, and of its whole width
# [ and * are swallowed at the start of a row, after the \\ of the row before.
SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"{{{character}}}" for character in "[]*`"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    '"': "\\textquotedblright{}",
    BREAK: "{}",
}
SIGNS = {
    "–": "\\textendash{}",
    "—": "\\textemdash{}",
    "−": "$-$",
    "×": "$\\times$",
    "±": "$\\pm$",
    "≤": "$\\le$",
    "≥": "$\\ge$",
    "·": "$\\cdot$",
    "→": "$\\to$",
    "√": "$\\surd$",
    "°": "$^\\circ$",
    "µ": "$\\mu$",
    "…": "\\ldots{}",
    "‘": "\\textquoteleft{}",
    "’": "'",
    "“": "\\textquotedblleft{}",
    "”": "\\textquotedblright{}",
    "\u00a0": "~",
    "ß": "\\ss{}",
    "æ": "\\ae{}",
    "Æ": "\\AE{}",
    "œ": "\\oe{}",
    "Œ": "\\OE{}",
    "ø": "\\o{}",
    "Ø": "\\O{}",
    "ł": "\\l{}",
    "Ł": "\\L{}",
}
ACCENTS = dict(zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327", "`'^~=u.\"rHvc", strict=True))


def escape(value: object) -> str:
    """Put a text on one line of which every character is shown; one that plain LaTeX lacks as its number, ``[U+4E2D]``."""
    apart = re.sub(r"([-'])(?=\1)", rf"\g<1>{BREAK}", format.one_line(value))
    return "".join(map(_letter, unicodedata.normalize("NFC", apart)))


def _letter(one: str) -> str:
    if one in SPECIAL:
        return SPECIAL[one]
    if one.isascii():
        return one
    if one in SIGNS:
        return SIGNS[one]
    parts = unicodedata.normalize("NFD", one)
    if len(parts) == 2 and parts[1] in ACCENTS and parts[0].isascii():
        return f"\\{ACCENTS[parts[1]]}{{{parts[0]}}}"
    return f"{{[}}U+{ord(one):04X}{{]}}"


def format_number(told: str) -> str:
    """Escape a number or an interval, which stands in no first cell, with the sign of a number below 0."""
    found = escape(told).replace("{[}", "[").replace("{]}", "]")
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", found)


def latex_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    columns: str,
    caption: str,
    label: str,
    notes: Sequence[str] = (),
    broad: int | None = None,
) -> str:
    """A float with a table, over both columns of a paper only where it must.

    Args:
        head, rows: cells in LaTeX, as :func:`escaped` makes them; the first of a row is repeated where the table goes on.
        columns: ``l``, ``c`` or ``r`` for each.
        caption: in LaTeX. label: what the float is called. notes: plain texts that stand below, in a smaller size.
        broad: characters beyond which the table goes on below itself; None for any width.
    """
    widths = [max(map(len, map(_shown, cells))) + 2 for cells in zip(head, *rows, strict=True)]
    parts = list(_parts(widths, broad))
    kind = "table*" if max(sum(widths[at] for at in part) for part in parts) > NARROW else "table"
    body = "\n\\par\\medskip\n".join(_tabular(head, rows, columns, part) for part in parts)
    note = escape("; ".join(one.rstrip(".") for one in notes))
    below = (
        f"\\par\\smallskip\n\\begin{{minipage}}{{\\linewidth}}\\footnotesize\nNotes: {note}.\n\\end{{minipage}}\n"
        if note
        else ""
    )
    name = re.sub(r"[^A-Za-z0-9:]+", "-", label).strip("-")
    begin = f"\\begin{{{kind}}}[tb]\n\\centering\\small\n\\caption{{{caption}}}\n\\label{{{name}}}\n"
    return f"{begin}{body}\n{below}\\end{{{kind}}}\n"


def _shown(cell: str) -> str:
    """About what is seen of a cell."""
    return re.sub(r"\\[A-Za-z]+(\{\})?|[{}$\\]", "", cell.replace("\\textbackslash{}", "x"))


def _parts(widths: Sequence[int], broad: int | None) -> Iterator[list[int]]:
    """The columns of each stretch that is narrow enough, the first with all of them."""
    part = [0]
    for at in range(1, len(widths)):
        if broad is not None and len(part) > 1 and sum(widths[one] for one in [*part, at]) > broad:
            yield part
            part = [0]
        part.append(at)
    yield part


def _tabular(head: Sequence[str], rows: Sequence[Sequence[str]], columns: str, part: Sequence[int]) -> str:
    lines = [" & ".join(row[at] for at in part) + " \\\\" for row in (head, *rows)]
    begin = f"\\begin{{tabular}}{{@{{}}{''.join(columns[at] for at in part)}@{{}}}}"
    return "\n".join([begin, "\\toprule", lines[0], "\\midrule", *lines[1:], "\\bottomrule", "\\end{tabular}"])
