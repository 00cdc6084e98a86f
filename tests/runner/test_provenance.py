"""The source of a third-party plugin is part of keys, plans, evidence and gates."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xferbench.analysis import compatibility, exit_code
from xferbench.analysis.compare import compare as compare_runs
from xferbench.cli import main
from xferbench.core.canonical import digest, measure_key
from xferbench.core.comparison import NOT_WORSE
from xferbench.core.errors import UserError
from xferbench.core.plugin import HARM
from xferbench.core.sections import replace_flat
from xferbench.plugins import batchnorm_drift
from xferbench.report import messages
from xferbench.runner import discovery, preregistration
from xferbench.testing import fake_lab

SOURCE = '''"""Heat.

Symptom
    It is hot.
"""

from dataclasses import replace

from xferbench.plugin import HARM, Plugin, always_applies, invariant, map_phases


def cure(pipeline, profile):
    return map_phases(pipeline, lambda phase: replace(phase, lr=0.001))


def induce(pipeline, profile):
    return {"x30": map_phases(pipeline, lambda phase: replace(phase, lr=0.3))}


def heat(context):
    return {"heat": 0.0}


plugin = Plugin(
    id="provenance-heat",
    version=1,
    question="Is it too hot?",
    doc=__doc__,
    applies=always_applies,
    cure=cure,
    induce=induce,
    contrasts=(HARM, invariant("heat", "it is cold", controlled=False)),
    measures={"heat": "provenance_heat:heat@1"},
    remedy="lower the learning rate",
    source="an author cannot set this",
)
'''
ID = "provenance-heat"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Return the folder of an installed distribution with a plugin, which is on the path of Python."""
    folder = tmp_path / "site"
    about = folder / "provenance_heat-0.1.dist-info"
    about.mkdir(parents=True)
    (folder / "provenance_heat.py").write_text(SOURCE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: provenance-heat\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[xferbench.plugins]\nprovenance-heat = provenance_heat:plugin\n")
    monkeypatch.syspath_prepend(folder)
    inherited = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), inherited))))  # for workers
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    sys.modules.pop("provenance_heat", None)


def load_plugin():
    """Load the plugin as a new process does."""
    sys.modules.pop("provenance_heat", None)
    (plugin,) = discovery.load_plugins([ID])
    return plugin


def change_cure(site, old="lr=0.001", new="lr=0.002"):
    file = site / "provenance_heat.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_discovery_adds_a_digest_to_third_party_plugins_only(site):
    before = load_plugin()
    assert len(before.source) == 64
    change_cure(site)
    assert load_plugin().source not in {"", before.source}
    assert {plugin.source for plugin in discovery.load_plugins(["all"]) if plugin.id != ID} == {""}
    assert discovery.describe_origin(before)["distribution"] == "provenance-heat 0.1"


def test_modules_of_functions_and_measures_are_part_of_the_digest(site):
    (site / "provenance_parts.py").write_text("def cure(pipeline, profile):\n    return pipeline\n")
    change_cure(site, "def cure(pipeline, profile):", "from provenance_parts import cure\n\n\ndef _cure(pipeline, profile):")
    before = load_plugin().source
    (site / "provenance_parts.py").write_text("def cure(pipeline, profile):\n    return  pipeline\n")
    sys.modules.pop("provenance_parts")
    assert load_plugin().source != before


def test_a_plugin_without_readable_source_is_broken(site, monkeypatch):
    def unreadable(_):
        raise ImportError("no source")

    monkeypatch.setattr(discovery, "digest_source", unreadable)
    broken = load_plugin()
    assert broken.version == 0 and "no source" in broken.question


def test_the_digest_is_part_of_the_key_of_a_third_party_measure():
    reference = "provenance_heat:heat@2"
    assert measure_key(ID, "heat", reference, "a" * 64) == f"{ID}/heat@2#aaaaaaaaaaaaaaaa"
    assert measure_key(ID, "heat", reference) == f"{ID}/heat@2"
    assert measure_key(ID, "cost", "xferbench.lab.evaluation.cost:measure_cost@2", "a" * 64) == "lab/cost@2"
    assert measure_key("batchnorm-drift", "drift", batchnorm_drift.plugin.measures["drift"]) == "batchnorm-drift/drift@1"


def make_study(plugin):
    return fake_lab.make_study(
        plugin, suite=replace(fake_lab.SUITE, rules=replace(fake_lab.SUITE.rules, looks=(2,)), plugins=(plugin.id,))
    )


LAB = fake_lab.fake_lab(measures={"provenance_heat:heat@1": {"heat": 0.0}})


def test_a_measure_is_computed_again_after_a_change_of_its_source(site):
    _, records = fake_lab.replay_study(make_study(load_plugin()), LAB)
    change_cure(site, '{"heat": 0.0}', '{"heat": 0.1}')  # no training depends on this byte
    computed_trials = []
    fake_lab.replay_study(make_study(load_plugin()), lambda trial: computed_trials.append(trial) or LAB(trial), records)
    assert {trial.view.measure.partition("#")[0] for trial in computed_trials} == {f"{ID}/heat@1"}


def test_the_hash_of_a_plan_changes_and_the_error_names_the_plugin(site, tmp_path):
    suite = replace(fake_lab.SUITE, plugins=(ID,))
    preregistration.write_plan(
        tmp_path / "plan.json", preregistration.plan_to_json(suite, (), (load_plugin(),), "2026-01-02T03:04:05Z")
    )
    plan = preregistration.read_plan(tmp_path / "plan.json")
    preregistration.check_plan(plan, tmp_path / "plan.json", suite, (), (load_plugin(),))
    change_cure(site)
    assert digest(preregistration.plan_content(suite, (), (load_plugin(),))) != plan["hash"]
    with pytest.raises(UserError) as error:
        preregistration.check_plan(plan, tmp_path / "plan.json", suite, (), (load_plugin(),))
    assert f"plugin_sources: {ID}: " in error.value.found


def compare(accepted, candidate):
    return messages.write_comparison(compare_runs(accepted, candidate))


def test_a_run_has_the_digest_and_a_different_digest_is_not_compared(site):
    first = load_plugin()
    accepted = fake_lab.run_study(make_study(first), LAB)
    assert accepted.provenance.plugins[ID]["source"] == first.source
    unchanged_outcomes = {
        outcome.id: outcome for outcome in compare(accepted, fake_lab.run_study(make_study(load_plugin()), LAB)).outcomes
    }
    assert unchanged_outcomes[f"{ID}/harm"].compared and unchanged_outcomes[f"{ID}/harm"].decision == NOT_WORSE
    change_cure(site)
    second = load_plugin()
    candidate = fake_lab.run_study(make_study(second), LAB)
    assert candidate.provenance.plan != accepted.provenance.plan
    outcomes = {outcome.id: outcome for outcome in compare(accepted, candidate).outcomes}
    for name in (f"{ID}/harm", f"{ID}/heat"):
        assert not outcomes[name].compared
        assert f"the source code of the plugin has changed ({first.source[:16]} → {second.source[:16]})" in (
            outcomes[name].reason
        )
        assert "own verdict counts" in outcomes[name].reason
    (note,) = compatibility.changed_sources(accepted, candidate)
    assert note in compatibility.differences(accepted, candidate)
    assert messages.write_sentence(note).startswith(f"plugin {ID}: the source code differs")


def test_a_built_in_plugin_is_compared_by_version():
    run = fake_lab.run_study(
        fake_lab.make_study(replace(batchnorm_drift.plugin, contrasts=(HARM,), measures={}, derived_metrics=None)),
        fake_lab.fake_lab(),
    )
    assert run.provenance.plugins["batchnorm-drift"]["source"] == ""
    older = replace_flat(run, plugins={"batchnorm-drift": {**run.provenance.plugins["batchnorm-drift"], "source": None}})
    assert compatibility.changed_sources(older, run) == []


TOML = f"""
schema = 1
name = "heat"
plugins = ["{ID}"]
margin = 0.3
looks = [2]
tuning_seeds = 1
[backbone]
arch = "tiny-resnet"
[target]
data = "npz:noise.npz"
[recipe]
strategy = "linear-probe"
steps = 4
batch_size = 8
[scratch]
lr = [1e-2]
weight_decay = [0.01]
steps = 4
batch_size = 8
"""


def test_a_plan_refuses_and_a_gate_names_a_changed_cure(site, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    rng = np.random.default_rng(0)
    images = {f"{split}_images": rng.integers(256, size=(32, 16, 16, 3), dtype=np.uint8) for split in ("train", "test")}
    np.savez("noise.npz", **images, **{f"{split}_labels": np.arange(32) % 2 for split in ("train", "test")})
    Path("heat.toml").write_text(TOML)
    load_plugin()
    assert main.main(["validate", "heat.toml", "--freeze", "plan.json"]) == 0
    assert main.main(["gate", "heat.toml", "--accept", "accepted.json", "-j", "1", "-o", "first"]) in {0, 1}
    evidence = json.loads(Path("first/evidence.json").read_text())
    assert evidence["plugin_sources"] == {ID: load_plugin().source}
    assert load_plugin().source[:16] in Path("first/report.html").read_text()
    capsys.readouterr()
    change_cure(site, "lr=0.001", "lr=0.002")
    load_plugin()
    assert main.main(["run", "heat.toml", "--plan", "plan.json", "-j", "1", "-o", "planned"]) == exit_code.USAGE_ERROR
    assert f"found: plugin_sources: {ID}: " in capsys.readouterr().err
    main.main(["gate", "heat.toml", "--baseline", "accepted.json", "-j", "1", "-o", "second"])
    results = json.loads(Path("second/results.json").read_text())
    (outcome,) = [outcome for outcome in results["gate"]["outcomes"] if outcome["id"] == f"{ID}/harm"]
    assert "the source code of the plugin has changed" in outcome["reason"]
    assert any(f"plugin {ID}: the source code differs" in note for note in results["gate"]["notes"])
    assert results["cost"]["trials"]["run"] > 0, "the measure is computed again"
