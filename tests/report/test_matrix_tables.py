"""Recipes over all tasks, and the table of size × similarity, which compares the rule of the textbook with the best recipe."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xferbench.core.matrix_result import COLUMNS, MatrixResult
from xferbench.core.run import Provenance, Run
from xferbench.report import html, markdown, matrix_tables

RECIPES = ("linear-probe", "partial", "full")
TASKS = {"near-50": (50, True), "far-50": (50, False), "near-1000": (1000, True), "far-1000": (1000, False)}
# The textbook advises linear-probe, partial, full and full; on far-50 it is wrong by 20 points.
BEST = {"near-50": "linear-probe", "far-50": "full", "near-1000": "full", "far-1000": "full"}


def make_matrix(rows=None, **fields):
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
    matrix = MatrixResult(rows=tuple(rows), **{"skipped": {}, "comparisons": (), "claims": ()} | fields)
    return Run(suite=suite, findings=(), cells=(), cost=cost, arms={}, matrix=matrix, provenance=Provenance(environment={}))


def test_each_quadrant_has_its_best_recipe_and_the_regret_of_the_advice():
    quadrants = matrix_tables.measure_quadrants(make_matrix())
    assert list(quadrants) == [("few", "similar"), ("few", "different"), ("many", "similar"), ("many", "different")]
    assert [cell.best for cell in quadrants.values()] == [BEST[task] for task in TASKS]
    assert [cell.advised for cell in quadrants.values()] == ["linear-probe", "partial", "full", "full"]
    assert [float(cell.regret.value) for cell in quadrants.values()] == pytest.approx([0, 0.2, 0, 0])
    assert quadrants["few", "different"].tied == ("full",)


def test_a_rule_has_a_row():
    rows = {row.recipe: row for row in matrix_tables.rank_recipes(make_matrix())[0]}
    assert set(rows) == {*RECIPES, matrix_tables.TEXTBOOK, matrix_tables.BY_SIZE}
    assert rows[matrix_tables.TEXTBOOK].regret.startswith("5.0") and rows[matrix_tables.TEXTBOOK].rank == ""
    assert rows["full"].regret.startswith("5.0") and rows["full"].greatest.startswith("20.0")
    assert rows["full"].better == ""


def test_a_recipe_without_all_tasks_and_a_rule_that_advises_it_are_excluded():
    rows = [row for row in make_matrix().matrix.rows if (row["task"], row["recipe"]) != ("far-50", "partial")]
    summaries, notes = matrix_tables.rank_recipes(make_matrix(rows, skipped={("far-50", "partial"): "it does not fit"}))
    assert {row.recipe for row in summaries} == {"linear-probe", "full"}
    assert any("partial" in note and "it does not fit" in note for note in notes)


def test_unknown_similarity_gives_no_quadrants():
    complete = make_matrix()
    suite = {**complete.suite, "similar": {"near-50": True}}
    partial = replace(complete, suite=suite)
    assert matrix_tables.measure_quadrants(partial) == {} and matrix_tables.quadrant_means(partial) == {}
    assert "Data size" not in html.render(partial, {})


def test_the_page_draws_the_quadrants_and_escapes_names():
    page = html.render(make_matrix(), {})
    assert "<m>" not in page and "few images, different" in page and "<svg" in page


def test_the_summary_lists_crashes():
    rows = [
        row | {"error": "a | crash", "accuracy": None} if row["recipe"] == "partial" else row
        for row in make_matrix().matrix.rows
    ]
    summary = markdown.render(make_matrix(rows))
    assert "crashed: near-50, partial: a \\| crash" in summary and "12 rows" not in summary
    assert make_matrix(rows).matrix.crashes == tuple(f"{task}, partial: a | crash" for task in TASKS)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ({"unit": "accuracy", "measure": "", "ours": 0.05, "low": 0.01, "high": 0.1}, ("+5.0 [+1.0, +10.0]", "at least +2.0")),
        ({"unit": "accuracy", "measure": "accuracy", "ours": 0.8, "low": 0.7, "high": 0.9}, ("80 % [70, 90]", "at least 2 %")),
        ({"unit": "s", "measure": "seconds", "ours": 0.5, "low": 0.4, "high": 0.6}, ("0.5 s [0.4, 0.6]", "at least 0.02 s")),
        ({"unit": "", "measure": "", "ours": None, "low": None, "high": None}, ("–", "at least +2.0")),
    ],
)
def test_a_claim_is_formatted_in_its_unit(values, texts):
    assert matrix_tables.format_claim({"at_least": 0.02, "at_most": None, "published": None, **values})[:2] == texts
