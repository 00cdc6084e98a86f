from __future__ import annotations

import errno
import hashlib
import os
import re
from pathlib import Path

import pytest

from xferbench.core import files
from xferbench.core.errors import UserError


def test_a_file_is_replaced_atomically(tmp_path):
    file = tmp_path / "a.npz"
    file.write_bytes(b"old")
    with files.replace_atomically(file) as part:
        assert part.parent == tmp_path and part.suffix != ".npz"  # no reader finds it by its suffix
        part.write_bytes(b"new")
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new" and list(tmp_path.iterdir()) == [file]


def test_an_exception_leaves_the_file_unchanged(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b"old")

    def write_half():
        with files.replace_atomically(file) as part:
            part.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_an_unwritable_path_is_an_error_with_advice(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (lambda path: files.write_file(path, b""), files.require_writable):
        with pytest.raises(UserError, match="cannot be written") as error:
            write(tmp_path / "file" / "below")
        assert error.value.do
    files.require_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_an_existing_path_is_refused_unless_overwriting_is_allowed(tmp_path):
    file, link = tmp_path / "a", tmp_path / "broken"
    file.write_bytes(b"")
    link.symlink_to(tmp_path / "nothing")
    for path in (file, link, tmp_path):
        with pytest.raises(UserError, match="already exists"):
            files.refuse_existing(path, do="give another name")
        files.refuse_existing(path, force=True, do="")
    files.refuse_existing(tmp_path / "none", do="")


def test_sha256_hashes_the_bytes_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()


def test_only_regular_files_within_the_limit_are_read(tmp_path):
    file, pipe = tmp_path / "a.json", tmp_path / "pipe"
    file.write_bytes(b"12345")
    os.mkfifo(pipe)
    assert files.read_file(file, 5) == b"12345"
    with pytest.raises(ValueError, match="more than 4 bytes"):
        files.read_file(file, 4)
    for path in (pipe, Path(os.devnull)):
        with pytest.raises(ValueError, match="not a regular file"):
            files.read_file(path)
    with pytest.raises(IsADirectoryError):
        files.read_file(tmp_path)


class FullDisk:
    """Let the n-th write of bytes fail, as on a full disk."""

    def __init__(self, monkeypatch, number):
        self.calls, self.number = 0, number
        fsync = os.fsync

        def fail_at(descriptor):
            self.calls += 1
            if self.calls == self.number:
                raise OSError(errno.ENOSPC, "No space left on device")
            return fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fail_at)


def test_several_files_are_replaced_together_or_not_at_all(tmp_path, monkeypatch):
    content = {tmp_path / name: b"old" for name in ("a.html", "b.npz", "results.json")}
    files.write_files(content)
    for number in range(1, len(content) + 1):
        with monkeypatch.context() as patch:
            FullDisk(patch, number)
            with pytest.raises(UserError, match="cannot be written") as error:
                files.write_files(dict.fromkeys(content, b"new"))
        assert list(content)[number - 1].name in error.value.what and "No space left" in error.value.found
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == content
    files.write_files(dict.fromkeys(content, b"new"))
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"new"}


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    FullDisk(monkeypatch, 1)
    file = tmp_path / "weights"
    file.write_bytes(b"old")

    def write():
        with files.replace_atomically(file) as part:
            part.write_bytes(b"new")

    with pytest.raises(OSError, match=re.escape(str(file))):
        write()
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]
