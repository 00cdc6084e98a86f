"""The examples of CONTRIBUTING.md: an experiment and an audit in one module, label noise, and a test with the fake lab."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from test_audits import make_audit_study, run_audit

from xferbench import plugin as door
from xferbench.runner import discovery
from xferbench.testing import fake_lab
from xferbench.testing.conformance import check_arms, conforms

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
EXAMPLE = next(block for block in BLOCKS if "\naudit = " in block)
TOO_HOT, LABEL_NOISE, FAKE_LAB = (
    next(block for block in BLOCKS if text in block) for text in ('id="too-hot"', "LabelNoise(", "fake_lab.run_study")
)


@pytest.fixture
def example(monkeypatch, tmp_path):
    """The example, installed as an entry point that names its module."""
    (tmp_path / "channel_order.py").write_text(EXAMPLE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "channel_order", raising=False)
    entries = [EntryPoint(name="channel-order", value="channel_order", group=discovery.PLUGIN_GROUP)]
    monkeypatch.setattr(discovery, "entry_points", lambda *, group: entries if group == discovery.PLUGIN_GROUP else [])
    return discovery.plugin_kinds("channel-order")


def test_the_example_is_loaded_as_both_kinds_and_conforms(example):
    assert list(example) == ["experiment", "audit"]
    assert discovery.load_plugins(["all"]) == (example["experiment"],)
    assert discovery.load_plugins(["all"], "audit") == (example["audit"],)
    conforms(example["experiment"])


def accuracy_by_channels(trial):
    return 0.8 if trial.view.preprocessing.channels == "rgb" else 0.3


def test_the_experiment_detects_the_induced_failure(example):
    (finding,) = fake_lab.run_study(
        fake_lab.make_study(example["experiment"]), fake_lab.fake_lab(accuracy_by_channels)
    ).findings
    assert (finding.id, finding.kind, finding.verdict) == ("channel-order/harm/bgr", "experiment", "PASS")
    assert finding.control.outcome == "detected"


def test_the_audit_finds_the_channel_order_of_a_checkpoint(example):
    audit = example["audit"]
    subject = make_audit_study(audit).subject
    bgr_subject = replace(
        subject, serving=replace(subject.serving, preprocessing=replace(subject.serving.preprocessing, channels="bgr"))
    )
    failure = fake_lab.run_study(
        replace(make_audit_study(audit), subject=bgr_subject), fake_lab.fake_lab(accuracy_by_channels)
    ).findings[0]
    assert (failure.id, failure.kind, failure.verdict) == ("channel-order/harm/bgr", "audit", "FAIL")
    assert failure.remedy["verified"]
    success = run_audit(audit, accuracy_by_channels).findings[0]
    assert (success.verdict, success.control.outcome) == ("PASS", "detected")


@pytest.fixture
def too_hot_module(monkeypatch, tmp_path):
    """The first example as a module."""
    (tmp_path / "too_hot.py").write_text(TOO_HOT, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "too_hot", raising=False)
    return importlib.import_module("too_hot")


def test_an_induced_arm_may_be_label_noise(too_hot_module):
    namespace = vars(door) | {"replace": replace}
    exec(LABEL_NOISE, namespace)
    plugin = replace(too_hot_module.plugin, induce=namespace["induce"])
    check_arms(plugin)
    lab = fake_lab.fake_lab(lambda trial: 0.5 if trial.model.base.data.interventions else 0.8)
    (finding,) = fake_lab.run_study(fake_lab.make_study(plugin), lab).findings
    assert (finding.id, finding.verdict, finding.control.outcome) == ("too-hot/harm/label-noise", "PASS", "detected")


@pytest.mark.usefixtures("too_hot_module")
def test_the_fake_lab_example_passes():
    namespace = {}
    exec(FAKE_LAB, namespace)
    namespace["test_a_rate_that_changes_nothing_passes"]()
