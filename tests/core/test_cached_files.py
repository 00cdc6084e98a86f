from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from xferbench.core import cached_files


def test_a_damaged_cached_file_is_deleted(tmp_path):
    file, folder = tmp_path / "a.npy", tmp_path / "b"
    assert cached_files.read_or_discard(file, Path.read_bytes) is None
    file.write_bytes(b"x")
    (folder / "deep").mkdir(parents=True)
    assert cached_files.read_or_discard(file, Path.read_bytes) == b"x"

    def fail(_):
        raise ZeroDivisionError

    for path in (file, folder):
        assert cached_files.read_or_discard(path, fail) is None
        assert not path.exists()


def test_only_old_leftovers_of_processes_that_are_gone_are_swept(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    old, data = time.time() - 7200, tmp_path / "data"
    data.mkdir()
    swept = [data / f".key.a1b2.{gone.stdout.strip()}", data / "tmpab12cd34", tmp_path / f".x.npz.{gone.stdout.strip()}"]
    kept = [data / f".key.{os.getpid()}", data / "key", tmp_path / ".hidden", data / f".new.{gone.stdout.strip()}"]
    for path in (*swept, *kept):
        path.mkdir()
        (path / "images.npy").write_bytes(b"")
        if "new" not in path.name:
            os.utime(path, (old, old))
    cached_files.sweep_leftovers(tmp_path)
    assert not any(path.exists() for path in swept)
    assert all(path.exists() for path in kept)
