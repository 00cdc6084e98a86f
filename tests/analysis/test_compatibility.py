from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from factory import make_run

from xferbench.analysis import compatibility
from xferbench.config import loader, revive
from xferbench.core.errors import UserError
from xferbench.core.interventions import as_dict
from xferbench.core.sections import replace_flat
from xferbench.report import messages

HERE = {"device": "cpu", "lab": 1, "packages": {"torch": "2.15.0+cpu"}}
ROOT = Path(__file__).parents[2]


def differences(accepted, candidate):
    return tuple(map(messages.write_sentence, compatibility.differences(accepted, candidate)))


def run_with(**environment):
    return make_run(environment=HERE | environment)


def test_runs_of_one_minor_version_and_device_are_comparable():
    assert compatibility.refusals(run_with(), run_with(packages={"torch": "2.15.3"}, processor="another")) == []


def test_unknown_values_do_not_agree():
    assert len(compatibility.refusals(make_run(environment={}), make_run(environment={}))) == 3


@pytest.mark.parametrize(("rule", "old", "new"), [("margin", 0.02, 0.9), ("metric", "accuracy", "nll"), ("looks", [5], [1])])
def test_a_change_of_the_rules_is_reported(rule, old, new):
    first, second = (make_run(suite=make_run().suite | {rule: value}) for value in (old, new))
    (message,) = compatibility.changed_rules(first, second)
    assert message.startswith(f"{rule} {old}")
    assert compatibility.changed_rules(first, first) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packages": {"torch": "2.16.0"}}, "torch 2.15, here 2.16"),
        ({"packages": {}}, "torch 2.15, here unknown"),
        ({"device": "cuda"}, "device cpu, here cuda"),
        ({"lab": 2}, "version of the lab 1, here 2"),
    ],
)
def test_differences_that_prevent_a_comparison_are_reported(changes, message):
    assert compatibility.refusals(run_with(), run_with(**changes)) == [message]


def test_the_note_names_a_different_processor():
    notes = differences(run_with(instructions="AVX2"), run_with(instructions="AVX-512"))
    assert notes == ("different instructions: AVX2 → AVX-512",)


def test_the_change_under_test_is_reported():
    old, new = (make_run(suite={"recipe": {"phases": [{"lr": lr, "steps": 3}]}, "margin": 0.02}) for lr in (1e-3, 1e-2))
    assert differences(old, new) == ("the suite differs: recipe.lr 0.001 → 0.01",)


def test_changed_content_under_the_same_name_is_reported():
    def make_run_with_digest(digest):
        return make_run(evidence={"inputs": [{"key": "backbone.weights", "given": "w.pth", "digest": digest}]})

    assert differences(make_run_with_digest("a"), make_run_with_digest("b")) == (
        "the content of these inputs differs: backbone.weights",
    )


def test_many_differences_are_counted():
    old, new = (make_run(suite={f"key{number}": value for number in range(12)}) for value in (1, 2))
    assert differences(old, new)[0].endswith("and 4 more")


@pytest.mark.parametrize(
    "name", sorted({*loader.shipped_suites()} - {"claims", "published", "strategies"})
)  # the gate does not accept a matrix
def test_a_suite_survives_writing_and_reading(name):
    suite = loader.load_suite(loader.find_suite(name))
    revived = revive.suite_from_results(make_run(suite=as_dict(suite)).suite, Path(suite.invocation.path).parent)
    assert revived == suite


def test_relative_paths_are_resolved_in_the_folder_of_the_new_suite(tmp_path):
    values = as_dict(loader.load_suite(loader.find_suite("quick"))) | {
        "target": "folder:ants",
        "weights": "w.pth",
        "path": "gate.toml",
    }
    revived = revive.suite_from_results(values, tmp_path)
    assert (revived.data.target, revived.backbone.weights, revived.invocation.path) == (
        f"folder:{tmp_path / 'ants'}",
        str(tmp_path / "w.pth"),
        str(tmp_path / "gate.toml"),
    )


def test_a_suite_with_unknown_keys_cannot_be_revived(tmp_path):
    values = as_dict(loader.load_suite(loader.find_suite("quick"))) | {"unheard_of": 1}
    with pytest.raises(UserError, match="unheard_of"):
        revive.suite_from_results(values, tmp_path)


def test_suites_that_differ_only_in_their_path_are_equal():
    suite = as_dict(loader.load_suite(loader.find_suite("quick")))
    assert compatibility.suite_differences(suite, suite | {"path": "/elsewhere/quick.toml"}) == []
    assert compatibility.suite_differences(suite, suite | {"budget": 60.0}) == [("budget", "7200", "60")]
    assert compatibility.suite_differences(
        suite, as_dict(replace_flat(loader.load_suite(loader.find_suite("quick")), target="synthetic:sketch"))
    ) == [("target", "synthetic:near", "synthetic:sketch")]


def test_an_accepted_run_without_the_key_searched_for_every_kind_of_copy():
    run = make_run()
    run = replace(run, suite={**run.suite, "unsearched_copies": ()})
    older = replace(run, suite={name: value for name, value in run.suite.items() if name != "unsearched_copies"})
    without_crops = replace(run, suite={**run.suite, "unsearched_copies": ("cropped",)})
    assert compatibility.changed_rules(older, run) == []
    assert len(compatibility.changed_rules(older, without_crops)) == 1
