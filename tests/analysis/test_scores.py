from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from xferbench.analysis import aggregate
from xferbench.analysis.scores import NOT_COMPARABLE, scores_by_cell, scores_from_frame
from xferbench.core.errors import UserError


def make_frame(scores, **changed):
    """A frame of task → recipe → values by seed."""
    rows = [
        {"task": task, "recipe": recipe, "seed": seed, "accuracy": value, "error": ""}
        for task, of_task in scores.items()
        for recipe, values in of_task.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(**changed)


def test_a_frame_becomes_scores_by_recipe_task_and_seed():
    load_scores = scores_from_frame(
        make_frame({"x": {"full": [0.1, 0.2], "lora": [0.3, 0.4]}, "y": {"full": [0.5, 0.6], "lora": [0, 1]}})
    )
    assert (load_scores.recipes, load_scores.tasks, load_scores.seeds) == (("full", "lora"), ("x", "y"), (0, 1))
    assert load_scores.table.tolist() == [[[0.1, 0.2], [0.5, 0.6]], [[0.3, 0.4], [0.0, 1.0]]]
    assert (load_scores.left_out, load_scores.notes) == ({}, ())


def test_a_recipe_that_lacks_a_task_or_a_number_takes_no_part_and_is_named():
    frame = make_frame({"x": {"full": [0.1, 0.2], "nan": [0.1, np.nan], "lora": [1, 1]}, "y": {"full": [0, 0], "nan": [0, 0]}})
    frame.loc[frame.recipe.eq("nan") & frame.accuracy.isna(), "error"] = "out of memory"
    load_scores = scores_from_frame(
        frame, {("y", "lora"): "no linear layer", ("y", "adapter"): "too wide", ("x", "adapter"): "too deep"}
    )
    assert load_scores.recipes == ("full",)
    assert load_scores.left_out == {
        "nan": "x: seed 1: out of memory",
        "lora": "y: no linear layer",
        "adapter": "x: too deep; and 1 more",
    }


def test_excluded_tasks_and_seeds_are_named():
    frame = make_frame({"x": {"full": [0.1, 0.2, 0.3]}, "y": {"full": [0.1, 0.2]}, "z": {"full": [np.nan]}})
    load_scores = scores_from_frame(frame)
    assert (load_scores.tasks, load_scores.seeds, load_scores.left_out) == (("x", "y"), (0, 1), {})
    assert load_scores.notes == ("task z is excluded: no recipe has a score on it", "seed 2 is excluded: not every task has it")


def test_of_a_loss_less_is_better():
    load_scores = scores_from_frame(make_frame({"x": {"full": [0.5, 0.7], "lora": [0.1, 0.2]}}), metric="nll")
    assert aggregate.mean_rank(load_scores).value.tolist() == [2.0, 1.0]


def test_nothing_to_compare_and_duplicated_rows_are_errors():
    with pytest.raises(UserError, match="no recipe has a score on every task") as error:
        scores_from_frame(make_frame({"x": {"full": [np.nan]}}))
    assert "task x is excluded" in str(error.value)
    frame = make_frame({"x": {"full": [0.5]}})
    with pytest.raises(UserError, match="more than once"):
        scores_from_frame(pd.concat([frame, frame]))


def test_a_cell_is_read_by_itself():
    frame = make_frame({"x": {"full": [0.1, 0.2], "lora": [0.3, 0.4]}, "y": {"full": [0.5, 0.6]}, "z": {"full": [np.nan]}})
    cells = {("small",): ["x"], ("large",): ["y"], ("none",): ["z"]}
    scores = scores_by_cell(frame, cells, {("y", "lora"): "no room"})
    assert [scores[cell].recipes for cell in cells] == [("full", "lora"), ("full",), ()]
    assert [dict(scores[cell].left_out) for cell in cells] == [{}, {"lora": "y: no room"}, {"full": NOT_COMPARABLE}]
    assert [scores[cell].empty for cell in cells] == [False, False, True]
    assert scores["small",].notes == ()
