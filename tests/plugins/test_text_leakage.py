"""Copies of texts: in a table with planted ones, through the whole line, and in an audit of a finished network."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file
from test_data_leakage import SUITE as IMAGE_SUITE
from test_data_leakage import run_suite

from xferbench.analysis import exit_code
from xferbench.cli import main
from xferbench.core.errors import UserError
from xferbench.core.interventions import AlteredTestImages, CopiedTestImages
from xferbench.core.pipeline import Data
from xferbench.core.reason import Code
from xferbench.core.record import Record
from xferbench.core.suite import TEXT_COPY_KINDS
from xferbench.core.transforms import Tokens
from xferbench.core.trial import TrainingData, TrainingSpec
from xferbench.data import inputs, language, leaks, text_fingerprints
from xferbench.lab.data import datasets, tokens
from xferbench.lab.evaluation import leakage
from xferbench.lab.evaluation.context import TrialContext
from xferbench.plugins.data_leakage import plugin
from xferbench.testing import fake_lab

TRAIN, TEST, COPIED = 240, 80, 12


def write_table(path, rows):
    """Write a table of texts. A row is a text, or a pair of texts, with its label, split and group."""
    has_pairs = isinstance(rows[0][0], tuple)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *["text_pair"] * has_pairs, "label", "split", "group"])
        writer.writerows([*(text if has_pairs else (text,)), *others] for text, *others in rows)
    return Data(digest=path.stem, spec=f"csv:{path}")


@pytest.fixture(scope="module")
def leaky_table(tmp_path_factory):
    """A table whose first 12 of 80 test texts are in training in capitals, and one of whose groups is in both splits."""
    (train, labels), (test, others) = (
        language.generate("near", split, count) for split, count in (("train", TRAIN), ("test", TEST))
    )
    rows = [
        (text, label % 3, "train", f"t{number // 10}") for number, (text, label) in enumerate(zip(train, labels, strict=True))
    ]
    copies = [(train[number].upper(), labels[number] % 3, "test", "t3") for number in range(30, 30 + COPIED)]
    unique = [(text, label % 3, "test", f"o{number}") for number, (text, label) in enumerate(zip(test, others, strict=True))]
    return write_table(tmp_path_factory.mktemp("leaky") / "leaky.csv", [*rows, *copies, *unique[COPIED:]])


@pytest.fixture(scope="module")
def transform():
    return replace(tokens.recorded_tokens(inputs.SHIPPED_WEIGHTS_FOLDER / "tiny-bert-0" / "model.safetensors"), max_length=48)


def test_copies_are_found_in_the_order_of_the_test_texts(leaky_table, transform, tmp_path):
    is_leaked = leaks.leaked_examples(leaky_table, None, (), tmp_path)
    test = datasets.load_dataset(leaky_table, transform, None, tmp_path).test
    leaky_group = np.bincount(test.groups).argmax()
    assert np.array_equal(is_leaked, test.groups == leaky_group)
    assert np.array_equal(leaks.leaked_examples(leaky_table, 30, (), tmp_path), is_leaked[:30])


def test_the_lines_of_both_texts_are_listed(leaky_table, tmp_path):
    duplicates = leaks.list_duplicates(leaky_table, None, (), tmp_path)
    assert {(duplicate.dataset, duplicate.kind, duplicate.similarity) for duplicate in duplicates} == {("train", "exact", 1.0)}
    lines = {(duplicate.test, duplicate.original) for duplicate in duplicates}
    assert lines == {(f"leaky.csv: line {TRAIN + 2 + n}", f"leaky.csv: line {32 + n}") for n in range(COPIED)}


def test_a_pretraining_set_of_texts_is_searched_too(leaky_table, tmp_path):
    test = text_fingerprints.read_texts(leaky_table, "test")
    rows = [(example.text, number % 3, "test" if number < 3 else "train", "a") for number, example in enumerate(test[:43])]
    source = write_table(tmp_path / "source.csv", rows)
    matches = leaks.find_leaked_duplicates(leaky_table, None, (source,), tmp_path)
    assert list(matches) == ["train", source.spec]
    assert np.flatnonzero(matches[source.spec].found).tolist() == list(range(3, 43))
    with pytest.raises(UserError, match="compared with texts"):
        leaks.find_leaked_duplicates(leaky_table, None, (Data(digest="n", spec="synthetic:near"),), tmp_path)


@pytest.mark.parametrize("kind", ["shortened", "swapped", "repunctuated"])
def test_a_test_set_of_pairs_that_is_in_training_as_altered_copies_is_found(kind, tmp_path):
    from xferbench.data.altered_texts import alter_text

    texts, rng = language.generate("near", "train", 400)[0], np.random.default_rng(0)
    pairs = [text_fingerprints.TextExample(*pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
    copies = [alter_text(pair, kind, rng, pairs[0]) for pair in pairs[:40]]
    rows = [(tuple(pair), number % 2, "train", "") for number, pair in enumerate([*copies, *pairs[40:160]])]
    rows += [(tuple(pair), number % 2, "test", "") for number, pair in enumerate([*pairs[:40], *pairs[160:]])]
    matches = leaks.find_leaked_duplicates(write_table(tmp_path / "pairs.csv", rows), None, (), tmp_path)["train"]
    expected = {"swapped": "swapped", "shortened": "near", "repunctuated": "exact"}[kind]
    counts = leaks.count_duplicates({"train": matches})
    assert counts[f"{expected} in train"] >= 38 and matches.found.sum() <= 40


def test_the_recall_has_the_kinds_of_texts(leaky_table, tmp_path):
    counts = leaks.search_recall(leaky_table, None, (), tmp_path)["train"]
    assert counts[:, 1].sum() == min(TEST - COPIED, TRAIN // 2)
    recall = leaks.lowest_recall(leaky_table, None, (), tmp_path)
    assert tuple(recall) == TEXT_COPY_KINDS
    assert all(found >= 0.75 * altered for kind, (found, altered) in recall.items() if kind != "misspelled")


@pytest.mark.parametrize("kind", [CopiedTestImages, AlteredTestImages])
def test_injected_texts_replace_training_texts_of_their_class_and_are_found(leaky_table, transform, tmp_path, kind):
    dataset = datasets.load_dataset(leaky_table, transform, None, tmp_path)
    injected = kind(share=0.2)
    data = TrainingData(dataset=leaky_table, train_size=None, preprocessing=transform, injected_duplicates=injected)
    test_indices, places = leakage.choose_injected(dataset, injected, 0)
    changed = leakage.inject_duplicates(dataset, data, 0)
    assert len(set(places.tolist())) == len(test_indices) == 16
    assert np.array_equal(changed.train.labels[places], dataset.test.labels[test_indices])
    others = np.setdiff1d(np.arange(TRAIN), places)
    assert np.array_equal(changed.train.images[others], dataset.train.images[others])
    copies = changed.train.images[places]
    assert np.array_equal(copies, dataset.test.images[test_indices]) == (kind is CopiedTestImages)
    lengths = [(images[:, 1] >= 0).sum(1) for images in (copies, dataset.test.images[test_indices])]
    assert (lengths[0] <= lengths[1]).all(), "an altered copy has fewer words"
    spec = TrainingSpec(network=None, data=data, procedure=None, seed=0)
    trial = TrialContext(spec=spec, view=None, dataset=changed, cache=tmp_path, injected_duplicates=test_indices)
    leaked, recall = leakage.detection_of_injected(trial, test_indices, np.zeros(TEST, bool))
    assert recall >= 0.9 and leaked.sum() == round(16 * recall)
    assert set(np.flatnonzero(leaked)) <= set(test_indices.tolist())


SUITE = IMAGE_SUITE.replace("tiny-resnet", "tiny-bert").replace("npz:", "")


def test_texts_that_are_in_training_fail_and_are_listed(leaky_table, tmp_path):
    code, by_id = run_suite(tmp_path, SUITE.format(allowed=0.01, data=leaky_table.spec))
    assert code == exit_code.FAILED
    for contrast in ("identical", "copies", "groups"):
        assert by_id[f"data-leakage/{contrast}"]["verdict"] == "FAIL"
    assert by_id["data-leakage/inflation"]["verdict"] == "INFO"
    copies = by_id["data-leakage/copies"]
    assert copies["control"] == by_id["data-leakage/identical"]["control"] == "detected"
    assert copies["measures"]["subject/copies"] == pytest.approx(COPIED / TEST)
    assert "copies among 80 test texts: 12 exact in train; searched: train" in copies["reason"]
    assert "image" not in copies["reason"]
    header, *rows = (tmp_path / "out" / "duplicates.csv").read_text().splitlines()
    assert header == "test,original,dataset,kind,similarity"
    assert len(rows) == COPIED
    assert "leaky.csv: line" in (tmp_path / "out" / "report.html").read_text()


def test_different_texts_pass_if_the_suite_does_without_typing_errors(tmp_path):
    unsearched = '0.01\nunsearched_copies = ["misspelled"]'
    _, by_id = run_suite(tmp_path, SUITE.format(allowed=unsearched, data="synthetic:text-near"))
    assert by_id["data-leakage/identical"]["verdict"] == by_id["data-leakage/copies"]["verdict"] == "PASS"
    assert "swapped 100 of 100" in by_id["data-leakage/copies"]["reason"]


def test_an_audit_finds_copies_in_the_training_texts_of_a_finished_network(leaky_table, tmp_path):
    after = tmp_path / "after"
    shutil.copytree(inputs.SHIPPED_WEIGHTS_FOLDER / "tiny-bert-0", after)
    state = load_file(after / "model.safetensors")
    classes = len(language.CLASSES["source"])
    save_file(
        {name: tensor[:3].clone() if len(tensor) == classes else tensor for name, tensor in state.items()},
        after / "model.safetensors",
    )
    arguments = ["audit", "--after", str(after), "--arch", "tiny-bert", "--data", leaky_table.spec, "--checks", "data-leakage"]
    code = main.main([*arguments, "-o", str(tmp_path / "out"), "--store", str(tmp_path / "s.sqlite"), "-j", "1"])
    assert code == exit_code.FAILED
    by_id = {finding["id"]: finding for finding in json.loads((tmp_path / "out" / "results.json").read_text())["findings"]}
    for contrast in ("identical", "copies", "groups"):
        assert by_id[f"data-leakage/{contrast}"]["verdict"] == "FAIL"
    assert "12 exact in train" in by_id["data-leakage/copies"]["reason"]


def test_a_manifest_of_images_is_refused_for_texts_before_anything_is_trained(leaky_table, tmp_path):
    (tmp_path / "seen.npz").write_bytes(b"")
    text = SUITE.format(allowed=0.01, data=leaky_table.spec) + f'[source]\nmanifest = "{tmp_path / "seen.npz"}"\n'
    (tmp_path / "manifest.toml").write_text(text)
    assert main.main(["validate", str(tmp_path / "manifest.toml")]) == 2
    manifest = Data(digest="m", spec=f"manifest:{tmp_path / 'seen.npz'}")
    with pytest.raises(UserError, match="seen"):
        leaks.find_leaked_duplicates(leaky_table, None, (manifest,), tmp_path)


def make_recall_records(found):
    scalars = {"copies": 0.0, "searched train": 1.0, "test texts": 99.0}
    scalars |= {f"{name} {kind}": 30.0 for kind in TEXT_COPY_KINDS for name in ("found", "altered")} | found
    return {("subject", "copies", 0): Record(key="a", scalars=scalars)}


@pytest.mark.parametrize(("found", "is_enough"), [(30.0, True), (20.0, True), (19.0, False), (0.0, False)])
def test_a_kind_of_copy_of_texts_that_the_search_does_not_find_prevents_a_pass(found, is_enough):
    rules, by_term = fake_lab.SUITE.rules, make_recall_records({"found swapped": found})
    reason = plugin.why_no_pass("copies", by_term, rules)
    assert (reason is None) == is_enough
    if reason is not None:
        assert reason.code == Code.LOW_RECALL
        assert [kind for kind, *_ in reason.values["kinds"]] == ["swapped"]
    assert plugin.why_no_pass("copies", by_term, replace(rules, unsearched_copies=("swapped",))) is None


def test_a_search_of_texts_without_a_recall_does_not_pass():
    records = {("subject", "copies", 0): Record(key="a", scalars={"copies": 0.0, "test texts": 9.0})}
    kinds = plugin.why_no_pass("copies", records, fake_lab.SUITE.rules).values["kinds"]
    assert tuple(kind for kind, *_ in kinds) == TEXT_COPY_KINDS


def test_texts_and_images_are_searched_and_spectrograms_are_not():
    from xferbench.core.pipeline import replace_data
    from xferbench.core.transforms import Spectrogram

    for transform, applies in ((Tokens(), True), (fake_lab.PIPELINE.data.train_preprocessing, True), (Spectrogram(), False)):
        pipeline = replace_data(fake_lab.PIPELINE, train_preprocessing=transform)
        assert (plugin.applies(pipeline, fake_lab.PROFILE) == "") == applies
