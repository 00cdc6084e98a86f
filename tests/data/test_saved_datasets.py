"""Datasets that Hugging Face's datasets saved: texts and images in Parquet and Arrow files."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="needs the extra datasets")
from PIL import Image
from pyarrow import parquet

from xferbench.core.errors import UserError
from xferbench.data import archives, columnar, fingerprints, inputs, leaks, saved_datasets, sources
from xferbench.data.raw import TextExample

NAMES = ["sad", "glad", "mad"]


def features(column, names):
    """Return the metadata with which datasets records the class names of a column."""
    content = {"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}}
    return {columnar.FEATURES_KEY: json.dumps(content).encode()}


def save(path, columns, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def texts(count, labels=(0, 1, 2), **more):
    return {"text": [f"text {number}" for number in range(count)], "label": [labels[n % len(labels)] for n in range(count)]} | {
        name: [values[number % len(values)] for number in range(count)] for name, values in more.items()
    }


def png(value):
    return encode(Image.new("RGB", (6, 4), (value, 0, 255 - value)))


def noise_png(seed):
    return encode(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)))


def encode(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def images(count):
    return {
        "image": [{"bytes": png(10 * number), "path": f"{number}.png"} for number in range(count)],
        "label": [number % 2 for number in range(count)],
    }


def test_the_hub_layout_of_texts_is_read_with_its_class_names(tmp_path):
    for name, count in (("train-00000-of-00002", 6), ("train-00001-of-00002", 3), ("test-00000-of-00001", 6)):
        save(tmp_path / "data" / f"{name}.parquet", texts(count, text_pair=["", "second"]), features("label", NAMES))
    classes, splits, left_out = sources.read_dataset(f"datasets:{tmp_path}", None)
    assert classes == tuple(NAMES)
    assert {name: len(split.labels) for name, split in splits.items()} == {"train": 9, "test": 6}
    train = splits["train"]
    assert train.images[:2] == [TextExample("text 0"), TextExample("text 1", "second")]
    assert train.labels.tolist() == [0, 1, 2] * 3
    assert train.names[6] == "train-00001-of-00002.parquet: row 0"
    assert left_out == ()


def test_copies_of_saved_texts_and_images_are_found_with_their_rows(tmp_path):
    columns = texts(4) | {"text": ["A first text.", "Another one.", "The third sentence.", "Four words are here."]}
    pictures = {"image": [{"bytes": noise_png(seed), "path": None} for seed in range(4)], "label": [0, 1, 0, 1]}
    for kind, train, test in (
        ("texts", columns, {"text": ["four words are here", "unknown"], "label": [1, 2]}),
        ("images", pictures, {"image": [pictures["image"][3], {"bytes": noise_png(4), "path": None}], "label": [0, 1]}),
    ):
        for split, rows in (("train", train), ("test", test)):
            save(tmp_path / kind / f"{split}-00000-of-00001.parquet", rows)
        spec = f"datasets:{tmp_path / kind}"
        assert inputs.holds_texts(spec) == (kind == "texts")
        (found,) = leaks.list_duplicates(inputs.digest_data(spec), None, (), tmp_path / "cache")
        assert (found.kind, found.similarity) == ("exact", 1.0)
        assert found.test == "test-00000-of-00001.parquet: row 0"
        assert found.original == "train-00000-of-00001.parquet: row 3"


def test_splits_are_named_by_folders_too(tmp_path):
    for name in ("train", "valid", "test"):
        save(tmp_path / name / "0000.parquet", texts(6))
    classes, splits, _ = sources.read_dataset(f"datasets:{tmp_path}", None)
    assert (classes, set(splits)) == (("0", "1", "2"), {"train", "validation", "test"})


def test_a_fifth_of_a_single_split_is_the_test_set(tmp_path):
    file = save(tmp_path / "train-00000-of-00001.parquet", texts(30, group=["a", "b", "c", "d", "e"]))
    for path in (tmp_path, file):
        (classes, splits, _), notes = saved_datasets.read_saved(path)
        assert len(splits["train"].labels) + len(splits["test"].labels) == 30
        assert not set(splits["train"].groups) & set(splits["test"].groups)
        assert "a single split, so" in notes[0]
    assert sources.layout_notes(f"datasets:{file}") == (classes, notes)


def test_a_split_with_secret_classes_is_left_out_with_a_note(tmp_path):
    for name, labels in (("train", (0, 1)), ("validation", (0, 1)), ("test", (-1,))):
        save(tmp_path / f"{name}-00000-of-00001.parquet", texts(6, labels), features("label", NAMES))
    (classes, splits, _), notes = saved_datasets.read_saved(tmp_path)
    assert (classes, set(splits)) == (("sad", "glad"), {"train", "test"})
    assert notes == ("the split test has no classes (label -1) and is not used",)


def test_a_file_of_no_split_is_left_out_with_a_note(tmp_path):
    for name in ("train", "test", "unsupervised"):
        save(tmp_path / f"{name}-00000-of-00001.parquet", texts(6))
    (_, splits, _), notes = saved_datasets.read_saved(tmp_path)
    assert sum(len(split.labels) for split in splits.values()) == 12
    assert notes == ("files that name no split and are not used: unsupervised-00000-of-00001.parquet",)


def test_a_test_set_alone_is_whole_and_nothing_else_replaces_training(tmp_path):
    save(tmp_path / "test-00000-of-00001.parquet", texts(6))
    (_, splits, _), notes = saved_datasets.read_saved(tmp_path)
    assert {name: len(split.labels) for name, split in splits.items()} == {"test": 6}
    assert notes == ()
    save(tmp_path / "validation-00000-of-00001.parquet", texts(6))
    with pytest.raises(UserError, match="a split is missing"):
        saved_datasets.read_saved(tmp_path)


def test_images_are_decoded_from_their_bytes(tmp_path):
    for name in ("train", "test"):
        columns = images(4)
        columns["image"][3] = {"bytes": b"not an image", "path": "3.png"}
        columns["image"].append({"bytes": None, "path": "4.png"})
        columns["label"].append(0)
        save(tmp_path / f"{name}-00000-of-00001.parquet", columns, features("label", ["ant", "bee"]))
    classes, splits, left_out = sources.read_dataset(f"datasets:{tmp_path}", None)
    assert classes == ("ant", "bee")
    assert left_out == tuple(f"{name}-00000-of-00001.parquet: row 4: an image without its bytes" for name in ("test", "train"))
    prints, readable, unreadable = fingerprints.fingerprint_split(splits["train"])
    assert readable.tolist() == [0, 1, 2] and len(prints) == 3
    assert unreadable[0].startswith("train-00000-of-00001.parquet: row 3: cannot identify image file")
    data = inputs.digest_data(f"datasets:{tmp_path}")
    (decoded,) = fingerprints.read_images(data, "train", np.array([1]), tmp_path / "cache")
    assert decoded.shape == (4, 6, 3) and decoded[0, 0].tolist() == [10, 0, 245]


@pytest.mark.parametrize("columns", [{"text": "sentence", "label": "sentiment"}, {"text": "Text", "label": "Label"}])
def test_other_names_of_columns_are_read_with_a_note(columns, tmp_path):
    rows = {columns[name]: values for name, values in texts(30).items()}
    save(tmp_path / "t.parquet", rows | {"patient_id": ["p"] * 30})
    _, notes = saved_datasets.read_saved(tmp_path)
    assert f"column {columns['text']} is read as text" in notes
    assert any("patient_id" in note and "group" in note for note in notes)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "score": [1]}, "no column label"),
        ({"text": ["a", "b"], "label": [[1, 2], [1]]}, "multi-label is not supported"),
        ({"text": ["a", "b"], "label": [0.5, 1.5]}, "label"),
        ({"text": ["a", "b"], "label": [0, 7]}, "t.parquet: row 1: label"),
        ({"text": ["a", "b"], "label": [0, None]}, "t.parquet: row 1: label"),
        ({"text": ["a", "b"], "label": [0, 0]}, "too few labels"),
        ({"text": ["a", " "], "label": [0, 1]}, "t.parquet: row 1: text"),
        ({"text": ["a", "b"], "label": [0, 1], "group": ["x", None]}, "t.parquet: row 1: group"),
        ({"image": pa.array([{"bytes": None}], pa.struct({"bytes": pa.binary()})), "label": [0]}, "no example"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_row(columns, message, tmp_path):
    save(tmp_path / "t.parquet", columns, features("label", NAMES))
    with pytest.raises(UserError) as caught:
        sources.read_dataset(f"datasets:{tmp_path}", None)
    assert message in caught.value.what


def test_tables_of_different_columns_are_refused(tmp_path):
    save(tmp_path / "cola" / "train.parquet", texts(6))
    save(tmp_path / "stsb" / "train.parquet", texts(6) | {"score": [0.5] * 6})
    with pytest.raises(UserError, match="different columns") as caught:
        inputs.check_data("datasets", str(tmp_path))
    assert "cola/train.parquet and stsb/train.parquet" in caught.value.found


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"\x00" * 64, b"ARROW1" + b"\xff" * 64])
def test_a_damaged_file_is_named(suffix, content, tmp_path):
    (tmp_path / f"train{suffix}").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        sources.read_dataset(f"datasets:{tmp_path}", None)


def test_a_file_cut_anywhere_is_named(tmp_path):
    file = save(tmp_path / "train.parquet", texts(30))
    content = file.read_bytes()
    for size in range(0, len(content), max(1, len(content) // 40)):
        file.write_bytes(content[:size])
        with pytest.raises(UserError, match="damaged"):
            sources.read_dataset(f"datasets:{tmp_path}", None)


def test_a_small_file_of_many_equal_rows_is_refused(tmp_path):
    table = pa.table({"text": pa.repeat("a", columnar.MAX_ROWS + 1), "label": pa.repeat(0, columnar.MAX_ROWS + 1)})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 2**20
    with pytest.raises(UserError, match="too large"):
        inputs.check_data("datasets", str(tmp_path))


def test_a_folder_without_tables_and_a_missing_folder_are_named(tmp_path):
    (tmp_path / "readme.txt").write_text("?")
    with pytest.raises(UserError, match="no table"):
        sources.read_dataset(f"datasets:{tmp_path}", None)
    with pytest.raises(UserError, match="no such folder"):
        inputs.split_spec(f"datasets:{tmp_path / 'missing'}")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    save(tmp_path / "train.parquet", texts(6))
    monkeypatch.setattr(columnar, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match="need pyarrow") as caught:
        sources.read_dataset(f"datasets:{tmp_path}", None)
    assert caught.value.do == "pip install 'xferbench[datasets]'"


def test_the_digest_depends_on_content_and_names_only(tmp_path):
    for folder in ("a", "b"):
        save(tmp_path / folder / "train.parquet", texts(6))
    first, second = (inputs.digest_data(f"datasets:{tmp_path / folder}").digest for folder in ("a", "b"))
    assert first == second
    (tmp_path / "b" / "train.parquet").rename(tmp_path / "b" / "test.parquet")
    assert inputs.digest_data(f"datasets:{tmp_path / 'b'}").digest != first
    save(tmp_path / "a" / "train.parquet", texts(7))
    assert inputs.digest_data(f"datasets:{tmp_path / 'a'}").digest != first


def test_a_folder_of_tables_is_recognized(tmp_path):
    save(tmp_path / "data" / "train.parquet", images(4))
    assert inputs.data_kind(tmp_path) == inputs.data_kind(tmp_path / "data" / "train.parquet") == "datasets"
    with pytest.raises(UserError) as caught:
        inputs.split_spec(str(tmp_path))
    assert caught.value.do == f"write datasets:{tmp_path}"
    with pytest.raises(UserError) as caught:
        archives.refuse_archive(tmp_path / "data" / "train.parquet")
    assert "datasets:DIR" in caught.value.do
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "0.png").write_bytes(png(0))
    assert inputs.data_kind(tmp_path) == "folder"


def test_what_datasets_saves_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    saved = datasets.DatasetDict({name: datasets.Dataset.from_dict(texts(9), features=kinds) for name in ("train", "test")})
    saved.save_to_disk(tmp_path / "dict")
    saved["train"].save_to_disk(tmp_path / "single")
    saved["train"].to_parquet(tmp_path / "train.parquet")
    (classes, splits, _), notes = saved_datasets.read_saved(tmp_path / "dict")
    assert (classes, notes) == (tuple(NAMES), ())
    assert splits["train"].images == [TextExample(text) for text in saved["train"]["text"]]
    assert splits["train"].labels.tolist() == saved["train"]["label"]
    assert len(splits["test"].labels) == 9
    for path in (tmp_path / "single", tmp_path / "train.parquet"):
        (classes, splits, _), notes = saved_datasets.read_saved(path)
        assert classes == tuple(NAMES) and "a single split" in notes[0]
