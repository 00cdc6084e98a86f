from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_latex_table import check_source, rows

from xferbench.analysis import aggregate, regret
from xferbench.analysis.scores import scores_from_frame
from xferbench.core.errors import UserError
from xferbench.report import latex

LEVEL = {"full": 0.9, "linear-probe": 0.7, "lora_8 & c%": 0.9}


def make_frame(tasks=("x", "a_b & c%"), seeds=5, **columns):
    rng = np.random.default_rng(0)
    rows = [
        {"task": task, "recipe": recipe, "seed": seed, "accuracy": level + 0.01 * rng.normal(), "error": ""}
        for task in tasks
        for recipe, level in LEVEL.items()
        for seed in range(seeds)
    ]
    defaults = {"shifted": np.nan, "source": 0.6, "source_before": 0.8, "trainable": 11_200_000.0, "stored": 2.0**21}
    defaults |= {"multiply_adds": np.nan, "seconds": 30.0, "diverged": 0}
    return pd.DataFrame(rows).assign(**defaults | columns)


def test_a_cell_has_a_mean_with_the_half_width_of_its_interval_and_the_best_are_bold():
    frame = make_frame()
    source = latex.score_table(frame)
    check_source(source)
    full, probe, lora = rows(source)[0]
    runs = frame[(frame.task == "x") & (frame.recipe == "full")].accuracy
    half = stats.t.interval(0.95, 4, scale=stats.sem(runs))[1]
    assert full[1] == f"\\textbf{{{100 * runs.mean():.1f}}} $\\pm$ {100 * half:.1f}"
    assert [row[0] for row in (full, probe, lora)] == ["full", "linear-probe", "lora\\_8 \\& c\\%"]
    assert ["textbf" in row[1] for row in (full, probe, lora)] == [True, False, True]


def test_the_aggregates_equal_those_of_the_scores():
    frame = make_frame()
    (full, probe, _) = [[cell for row in group for cell in row[-3:]] for group in zip(rows(latex.score_table(frame))[-1])][:3]
    scores = scores_from_frame(frame)
    gains = replace(scores, table=scores.table - scores.table.mean((0, 2), keepdims=True))
    assert full[0].replace("$-$", "-").startswith(f"{100 * aggregate.iqm(gains).value[0]:.1f} [")
    assert probe[1].startswith("3.0 [")
    assert probe[2].startswith(f"{100 * regret.mean_regret(scores).value[1]:.1f} [")


def test_an_incomplete_recipe_has_no_aggregates_and_a_note():
    frame = make_frame()
    frame.loc[(frame.recipe == "linear-probe") & (frame.seed == 3), "accuracy"] = np.nan
    frame = frame[(frame.recipe != "full") | (frame.task != "x")]
    source = latex.score_table(frame, {("x", "full"): "no room", ("x", "bitfit"): "no bias_"})
    check_source(source)
    cells = {row[0]: row for row in rows(source)[0]}
    assert cells["full"][1] == "--"
    assert cells["bitfit"][1:] == ["--"] * (len(cells["full"]) - 1)
    assert cells["linear-probe"][-3:] == ["--"] * 3
    for note in ("full is not part of the aggregates: x: no room", "seed 3: no finite score", "bitfit is not part of the"):
        assert note in source
    assert "Seeds: 4 to 5 of each task and recipe." in source


def test_many_tasks_are_split_into_parts():
    source = latex.score_table(make_frame(tasks=[f"task-{index}" for index in range(12)]))
    check_source(source)
    assert len(rows(source)) > 1
    assert {part[0][0] for part in rows(source)} == {"full"}


def test_the_smallest_loss_is_bold_and_not_negated():
    source = latex.score_table(make_frame(), metric="nll")
    (full, probe, _) = rows(source)[0]
    assert ("textbf" in full[1], "textbf" in probe[1]) == (False, True)
    assert probe[1].startswith("\\textbf{0.7")
    assert "in \\%" not in source


def test_one_seed_has_no_interval():
    source = latex.score_table(make_frame(seeds=1))
    check_source(source)
    assert all("pm" not in cell and "[" not in cell for row in rows(source)[0] for cell in row[1:])
    assert {row[-1] for row in rows(source)[0]} == {
        "\\textendash{}"
    }  # selection and scoring of the regret need different seeds


def test_costs_are_averaged_over_tasks_and_have_units():
    frame = make_frame()
    frame.loc[(frame.recipe == "full") & (frame.seed == 0), "diverged"] = 1
    source = latex.cost_table(frame)
    check_source(source)
    full = rows(source)[0][0]
    assert full[:6] == ["full", "2", "11.2 M", "2.0 MiB", "--", "30 s"]
    assert full[7:] == ["75.0 \\%", "--"]
    assert "Notes: full diverged in 2 of 10 runs." in source


def test_duplicate_rows_are_an_error_and_a_task_without_scores_has_a_note():
    with pytest.raises(UserError, match="more than once"):
        latex.score_table(pd.concat([make_frame(), make_frame()]))
    source = latex.score_table(make_frame(accuracy=np.nan))
    check_source(source)
    assert "task x is excluded: no recipe has a score on it" in source
