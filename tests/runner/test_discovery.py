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
def installed(monkeypatch, tmp_path):
    """Entry points of modules whose source is given, by name."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(attribute=":plugin", **sources):
        found = []
        for module, source in sources.items():
            name = module.replace("_", "-")
            (tmp_path / f"of_test_{module}.py").write_text(source)
            monkeypatch.delitem(sys.modules, f"of_test_{module}", raising=False)  # of the test before
            found.append(EntryPoint(name=name, value=f"of_test_{module}{attribute}", group=discovery.PLUGIN_GROUP))
        monkeypatch.setattr(discovery, "entry_points", lambda *, group: found if group == discovery.PLUGIN_GROUP else [])

    return install


def test_every_plugin_of_this_package_is_installed_and_loads():
    names = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"][
        discovery.PLUGIN_GROUP
    ]
    assert set(names) <= set(discovery.plugin_names())
    found = [plugin for name in names for plugin in discovery.plugin_kinds(name).values()]
    assert len(found) > len(names)
    for plugin in found:
        assert isinstance(plugin, Plugin)
        assert plugin.version > 0
        assert plugin.question.endswith("?")
        assert all(head in plugin.doc for head in ("Symptom", "Cause", "Remedy", "References")), plugin.id


def test_the_order_is_the_suites_and_none_is_asked_twice(installed):
    installed(too_hot=GOOD, too_cold=GOOD.replace("too-hot", "too-cold"))
    assert [plugin.id for plugin in discovery.load_plugins(["too-hot", "too-cold", "too-hot"])] == ["too-hot", "too-cold"]
    assert [plugin.id for plugin in discovery.load_plugins(["all"])] == ["too-cold", "too-hot"]
    assert [plugin.id for plugin in discovery.load_plugins(["too-hot", "all"])] == ["too-hot", "too-cold"]


def test_an_unknown_plugin_names_the_nearest_and_lists_the_others(installed):
    installed(too_hot=GOOD, too_cold=GOOD.replace("too-hot", "too-cold"))
    with pytest.raises(UserError) as told:
        discovery.load_plugins(["to-hot"])
    assert "unknown plugin 'to-hot'" in told.value.what
    assert told.value.expected == "did you mean 'too-hot'? known: too-cold, too-hot"
    assert "xferbench ls" in told.value.do


@pytest.mark.parametrize(
    ("source", "why"),
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
def test_a_plugin_that_cannot_be_imported_crashes_alone_and_when_it_is_asked(installed, source, why):
    installed(broken=source, too_hot=GOOD)
    broken, good = discovery.load_plugins(["all"])
    assert good.version == 2
    assert broken.id == "broken"
    assert "cannot be imported" in broken.question, "a list of plugins says so too"
    with pytest.raises(ImportError, match="cannot be imported") as told:
        broken.applies(None, None)
    assert why in str(told.value)


def test_only_the_plugins_that_are_asked_are_imported(installed):
    installed(broken="raise RuntimeError('imported')", too_hot=GOOD)
    assert discovery.plugin_names() == ("broken", "too-hot")
    assert [plugin.id for plugin in discovery.load_plugins(["too-hot"])] == ["too-hot"]


def test_nothing_is_registered_by_an_import():
    own = [entry for entry in entry_points(group=discovery.PLUGIN_GROUP) if "xferbench" in entry.value]
    assert all(entry.value == f"xferbench.plugins.{entry.name.replace('-', '_')}" for entry in own)


def exported(source, **ids):
    """A module's source that exports the plugin under each of these names, with its id."""
    definition = source.partition("plugin = ")[2]
    own = "".join(f"{name} = {definition.replace('too-hot', id_)}" for name, id_ in ids.items())
    return source.partition("plugin = ")[0] + own


BOTH = exported(GOOD, plugin="too-hot", audit="too-hot")


def test_a_module_exports_an_experiment_an_audit_or_both(installed):
    installed("", too_hot=BOTH, one_more=exported(GOOD, audit="audit/one-more"), too_cold=exported(GOOD, plugin="too-cold"))
    assert [plugin.id for plugin in discovery.load_plugins(["all"])] == ["too-cold", "too-hot"]
    assert [plugin.id for plugin in discovery.load_plugins(["all"], "audit")] == ["audit/one-more", "too-hot"]
    assert [plugin.id for plugin in discovery.load_plugins(["audit/one-more"], "audit")] == ["audit/one-more"]
    assert list(discovery.plugin_kinds("too-hot")) == ["experiment", "audit"]


def test_an_entry_point_that_names_a_plugin_is_an_experiment_alone(installed):
    installed(too_hot=BOTH)
    assert list(discovery.plugin_kinds("too-hot")) == ["experiment"]
    assert not discovery.load_plugins(["all"], "audit")


@pytest.mark.parametrize(("kind", "other"), [("experiment", "audit"), ("audit", "experiment")])
def test_a_name_that_has_only_the_other_kind_is_a_problem_that_says_so(installed, kind, other):
    installed("", too_hot=exported(GOOD, **{"plugin" if other == "experiment" else "audit": "too-hot"}))
    with pytest.raises(UserError) as raised:
        discovery.load_plugins(["too-hot"], kind)
    assert (raised.value.found, raised.value.expected) == (f"only an {other}", f"an {kind}")
    assert ("xferbench audit" in raised.value.do) == (other == "audit")
    assert not discovery.load_plugins(["all"], kind)


@pytest.mark.parametrize("source", ["import nowhere_to_be_found", "other = 3", exported(GOOD, audit="another")])
def test_a_module_that_is_broken_is_never_left_out_of_an_audit(installed, source):
    installed("", broken=source)
    (broken,) = discovery.load_plugins(["broken"], "audit")
    with pytest.raises(ImportError, match="cannot be imported"):
        broken.applies(None, None)
