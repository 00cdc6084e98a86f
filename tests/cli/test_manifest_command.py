from __future__ import annotations

import os

import pytest
from invoke import invoke, invoke_process

pytestmark = pytest.mark.usefixtures("isolated")


def test_manifest_is_written_once(tmp_path, capsys):
    from PIL import Image

    (tmp_path / "images" / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        Image.effect_noise((20, 20), 90).save(tmp_path / "images" / name)
    (tmp_path / "images" / "deep" / "c.jpg").write_text("nothing")
    code, out, _ = invoke(capsys, "manifest", "folder:images", "-o", "images.npz")
    assert code == 0
    assert "wrote images.npz: 2 images of folder:images" in out
    assert "1 skipped\n  deep/c.jpg: " in out
    content = (tmp_path / "images.npz").read_bytes()
    code, _, err = invoke(capsys, "manifest", "folder:images", "-o", "images.npz")
    assert (code, "--force" in err) == (2, True)
    assert (tmp_path / "images.npz").read_bytes() == content
    assert invoke(capsys, "manifest", "folder:images", "-o", "images.npz", "--force")[0] == 0


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        ("folder:nowhere", "no such folder"),
        ("nowhere", "unknown kind"),
        ("npz:a.npz", "no such file"),
        ("folder:.", "no images"),
    ],
)
def test_failed_manifest_prints_one_message(capsys, tmp_path, data, fragment):
    code, out, err = invoke(capsys, "manifest", data, "-o", "m.npz")
    assert (code, out, "Traceback" in err) == (2, "", False)
    assert fragment in err
    assert not list(tmp_path.glob("*m.npz*"))


def test_manifest_needs_no_torch(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = sys.modules['torchvision'] = None\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = invoke_process("manifest", "synthetic:near", "-o", tmp_path / "m.npz", env={**os.environ, "PYTHONPATH": paths})
    assert (process.returncode, process.stdout[:5]) == (0, "wrote"), process.stderr
