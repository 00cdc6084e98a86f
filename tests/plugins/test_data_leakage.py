from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from xferbench.analysis import estimates, exit_code
from xferbench.cli import main
from xferbench.core.interventions import AlteredTestImages, CopiedTestImages
from xferbench.core.pipeline import Data
from xferbench.core.plugin import Contrast
from xferbench.core.reason import Code, because
from xferbench.core.record import Record
from xferbench.core.run import Duplicate
from xferbench.core.suite import COPY_KINDS
from xferbench.core.transforms import Preprocessing
from xferbench.core.trial import TrainingData
from xferbench.data import altered_copies, leaks, synthetic
from xferbench.lab.data import datasets
from xferbench.lab.evaluation import leakage
from xferbench.plugins.data_leakage import plugin
from xferbench.report.files import read_run
from xferbench.report.messages import write_sentence
from xferbench.study import trials
from xferbench.testing import fake_lab

RAW = Preprocessing()


def make_images(count, seed=0, name="near"):
    images, labels = synthetic.generate(name, "train", count + 200 * seed)
    return images[-count:], labels[-count:] % 4


@pytest.fixture(scope="module")
def leaky_dataset(tmp_path_factory):
    """Drawings in an npz file. The first 12 of 60 test images are training images too, and one group is in both splits."""
    train, labels = make_images(300)
    test, others = make_images(60, seed=2)
    test = np.concatenate([train[:12], test[12:]])
    path = tmp_path_factory.mktemp("leaky") / "leaky.npz"
    np.savez(
        path,
        train_images=train,
        train_labels=labels,
        test_images=test,
        test_labels=np.concatenate([labels[:12], others[12:]]),
        train_groups=np.arange(300) // 10,
        test_groups=np.concatenate([[3] * 12, 1000 + np.arange(48) // 4]),
    )
    return path


def make_data(path):
    return Data(digest=path.stem, spec=f"npz:{path}")


def test_copies_are_found_in_the_order_of_the_test_images(leaky_dataset, tmp_path):
    is_leaked = leaks.leaked_examples(make_data(leaky_dataset), None, (), tmp_path)
    test = datasets.load_dataset(make_data(leaky_dataset), RAW, None, tmp_path).test
    assert np.array_equal(is_leaked, test.groups == 3)


def test_a_limit_restricts_the_search_to_the_first_images(leaky_dataset, tmp_path):
    is_leaked, is_leaked_in_part = (
        leaks.leaked_examples(make_data(leaky_dataset), limit, (), tmp_path) for limit in (None, 25)
    )
    assert np.array_equal(is_leaked_in_part, is_leaked[:25])


def test_a_pretraining_set_is_searched_beside_the_training_images(leaky_dataset, tmp_path):
    from xferbench.data import manifest

    file = tmp_path / "seen.xfb"
    other_dataset = tmp_path / "other.npz"
    arrays = np.load(leaky_dataset)
    np.savez(
        other_dataset,
        **{name: arrays[name] for name in arrays.files}
        | {
            "train_images": arrays["test_images"][20:],
            "train_labels": arrays["test_labels"][20:],
            "train_groups": arrays["test_groups"][20:],
        },
    )
    image_manifest, _ = manifest.make_manifest(f"npz:{other_dataset}")
    manifest.write_manifest(image_manifest, file)
    duplicates = leaks.find_leaked_duplicates(
        make_data(leaky_dataset), None, (Data(digest="m", spec=f"manifest:{file}"),), tmp_path
    )
    assert next(iter(duplicates)) == "train"
    assert list(duplicates)[1].endswith("(by its manifest)")
    by_manifest = list(duplicates.values())[1]
    assert by_manifest.found.sum() == 40
    assert (
        leaks.leaked_examples(make_data(leaky_dataset), None, (Data(digest="m", spec=f"manifest:{file}"),), tmp_path).sum()
        == 52
    )


@pytest.mark.parametrize("kind", [CopiedTestImages, AlteredTestImages])
def test_injected_duplicates_replace_training_images_of_their_class(leaky_dataset, tmp_path, kind):
    dataset = datasets.load_dataset(make_data(leaky_dataset), RAW, None, tmp_path)
    injected = kind(share=0.2)
    data = TrainingData(dataset=make_data(leaky_dataset), train_size=None, preprocessing=RAW, injected_duplicates=injected)
    test_indices, places = leakage.choose_injected(dataset, injected, 0)
    changed = leakage.inject_duplicates(dataset, data, 0)
    assert len(test_indices) == len(places) == len(set(places.tolist())) == 12
    assert np.array_equal(changed.train.labels, dataset.train.labels)
    assert np.array_equal(changed.train.labels[places], dataset.test.labels[test_indices])
    others = np.setdiff1d(np.arange(len(dataset.train.labels)), places)
    assert np.array_equal(changed.train.images[others], dataset.train.images[others])
    is_identical = np.array_equal(changed.train.images[places], dataset.test.images[test_indices])
    assert is_identical == (kind is CopiedTestImages)


SUITE = """
schema = 1
name = "leaky"
plugins = ["data-leakage"]
looks = [1]
tuning_seeds = 1
max_duplicates = {allowed}
[backbone]
arch = "tiny-resnet"
[target]
data = "npz:{data}"
train_size = 40
[recipe]
strategy = "linear-probe"
steps = 4
[scratch]
lr = [1e-3]
weight_decay = [0.01]
steps = 2
"""


def run_suite(tmp_path, text):
    """Run a suite. Return the exit code, and the findings by their id."""
    file, out = tmp_path / "leaky.toml", tmp_path / "out"
    file.write_text(text)
    code = main.main(["run", str(file), "-o", str(out), "--store", str(tmp_path / "s.sqlite"), "-j", "1"])
    return code, {finding["id"]: finding for finding in json.loads((out / "results.json").read_text())["findings"]}


@pytest.mark.parametrize("allowed", [0.0, 0.25])
def test_an_identical_copy_always_fails_and_altered_ones_unless_the_suite_allows_them(leaky_dataset, tmp_path, allowed):
    unsearched = f"{allowed}\nunsearched_copies = {list(COPY_KINDS)}"
    code, by_id = run_suite(tmp_path, SUITE.format(allowed=unsearched, data=leaky_dataset))
    assert code == exit_code.FAILED
    assert by_id["data-leakage/groups"]["verdict"] == "FAIL"
    assert "groups on both sides: 1" in by_id["data-leakage/groups"]["reason"]
    assert by_id["data-leakage/identical"]["verdict"] == "FAIL"
    inflation = by_id["data-leakage/inflation"]
    assert inflation["verdict"] == "INFO"
    assert inflation["low"] <= inflation["harm"] <= inflation["high"]
    assert (
        f"all test examples − those without a copy: {100 * inflation['harm']:+.1f}" in by_id["data-leakage/identical"]["reason"]
    )
    copies = by_id["data-leakage/copies"]
    assert copies["verdict"] == ("FAIL" if allowed == 0 else "PASS")
    assert copies["control"] == by_id["data-leakage/identical"]["control"] == "detected"
    assert copies["measures"]["subject/copies"] == pytest.approx(12 / 60)
    assert "cured/copies" not in copies["measures"], "the unique split has no copies by construction"
    assert "copies among 60 test images: 12 exact in train; searched: train" in copies["reason"]


@pytest.mark.parametrize("kind", ["flipped", "cropped"])
def test_a_test_set_that_is_in_training_as_altered_copies_fails(shared, tmp_path, kind):
    arrays, rng = np.load(shared / "data" / "cifar10.npz"), np.random.default_rng(0)
    train, test = arrays["train_images"][:300].copy(), arrays["test_images"][:60]
    labels = arrays["train_labels"][:300].copy()
    train[:60] = [altered_copies.alter_image(image, kind, rng) for image in test]
    labels[:60] = arrays["test_labels"][:60]
    dataset = tmp_path / "altered.npz"
    np.savez(dataset, train_images=train, train_labels=labels, test_images=test, test_labels=arrays["test_labels"][:60])
    matches = leaks.find_leaked_duplicates(make_data(dataset), None, (), tmp_path)["train"]
    assert (matches.kind == kind).mean() > 0.8


def test_photographs_have_a_recall_of_each_kind_of_copy(shared, tmp_path):
    arrays = np.load(shared / "data" / "cifar10.npz")
    dataset = tmp_path / "photographs.npz"
    np.savez(
        dataset,
        **{f"{split}_{name}": arrays[f"{split}_{name}"][:300] for split in ("train", "test") for name in ("images", "labels")},
    )
    counts = leaks.search_recall(make_data(dataset), None, (), tmp_path)["train"]
    assert counts[:, 1].tolist() == [30] * len(COPY_KINDS)
    assert (counts[:, 0] >= 24).all()


def make_recall_records(found):
    scalars = {"copies": 0.0, "searched train": 1.0, "test images": 99.0}
    scalars |= {f"found {kind}": 30.0 for kind in COPY_KINDS} | {f"altered {kind}": 30.0 for kind in COPY_KINDS} | found
    return {("subject", "copies", 0): Record(key="a", scalars=scalars)}


@pytest.mark.parametrize(("found", "is_enough"), [(30.0, True), (20.0, True), (19.0, False), (0.0, False)])
def test_a_kind_of_copy_that_the_search_does_not_find_prevents_a_pass(found, is_enough):
    rules, by_term = fake_lab.SUITE.rules, make_recall_records({"found cropped": found})
    reason = plugin.why_no_pass("copies", by_term, rules)
    assert (reason is None) == is_enough
    if reason is not None:
        assert reason.code == Code.LOW_RECALL
        assert [kind for kind, *_ in reason.values["kinds"]] == ["cropped"]
        assert "cropped" in write_sentence(reason)
    assert plugin.why_no_pass("copies", by_term, replace(rules, unsearched_copies=("cropped",))) is None


def test_a_search_without_a_recall_does_not_pass():
    records = {("subject", "copies", 0): Record(key="a", scalars={"copies": 0.0})}
    assert len(plugin.why_no_pass("copies", records, fake_lab.SUITE.rules).values["kinds"]) == len(COPY_KINDS)


def test_a_pass_names_what_was_searched():
    text = plugin.explain("copies", make_recall_records({}), fake_lab.PIPELINE, fake_lab.PIPELINE)
    assert "searched: train;" in text
    assert "cropped 30 of 30" in text
    assert "pretraining" not in " ".join(contrast.meaning for contrast in plugin.contrasts)


def test_without_groups_the_check_of_groups_is_skipped(leaky_dataset, tmp_path):
    arrays, dataset = np.load(leaky_dataset), tmp_path / "single.npz"
    np.savez(dataset, **{name: arrays[name] for name in arrays.files if "groups" not in name})
    _, by_id = run_suite(tmp_path, SUITE.format(allowed=0.01, data=dataset))
    assert by_id["data-leakage/groups"]["verdict"] == "SKIPPED"
    assert "the data have no groups" in by_id["data-leakage/groups"]["reason"]


def test_the_files_of_a_copy_are_in_the_report_the_json_and_the_csv(tmp_path):
    images, labels = make_images(90)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        for split in ("train", "val") if index == 7 else ("train",) if index < 60 else ("val",):
            folder = tmp_path / "data" / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{split}-{index}.png")
    text = SUITE.format(allowed=0.01, data="X").replace("npz:X", f"folder:{tmp_path / 'data'}")
    run_suite(tmp_path, text)
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text())["duplicates"]
    assert (entry["dataset"], entry["kind"], entry["similarity"]) == ("train", "exact", 1.0)
    assert entry["test"].endswith("val-7.png")
    assert entry["original"].endswith("train-7.png")
    header, row = (tmp_path / "out" / "duplicates.csv").read_text().splitlines()
    assert header == "test,original,dataset,kind,similarity"
    assert row == ",".join([entry["test"], entry["original"], "train", "exact", "1.0"])
    assert "val-7.png" in (tmp_path / "out" / "report.html").read_text()
    assert read_run(tmp_path / "out").duplicates == (Duplicate(**entry),)


def test_a_mean_over_a_part_of_the_examples_is_compared_with_the_mean_over_all():
    all_predictions = fake_lab.fake_predictions(0.8, 0, 100)
    is_in_part = np.arange(100) % 4 > 0
    part_predictions = replace(
        all_predictions,
        **{name: getattr(all_predictions, name)[is_in_part] for name in all_predictions.__slots__ if name != "group"},
    )
    records = {
        ("subject", "whole", 0): Record(key="a", predictions=all_predictions),
        ("cured", "test", 0): Record(key="b", predictions=part_predictions),
    }
    measurement = next(contrast for contrast in plugin.contrasts if contrast.kind == "info")
    result = estimates.estimate_contrast(measurement, records, [0], fake_lab.SUITE.rules)
    is_correct = all_predictions.predicted == all_predictions.label
    assert result.estimate.harm == pytest.approx(is_correct.mean() - is_correct[is_in_part].mean())
    paired = Contrast(name="harm", weights=measurement.weights)
    assert estimates.estimate_contrast(paired, records, [0], fake_lab.SUITE.rules).error == because(Code.OTHER_EXAMPLES)
    assert estimates.estimate_contrast(
        measurement, records, [0], replace(fake_lab.SUITE.rules, metric="balanced_accuracy")
    ).error


def test_only_trials_that_compare_have_the_pretraining_set_in_their_key():
    pipeline = fake_lab.PIPELINE
    plain_trial = trials.make_trial(pipeline, "test", 0, fake_lab.CONTEXT)
    measured_trial = trials.make_trial(
        pipeline, "test", 0, fake_lab.CONTEXT, plugin.measures["copies"], needs_pretraining_data=True
    )
    unique_trial = trials.make_trial(plugin.cure(pipeline, fake_lab.PROFILE), "test", 0, fake_lab.CONTEXT)
    assert plain_trial.view.reference_data == ()
    assert measured_trial.view.reference_data == unique_trial.view.reference_data == (pipeline.data.source.data,)
    assert unique_trial.view.examples == "unique"


def test_a_dataset_of_copies_has_no_score_without_them(leaky_dataset, tmp_path):
    arrays = np.load(leaky_dataset)
    dataset_file = tmp_path / "alike.npz"
    np.savez(
        dataset_file,
        train_images=arrays["train_images"],
        train_labels=arrays["train_labels"],
        test_images=arrays["train_images"][:40],
        test_labels=arrays["train_labels"][:40],
    )
    code, by_id = run_suite(tmp_path, SUITE.format(allowed=0.0, data=dataset_file))
    assert code == exit_code.FAILED
    assert by_id["data-leakage/copies"]["verdict"] == "FAIL"
    assert by_id["data-leakage/inflation"]["verdict"] == "SKIPPED"
    assert by_id["data-leakage/inflation"]["reason"] == "cured has nothing to be scored on"
