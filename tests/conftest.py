"""Options, marks and fixtures of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
MARKS = {"slow": "--runslow", "gpu": "--rungpu"}


def pytest_addoption(parser):
    for mark, option in MARKS.items():
        parser.addoption(option, action="store_true", help=f"also run tests marked {mark}")


def pytest_collection_modifyitems(config, items):
    for item in items:
        for mark, option in MARKS.items():
            if mark in item.keywords and not config.getoption(option):
                item.add_marker(pytest.mark.skip(reason=f"{mark}: run with {option}"))


@pytest.fixture
def shared():
    """Return the folder of real images and weights next to the checkout; skip the test without it."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the folder of real data and weights next to the checkout")
    return folder
