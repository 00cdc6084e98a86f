"""Auxiliary datasets: the head output of each class, and the purpose of the images."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_folder, make_npz

from xferbench.core.errors import UserError
from xferbench.core.pipeline import MAX_HELD_OUT_EXAMPLES, AuxiliaryDataset
from xferbench.core.transforms import Preprocessing
from xferbench.data import inputs
from xferbench.lab.data import datasets, domains

PREPROCESSING = Preprocessing()
ANIMALS = ("goldfish", "tiger", "zebra")


@pytest.fixture
def animals(tmp_path):
    return inputs.digest_data(f"folder:{make_folder(tmp_path / 'animals', classes=ANIMALS)}")


def map_source_outputs(data, cache, *, outputs_by_class=None, arch="tiny-resnet", outputs=3):
    head = {"linear.weight": torch.zeros(outputs, 2), "linear.bias": torch.zeros(outputs)} if outputs else {}
    return domains.source_outputs(data, outputs_by_class or {}, PREPROCESSING, arch, head, cache)


def test_a_domain_without_training_images_is_an_error(tmp_path):
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2
    np.savez(tmp_path / "tested.npz", test_images=images, test_labels=labels)
    with pytest.raises(UserError, match="no training images"):
        domains.unlabeled_split(inputs.digest_data(f"npz:{tmp_path / 'tested.npz'}"), PREPROCESSING, tmp_path / "cache")


def test_without_a_source_its_outputs_are_unknown(tmp_path):
    assert map_source_outputs(None, tmp_path) == ((), "the suite has no [source]")


def test_the_suite_maps_classes_to_outputs(animals, tmp_path):
    outputs_by_class = {"zebra": 7, "goldfish": 2, "tiger": 4}
    assert map_source_outputs(animals, tmp_path, outputs_by_class=outputs_by_class, outputs=10) == ((2, 4, 7), "")


@pytest.mark.parametrize(
    ("outputs_by_class", "outputs", "expected"),
    [
        ({"zebra": 1, "tiger": 2}, 10, "zebra, tiger; the head has 10 outputs"),
        ({"zebra": 1, "tiger": 2, "goldfish": 3, "wolf": 4}, 10, "wolf"),
        ({"zebra": 1, "tiger": 2, "goldfish": 10}, 10, "the head has 10 outputs"),
        ({"zebra": 1, "tiger": 2, "goldfish": 0}, 0, "the head has 0 outputs"),
    ],
)
def test_unknown_classes_and_outputs_are_errors(animals, tmp_path, outputs_by_class, outputs, expected):
    with pytest.raises(UserError) as error:
        map_source_outputs(animals, tmp_path, outputs_by_class=outputs_by_class, outputs=outputs)
    assert "[source] classes" in error.value.what and expected in error.value.found
    assert "goldfish, tiger, zebra" in error.value.expected


def test_classes_of_published_weights_are_matched_by_name(animals, tmp_path):
    assert map_source_outputs(animals, tmp_path, arch="torchvision:resnet18", outputs=1000) == ((1, 292, 340), "")


def test_a_head_with_as_many_outputs_as_classes_has_their_order(animals, tmp_path):
    assert map_source_outputs(animals, tmp_path) == ((0, 1, 2), "")
    assert map_source_outputs(animals, tmp_path, arch="torchvision:resnet18") == ((0, 1, 2), ""), (
        "a head of its own, not the published one"
    )


def test_otherwise_the_outputs_are_unknown_with_a_reason(animals, tmp_path):
    result, reason = map_source_outputs(animals, tmp_path, outputs=10)
    assert result == () and all(text in reason for text in ("10 outputs", "3 classes", "[source] classes"))
    assert map_source_outputs(animals, tmp_path, outputs=0) == (
        (),
        "the checkpoint has no head, so forgetting cannot be measured",
    )


def test_shifted_classes_are_matched_by_name(tmp_path):
    data = inputs.digest_data(f"folder:{make_folder(tmp_path / 'shifted', classes=('dog', 'cat'))}")
    assert domains.shifted_classes(data, ("bird", "cat", "dog"), PREPROCESSING, tmp_path) == (1, 2)
    assert domains.shifted_classes(None, ("cat",), PREPROCESSING, tmp_path) == ()


def test_an_unknown_shifted_class_is_an_error_that_names_it(tmp_path):
    data = inputs.digest_data(f"folder:{make_folder(tmp_path / 'shifted', classes=('cat', 'wolf'))}")
    with pytest.raises(UserError) as error:
        domains.shifted_classes(data, ("cat", "dog"), PREPROCESSING, tmp_path)
    assert error.value.found == "wolf" and error.value.expected == "cat, dog"
    assert "[shifted]" in error.value.what


def test_labels_of_a_domain_are_head_outputs(tmp_path):
    data = make_npz(tmp_path / "d.npz", classes=3)
    plain = datasets.load_dataset(data, PREPROCESSING, None, tmp_path)
    domain = domains.load_domain(AuxiliaryDataset(data=data, classes=(5, 0, 9)), PREPROCESSING, tmp_path)
    assert (domain.test.labels == np.array([5, 0, 9])[plain.test.labels]).all()
    assert (domain.train.labels == np.array([5, 0, 9])[plain.train.labels]).all()
    assert (domain.test.example == plain.test.example).all()


@pytest.mark.parametrize("train", [7, 40, 2500])
def test_held_out_and_memory_images_are_disjoint(tmp_path, train):
    data = make_npz(tmp_path / "d.npz", train=train, side=4)
    domain = domains.load_domain(AuxiliaryDataset(data=data, classes=(0, 1, 2, 3)), PREPROCESSING, tmp_path)
    held_out, memory = (set(part(domain).example.tolist()) for part in (domains.held_out_split, domains.memory_split))
    assert held_out and memory and not held_out & memory
    assert len(held_out) <= MAX_HELD_OUT_EXAMPLES and len(memory) <= domains.MAX_MEMORY_EXAMPLES
    assert domains.held_out_split(domain).example.tolist() == domains.held_out_split(domain).example.tolist()


def test_groups_are_not_divided(tmp_path):
    data = make_npz(tmp_path / "d.npz", train=60, side=4, train_groups=np.arange(60) // 5, test_groups=np.arange(60) // 5)
    domain = domains.load_domain(AuxiliaryDataset(data=data, classes=(0, 1, 2, 3)), PREPROCESSING, tmp_path)
    held_out, memory = (set(part(domain).groups.tolist()) for part in (domains.held_out_split, domains.memory_split))
    assert held_out and memory and not held_out & memory
