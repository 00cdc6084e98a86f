"""Tables of texts: their columns, splits, groups and mistakes."""

from __future__ import annotations

import json

import pytest

from xferbench.core.errors import UserError
from xferbench.data import inputs, sources, text_tables
from xferbench.data.raw import TextExample

ROWS = [("I liked it", "pos"), ("I did not", "neg"), ("Great", "pos"), ("Awful", "neg")]


def read_texts(path):
    return text_tables.read_texts(path, path.suffix[1:])


def write_csv(path, header, rows):
    path.write_text("\n".join([header, *(",".join(f'"{cell}"' for cell in row) for row in rows)]) + "\n")
    return path


def with_splits(rows=ROWS):
    return [(*row, split) for split in ("train", "test") for row in rows]


def test_a_table_has_the_classes_and_the_splits_of_its_columns(tmp_path):
    classes, splits, notes = read_texts(write_csv(tmp_path / "t.csv", "text,label,split", with_splits()))
    assert classes == ("neg", "pos")
    assert {name: len(split.labels) for name, split in splits.items()} == {"train": 4, "test": 4}
    assert splits["train"].images[0] == TextExample("I liked it")
    assert splits["train"].labels.tolist() == [1, 0, 1, 0]
    assert notes == ()


def test_json_lines_and_pairs_are_read(tmp_path):
    rows = [
        {"premise": "a man", "hypothesis": "a person", "label": n % 2, "split": s} for n in range(4) for s in ("train", "dev")
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    classes, splits, notes = read_texts(tmp_path / "t.jsonl")
    assert classes == ("0", "1")
    assert splits["test"].images[0] == TextExample("a man", "a person")
    assert "t.jsonl: column premise is read as text" in notes


def test_whole_numbers_are_classes_in_numeric_order(tmp_path):
    rows = [(f"text {n}", n, split) for n in (10, 9, -1, 2) for split in ("train", "test")]
    assert read_texts(write_csv(tmp_path / "t.csv", "text,label,split", rows))[0] == ("-1", "2", "9", "10")


def test_without_a_column_split_a_test_set_is_cut_and_a_note_says_so(tmp_path):
    rows = [(f"text {n}", "ab"[n % 2]) for n in range(40)]
    _, splits, notes = read_texts(write_csv(tmp_path / "t.csv", "text,label", rows))
    assert (len(splits["train"].labels), len(splits["test"].labels)) == (32, 8)
    assert notes == ("t.csv: no column split, so 8 of 40 texts are the test set",)


def test_groups_stay_together_and_a_column_like_one_is_asked_about(tmp_path):
    rows = [(f"text {n}", "ab"[n % 2], n // 4) for n in range(40)]
    _, splits, _ = read_texts(write_csv(tmp_path / "t.csv", "text,label,group", rows))
    assert not set(splits["train"].groups) & set(splits["test"].groups)
    _, _, notes = read_texts(write_csv(tmp_path / "t.csv", "text,label,patient_id", rows))
    assert any("is `patient_id` your group?" in note for note in notes)


def test_a_text_with_two_labels_is_noted(tmp_path):
    _, _, notes = read_texts(write_csv(tmp_path / "t.csv", "text,label,split", [*with_splits(), ("Great", "neg", "train")]))
    assert notes == ("t.csv: line 10: a text with two labels (Great)",)


@pytest.mark.parametrize(
    ("header", "rows", "what"),
    [
        ("words,label", ROWS, "no column text"),
        ("text,kind", ROWS, "no column label"),
        ("text,label", [("", "pos")], "line 2: text"),
        ("text,label", [("a", " ")], "line 2: label"),
        ("text,label", [("a", "x"), ("b", "x")], "too few labels"),
        ("text,label,split", [("a", "x", "holdout"), ("b", "y", "train")], "line 2: split"),
        ("text,label,split", [("a", "x", "train"), ("b", "y", "train")], "a split is missing"),
        ("text,label,split", [("a", "x", "train"), ("b", "y", "train"), ("c", "z", "test")], "labels that are missing"),
        ("text,label,group", [("a", "x", "1"), ("b", "y", "")], "line 3: group"),
        ("text,label", [("a", "x|y"), ("b", "y")], "multi-label is not supported"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_line(header, rows, what, tmp_path):
    with pytest.raises(UserError, match=r"t\.csv") as caught:
        read_texts(write_csv(tmp_path / "t.csv", header, rows))
    assert what in caught.value.what


def test_a_suite_names_a_table_by_its_kind(tmp_path):
    path = write_csv(tmp_path / "t.csv", "text,label,split", with_splits())
    before = inputs.digest_data(f"csv:{path}")
    assert sources.read_dataset(before.spec, None)[0] == ("neg", "pos")
    path.write_text(path.read_text().replace("Awful", "Dreadful"))
    assert inputs.digest_data(f"csv:{path}").digest != before.digest
    with pytest.raises(UserError, match="unknown kind") as caught:
        inputs.split_spec(str(path))
    assert caught.value.do == f"write csv:{path}"
    with pytest.raises(UserError, match="no such file"):
        inputs.split_spec(f"jsonl:{tmp_path / 'none.jsonl'}")


def test_the_embedded_language_is_a_synthetic_dataset():
    classes, splits, _ = sources.read_dataset("synthetic:text-near", None)
    assert len(classes) == len(set(splits["train"].labels))
    assert all(isinstance(example, TextExample) for example in splits["test"].images)


def test_the_kind_and_not_the_name_decides_how_a_table_is_read(tmp_path):
    rows = [
        {"text": f"a\u2028b {number}", "label": number % 2, "split": split}
        for number in range(4)
        for split in ("train", "test")
    ]
    (tmp_path / "t.JSON").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    classes, splits, left_out = sources.read_dataset(f"jsonl:{tmp_path / 't.JSON'}", None)
    assert (classes, left_out) == (("0", "1"), ())
    assert splits["train"].images[0] == TextExample("a\u2028b 0")


def test_a_long_document_and_half_a_character_are_read(tmp_path):
    rows = [(f"{number} {'word ' * 40_000}", "ab"[number % 2], split) for number in range(4) for split in ("train", "test")]
    assert len(read_texts(write_csv(tmp_path / "t.csv", "text,label,split", rows))[1]["train"].images[0].text) > 131_072
    lines = [
        json.dumps({"text": "cut \ud83d", "label": label, "split": split}) for label in "ab" for split in ("train", "test")
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    assert read_texts(tmp_path / "t.jsonl")[1]["train"].images[0].text == "cut ?"


def test_notes_on_columns_are_no_lost_data(tmp_path):
    path = write_csv(tmp_path / "t.csv", "sentence,label,split,id", [(*row, index) for index, row in enumerate(with_splits())])
    assert sources.read_dataset(f"csv:{path}", None)[2] == ()
    notes = sources.layout_notes(f"csv:{path}")[1]
    assert notes == ("t.csv: column sentence is read as text", "t.csv: column id is not used")
