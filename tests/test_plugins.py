"""Every plugin that is installed, and the one that CONTRIBUTING.md adds."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from test_looks import FACTS, PIPELINE, USUAL, found, lab, study

from xferbench import discover
from xferbench.design import Choice, Preprocessing, Recipe
from xferbench.lab.viewed import Seen
from xferbench.plugins import batchnorm_drift, negative_transfer
from xferbench.strategies import linear_probe, lp_ft

PLUGINS = discover.plugins(["all"])
SUBJECT = replace(PIPELINE, serve_preprocessing=Preprocessing(mean=(0.5,), std=(0.5,)))
HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_a_page_says_what_a_reader_needs(plugin):
    for heading in ("Symptom", "Cause", "Remedy", "References"):
        assert f"\n{heading}\n" in plugin.page
    assert plugin.question.endswith("?") and plugin.remedy


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_cures_and_failures_change_how_one_trains_or_serves_and_nothing_else(plugin):
    cured = plugin.cure(SUBJECT, FACTS)
    cured, *others = cured.candidates if isinstance(cured, Choice) else (cured,)
    induced = plugin.induce(cured, FACTS)
    assert induced
    for arm in (cured, *others, *induced.values()):
        served = {name: getattr(SUBJECT, name) for name in ("train_preprocessing", "serve_preprocessing", "mode")}
        assert replace(arm, recipe=SUBJECT.recipe, **served) == SUBJECT
    assert all(arm != cured for arm in induced.values())


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_nothing_pretrained_is_nothing_to_ask_about(plugin):
    asked = plugin.applies(replace(PIPELINE, recipe=Recipe(init="random")), FACTS)
    assert asked == ("" if plugin.id == "train-serve-skew" else "nothing pretrained is adapted")


def seen(before, after, **more):
    fields = {"network": None, "images": None, "labels": None, "prepared": None} | more
    nothing = {"served": None, "served_labels": None, "ready": None, "mode": "eval"}
    return Seen(before=before, after=after, **nothing | fields)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_a_plugin_is_one_short_file(plugin):
    lines = (HERE.parent / "xferbench" / "plugins" / f"{plugin.id.replace('-', '_')}.py").read_text().count("\n")
    assert lines <= 140


def test_the_cure_of_drift_puts_every_phase_into_eval_and_curing_twice_changes_nothing():
    pipeline = replace(PIPELINE, recipe=lp_ft())
    cured = batchnorm_drift.cure(pipeline, FACTS)
    assert [phase.batchnorm for phase in cured.recipe.phases] == ["eval", "eval"]
    assert batchnorm_drift.cure(cured, FACTS) == cured
    assert batchnorm_drift.cure(replace(PIPELINE, recipe=linear_probe()), FACTS) == replace(PIPELINE, recipe=linear_probe())


def test_drift_is_zero_where_nothing_moved_and_follows_its_formula_where_it_did():
    before = {"bn.running_mean": torch.tensor([0.0, 1.0]), "bn.running_var": torch.tensor([1.0, 4.0])}
    same = seen(before, before)
    assert batchnorm_drift.drift(same) == {"drift": 0.0, "drift/bn": 0.0}
    after = {"bn.running_mean": torch.tensor([1.0, 1.0]), "bn.running_var": torch.tensor([1.0, 4.0 * 2.718281828])}
    moved = batchnorm_drift.drift(seen(before, after))
    assert moved["drift/bn"] == pytest.approx(1 / 2 + 1 / 2, abs=1e-4)


def test_the_cures_of_negative_transfer_hold_the_baseline_of_the_study():
    cured = negative_transfer.cure(PIPELINE, FACTS)
    assert isinstance(cured, Choice)
    assert {one.recipe.init for one in cured.candidates} == {"pretrained", "random"}


def test_the_plugin_that_contributing_adds_works_as_it_stands_there(tmp_path, monkeypatch):
    blocks = re.findall(r"```(\w+)\n(.*?)```", (HERE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    code = next(text for kind, text in blocks if kind == "python")
    name, value = re.search(r"(\S+) = \"(too_hot:plugin)\"", next(text for kind, text in blocks if kind == "toml")).groups()
    (tmp_path / "too_hot.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    entries = [EntryPoint(name=name, value=value, group=discover.GROUP)]
    monkeypatch.setattr(discover, "entry_points", lambda group: entries)
    (plugin,) = discover.plugins(["all"])
    assert plugin.page.startswith("A learning rate")

    told = found(study(plugin), lab(USUAL))
    assert [one.id for one in told.values()] == ["too-hot/harm/x30"]
    assert told["too-hot/harm/x30"].verdict == "PASS", "in this lab the rate changes nothing"
