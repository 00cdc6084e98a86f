from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from xferbench.analysis import estimates, exit_code
from xferbench.cli import main
from xferbench.core.interventions import AlteredTestImages, CopiedTestImages
from xferbench.core.pipeline import Data, Preprocessing
from xferbench.core.plugin import Contrast
from xferbench.core.reason import Code, because
from xferbench.core.record import Record
from xferbench.data import synthetic
from xferbench.lab.data import datasets
from xferbench.lab.evaluation import leakage
from xferbench.plugins.data_leakage import plugin
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
    is_leaked = leakage.leaked_examples(make_data(leaky_dataset), None, (), tmp_path)
    test = datasets.load_dataset(make_data(leaky_dataset), RAW, None, tmp_path).test
    assert np.array_equal(is_leaked, test.groups == 3)


def test_a_limit_restricts_the_search_to_the_first_images(leaky_dataset, tmp_path):
    is_leaked, is_leaked_in_part = (
        leakage.leaked_examples(make_data(leaky_dataset), limit, (), tmp_path) for limit in (None, 25)
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
    duplicates = leakage.find_leaked_duplicates(
        make_data(leaky_dataset), None, (Data(digest="m", spec=f"manifest:{file}"),), tmp_path
    )
    assert next(iter(duplicates)) == "train"
    assert list(duplicates)[1].endswith("(by its manifest)")
    by_manifest = list(duplicates.values())[1]
    assert by_manifest.found.sum() == 40
    assert (
        leakage.leaked_examples(make_data(leaky_dataset), None, (Data(digest="m", spec=f"manifest:{file}"),), tmp_path).sum()
        == 52
    )


@pytest.mark.parametrize("kind", [CopiedTestImages, AlteredTestImages])
def test_injected_duplicates_replace_training_images_of_their_class(leaky_dataset, tmp_path, kind):
    dataset = datasets.load_dataset(make_data(leaky_dataset), RAW, None, tmp_path)
    changed, test_indices, places = leakage.inject_duplicates(dataset, kind(share=0.2), 0)
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


@pytest.mark.parametrize("allowed", [0.0, 0.25])
def test_a_leak_is_a_fail_unless_the_suite_allows_it(leaky_dataset, tmp_path, allowed):
    file, out = tmp_path / "leaky.toml", tmp_path / "out"
    file.write_text(SUITE.format(allowed=allowed, data=leaky_dataset))
    code = main.main(["run", str(file), "-o", str(out), "--store", str(tmp_path / "s.sqlite"), "-j", "1"])
    by_id = {finding["id"]: finding for finding in json.loads((out / "results.json").read_text())["findings"]}
    assert code == exit_code.FAILED, "a group in both splits always fails"
    assert by_id["data-leakage/groups"]["verdict"] == "FAIL"
    assert "groups on both sides: 1" in by_id["data-leakage/groups"]["reason"]
    copies = by_id["data-leakage/copies"]
    assert copies["verdict"] == ("FAIL" if allowed == 0 else "PASS")
    assert copies["control"] == "detected"
    assert copies["measures"]["subject/copies"] == pytest.approx(12 / 60)
    assert "cured/copies" not in copies["measures"], "the unique split has no copies by construction"
    assert "copies among 60 test images: 12 exact in train" in copies["reason"]
    inflation = by_id["data-leakage/inflation"]
    assert inflation["verdict"] == "INFO"
    assert inflation["low"] <= inflation["harm"] <= inflation["high"]


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
    dataset_file, file, out = tmp_path / "alike.npz", tmp_path / "alike.toml", tmp_path / "out"
    np.savez(
        dataset_file,
        train_images=arrays["train_images"],
        train_labels=arrays["train_labels"],
        test_images=arrays["train_images"][:40],
        test_labels=arrays["train_labels"][:40],
    )
    file.write_text(SUITE.format(allowed=0.0, data=dataset_file))
    code = main.main(["run", str(file), "-o", str(out), "--store", str(tmp_path / "s.sqlite"), "-j", "1"])
    by_id = {finding["id"]: finding for finding in json.loads((out / "results.json").read_text())["findings"]}
    assert code == exit_code.FAILED
    assert by_id["data-leakage/copies"]["verdict"] == "FAIL"
    assert by_id["data-leakage/inflation"]["verdict"] == "SKIPPED"
    assert by_id["data-leakage/inflation"]["reason"] == "cured has nothing to be scored on"
