"""Recipes over all tasks, and the two by two: what the textbook advises is held against what was best."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xferbench.core.matrix_result import COLUMNS, MatrixResult
from xferbench.core.run import Run
from xferbench.report import html, markdown, matrix_tables

RECIPES = ("linear-probe", "partial", "full")
TASKS = {"near-50": (50, True), "far-50": (50, False), "near-1000": (1000, True), "far-1000": (1000, False)}
# The advice is linear-probe, partial, full, full; on far-50 it is wrong by twenty points.
BEST = {"near-50": "linear-probe", "far-50": "full", "near-1000": "full", "far-1000": "full"}


def table(rows=None, **more):
    rows = (
        [
            dict.fromkeys(COLUMNS)
            | {
                "task": task,
                "train_size": size,
                "recipe": recipe,
                "seed": seed,
                "error": "",
                "trainable": 1.0,
                "chosen": recipe,
            }
            | {"accuracy": (0.9 if BEST[task] == recipe else 0.7) + 0.001 * seed}
            for task, (size, _) in TASKS.items()
            for recipe in RECIPES
            for seed in range(5)
        ]
        if rows is None
        else rows
    )
    suite = {
        "name": "<m>",
        "path": "m.toml",
        "metric": "accuracy",
        "margin": 0.02,
        "alpha": 0.05,
        "tuning_seeds": 1,
        "tasks": list(TASKS),
        "recipes": {name: [name] for name in RECIPES},
        "against": "full",
        "similar": {task: similar for task, (_, similar) in TASKS.items()},
    }
    cost = {"fits": {"unique": 1, "run": 1}, "seconds": {"total": 1.0, "wall": 1.0}}
    matrix = MatrixResult(rows=tuple(rows), **{"skipped": {}, "comparisons": (), "claims": ()} | more)
    return Run(suite=suite, environment={}, findings=(), cells=(), cost=cost, arms={}, matrix=matrix)


def test_each_quarter_has_its_best_and_what_the_advice_costs_there():
    found = matrix_tables.measure_quadrants(table())
    assert list(found) == [("few", "similar"), ("few", "different"), ("many", "similar"), ("many", "different")]
    assert [cell.best for cell in found.values()] == [BEST[task] for task in TASKS]
    assert [cell.advised for cell in found.values()] == ["linear-probe", "partial", "full", "full"]
    assert [float(cell.regret.value) for cell in found.values()] == pytest.approx([0, 0.2, 0, 0])
    assert found["few", "different"].tied == ("full",)


def test_a_rule_is_a_row_beside_the_recipes_that_it_names():
    rows = {row.recipe: row for row in matrix_tables.rank_recipes(table())[0]}
    assert set(rows) == {*RECIPES, matrix_tables.TEXTBOOK, matrix_tables.BY_SIZE}
    assert rows[matrix_tables.TEXTBOOK].regret.startswith("5.0") and rows[matrix_tables.TEXTBOOK].rank == ""
    assert rows["full"].regret.startswith("5.0") and rows["full"].greatest.startswith("20.0")
    assert rows["full"].better == ""


def test_a_rule_that_names_what_was_not_compared_has_no_row_and_who_lacks_a_task_takes_no_part():
    rows = [row for row in table().matrix.rows if (row["task"], row["recipe"]) != ("far-50", "partial")]
    found, notes = matrix_tables.rank_recipes(table(rows, skipped={("far-50", "partial"): "it does not fit"}))
    assert {row.recipe for row in found} == {"linear-probe", "full"}
    assert any("partial" in note and "it does not fit" in note for note in notes)


def test_without_a_word_about_likeness_there_is_no_two_by_two():
    plain = table()
    suite = {**plain.suite, "similar": {"near-50": True}}
    one = replace(plain, suite=suite)
    assert matrix_tables.measure_quadrants(one) == {} and matrix_tables.quadrant_means(one) == {}
    assert "Data size" not in html.render(one, {})


def test_the_page_draws_the_quarters_and_escapes_names():
    page = html.render(table(), {})
    assert "<m>" not in page and "few images, different" in page and "<svg" in page


def test_the_summary_says_who_crashed():
    rows = [
        row | {"error": "a | crash", "accuracy": None} if row["recipe"] == "partial" else row for row in table().matrix.rows
    ]
    told = markdown.render(table(rows))
    assert "crashed: near-50, partial: a \\| crash" in told and "12 rows" not in told
    assert table(rows).matrix.crashes == tuple(f"{task}, partial: a | crash" for task in TASKS)


@pytest.mark.parametrize(
    ("one", "told"),
    [
        ({"unit": "accuracy", "measure": "", "ours": 0.05, "low": 0.01, "high": 0.1}, ("+5.0 [+1.0, +10.0]", "at least +2.0")),
        ({"unit": "accuracy", "measure": "accuracy", "ours": 0.8, "low": 0.7, "high": 0.9}, ("80 % [70, 90]", "at least 2 %")),
        ({"unit": "s", "measure": "seconds", "ours": 0.5, "low": 0.4, "high": 0.6}, ("0.5 s [0.4, 0.6]", "at least 0.02 s")),
        ({"unit": "", "measure": "", "ours": None, "low": None, "high": None}, ("–", "at least +2.0")),
    ],
)
def test_a_claim_is_told_in_its_unit(one, told):
    assert matrix_tables.format_claim({"at_least": 0.02, "at_most": None, "published": None, **one})[:2] == told
