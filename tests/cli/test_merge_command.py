from __future__ import annotations

from pathlib import Path

import pytest
from factory import make_record
from invoke import invoke, make_suite

from xferbench.analysis import exit_code
from xferbench.runner.store import open_store, put_record

pytestmark = pytest.mark.usefixtures("isolated")


def test_merge_counts_the_records_of_each_store(capsys, tmp_path):
    for name, accuracy in {"one.sqlite": 0.8, "two.sqlite": 0.7}.items():
        with open_store(tmp_path / name) as db:
            put_record(db, make_record("shared", accuracy))
            put_record(db, make_record(f"of {name}", 0.8))
    code, out, err = invoke(capsys, "merge", "one.sqlite", "two.sqlite", "-o", "all of it.sqlite")
    assert (code, err) == (exit_code.PASSED, "")
    assert out.splitlines() == [
        "one.sqlite: 2 records added, 0 existed already",
        "two.sqlite: 1 records added, 1 existed already, 1 of them with other predictions or scalars (the first stays)",
        "next: xferbench run SUITE --store 'all of it.sqlite'",
    ]


@pytest.mark.parametrize(
    ("sources", "fragment"),
    [
        (["one.sqlite", "none.sqlite"], "none.sqlite: no such store"),
        (["one.sqlite", "noise.toml"], "noise.toml: the store cannot be read"),
        (["one.sqlite", "all.sqlite"], "all.sqlite: no such store"),
    ],
)
def test_failed_merge_prints_one_message(capsys, tmp_path, sources, fragment):
    make_suite(tmp_path)
    with open_store(tmp_path / "one.sqlite") as db:
        put_record(db, make_record("k", 0.8))
    code, out, err = invoke(capsys, "merge", "-o", "all.sqlite", *sources)
    assert (code, out, "Traceback" in err) == (exit_code.USAGE_ERROR, "", False)
    assert f"xferbench: {fragment}" in err
    assert not Path("all.sqlite").exists()
