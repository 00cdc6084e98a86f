from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from xferbench.analysis import aggregate
from xferbench.analysis.scores import NOT_COMPARABLE, scores_by_cell, scores_from_frame
from xferbench.core.errors import UserError


def make_frame(scores, **columns):
    """Return a frame from task → recipe → values by seed."""
    rows = [
        {"task": task, "recipe": recipe, "seed": seed, "accuracy": value, "error": ""}
        for task, by_recipe in scores.items()
        for recipe, values in by_recipe.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(**columns)


def test_a_frame_becomes_scores_by_recipe_task_and_seed():
    scores = scores_from_frame(
        make_frame({"x": {"full": [0.1, 0.2], "lora": [0.3, 0.4]}, "y": {"full": [0.5, 0.6], "lora": [0, 1]}})
    )
    assert (scores.recipes, scores.tasks, scores.seeds) == (("full", "lora"), ("x", "y"), (0, 1))
    assert scores.table.tolist() == [[[0.1, 0.2], [0.5, 0.6]], [[0.3, 0.4], [0.0, 1.0]]]
    assert (scores.left_out, scores.notes) == ({}, ())


def test_a_recipe_without_a_score_on_every_task_is_left_out_and_named():
    frame = make_frame({"x": {"full": [0.1, 0.2], "nan": [0.1, np.nan], "lora": [1, 1]}, "y": {"full": [0, 0], "nan": [0, 0]}})
    frame.loc[frame.recipe.eq("nan") & frame.accuracy.isna(), "error"] = "out of memory"
    scores = scores_from_frame(
        frame, {("y", "lora"): "no linear layer", ("y", "adapter"): "too wide", ("x", "adapter"): "too deep"}
    )
    assert scores.recipes == ("full",)
    assert scores.left_out == {
        "nan": "x: seed 1: out of memory",
        "lora": "y: no linear layer",
        "adapter": "x: too deep; and 1 more",
    }


def test_excluded_tasks_and_seeds_are_named():
    frame = make_frame({"x": {"full": [0.1, 0.2, 0.3]}, "y": {"full": [0.1, 0.2]}, "z": {"full": [np.nan]}})
    scores = scores_from_frame(frame)
    assert (scores.tasks, scores.seeds, scores.left_out) == (("x", "y"), (0, 1), {})
    assert scores.notes == ("task z is excluded: no recipe has a score on it", "seed 2 is excluded: not every task has it")


def test_a_smaller_loss_is_better():
    scores = scores_from_frame(make_frame({"x": {"full": [0.5, 0.7], "lora": [0.1, 0.2]}}), metric="nll")
    assert aggregate.mean_rank(scores).value.tolist() == [2.0, 1.0]


def test_missing_scores_and_duplicate_rows_are_errors():
    with pytest.raises(UserError, match="no recipe has a score on every task") as error:
        scores_from_frame(make_frame({"x": {"full": [np.nan]}}))
    assert "task x is excluded" in str(error.value)
    frame = make_frame({"x": {"full": [0.5]}})
    with pytest.raises(UserError, match="more than once"):
        scores_from_frame(pd.concat([frame, frame]))


def test_each_cell_has_its_own_scores():
    frame = make_frame({"x": {"full": [0.1, 0.2], "lora": [0.3, 0.4]}, "y": {"full": [0.5, 0.6]}, "z": {"full": [np.nan]}})
    cells = {("small",): ["x"], ("large",): ["y"], ("none",): ["z"]}
    scores = scores_by_cell(frame, cells, {("y", "lora"): "no room"})
    assert [scores[cell].recipes for cell in cells] == [("full", "lora"), ("full",), ()]
    assert [dict(scores[cell].left_out) for cell in cells] == [{}, {"lora": "y: no room"}, {"full": NOT_COMPARABLE}]
    assert [scores[cell].empty for cell in cells] == [False, False, True]
    assert scores["small",].notes == ()
