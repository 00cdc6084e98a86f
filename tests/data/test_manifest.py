"""Manifests are written and read without loss, streamed and without images; other files raise one clear error."""

from __future__ import annotations

import json
import weakref
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xferbench.core.errors import UserError
from xferbench.data import duplicates, fingerprints, inputs, manifest, npz

FIELDS = ("exact", "mirrored", "bits", "embedding")


def make_images(count, side=16, seed=0):
    return np.random.default_rng(seed).integers(256, size=(count, side, side, 3), dtype=np.uint8)


def make_folder(folder, classes=("ant", "bee"), each=3, below=""):
    for label, name in enumerate(classes):
        (folder / name / below).mkdir(parents=True)
        for number, image in enumerate(make_images(each, 12, label)):
            Image.fromarray(image).save(folder / name / below / f"{number}.png")
    return folder


def make_file(path, **changes):
    """Write a manifest of twenty images."""
    new_manifest = manifest.make_manifest(f"npz:{make_npz(path.with_name('images.npz'), images=make_images(20))}")[0]
    manifest.write_manifest(new_manifest, path)
    if changes:
        with np.load(path) as arrays:
            members = {name: arrays[name] for name in arrays.files}
        about = json.loads(str(members.pop("about")))
        np.savez(path, about=np.array(json.dumps(about | changes)), **members)
    return path


def make_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def are_equal(first, second):
    return all(np.array_equal(getattr(first.prints, name), getattr(second.prints, name)) for name in FIELDS)


def test_a_written_manifest_is_read_back(tmp_path):
    written_manifest, left_out = manifest.make_manifest(f"folder:{make_folder(tmp_path / 'web')}")
    manifest.write_manifest(written_manifest, tmp_path / "m.npz")
    reread = manifest.read_manifest(tmp_path / "m.npz")
    assert are_equal(reread, written_manifest)
    assert (reread.name, reread.classes, reread.labels.tolist()) == ("folder:web", ("ant", "bee"), [0, 0, 0, 1, 1, 1])
    assert (reread.left_out, left_out, reread.digest) == (0, (), written_manifest.digest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.npz", "web"], "no temporary file remains"


def test_a_manifest_is_small_and_has_no_images(tmp_path):
    assert make_file(tmp_path / "m.npz").stat().st_size < 20 * 300 + 4000
    with np.load(tmp_path / "m.npz") as arrays:
        assert set(arrays.files) == {*FIELDS, "labels", "classes", "about"}


def test_a_duplicate_is_found_with_the_manifest_alone(tmp_path):
    images = make_images(200)
    manifest.write_manifest(manifest.make_manifest(f"npz:{make_npz(tmp_path / 'a.npz', images=images)}")[0], tmp_path / "m.npz")
    queries = fingerprints.fingerprint_stream([images[7], images[8][:, ::-1], make_images(1, seed=9)[0]])
    assert duplicates.find_duplicates(queries, manifest.read_manifest(tmp_path / "m.npz").prints).kind.tolist() == [
        "exact",
        "flipped",
        "",
    ]


def test_the_digest_does_not_depend_on_the_path(tmp_path):
    first, second = (manifest.make_manifest(f"folder:{make_folder(tmp_path / name / 'set')}")[0] for name in ("here", "there"))
    assert first.digest == second.digest
    assert manifest.make_manifest(f"folder:{make_folder(tmp_path / 'else', each=2)}")[0].digest != first.digest


def test_images_are_read_from_folders_of_any_depth(tmp_path):
    folder = make_folder(tmp_path / "web", below="2019/may")
    (folder / "notes.txt").write_text("no image")
    (folder / "bee" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    new_manifest, left_out = manifest.make_manifest(f"folder:{folder}")
    assert (len(new_manifest.prints), new_manifest.left_out, new_manifest.classes) == (6, 2, ("ant", "bee"))
    assert new_manifest.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [note.partition(":")[0] for note in left_out] == ["notes.txt", "bee/broken.jpg"]
    Image.fromarray(make_images(1)[0]).save(folder / "loose.png")
    assert manifest.make_manifest(f"folder:{folder}")[0].classes == (), "an image without a class folder"
    assert len(manifest.make_manifest(str(folder))[0].prints) == 7, "the path of a folder is accepted"


@pytest.mark.parametrize("splits", [("train", "val"), ("train",)])
def test_the_training_images_of_a_dataset_with_splits_are_used(tmp_path, splits):
    for split in splits:
        make_folder(tmp_path / split, each=3 if split == "train" else 2)
    new_manifest, _ = manifest.make_manifest(f"folder:{tmp_path}")
    assert (len(new_manifest.prints), new_manifest.classes) == (6, ("ant", "bee"))


@pytest.mark.parametrize(("spec", "count"), [("synthetic:near", 4000), ("digits", 1000)])
def test_every_kind_of_dataset_has_a_manifest(spec, count):
    pytest.importorskip("sklearn")
    new_manifest, left_out = manifest.make_manifest(spec)
    assert (new_manifest.name, len(new_manifest.prints), len(new_manifest.labels), left_out) == (spec, count, count, ())


@pytest.mark.parametrize(
    "form", [lambda images: images, lambda images: images[..., 0], lambda images: images.astype(">u2") * 256]
)
def test_arrays_are_read_row_by_row(tmp_path, form):
    images = form(make_images(5))
    path = make_npz(tmp_path / "a.npz", train_images=images, train_labels=np.array([7, 3, 3, 7, 3]), test_images=images[:1])
    new_manifest, _ = manifest.make_manifest(f"npz:{path}")
    assert (new_manifest.classes, new_manifest.labels.tolist()) == (("3", "7"), [1, 0, 0, 1, 0])
    native = images.astype(images.dtype.newbyteorder("="))
    assert np.array_equal(new_manifest.prints.exact, fingerprints.fingerprint_images(list(native))[0].exact)


def test_an_npz_file_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    path = make_npz(tmp_path / "a.npz", images=make_images(300, 8))
    monkeypatch.setattr(fingerprints, "BATCH_VALUES", 10 * 8 * 8 * 3)
    alive, maximum, original = weakref.WeakSet(), [0], np.frombuffer

    def count_rows(*arguments):
        row = original(*arguments).view(CountedArray)
        alive.add(row)
        maximum[0] = max(maximum[0], len(alive))
        return row

    monkeypatch.setattr(npz.np, "frombuffer", count_rows)
    assert len(manifest.make_manifest(f"npz:{path}")[0].prints) == 300
    assert maximum[0] <= 30


class CountedArray(np.ndarray):
    """An array in a WeakSet."""

    __hash__ = object.__hash__


def test_progress_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "PROGRESS_INTERVAL", 4)
    counts = []
    manifest.make_manifest(f"npz:{make_npz(tmp_path / 'a.npz', images=make_images(10))}", counts.append)
    assert counts == [4, 8]


def test_an_existing_file_is_not_overwritten(tmp_path):
    path = make_file(tmp_path / "m.npz")
    before, new_manifest = (
        path.read_bytes(),
        manifest.make_manifest(f"npz:{make_npz(tmp_path / 'b.npz', images=make_images(3))}")[0],
    )
    with pytest.raises(UserError, match="already exists"):
        manifest.write_manifest(new_manifest, path)
    assert path.read_bytes() == before
    manifest.write_manifest(new_manifest, path, force=True)
    assert len(manifest.read_manifest(path).prints) == 3
    with pytest.raises(UserError, match="no such folder"):
        manifest.write_manifest(new_manifest, tmp_path / "nowhere" / "m.npz")
    with pytest.raises(UserError, match="a folder"):
        manifest.write_manifest(new_manifest, tmp_path, force=True)


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = make_file(tmp_path / "m.npz")
    before = path.read_bytes()

    def fail_on_full_disk(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    old_manifest = manifest.read_manifest(path)
    monkeypatch.setattr(np, "savez", fail_on_full_disk)
    with pytest.raises(OSError, match="No space"):
        manifest.write_manifest(old_manifest, path, force=True)
    assert path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.npz", "m.npz"]


@pytest.mark.parametrize(("key", "value"), [("version", 2), ("prints", 99)])
def test_another_version_raises(tmp_path, key, value):
    with pytest.raises(
        UserError, match=rf"another version\n  found: .*{value}\b.*\n  expected: version 1, fingerprints 1\n  do: "
    ):
        manifest.read_manifest(make_file(tmp_path / "m.npz", **{key: value}))


def test_other_files_raise(tmp_path):
    (tmp_path / "text").write_text("no manifest at all")
    (tmp_path / "empty").write_bytes(b"")
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", images=make_images(2))
    np.savez(tmp_path / "pickle.npz", about=np.array([{}], object))
    np.savez(tmp_path / "json.npz", about=np.array("[1, 2]"))
    for name in ("text", "empty", "array.npy", "other.npz", "pickle.npz", "json.npz"):
        with pytest.raises(UserError, match="not a manifest"):
            manifest.read_manifest(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        manifest.read_manifest(tmp_path / "absent.npz")


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_damaged_manifest_raises_or_is_intact(tmp_path_factory, data):
    path = make_file(tmp_path_factory.mktemp("manifest") / "m.npz")
    expected, content = manifest.read_manifest(path), bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        reread = manifest.read_manifest(path)
    except UserError:
        return
    assert are_equal(reread, expected)


def test_a_member_that_seems_encrypted_raises(tmp_path):
    path = make_file(tmp_path / "m.npz")
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the last entry of the directory
    content[entry + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        manifest.read_manifest(path)


def test_changed_content_raises(tmp_path):
    path = make_file(tmp_path / "m.npz")
    with np.load(path) as arrays:
        members = {name: arrays[name] for name in arrays.files}
    np.savez(path, **members | {"exact": members["exact"] + 1})
    with pytest.raises(UserError, match="damaged manifest"):
        manifest.read_manifest(path)


@pytest.mark.parametrize(
    ("arrays", "fragment"),
    [
        ({"pictures": make_images(2)}, "arrays are missing"),
        ({"images": make_images(2).astype(np.float32)}, "images"),
        ({"images": make_images(2)[None]}, "images"),
        ({"images": make_images(0)}, "images"),
        ({"images": np.asfortranarray(make_images(2))}, "column by column"),
        ({"images": make_images(2), "labels": np.zeros(3)}, "labels"),
        ({"images": make_images(2), "labels": np.array([{}, {}], object)}, "not an npz file"),
    ],
)
def test_unusable_arrays_raise(tmp_path, arrays, fragment):
    with pytest.raises(UserError, match=fragment):
        manifest.make_manifest(f"npz:{make_npz(tmp_path / 'a.npz', **arrays)}")


def test_a_damaged_array_raises(tmp_path):
    path = make_npz(tmp_path / "a.npz", images=make_images(50))
    content = bytearray(path.read_bytes())
    content[5000] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="not an npz file"):
        manifest.make_manifest(f"npz:{path}")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as short:
        short.writestr("images.npy", make_npy(make_images(50))[:9000])
    with pytest.raises(UserError, match="ends too early"):
        manifest.make_manifest(f"npz:{tmp_path / 'b.npz'}")


def make_npy(array):
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_a_folder_of_broken_images_raises(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UserError, match=r"no image that can be read\n  found: a\.png: "):
        manifest.make_manifest(f"folder:{tmp_path}")
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="no images"):
        manifest.make_manifest(f"folder:{tmp_path}")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "find_spec", lambda name: None if name == "PIL" else object())
    with pytest.raises(UserError, match="folder data need PIL"):
        manifest.make_manifest(f"folder:{make_folder(tmp_path / 'web')}")


def test_an_unknown_dataset_raises():
    with pytest.raises(UserError, match="unknown kind"):
        manifest.make_manifest("nowhere")
    assert inputs.DATA_KINDS[0] == "folder"


def test_photographs_are_read_and_other_files_are_left_out(shared):
    new_manifest, left_out = manifest.make_manifest(f"folder:{shared / 'data' / 'hymenoptera'}")
    assert (len(new_manifest.prints), new_manifest.classes) == (244, ("ants", "bees"))
    assert [note for note in left_out if ".gif" in note]
    new_manifest, left_out = manifest.make_manifest(f"folder:{shared / 'data' / 'pacs'}")
    assert (len(new_manifest.prints), len(new_manifest.classes), left_out) == (784, 4, ())
