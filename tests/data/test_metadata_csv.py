"""Datasets listed by a metadata.csv: reading, errors, and notes about omitted files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from xferbench.cli import main
from xferbench.core.errors import UserError
from xferbench.core.suite import BackboneSection, DataSection, Invocation, Suite
from xferbench.core.transforms import Preprocessing
from xferbench.data import inputs, metadata_csv, sources


def make_table_folder(folder, table, *, only=None):
    """Write a folder with a table, and an image for each of its rows or for those in ``only``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = table if isinstance(table, str) else "\n".join(",".join(row) for row in table) + "\n"
    (folder / "metadata.csv").write_text(text, encoding="utf-8")
    for number, line in enumerate(text.splitlines()[1:]):
        name = line.partition(",")[0].strip('"')
        if only is None or name in only:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), number * 7 % 256, np.uint8)).save(folder / name)
    return folder


HEADER = ("file_name", "label", "split", "group")
ROWS = [
    (f"{split}-{label}{number}.png", label, split, f"{split}{number // 2}")
    for split in ("train", "test")
    for label in ("cat", "dog")
    for number in range(4)
]


@pytest.fixture
def folder(tmp_path):
    return make_table_folder(tmp_path / "pets", [HEADER, *ROWS])


def read_folder(folder):
    return sources.read_dataset(f"folder:{folder}", None)


def digest(folder):
    return inputs.digest_data(f"folder:{folder}").digest


def test_classes_splits_and_groups_come_from_the_columns(folder):
    classes, splits, left_out = read_folder(folder)
    assert classes == ("cat", "dog")
    assert left_out == ()
    assert set(splits) == {"train", "test"}
    assert splits["train"].labels.tolist() == [0] * 4 + [1] * 4
    assert [path.name for path in splits["train"].images[:2]] == ["train-cat0.png", "train-cat1.png"]
    by_name = dict(zip(splits["test"].names, splits["test"].labels, strict=True))
    assert by_name == {name: int(label == "dog") for name, label, split, _ in ROWS if split == "test"}
    assert not set(splits["train"].groups) & set(splits["test"].groups)


def test_a_group_has_the_same_number_in_every_split(tmp_path):
    rows = [(f"{split}{i}.png", "ab"[i % 2], split, f"p{i}") for split in ("train", "val", "test") for i in range(4)]
    _, splits, _ = read_folder(make_table_folder(tmp_path / "d", [HEADER, *rows]))
    groups_by_split = [
        {name[-5]: group for name, group in zip(raw.names, raw.groups.tolist(), strict=True)}
        for raw in (splits["train"], splits["validation"], splits["test"])
    ]
    assert groups_by_split[0] == groups_by_split[1] == groups_by_split[2]


@pytest.mark.parametrize("split_name", ["val", "valid", "validation", "Val"])
def test_the_validation_split_is_the_test_set_without_another(split_name, tmp_path):
    rows = [(f"{split}{i}.png", "ab"[i % 2], split) for split in ("train", split_name) for i in range(4)]
    _, splits, _ = read_folder(make_table_folder(tmp_path / "d", [HEADER[:3], *rows]))
    assert set(splits) == {"train", "test"}
    assert {name[: len(split_name)] for name in splits["test"].names} == {split_name}
    assert len(splits["test"].groups) == 0


def test_a_table_in_the_folder_of_each_split_is_read(tmp_path):
    for split in ("train", "validation"):
        make_table_folder(
            tmp_path / split, [("file_name", "label", "age"), *((f"in/{i}.png", "ab"[i % 2], "7") for i in range(4))]
        )
    _, splits, left_out = read_folder(tmp_path)
    assert splits["train"].names == ["train/in/0.png", "train/in/1.png", "train/in/2.png", "train/in/3.png"]
    assert set(splits["test"].names) == {f"validation/in/{i}.png" for i in range(4)}
    assert left_out == ("train/metadata.csv: column age is not used", "validation/metadata.csv: column age is not used")
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match=r"test.metadata\.csv: missing"):
        read_folder(tmp_path)


def test_without_a_split_column_a_stratified_fifth_is_the_test_set(tmp_path):
    rows = [(f"{i}.png", "aab"[i % 3]) for i in range(60)]
    folder = make_table_folder(tmp_path / "d", [HEADER[:2], *rows])
    _, splits, left_out = read_folder(folder)
    assert np.bincount(splits["test"].labels).tolist() == pytest.approx([8, 4], abs=1)
    assert len(splits["test"].labels) == 12
    assert not set(splits["train"].names) & set(splits["test"].names)
    assert left_out == ("metadata.csv: no column split, so 12 of 60 images are the test set",)
    assert read_folder(folder)[1]["test"].names == splits["test"].names


def test_the_test_set_of_a_table_without_splits_has_whole_groups(tmp_path):
    rows = [(f"{i}.png", "ab"[i // 3 % 2], f"p{i // 3}") for i in range(90)]
    _, splits, left_out = read_folder(make_table_folder(tmp_path / "d", [("file_name", "label", "group"), *rows]))
    assert not set(splits["train"].groups) & set(splits["test"].groups)
    assert len(splits["test"].labels) == 18
    assert set(splits["test"].labels) == {0, 1}
    assert "18 of 90 images (6 whole groups)" in left_out[0]


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([(f"{i}.png", "ab"[i % 2], "p0") for i in range(20)], "20 images in 1 groups"),
        ([(f"{i}.png", "ab"[i // 10], f"p{i // 10}") for i in range(20)], "20 images in 2 groups"),
        ([("0.png", "a"), *((f"{i}.png", "b") for i in range(1, 20))], "20 images"),
    ],
)
def test_a_table_without_splits_that_cannot_be_cut_raises(rows, found, tmp_path):
    with pytest.raises(UserError, match="no test set can be cut") as error:
        read_folder(make_table_folder(tmp_path / "d", [("file_name", "label", "group")[: len(rows[0])], *rows]))
    assert error.value.found == found
    assert "add a column split" in error.value.do


def test_check_inputs_refuses_a_wrong_table(folder, tmp_path):
    suite = Suite(
        name="pets",
        plugins=("all",),
        invocation=Invocation(path="/pets.toml"),
        backbone=BackboneSection(arch="tiny-resnet"),
        data=DataSection(target=f"folder:{folder}"),
    )
    inputs.check_inputs(suite)
    (folder / "metadata.csv").write_text("nothing")
    with pytest.raises(UserError, match=r"/pets.toml: \[target\] data: .*no column file_name"):
        inputs.check_inputs(suite)


@pytest.mark.parametrize("column", ["patient_id", "Subject", "case-id", "person", "patientID"])
def test_a_column_that_may_be_the_group_is_asked_about_first(tmp_path, column):
    rows = [(f"{i}.png", "ab"[i % 2], ("train", "test")[i // 6], "9", str(i)) for i in range(12)]
    folder = make_table_folder(tmp_path, [("file_name", "label", "split", "age", column), *rows])
    _, notes = metadata_csv.read_rows(folder)
    assert notes[0] == f"metadata.csv: is `{column}` your group? If it is, rename the column to `group`"


def test_validate_asks_about_the_group(tmp_path, capsys):
    rows = [(f"{i}.png", "ab"[i % 2], ("train", "test")[i // 6], str(i)) for i in range(12)]
    make_table_folder(tmp_path / "pets", [("file_name", "label", "split", "patient_id"), *rows])
    suite = tmp_path / "pets.toml"
    suite.write_text(
        'schema = 1\nname = "pets"\nplugins = ["data-leakage"]\n[backbone]\narch = "tiny-resnet"\n'
        '[target]\ndata = "folder:pets"\n'
    )
    assert main.main(["validate", str(suite), "--store", str(tmp_path / "s.sqlite")]) == 0
    assert "note: metadata.csv: is `patient_id` your group?" in capsys.readouterr().out


@pytest.mark.parametrize("header", [["file_name", "label", "age", "showcase"], ["file_name", "label", "patient_id", "group"]])
def test_other_columns_are_not_asked_about(header):
    assert metadata_csv.group_questions(header) == ()


def test_notes_name_missing_and_broken_files_and_unused_columns(tmp_path):
    data = pytest.importorskip("xferbench.lab.data.datasets")
    rows = [(f"{split}/{i}.png", "ab"[i % 2], split, "9") for split in ("train", "test") for i in range(6)]
    folder = make_table_folder(tmp_path / "pets", [("file_name", "label", "split", "age"), *rows])
    (folder / "train" / "0.png").unlink()
    (folder / "train" / "1.png").write_bytes(b"no image")
    (folder / "test" / "2.png").write_bytes((folder / "test" / "3.png").read_bytes()[:40])
    dataset = data.load_dataset(inputs.digest_data(f"folder:{folder}"), Preprocessing(), None, tmp_path / "cache")
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (4, 5)
    notes = "\n".join(dataset.left_out)
    assert "metadata.csv: column age is not used" in notes
    assert "train/0.png: no such file" in notes
    assert "train/1.png: cannot identify" in notes
    assert "\ntest/2.png: " in notes
    assert str(tmp_path) not in notes


def test_the_loaded_dataset_has_the_groups(folder, tmp_path):
    data = pytest.importorskip("xferbench.lab.data.datasets")
    dataset = data.load_dataset(inputs.digest_data(f"folder:{folder}"), Preprocessing(), None, tmp_path / "cache")
    assert len(np.unique(dataset.train.groups)) == len(np.unique(dataset.test.groups)) == 2
    train, validation = data.train_validation_indices(dataset, 4, 0)
    assert not set(dataset.train.groups[train]) & set(dataset.train.groups[validation])


def test_the_digest_depends_on_the_table_and_the_files_that_it_names(folder):
    before = digest(folder)
    (folder / "notes.txt").write_text("not listed")
    assert digest(folder) == before
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "train-cat0.png")
    digest_after_change = digest(folder)
    assert digest_after_change != before
    table = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(table.replace("train-cat0.png,cat", "train-cat0.png,dog"))
    assert digest(folder) != digest_after_change
    (folder / "metadata.csv").write_text(table)
    (folder / "train-cat1.png").unlink()
    assert digest(folder) != digest_after_change


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(folder):
    text = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n")
    assert [len(raw.labels) for raw in read_folder(folder)[1].values()] == [8, 8]


def test_names_and_labels_may_have_commas_and_non_ascii_letters(tmp_path):
    table = "file_name,label,split\n" + "".join(
        f'"{i}, größer.png","{"Katze, groß" if i % 2 else "犬"}",{"train" if i < 4 else "test"}\n' for i in range(8)
    )
    (tmp_path / "metadata.csv").write_text(table, encoding="utf-8")
    for i in range(8):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}, größer.png")
    classes, splits, left_out = read_folder(tmp_path)
    assert classes == ("Katze, groß", "犬")
    assert len(splits["train"].labels) == 4
    assert left_out == ()


GOOD = "file_name,label,split\na.png,cat,train\nb.png,dog,train\nc.png,cat,test\nd.png,dog,test\n"


@pytest.mark.parametrize(
    ("table", "what", "found", "fragment"),
    [
        (b"", "no column file_name and label", "an empty file", "a header"),
        (b"a.png,cat\nb.png,dog\n", "no column file_name and label", "a.png,cat", "a header with file_name,label"),
        (GOOD.replace("label", "kind").encode(), "no column label", "file_name,kind,split", "rename the file"),
        (GOOD.replace(",", ";").encode(), "no column file_name and label", "file_name;label;split", "separate by commas"),
        (GOOD.replace(",", "\t").encode(), "no column file_name and label", "file_name\tlabel", "separate by commas"),
        (GOOD.encode("utf-16"), "not a text file in UTF-8", "a NUL byte", "save it as CSV in UTF-8"),
        (GOOD.replace("cat", "c\0t").encode(), "not a text file in UTF-8", "a NUL byte", "UTF-8"),
        (GOOD.replace("cat", "Käfer").encode("latin-1"), "not UTF-8", "byte 0xe4 at 29", "save it as CSV in UTF-8"),
        (GOOD.encode() + b"a.png,dog,test\n", "line 6: a file twice", "a.png, first on line 2", "one row for each file"),
        (GOOD.encode() + b"./a.png,dog,test\n", "line 6: a file twice", "a.png, first on line 2", "one row"),
        (GOOD.encode() + b"e.png,dog\n", "line 6", "2 fields: e.png,dog", "quote a field that holds a comma"),
        (GOOD.encode() + b"e,1.png,dog,test\n", "line 6", "4 fields", "3 fields, as in the header"),
        (GOOD.encode() + b'e.png,"dog,test\n', "not a CSV file", "unexpected end of data", "UTF-8"),
        (GOOD.encode() + b"e.png, ,test\n", "line 6: label", "nothing", "the class of the image"),
        (GOOD.encode() + b",dog,test\n", "line 6: file_name", "nothing", "relative to"),
        (GOOD.encode() + b"/e.png,dog,test\n", "line 6: file_name", "/e.png", "relative to"),
        (GOOD.encode() + b"../e.png,dog,test\n", "line 6: file_name", "../e.png", "inside it"),
        (GOOD.encode() + b"a\\e.png,dog,test\n", "line 6: file_name", "a\\e.png", "a path with /"),
        (GOOD.encode() + b"e.png,dog,tset\n", "line 6: split", "tset", "train, val, valid, validation, test"),
        (GOOD.encode() + b"e.png,dog,\n", "line 6: split", "nothing", "train, val"),
        (GOOD.replace("test", "train").encode(), "a split is missing", "train", "train and val or test"),
        (GOOD.replace("train", "val").encode(), "a split is missing", "test, val", "train and val or test"),
        (b"file_name,label,split\n", "a split is missing", "no rows", "train and val or test"),
        (b"file_name,label,label\na.png,cat,cat\n", "a column twice", "label", "a header"),
        (GOOD.replace("dog", "cat").encode(), "too few labels", "1 among 4 of 4 rows", "at least two"),
        (GOOD.replace("dog,test", "owl,test").encode(), "labels that are missing from train", "owl", "cat, dog"),
        (b"file_name,label,group\na.png,cat,p\nb.png,dog,\n", "line 3: group", "nothing", "a group in every row, or in none"),
    ],
)
def test_an_unreadable_table_raises_with_its_line(table, what, found, fragment, tmp_path):
    make_table_folder(tmp_path, GOOD)
    (tmp_path / "metadata.csv").write_bytes(table)
    with pytest.raises(UserError) as error:
        read_folder(tmp_path)
    assert what in error.value.what
    assert "metadata.csv" in error.value.what
    assert found in error.value.found
    assert fragment in f"{error.value.expected} {error.value.do}"


def test_a_table_without_existing_files_raises(tmp_path):
    folder = make_table_folder(tmp_path / "d", GOOD, only=())
    with pytest.raises(UserError, match="0 among 0 of 4 rows whose file exists"):
        read_folder(folder)


def test_class_folders_have_no_table(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    assert metadata_csv.metadata_files(tmp_path) == {}


IMAGES = ("in/train/0.png", "in/train/1.png", "in/test/0.png", "in/test/1.png")
LABELED = [(name, "ab"[number % 2], name.split("/")[1]) for number, name in enumerate(IMAGES)]


def make_images(folder):
    for number, name in enumerate(IMAGES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name)
    return folder


def write_table(folder, header, rows, name="metadata.csv"):
    (folder / name).write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    return folder


@pytest.mark.parametrize(
    "root",
    ["D:\\photos\\", "\\\\server\\share\\photos\\", "photos\\", "/home/ann/photos/"],
    ids=["drive", "share", "relative", "posix"],
)
def test_paths_of_another_computer_are_resolved_by_their_ends(root, tmp_path):
    rows = [(root + name.replace("/", "\\" if "\\" in root else "/"), *rest) for name, *rest in LABELED]
    _, splits, notes = read_folder(write_table(make_images(tmp_path), HEADER[:3], rows))
    assert sorted([*splits["train"].names, *splits["test"].names]) == sorted(IMAGES)
    assert "4 paths of another computer are resolved by their ends" in "\n".join(notes)


def test_a_path_of_another_computer_that_may_mean_two_files_raises(tmp_path):
    rows = [("C:\\0.png", "a", "train"), *LABELED[1:]]
    with pytest.raises(UserError, match="line 2: file_name") as error:
        read_folder(write_table(make_images(tmp_path), HEADER[:3], rows))
    assert "one file only" in error.value.do


@pytest.mark.parametrize("labels", ["a|b", "a ; b", "[0, 1]", '"a,b"'])
def test_several_labels_in_a_field_raise(labels, tmp_path):
    rows = [*LABELED[:3], (LABELED[3][0], labels if labels[0] != "[" else f'"{labels}"', "test")]
    with pytest.raises(UserError, match="line 5: multi-label is not supported"):
        read_folder(write_table(make_images(tmp_path), HEADER[:3], rows))


def test_a_column_for_each_class_raises(tmp_path):
    rows = [(name, str(number % 2), str(1 - number % 2)) for number, name in enumerate(IMAGES)]
    with pytest.raises(UserError, match="multi-label is not supported") as error:
        read_folder(write_table(make_images(tmp_path), ("file_name", "fox", "owl"), rows))
    assert "fox, owl" in error.value.found


@pytest.mark.parametrize("header", [("image", "class", "split"), ("Path", "Target", "split"), ("filename", "label", "split")])
def test_other_names_of_columns_are_noted(header, tmp_path):
    _, splits, notes = read_folder(write_table(make_images(tmp_path), header, LABELED))
    assert set(splits["train"].names) == set(IMAGES[:2])
    assert f"metadata.csv: column {header[0]} is read as file_name" in notes


def test_a_table_with_another_name_is_read_if_nothing_else_labels_the_images(tmp_path):
    write_table(make_images(tmp_path), HEADER[:3], LABELED, name="labels.csv")
    (tmp_path / "prices.csv").write_text("day,price\n1,2\n")
    before = digest(tmp_path)
    assert set(read_folder(tmp_path)[1]["train"].names) == set(IMAGES[:2])
    (tmp_path / "labels.csv").write_text((tmp_path / "labels.csv").read_text().replace(",b,", ",c,"))
    assert digest(tmp_path) != before
    write_table(tmp_path, HEADER[:3], LABELED, name="more.csv")
    with pytest.raises(UserError, match="several tables"):
        read_folder(tmp_path)


def test_json_lines_are_read_in_the_folder_or_in_each_split(tmp_path):
    lines = [json.dumps({"file_name": name, "label": label, "split": split}) for name, label, split in LABELED]
    (make_images(tmp_path) / "metadata.jsonl").write_text("\n".join(lines))
    assert set(read_folder(tmp_path)[1]["test"].names) == set(IMAGES[2:])
    (tmp_path / "metadata.jsonl").write_text("\n".join([*lines, "{"]))
    with pytest.raises(UserError, match="line 5: not JSON"):
        read_folder(tmp_path)
    inner = make_images(tmp_path / "inner") / "in"
    for split in ("train", "test"):
        rows = [json.dumps({"file_name": f"{number}.png", "label": number}) for number in range(2)]
        (inner / split / "metadata.jsonl").write_text("\n".join(rows))
    assert read_folder(inner)[0] == ("0", "1")
