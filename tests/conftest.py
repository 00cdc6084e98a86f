"""Options, marks and fixtures of all tests."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
MARKS = {"slow": "--runslow", "gpu": "--rungpu"}


def pytest_addoption(parser):
    for mark, option in MARKS.items():
        parser.addoption(option, action="store_true", help=f"also run tests marked {mark}")
    parser.addoption("--fuzz", type=int, default=1, metavar="FACTOR", help="try FACTOR times as many random and hostile inputs")
    parser.addoption("--fuzz-seed", type=int, default=0, metavar="N", help="seed of the random inputs")


def pytest_collection_modifyitems(config, items):
    for item in items:
        for mark, option in MARKS.items():
            if mark in item.keywords and not config.getoption(option):
                item.add_marker(pytest.mark.skip(reason=f"{mark}: run with {option}"))


@pytest.fixture
def fuzz_factor(pytestconfig):
    """Return how many times as many random inputs a test tries as in the default tests."""
    return pytestconfig.getoption("--fuzz")


@pytest.fixture
def fuzz_rng(pytestconfig, request):
    """Return a random generator with the seed of the command line, another one for each test."""
    return random.Random(f"{pytestconfig.getoption('--fuzz-seed')} {request.node.name}")


@pytest.fixture
def shared():
    """Return the folder of real images and weights next to the checkout; skip the test without it."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the folder of real data and weights next to the checkout")
    return folder
