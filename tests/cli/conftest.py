from __future__ import annotations

import pytest


@pytest.fixture
def isolated(monkeypatch, tmp_path):
    """Use a temporary cache and working directory, without the variables of GitHub Actions."""
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
