"""The source of a third-party intervention, an installed package, in plans, evidence and gates."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factory import make_run

from xferbench.analysis import compatibility, exit_code
from xferbench.cli import main
from xferbench.config import interventions as config
from xferbench.core import interventions
from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.core.interventions import DataIntervention, LabelNoise
from xferbench.core.sections import replace_flat
from xferbench.report import baseline, messages
from xferbench.runner import preregistration
from xferbench.study.selection import ResolvedArm
from xferbench.testing import fake_lab

MODULE = "sources_thinned"
SOURCE = '''"""Thinned training images."""

from dataclasses import dataclass
from typing import ClassVar

from xferbench.core.interventions import DataIntervention, number


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinned(DataIntervention):
    """Only some of the training images are there."""

    spelling: ClassVar[str] = "thinned"
    words: ClassVar[str] = "a share {share:g} of the training images"
    implementation: ClassVar[str] = "sources_thinned:thin"
    share: float = number(low=0, low_open=True, high=1)


def thin(split, intervention, rng, classes):
    from xferbench.lab.data import datasets

    return datasets.take(split, slice(max(8, round(intervention.share * len(split.labels)))))
'''


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The folder of an installed distribution with an intervention, on the path of Python."""
    folder = tmp_path / "site"
    about = folder / "sources_thinned-0.1.dist-info"
    about.mkdir(parents=True)
    (folder / f"{MODULE}.py").write_text(SOURCE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sources-thinned\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text(f"[{config.GROUP}]\nthinned = {MODULE}:Thinned\n")
    monkeypatch.syspath_prepend(folder)
    inherited = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), inherited))))  # of workers
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    forget()


def forget():
    """Forget the module and its digest, as a new process does."""
    sys.modules.pop(MODULE, None)
    interventions.module_source_digest.cache_clear()


def load():
    """Return the intervention, as a new process would load it."""
    forget()
    return config.parse("thinned:0.5", DataIntervention)


def change_implementation(site):
    file = site / f"{MODULE}.py"
    file.write_text(file.read_text().replace("max(8,", "max(9,"))


def suite_with(*values):
    return replace(fake_lab.SUITE, data=replace(fake_lab.SUITE.data, interventions=values))


def test_only_the_source_of_a_third_party_is_recorded(site):
    source = interventions.kind_source(type(load()))
    assert len(source) == 12
    assert preregistration.intervention_sources(suite_with(LabelNoise(rate=0.1), load())) == {"thinned": source}
    assert preregistration.intervention_sources(suite_with(LabelNoise(rate=0.1))) == {}


def test_an_arm_that_uses_an_intervention_counts_too(site):
    pipeline = replace(fake_lab.PIPELINE, data=replace(fake_lab.PIPELINE.data, interventions=(load(),)))
    assert list(preregistration.intervention_sources([{"induced:thinned": ResolvedArm(pipeline=pipeline)}])) == ["thinned"]


def test_the_refusal_of_a_plan_names_the_intervention(site, tmp_path):
    path = tmp_path / "plan.json"
    preregistration.write_plan(path, preregistration.plan_to_json(suite_with(load()), (), (), "2026-01-02T03:04:05Z"))
    plan = preregistration.read_plan(path)
    preregistration.check_plan(plan, path, suite_with(load()), (), ())
    change_implementation(site)
    assert digest(preregistration.plan_content(suite_with(load()), (), ())) != plan["hash"]
    with pytest.raises(UserError, match="intervention_sources: thinned: "):
        preregistration.check_plan(plan, path, suite_with(load()), (), ())


def run_with(sources):
    return replace_flat(make_run(), evidence={"intervention_sources": sources} if sources is not None else {})


def test_a_comparison_names_a_changed_intervention():
    accepted = run_with({"same": "a", "thinned": "b", "gone": "c"})
    candidate = run_with({"same": "a", "thinned": "d", "new": "e"})
    (note,) = compatibility.changed_sources(accepted, candidate)
    assert note in compatibility.differences(accepted, candidate)
    assert messages.write_sentence(note) == "intervention thinned: the source code differs (b → d)"


def test_a_run_without_recorded_sources_is_compared():
    assert compatibility.changed_sources(run_with(None), run_with({"thinned": "d"})) == []


def test_an_accepted_file_keeps_the_sources(tmp_path):
    (tmp_path / "accepted.json").write_bytes(baseline.pack_baseline(run_with({"thinned": "b"})))
    assert baseline.read_baseline(tmp_path / "accepted.json").provenance.evidence["intervention_sources"] == {"thinned": "b"}


TOML = """
schema = 1
name = "thinned"
plugins = ["head-shock"]
margin = 0.3
looks = [2]
tuning_seeds = 1
[backbone]
arch = "tiny-resnet"
[target]
data = "npz:noise.npz"
interventions = ["thinned:0.5"]
[recipe]
strategy = "full"
steps = 4
batch_size = 8
[scratch]
lr = [1e-2]
weight_decay = [0.01]
steps = 4
batch_size = 8
"""


def test_one_byte_of_an_intervention_is_refused_by_a_plan_and_named_by_a_gate(site, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    rng = np.random.default_rng(0)
    images = {f"{split}_images": rng.integers(256, size=(32, 16, 16, 3), dtype=np.uint8) for split in ("train", "test")}
    np.savez("noise.npz", **images, **{f"{split}_labels": np.arange(32) % 2 for split in ("train", "test")})
    Path("thinned.toml").write_text(TOML)
    old = interventions.kind_source(type(load()))
    assert main.main(["validate", "thinned.toml", "--freeze", "plan.json"]) == 0
    assert main.main(["gate", "thinned.toml", "--accept", "accepted.json", "-j", "1", "-o", "first"]) in {0, 1}
    assert json.loads(Path("first/evidence.json").read_text())["intervention_sources"] == {"thinned": old}
    assert f"thinned, source {old}" in Path("first/report.html").read_text()
    capsys.readouterr()
    change_implementation(site)
    new = interventions.kind_source(type(load()))
    assert main.main(["run", "thinned.toml", "--plan", "plan.json", "-j", "1", "-o", "planned"]) == exit_code.USAGE_ERROR
    assert "intervention_sources: thinned: " in capsys.readouterr().err
    main.main(["gate", "thinned.toml", "--baseline", "accepted.json", "-j", "1", "-o", "second"])
    results = json.loads(Path("second/results.json").read_text())
    assert f"intervention thinned: the source code differs ({old} → {new})" in results["gate"]["notes"]
    assert results["cost"]["fits"]["run"] > 0, "the networks are trained again"
