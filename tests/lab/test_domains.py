"""Datasets beside the target: which output each class means, and which images serve for what."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_folder, make_npz

from xferbench.core.errors import UserError
from xferbench.core.pipeline import MAX_HELD_OUT_EXAMPLES, AuxiliaryDataset, Preprocessing
from xferbench.data import inputs
from xferbench.lab.data import datasets, domains

READY = Preprocessing()
ANIMALS = ("goldfish", "tiger", "zebra")


@pytest.fixture
def animals(tmp_path):
    return inputs.digest_data(f"folder:{make_folder(tmp_path / 'animals', classes=ANIMALS)}")


def source(given, cache, *, words=None, arch="tiny-resnet", outputs=3):
    head = {"linear.weight": torch.zeros(outputs, 2), "linear.bias": torch.zeros(outputs)} if outputs else {}
    return domains.source_outputs(given, words or {}, READY, arch, head, cache)


def test_what_has_no_training_images_cannot_be_adapted_to(tmp_path):
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2
    np.savez(tmp_path / "tested.npz", test_images=images, test_labels=labels)
    with pytest.raises(UserError, match="no training images"):
        domains.unlabeled_split(inputs.digest_data(f"npz:{tmp_path / 'tested.npz'}"), READY, tmp_path / "cache")


def test_without_a_source_nobody_knows_its_classes(tmp_path):
    assert source(None, tmp_path) == ((), "the suite has no [source]")


def test_the_suite_says_which_output_is_which_class(animals, tmp_path):
    words = {"zebra": 7, "goldfish": 2, "tiger": 4}
    assert source(animals, tmp_path, words=words, outputs=10) == ((2, 4, 7), "")


@pytest.mark.parametrize(
    ("words", "outputs", "found"),
    [
        ({"zebra": 1, "tiger": 2}, 10, "zebra, tiger; the head has 10 outputs"),
        ({"zebra": 1, "tiger": 2, "goldfish": 3, "wolf": 4}, 10, "wolf"),
        ({"zebra": 1, "tiger": 2, "goldfish": 10}, 10, "the head has 10 outputs"),
        ({"zebra": 1, "tiger": 2, "goldfish": 0}, 0, "the head has 0 outputs"),
    ],
)
def test_classes_that_the_source_has_not_or_outputs_that_the_head_has_not_are_refused(animals, tmp_path, words, outputs, found):
    with pytest.raises(UserError) as told:
        source(animals, tmp_path, words=words, outputs=outputs)
    assert "[source] classes" in told.value.what and found in told.value.found
    assert "goldfish, tiger, zebra" in told.value.expected


def test_classes_of_published_weights_are_known_by_name(animals, tmp_path):
    assert source(animals, tmp_path, arch="torchvision:resnet18", outputs=1000) == ((1, 292, 340), "")


def test_a_head_with_as_many_outputs_as_the_source_has_classes_has_them_in_order(animals, tmp_path):
    assert source(animals, tmp_path) == ((0, 1, 2), "")
    assert source(animals, tmp_path, arch="torchvision:resnet18") == ((0, 1, 2), ""), "a head of its own, not the published one"


def test_otherwise_nobody_knows_and_it_is_said_what_to_do(animals, tmp_path):
    found, why = source(animals, tmp_path, outputs=10)
    assert found == () and "10 outputs" in why and "3 classes" in why and "[source] classes" in why
    assert source(animals, tmp_path, outputs=0) == ((), "the checkpoint has no head, so forgetting cannot be measured")


def test_a_shifted_class_is_the_targets_of_that_name(tmp_path):
    given = inputs.digest_data(f"folder:{make_folder(tmp_path / 'shifted', classes=('dog', 'cat'))}")
    assert domains.shifted_classes(given, ("bird", "cat", "dog"), READY, tmp_path) == (1, 2)
    assert domains.shifted_classes(None, ("cat",), READY, tmp_path) == ()


def test_a_shifted_class_that_the_target_has_not_is_refused_by_name(tmp_path):
    given = inputs.digest_data(f"folder:{make_folder(tmp_path / 'shifted', classes=('cat', 'wolf'))}")
    with pytest.raises(UserError) as told:
        domains.shifted_classes(given, ("cat", "dog"), READY, tmp_path)
    assert told.value.found == "wolf" and told.value.expected == "cat, dog"
    assert "[shifted]" in told.value.what


def test_labels_are_the_outputs_that_the_classes_mean(tmp_path):
    given = make_npz(tmp_path / "d.npz", classes=3)
    plain = datasets.load_dataset(given, READY, None, tmp_path)
    found = domains.load_domain(AuxiliaryDataset(data=given, classes=(5, 0, 9)), READY, tmp_path)
    assert (found.test.labels == np.array([5, 0, 9])[plain.test.labels]).all()
    assert (found.train.labels == np.array([5, 0, 9])[plain.train.labels]).all()
    assert (found.test.example == plain.test.example).all()


@pytest.mark.parametrize("train", [7, 40, 2500])
def test_what_choices_are_made_on_and_what_a_fit_is_given_have_no_image_in_common(tmp_path, train):
    given = make_npz(tmp_path / "d.npz", train=train, side=4)
    found = domains.load_domain(AuxiliaryDataset(data=given, classes=(0, 1, 2, 3)), READY, tmp_path)
    held_out, memory = (set(part(found).example.tolist()) for part in (domains.held_out_split, domains.memory_split))
    assert held_out and memory and not held_out & memory
    assert len(held_out) <= MAX_HELD_OUT_EXAMPLES and len(memory) <= domains.MAX_MEMORY_EXAMPLES
    assert domains.held_out_split(found).example.tolist() == domains.held_out_split(found).example.tolist()


def test_whole_groups_are_on_one_side(tmp_path):
    given = make_npz(tmp_path / "d.npz", train=60, side=4, train_groups=np.arange(60) // 5, test_groups=np.arange(60) // 5)
    found = domains.load_domain(AuxiliaryDataset(data=given, classes=(0, 1, 2, 3)), READY, tmp_path)
    held_out, memory = (set(part(found).groups.tolist()) for part in (domains.held_out_split, domains.memory_split))
    assert held_out and memory and not held_out & memory
