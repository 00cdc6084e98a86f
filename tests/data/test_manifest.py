"""Manifests: what is written is read again, streamed, without images; what is no manifest is told in one message."""

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


def make_file(path, **more):
    """A manifest of twenty images."""
    made = manifest.make_manifest(f"npz:{make_npz(path.with_name('images.npz'), images=make_images(20))}")[0]
    manifest.write_manifest(made, path)
    if more:
        with np.load(path) as held:
            kept = {name: held[name] for name in held.files}
        about = json.loads(str(kept.pop("about")))
        np.savez(path, about=np.array(json.dumps(about | more)), **kept)
    return path


def make_npz(path, **held):
    np.savez(path, **held)
    return path


def same(first, second):
    return all(np.array_equal(getattr(first.prints, name), getattr(second.prints, name)) for name in FIELDS)


def test_what_is_written_is_read_again(tmp_path):
    made, left_out = manifest.make_manifest(f"folder:{make_folder(tmp_path / 'web')}")
    manifest.write_manifest(made, tmp_path / "m.npz")
    found = manifest.read_manifest(tmp_path / "m.npz")
    assert same(found, made)
    assert (found.name, found.classes, found.labels.tolist()) == ("folder:web", ("ant", "bee"), [0, 0, 0, 1, 1, 1])
    assert (found.left_out, left_out, found.digest) == (0, (), made.digest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.npz", "web"], "nothing half written"


def test_it_is_small_and_holds_no_images(tmp_path):
    assert make_file(tmp_path / "m.npz").stat().st_size < 20 * 300 + 4000
    with np.load(tmp_path / "m.npz") as held:
        assert set(held.files) == {*FIELDS, "labels", "classes", "about"}


def test_a_copy_is_found_by_a_manifest_alone(tmp_path):
    images = make_images(200)
    manifest.write_manifest(manifest.make_manifest(f"npz:{make_npz(tmp_path / 'a.npz', images=images)}")[0], tmp_path / "m.npz")
    asked = fingerprints.fingerprint_stream([images[7], images[8][:, ::-1], make_images(1, seed=9)[0]])
    assert duplicates.find_duplicates(asked, manifest.read_manifest(tmp_path / "m.npz").prints).kind.tolist() == [
        "exact",
        "flipped",
        "",
    ]


def test_the_same_data_make_the_same_manifest_wherever_they_lie(tmp_path):
    one, two = (manifest.make_manifest(f"folder:{make_folder(tmp_path / name / 'set')}")[0] for name in ("here", "there"))
    assert one.digest == two.digest
    assert manifest.make_manifest(f"folder:{make_folder(tmp_path / 'else', each=2)}")[0].digest != one.digest


def test_images_in_folders_of_any_depth(tmp_path):
    folder = make_folder(tmp_path / "web", below="2019/may")
    (folder / "notes.txt").write_text("no image")
    (folder / "bee" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    made, left_out = manifest.make_manifest(f"folder:{folder}")
    assert (len(made.prints), made.left_out, made.classes) == (6, 2, ("ant", "bee"))
    assert made.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [one.partition(":")[0] for one in left_out] == ["notes.txt", "bee/broken.jpg"]
    Image.fromarray(make_images(1)[0]).save(folder / "loose.png")
    assert manifest.make_manifest(f"folder:{folder}")[0].classes == (), "an image that lies in no class"
    assert len(manifest.make_manifest(str(folder))[0].prints) == 7, "a folder's path will do"


@pytest.mark.parametrize("splits", [("train", "val"), ("train",)])
def test_of_what_is_split_the_training_images_are_taken(tmp_path, splits):
    for split in splits:
        make_folder(tmp_path / split, each=3 if split == "train" else 2)
    made, _ = manifest.make_manifest(f"folder:{tmp_path}")
    assert (len(made.prints), made.classes) == (6, ("ant", "bee"))


@pytest.mark.parametrize(("spec", "count"), [("synthetic:near", 4000), ("digits", 1000)])
def test_every_kind_of_dataset_has_one(spec, count):
    pytest.importorskip("sklearn")
    made, left_out = manifest.make_manifest(spec)
    assert (made.name, len(made.prints), len(made.labels), left_out) == (spec, count, count, ())


@pytest.mark.parametrize(
    "form", [lambda images: images, lambda images: images[..., 0], lambda images: images.astype(">u2") * 256]
)
def test_arrays_are_read_row_by_row(tmp_path, form):
    held = form(make_images(5))
    path = make_npz(tmp_path / "a.npz", train_images=held, train_labels=np.array([7, 3, 3, 7, 3]), test_images=held[:1])
    made, _ = manifest.make_manifest(f"npz:{path}")
    assert (made.classes, made.labels.tolist()) == (("3", "7"), [1, 0, 0, 1, 0])
    native = held.astype(held.dtype.newbyteorder("="))
    assert np.array_equal(made.prints.exact, fingerprints.fingerprint_images(list(native))[0].exact)


def test_a_file_larger_than_memory_is_never_held(tmp_path, monkeypatch):
    path = make_npz(tmp_path / "a.npz", images=make_images(300, 8))
    monkeypatch.setattr(fingerprints, "BATCH_VALUES", 10 * 8 * 8 * 3)
    alive, most, plain = weakref.WeakSet(), [0], np.frombuffer

    def watched(*words):
        row = plain(*words).view(Watched)
        alive.add(row)
        most[0] = max(most[0], len(alive))
        return row

    monkeypatch.setattr(npz.np, "frombuffer", watched)
    assert len(manifest.make_manifest(f"npz:{path}")[0].prints) == 300
    assert most[0] <= 30


class Watched(np.ndarray):
    """An array that can be counted."""

    __hash__ = object.__hash__


def test_whoever_waits_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "PROGRESS_INTERVAL", 4)
    told = []
    manifest.make_manifest(f"npz:{make_npz(tmp_path / 'a.npz', images=make_images(10))}", told.append)
    assert told == [4, 8]


def test_a_file_that_is_there_is_not_overwritten(tmp_path):
    path = make_file(tmp_path / "m.npz")
    before, made = path.read_bytes(), manifest.make_manifest(f"npz:{make_npz(tmp_path / 'b.npz', images=make_images(3))}")[0]
    with pytest.raises(UserError, match="there already"):
        manifest.write_manifest(made, path)
    assert path.read_bytes() == before
    manifest.write_manifest(made, path, force=True)
    assert len(manifest.read_manifest(path).prints) == 3
    with pytest.raises(UserError, match="no such folder"):
        manifest.write_manifest(made, tmp_path / "nowhere" / "m.npz")
    with pytest.raises(UserError, match="a folder"):
        manifest.write_manifest(made, tmp_path, force=True)


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path, monkeypatch):
    path = make_file(tmp_path / "m.npz")
    before = path.read_bytes()

    def full(file, **held):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    made = manifest.read_manifest(path)
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        manifest.write_manifest(made, path, force=True)
    assert path.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["images.npz", "m.npz"]


@pytest.mark.parametrize(("key", "value"), [("version", 2), ("prints", 99)])
def test_another_version_is_told(tmp_path, key, value):
    with pytest.raises(
        UserError, match=rf"another version\n  found: .*{value}\b.*\n  expected: version 1, fingerprints 1\n  do: "
    ):
        manifest.read_manifest(make_file(tmp_path / "m.npz", **{key: value}))


def test_what_is_no_manifest_is_told(tmp_path):
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
def test_a_damaged_manifest_is_told_or_whole(tmp_path_factory, data):
    path = make_file(tmp_path_factory.mktemp("one") / "m.npz")
    whole, held = manifest.read_manifest(path), bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del held[data.draw(st.integers(0, len(held) - 1)) :]
    else:
        held[data.draw(st.integers(0, len(held) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(held)
    try:
        found = manifest.read_manifest(path)
    except UserError:
        return
    assert same(found, whole)


def test_a_content_that_was_changed_is_told(tmp_path):
    path = make_file(tmp_path / "m.npz")
    with np.load(path) as held:
        kept = {name: held[name] for name in held.files}
    np.savez(path, **kept | {"exact": kept["exact"] + 1})
    with pytest.raises(UserError, match="damaged manifest"):
        manifest.read_manifest(path)


@pytest.mark.parametrize(
    ("held", "fragment"),
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
def test_arrays_that_cannot_be_used_are_a_problem(tmp_path, held, fragment):
    with pytest.raises(UserError, match=fragment):
        manifest.make_manifest(f"npz:{make_npz(tmp_path / 'a.npz', **held)}")


def test_a_damaged_array_is_a_problem(tmp_path):
    path = make_npz(tmp_path / "a.npz", images=make_images(50))
    held = bytearray(path.read_bytes())
    held[5000] ^= 255
    path.write_bytes(held)
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


def test_only_broken_images_are_a_problem(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UserError, match=r"no image that can be read\n  found: a\.png: "):
        manifest.make_manifest(f"folder:{tmp_path}")
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="no images"):
        manifest.make_manifest(f"folder:{tmp_path}")


def test_what_is_missing_to_read_with_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "find_spec", lambda name: None if name == "PIL" else object())
    with pytest.raises(UserError, match="folder data need PIL"):
        manifest.make_manifest(f"folder:{make_folder(tmp_path / 'web')}")


def test_a_word_that_names_nothing_is_a_problem():
    with pytest.raises(UserError, match="unknown kind"):
        manifest.make_manifest("nowhere")
    assert inputs.DATA_KINDS[0] == "folder"


def test_photographs_and_what_lies_among_them(shared):
    made, left_out = manifest.make_manifest(f"folder:{shared / 'data' / 'hymenoptera'}")
    assert (len(made.prints), made.classes) == (244, ("ants", "bees"))
    assert [one for one in left_out if ".gif" in one]
    made, left_out = manifest.make_manifest(f"folder:{shared / 'data' / 'pacs'}")
    assert (len(made.prints), len(made.classes), left_out) == (784, 4, ())
