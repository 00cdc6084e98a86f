from __future__ import annotations

import re
import shutil
import string
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xferbench.report import tex

ENGINE = next(filter(shutil.which, ("pdflatex", "lualatex", "xelatex", "tectonic")), None)


def check(source):
    """That LaTeX can read it: braces and environments that close, rows as long as their columns, nothing but ASCII."""
    assert source.isascii()
    bare = re.sub(r"\\[\\&%$#_{}]", "", re.sub(r"(?m)^%.*$", "", source).replace("\\\\", "\n"))
    plain = re.sub(r"\\[`'^~=\"urHvc.]\{[A-Za-z]\}", "", bare.replace("$^\\circ$", ""))
    assert not re.search(r"[#_%^]|\\(?![A-Za-z])", plain)
    depth = 0
    for one in bare:
        depth += (one == "{") - (one == "}")
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    opened = []
    for verb, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", source):
        assert verb == "begin" or opened.pop() == name
        opened += [name] if verb == "begin" else []
    assert not opened
    for columns, body in re.findall(r"(?s)\\begin\{tabular\}\{@\{\}([lcr]+)@\{\}\}\n(.*?)\\end\{tabular\}", source):
        rows = [row for row in body.splitlines() if not re.fullmatch(r"\\(top|mid|bottom)rule", row)]
        assert rows
        for row in rows:
            assert row.endswith(" \\\\")
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
            assert row[0] not in "[*"
    if ENGINE and "\\begin" in source:
        whole = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{source}\\end{{document}}"
        subprocess.run([ENGINE, "-interaction=nonstopmode", "-halt-on-error"], input=whole, text=True, check=True, cwd="/tmp")


def rows(source):
    """The cells of all rows below the head, by table."""
    bodies = re.findall(r"(?s)\\midrule\n(.*?)\n\\bottomrule", source)
    return [[re.split(r" (?<!\\)& ", row.removesuffix(" \\\\")) for row in body.splitlines()] for body in bodies]


@pytest.mark.parametrize(
    ("told", "source"),
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
def test_every_character_is_shown(told, source):
    assert tex.escape(told) == source


@pytest.mark.parametrize(
    ("told", "source"),
    [("-72.3 [-74.6, +0.1]", "$-$72.3 [$-$74.6, +0.1]"), ("1e-3", "1e-3"), ("20-25", "20-25"), ("98.1 %", r"98.1 \%")],
)
def test_a_number_below_0_has_a_minus(told, source):
    assert tex.format_number(told) == source


@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=[]), max_size=30) | st.text(string.punctuation), min_size=2, max_size=5)
)
def test_no_name_breaks_a_table(names):
    cells = list(map(tex.escape, names))
    columns = "l" * len(cells)
    source = tex.latex_table(cells, [cells, cells], columns=columns, caption=cells[0], label=names[1], notes=names)
    assert source.isascii()
    check(source)


def test_a_narrow_table_takes_one_column_and_a_broad_one_goes_on_below():
    assert tex.latex_table(["a", "b"], [["1", "2"]], columns="lr", caption="", label="x").startswith("\\begin{table}[tb]")
    long = ["recipe", *("x" * 30 for _ in range(5))]
    assert tex.latex_table(long, [long], columns="l" + "r" * 5, caption="", label="x").count("\\begin{tabular}") == 1
    parted = tex.latex_table(long, [long], columns="l" + "r" * 5, caption="", label="x", broad=tex.BROAD)
    assert parted.startswith("\\begin{table*}[tb]")
    assert [[len(row) for row in part] for part in rows(parted)] == [[3], [3], [2]]
    assert [part[0][0] for part in rows(parted)] == ["recipe"] * 3
    check(parted)


def test_notes_stand_below():
    source = tex.latex_table(["a"], [["1"]], columns="l", caption="", label="tab: a b_c", notes=("one.", "two & three"))
    assert "Notes: one; two \\& three.\n" in source
    assert "\\label{tab:-a-b-c}" in source
    check(source)
