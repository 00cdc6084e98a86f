"""The source of modules and its digest."""

from __future__ import annotations

import sys
import zipfile

import pytest

from xferbench.data import module_source
from xferbench.data.module_source import digest_source, is_third_party, read_source


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("source_of_test")]:
        del sys.modules[name]


def test_a_module_counts_with_its_file(site):
    (site / "source_of_test_one.py").write_text("A = 1\n")
    before = digest_source(["source_of_test_one"])
    (site / "source_of_test_other.py").write_text("A = 1\n")
    assert digest_source(["source_of_test_one"]) == before
    assert digest_source(["source_of_test_other"]) != before
    (site / "source_of_test_one.py").write_text("A = 2\n")
    assert digest_source(["source_of_test_one"]) != before
    assert "source_of_test_one" not in sys.modules, "the source is read without an import"


def test_a_package_counts_with_all_its_python_files(site):
    package = site / "source_of_test_package"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/deep.py", "data.txt"):
        (package / name).write_text("")
    assert set(read_source("source_of_test_package")) == {
        "source_of_test_package/__init__.py",
        "source_of_test_package/inner/deep.py",
    }
    before = digest_source(["source_of_test_package"])
    (package / "data.txt").write_text("x")
    assert digest_source(["source_of_test_package"]) == before
    (package / "inner" / "deep.py").write_text("#")
    assert digest_source(["source_of_test_package"]) != before


def test_the_order_and_the_place_of_modules_do_not_matter(site, tmp_path_factory, monkeypatch):
    for name in ("source_of_test_a", "source_of_test_b"):
        (site / f"{name}.py").write_text(name)
    before = digest_source(["source_of_test_a", "source_of_test_b"])
    assert digest_source(["source_of_test_b", "source_of_test_a"]) == before
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("source_of_test_a", "source_of_test_b"):
        (site / f"{name}.py").rename(elsewhere / f"{name}.py")
    monkeypatch.syspath_prepend(elsewhere)
    assert digest_source(["source_of_test_a", "source_of_test_b"]) == before


def test_a_module_in_a_zip_archive_has_a_source(site, monkeypatch):
    with zipfile.ZipFile(site / "wheel.zip", "w") as archive:
        archive.writestr("source_of_test_zipped.py", "A = 1\n")
    monkeypatch.syspath_prepend(site / "wheel.zip")
    assert read_source("source_of_test_zipped") == {"source_of_test_zipped": b"A = 1\n"}


@pytest.mark.parametrize("module", ["source_of_test_nowhere", "sys", "source_of_test_nowhere.inner"])
def test_a_module_without_a_readable_source_is_an_error(module):
    with pytest.raises(ImportError):
        digest_source([module])


def test_this_package_and_the_standard_library_are_not_third_party():
    assert not is_third_party("xferbench.plugins.head_shock")
    assert not is_third_party("functools")
    assert is_third_party("too_hot") and is_third_party("xferbench_extra.plugin")
    assert module_source.PACKAGE == "xferbench"
