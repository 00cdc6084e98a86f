from __future__ import annotations

import json
from importlib.metadata import EntryPoint

import pytest
from invoke import invoke

from xferbench.analysis import exit_code
from xferbench.runner import discovery

pytestmark = pytest.mark.usefixtures("isolated")


def test_ls_lists_everything(capsys):
    code, out, err = invoke(capsys, "ls")
    assert (code, err) == (0, "")
    for name in ("batchnorm-drift", "quick", "torchvision:NAME", "tiny-resnet", "folder:DIR", "npz:FILE", "digits", "lp-ft"):
        assert name in out
    code, out, err = invoke(capsys, "ls", "--format", "json")
    groups = {"interventions", "augmentations", "regularizers", "finishes"}
    assert set(json.loads(out)) == {"plugins", "checks", "suites", "backbones", "datasets", "strategies"} | groups
    assert err == ""


@pytest.mark.parametrize("plugin", discovery.plugin_names())
def test_explain_prints_the_page_of_a_plugin(capsys, plugin):
    code, out, _ = invoke(capsys, "explain", plugin)
    assert code == 0
    assert out.removeprefix("audit/").startswith(f"{plugin} (version ")
    assert "References" in out


def test_explain_suggests_the_closest_plugin(capsys):
    code, out, err = invoke(capsys, "explain", "batchnrom")
    assert (code, out) == (exit_code.USAGE_ERROR, "")
    assert "no plugin 'batchnrom'" in err
    assert "did you mean 'batchnorm-drift'? known: augmentation, batchnorm-drift, " in err


def test_broken_plugin_is_listed_with_its_error(monkeypatch, capsys):
    broken = EntryPoint(name="broken", value="nowhere_to_be_found:plugin", group=discovery.PLUGIN_GROUP)
    monkeypatch.setattr(discovery, "entry_points", lambda **_: [broken])
    for arguments in (["ls"], ["explain", "broken"]):
        code, out, _ = invoke(capsys, *arguments)
        assert code == 0
        assert "cannot be imported: ModuleNotFoundError" in out
