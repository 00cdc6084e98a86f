from __future__ import annotations

import re
import shutil
import string
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xferbench.report.latex_table import PAGE_CHARACTERS, escape, escape_number, latex_table

ENGINE = next(filter(shutil.which, ("pdflatex", "lualatex", "xelatex", "tectonic")), None)


def check_source(source):
    """Check that LaTeX can read a source: balanced braces and environments, complete rows, and only ASCII."""
    assert source.isascii()
    without_escapes = re.sub(r"\\[\\&%$#_{}]", "", re.sub(r"(?m)^%.*$", "", source).replace("\\\\", "\n"))
    without_accents = re.sub(r"\\[`'^~=\"urHvc.]\{[A-Za-z]\}", "", without_escapes.replace("$^\\circ$", ""))
    assert not re.search(r"[#_%^]|\\(?![A-Za-z])", without_accents)
    depth = 0
    for character in without_escapes:
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    assert depth == 0
    assert without_escapes.count("$") % 2 == 0
    environments = []
    for verb, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", source):
        assert verb == "begin" or environments.pop() == name
        environments += [name] if verb == "begin" else []
    assert not environments
    for columns, body in re.findall(r"(?s)\\begin\{tabular\}\{@\{\}([lcr]+)@\{\}\}\n(.*?)\\end\{tabular\}", source):
        lines = [row for row in body.splitlines() if not re.fullmatch(r"\\(top|mid|bottom)rule", row)]
        assert lines
        for row in lines:
            assert row.endswith(" \\\\")
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
            assert row[0] not in "[*"
    if ENGINE and "\\begin" in source:
        document = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{source}\\end{{document}}"
        subprocess.run(
            [ENGINE, "-interaction=nonstopmode", "-halt-on-error"], input=document, text=True, check=True, cwd="/tmp"
        )


def rows(source):
    """Return the cells of all rows below the head, by table."""
    bodies = re.findall(r"(?s)\\midrule\n(.*?)\n\\bottomrule", source)
    return [[re.split(r" (?<!\\)& ", row.removesuffix(" \\\\")) for row in body.splitlines()] for body in bodies]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("a_b & c%", r"a\_b \& c\%"),
        ("$x^2$ {y} #1 ~", r"\$x\textasciicircum{}2\$ \{y\} \#1 \textasciitilde{}"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("[best]", "{[}best{]}"),
        ("*", "{*}"),
        ("--set a---b", "-{}-set a-{}-{}-b"),
        ("it''s", "it'{}'s"),
        ("Möwe, café, Dvořák", r"M\"{o}we, caf\'{e}, Dvo\v{r}\'{a}k"),
        ("straße", r"stra\ss{}e"),
        ("猫", "{[}U+732B{]}"),
        ("150 × 32 ± 1, −3 – 4", r"150 $\times$ 32 $\pm$ 1, $-$3 \textendash{} 4"),
        ("two\nlines\x1b", "two lines"),
    ],
)
def test_every_character_is_escaped(text, source):
    assert escape(text) == source


@pytest.mark.parametrize(
    ("text", "source"),
    [("-72.3 [-74.6, +0.1]", "$-$72.3 [$-$74.6, +0.1]"), ("1e-3", "1e-3"), ("20-25", "20-25"), ("98.1 %", r"98.1 \%")],
)
def test_a_negative_number_has_a_minus_sign(text, source):
    assert escape_number(text) == source


@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=[]), max_size=30) | st.text(string.punctuation), min_size=2, max_size=5)
)
def test_hostile_names_do_not_break_a_table(names):
    cells = list(map(escape, names))
    columns = "l" * len(cells)
    source = latex_table(cells, [cells, cells], columns=columns, caption=cells[0], label=names[1], notes=names)
    assert source.isascii()
    check_source(source)


def test_a_narrow_table_takes_one_column_and_a_wide_table_is_split():
    assert latex_table(["a", "b"], [["1", "2"]], columns="lr", caption="", label="x").startswith("\\begin{table}[tb]")
    wide_row = ["recipe", *("x" * 30 for _ in range(5))]
    assert latex_table(wide_row, [wide_row], columns="l" + "r" * 5, caption="", label="x").count("\\begin{tabular}") == 1
    parts = latex_table(wide_row, [wide_row], columns="l" + "r" * 5, caption="", label="x", max_characters=PAGE_CHARACTERS)
    assert parts.startswith("\\begin{table*}[tb]")
    assert [[len(row) for row in part] for part in rows(parts)] == [[3], [3], [2]]
    assert [part[0][0] for part in rows(parts)] == ["recipe"] * 3
    check_source(parts)


def test_notes_follow_the_table():
    source = latex_table(["a"], [["1"]], columns="l", caption="", label="tab: a b_c", notes=("one.", "two & three"))
    assert "Notes: one; two \\& three.\n" in source
    assert "\\label{tab:-a-b-c}" in source
    check_source(source)
