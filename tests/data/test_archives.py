"""Archives of images: each is named with a command that exports it, and the commands work."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
import tarfile

import pytest
from PIL import Image

from xferbench.core.errors import UserError
from xferbench.data import inputs, sources


def png(value):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def run_command(do, folder):
    """Run the command of an advice, as a shell would split it, in a folder."""
    words = shlex.split(do[do.index("python -c") :].removesuffix("; then name folder:images"))
    subprocess.run([sys.executable, *words[1:]], cwd=folder, check=True, timeout=60)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "it's" / "shard-0.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for number in range(4):
            for suffix, content in ((".png", png(number)), (".cls", b"fox" if number % 2 else b"owl\n")):
                member = tarfile.TarInfo(f"part/{number:03}{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("spec", ["folder:{}", "{}", "npz:{}"])
def test_a_webdataset_is_exported_by_the_command_of_the_message(shard, spec, tmp_path):
    with pytest.raises(UserError, match="not read as images") as error:
        inputs.split_spec(spec.format(shard))
    assert "WebDataset" in error.value.found
    run_command(error.value.do, tmp_path)
    classes, splits, left_out = sources.read_dataset(f"folder:{tmp_path / 'images'}", None)
    assert (classes, len(splits["test"].labels), left_out) == (("fox", "owl"), 4, ())


def test_a_folder_of_archives_is_named(shard):
    with pytest.raises(UserError, match="not read as images"):
        sources.read_dataset(f"folder:{shard.parent}", None)


@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "data-00000-of-00001.arrow"])
def test_tables_are_named_with_the_kind_that_reads_them(name, tmp_path):
    (tmp_path / name).write_bytes(b"?")
    with pytest.raises(UserError, match="not read as images") as error:
        sources.read_dataset(f"folder:{tmp_path}", None)
    assert "datasets:DIR" in error.value.do


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar.gz", "photos.tgz", "train.tfrecord"])
def test_other_archives_are_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"?")
    with pytest.raises(UserError, match="not read as images"):
        inputs.split_spec(f"folder:{tmp_path / name}")
