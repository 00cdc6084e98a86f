from __future__ import annotations

import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from xferbench.core.errors import UserError
from xferbench.core.plugin import Plugin
from xferbench.runner import discovery

GOOD = """
from xferbench.plugin import Plugin

plugin = Plugin(
    id="too-hot", version=2, question="Is it too hot?", doc="A page.", applies=lambda *_: "",
    cure=lambda pipeline, _: pipeline, induce=lambda *_: {}, remedy="",
)
"""


@pytest.fixture
def install_modules(monkeypatch, tmp_path):
    """Return a function that installs modules, given by their source, as entry points."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(attribute=":plugin", **sources):
        entries = []
        for module, source in sources.items():
            name = module.replace("_", "-")
            (tmp_path / f"of_test_{module}.py").write_text(source)
            monkeypatch.delitem(sys.modules, f"of_test_{module}", raising=False)  # remains from the previous test
            entries.append(EntryPoint(name=name, value=f"of_test_{module}{attribute}", group=discovery.PLUGIN_GROUP))
        monkeypatch.setattr(discovery, "entry_points", lambda *, group: entries if group == discovery.PLUGIN_GROUP else [])

    return install


def test_every_plugin_of_this_package_is_installed_and_loads():
    names = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"][
        discovery.PLUGIN_GROUP
    ]
    assert set(names) <= set(discovery.plugin_names())
    plugins = [plugin for name in names for plugin in discovery.plugin_kinds(name).values()]
    assert len(plugins) > len(names)
    for plugin in plugins:
        assert isinstance(plugin, Plugin)
        assert plugin.version > 0
        assert plugin.question.endswith("?")
        assert all(heading in plugin.doc for heading in ("Symptom", "Cause", "Remedy", "References")), plugin.id


def test_plugins_have_the_order_of_the_suite_without_duplicates(install_modules):
    install_modules(too_hot=GOOD, too_cold=GOOD.replace("too-hot", "too-cold"))
    assert [plugin.id for plugin in discovery.load_plugins(["too-hot", "too-cold", "too-hot"])] == ["too-hot", "too-cold"]
    assert [plugin.id for plugin in discovery.load_plugins(["all"])] == ["too-cold", "too-hot"]
    assert [plugin.id for plugin in discovery.load_plugins(["too-hot", "all"])] == ["too-hot", "too-cold"]


def test_an_unknown_plugin_is_an_error_with_a_suggestion(install_modules):
    install_modules(too_hot=GOOD, too_cold=GOOD.replace("too-hot", "too-cold"))
    with pytest.raises(UserError) as error:
        discovery.load_plugins(["to-hot"])
    assert "unknown plugin 'to-hot'" in error.value.what
    assert error.value.expected == "did you mean 'too-hot'? known: too-cold, too-hot"
    assert "xferbench ls" in error.value.do


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("def plugin(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("plugin = 3", "is not an xferbench.core.plugin.Plugin with the id 'broken'"),
        ("other = 3", "AttributeError"),
        (GOOD, "is not an xferbench.core.plugin.Plugin with the id 'broken'"),
    ],
)
def test_a_plugin_that_cannot_be_imported_crashes_alone_and_on_use(install_modules, source, message):
    install_modules(broken=source, too_hot=GOOD)
    broken, good = discovery.load_plugins(["all"])
    assert good.version == 2
    assert broken.id == "broken"
    assert "cannot be imported" in broken.question, "a list of plugins shows the error too"
    with pytest.raises(ImportError, match="cannot be imported") as error:
        broken.applies(None, None)
    assert message in str(error.value)


def test_only_requested_plugins_are_imported(install_modules):
    install_modules(broken="raise RuntimeError('imported')", too_hot=GOOD)
    assert discovery.plugin_names() == ("broken", "too-hot")
    assert [plugin.id for plugin in discovery.load_plugins(["too-hot"])] == ["too-hot"]


def test_entry_points_of_this_package_name_their_module():
    entries = [entry for entry in entry_points(group=discovery.PLUGIN_GROUP) if "xferbench" in entry.value]
    assert all(entry.value == f"xferbench.plugins.{entry.name.replace('-', '_')}" for entry in entries)


def export_plugin(source, **ids):
    """Return the source of a module that exports the plugin under several names and ids."""
    definition = source.partition("plugin = ")[2]
    definitions = "".join(f"{name} = {definition.replace('too-hot', id_)}" for name, id_ in ids.items())
    return source.partition("plugin = ")[0] + definitions


BOTH = export_plugin(GOOD, plugin="too-hot", audit="too-hot")


def test_a_module_exports_an_experiment_an_audit_or_both(install_modules):
    install_modules(
        "", too_hot=BOTH, one_more=export_plugin(GOOD, audit="audit/one-more"), too_cold=export_plugin(GOOD, plugin="too-cold")
    )
    assert [plugin.id for plugin in discovery.load_plugins(["all"])] == ["too-cold", "too-hot"]
    assert [plugin.id for plugin in discovery.load_plugins(["all"], "audit")] == ["audit/one-more", "too-hot"]
    assert [plugin.id for plugin in discovery.load_plugins(["audit/one-more"], "audit")] == ["audit/one-more"]
    assert list(discovery.plugin_kinds("too-hot")) == ["experiment", "audit"]


def test_an_entry_point_with_an_attribute_is_only_an_experiment(install_modules):
    install_modules(too_hot=BOTH)
    assert list(discovery.plugin_kinds("too-hot")) == ["experiment"]
    assert not discovery.load_plugins(["all"], "audit")


@pytest.mark.parametrize(("kind", "actual"), [("experiment", "audit"), ("audit", "experiment")])
def test_a_plugin_of_the_other_kind_is_an_error(install_modules, kind, actual):
    install_modules("", too_hot=export_plugin(GOOD, **{"plugin" if actual == "experiment" else "audit": "too-hot"}))
    with pytest.raises(UserError) as error:
        discovery.load_plugins(["too-hot"], kind)
    assert (error.value.found, error.value.expected) == (f"only an {actual}", f"an {kind}")
    assert ("xferbench audit" in error.value.do) == (actual == "audit")
    assert not discovery.load_plugins(["all"], kind)


@pytest.mark.parametrize("source", ["import nowhere_to_be_found", "other = 3", export_plugin(GOOD, audit="another")])
def test_a_broken_module_stays_in_an_audit_as_an_error(install_modules, source):
    install_modules("", broken=source)
    (broken,) = discovery.load_plugins(["broken"], "audit")
    with pytest.raises(ImportError, match="cannot be imported"):
        broken.applies(None, None)
