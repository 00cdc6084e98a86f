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
from xferbench.core.record import Record
from xferbench.data import synthetic
from xferbench.lab.data import datasets
from xferbench.lab.evaluation import leakage
from xferbench.plugins.data_leakage import plugin
from xferbench.study import trials
from xferbench.testing import fake_lab

RAW = Preprocessing()


def images(count, seed=0, name="near"):
    found, labels = synthetic.generate(name, "train", count + 200 * seed)
    return found[-count:], labels[-count:] % 4


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """Drawings in an npz file, the first 12 of 60 test images being training images too; groups, one of them on both sides."""
    train, labels = images(300)
    test, others = images(60, seed=2)
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


def named(path):
    return Data(digest=path.stem, spec=f"npz:{path}")


def test_copies_are_found_in_the_order_of_the_test_images(leaky, tmp_path):
    found = leakage.leaked_examples(named(leaky), None, (), tmp_path)
    test = datasets.load_dataset(named(leaky), RAW, None, tmp_path).test
    assert np.array_equal(found, test.groups == 3)


def test_a_limit_looks_at_the_first_ones_alone(leaky, tmp_path):
    whole, some = (leakage.leaked_examples(named(leaky), limit, (), tmp_path) for limit in (None, 25))
    assert np.array_equal(some, whole[:25])


def test_a_pretraining_set_is_looked_through_beside_the_training_images(leaky, tmp_path):
    from xferbench.data import manifest

    file = tmp_path / "seen.xfb"
    alone = tmp_path / "other.npz"
    held = np.load(leaky)
    np.savez(
        alone,
        **{name: held[name] for name in held.files}
        | {
            "train_images": held["test_images"][20:],
            "train_labels": held["test_labels"][20:],
            "train_groups": held["test_groups"][20:],
        },
    )
    made, _ = manifest.make_manifest(f"npz:{alone}")
    manifest.write_manifest(made, file)
    told = leakage.find_leaked_duplicates(named(leaky), None, (Data(digest="m", spec=f"manifest:{file}"),), tmp_path)
    assert next(iter(told)) == "train"
    assert list(told)[1].endswith("(by its manifest)")
    by_manifest = list(told.values())[1]
    assert by_manifest.found.sum() == 40
    assert leakage.leaked_examples(named(leaky), None, (Data(digest="m", spec=f"manifest:{file}"),), tmp_path).sum() == 52


@pytest.mark.parametrize("kind", [CopiedTestImages, AlteredTestImages])
def test_what_is_planted_takes_the_place_of_training_images_of_its_class(leaky, tmp_path, kind):
    own = datasets.load_dataset(named(leaky), RAW, None, tmp_path)
    changed, taken, places = leakage.inject_duplicates(own, kind(share=0.2), 0)
    assert len(taken) == len(places) == len(set(places.tolist())) == 12
    assert np.array_equal(changed.train.labels, own.train.labels)
    assert np.array_equal(changed.train.labels[places], own.test.labels[taken])
    others = np.setdiff1d(np.arange(len(own.train.labels)), places)
    assert np.array_equal(changed.train.images[others], own.train.images[others])
    same = np.array_equal(changed.train.images[places], own.test.images[taken])
    assert same == (kind is CopiedTestImages)


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
def test_a_leak_is_a_fail_with_its_figures_and_allowed_where_the_suite_says_so(leaky, tmp_path, allowed):
    file, out = tmp_path / "leaky.toml", tmp_path / "out"
    file.write_text(SUITE.format(allowed=allowed, data=leaky))
    code = main.main(["run", str(file), "-o", str(out), "--store", str(tmp_path / "s.sqlite"), "-j", "1"])
    found = {one["id"]: one for one in json.loads((out / "results.json").read_text())["findings"]}
    assert code == exit_code.FAILED, "a group is on both sides, whatever is allowed of images"
    assert found["data-leakage/groups"]["verdict"] == "FAIL"
    assert "groups on both sides: 1" in found["data-leakage/groups"]["reason"]
    copies = found["data-leakage/copies"]
    assert copies["verdict"] == ("FAIL" if allowed == 0 else "PASS")
    assert copies["control"] == "detected"
    assert copies["measures"]["subject/copies"] == pytest.approx(12 / 60)
    assert "cured/copies" not in copies["measures"], "that there are none without them shows nothing"
    assert "copies among 60 test images: 12 exact in train" in copies["reason"]
    inflation = found["data-leakage/inflation"]
    assert inflation["verdict"] == "INFO"
    assert inflation["low"] <= inflation["harm"] <= inflation["high"]


def test_a_mean_over_a_part_of_the_examples_is_compared_with_that_over_all():
    whole = fake_lab.fake_predictions(0.8, 0, 100)
    part = np.arange(100) % 4 > 0
    some = replace(whole, **{name: getattr(whole, name)[part] for name in whole.__slots__ if name != "group"})
    answers = {
        ("subject", "whole", 0): Record(key="a", predictions=whole),
        ("cured", "test", 0): Record(key="b", predictions=some),
    }
    info = next(one for one in plugin.contrasts if one.kind == "info")
    seen = estimates.estimate_contrast(info, answers, [0], fake_lab.SUITE)
    right = whole.predicted == whole.label
    assert seen.estimate.harm == pytest.approx(right.mean() - right[part].mean())
    paired = Contrast(name="harm", weights=info.weights)
    assert (
        estimates.estimate_contrast(paired, answers, [0], fake_lab.SUITE).error
        == "the arms were not scored on the same examples"
    )
    assert estimates.estimate_contrast(
        info, answers, [0], replace(fake_lab.SUITE, rules=replace(fake_lab.SUITE.rules, metric="balanced_accuracy"))
    ).error


def test_only_what_compares_has_the_pretraining_set_in_its_key():
    pipeline = fake_lab.PIPELINE
    plain = trials.make_trial(pipeline, "test", 0, fake_lab.CONTEXT)
    measured = trials.make_trial(pipeline, "test", 0, fake_lab.CONTEXT, plugin.measures["copies"], needs_pretraining_data=True)
    unique = trials.make_trial(plugin.cure(pipeline, fake_lab.PROFILE), "test", 0, fake_lab.CONTEXT)
    assert plain.view.reference_data == ()
    assert measured.view.reference_data == unique.view.reference_data == (pipeline.data.source.data,)
    assert unique.view.examples == "unique"


def test_where_every_test_image_is_a_copy_there_is_no_score_without_them(leaky, tmp_path):
    held = np.load(leaky)
    alike, file, out = tmp_path / "alike.npz", tmp_path / "alike.toml", tmp_path / "out"
    np.savez(
        alike,
        train_images=held["train_images"],
        train_labels=held["train_labels"],
        test_images=held["train_images"][:40],
        test_labels=held["train_labels"][:40],
    )
    file.write_text(SUITE.format(allowed=0.0, data=alike))
    code = main.main(["run", str(file), "-o", str(out), "--store", str(tmp_path / "s.sqlite"), "-j", "1"])
    found = {one["id"]: one for one in json.loads((out / "results.json").read_text())["findings"]}
    assert code == exit_code.FAILED
    assert found["data-leakage/copies"]["verdict"] == "FAIL"
    assert found["data-leakage/inflation"]["verdict"] == "SKIPPED"
    assert found["data-leakage/inflation"]["reason"] == "cured has nothing to be scored on"
