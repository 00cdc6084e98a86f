"""Flips and crops: what they do to an image, from which stream they come, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from test_loop import BRIEF, make_fit, make_world, moved, same, trained
from torch.nn import functional as F

from xferbench.core.errors import UserError
from xferbench.core.interventions import HEAD_ONLY, Augmentation, Trainable
from xferbench.core.pipeline import Phase, Spectrogram
from xferbench.lab.data import augmentation
from xferbench.lab.models import backbones
from xferbench.lab.training import feature_cache

IMAGES = torch.randint(256, (4, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FLIP = torch.tensor([[0, 0, 1]] * 4)
SGD = {"optimizer": "sgd", "lr": 1e-2, "batchnorm": "eval"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draws(word, seeds=(0,), number=0, steps=50, batch=8):
    fits = [replace(FIT, augment=Augmentation.parse(word) if word else None, seed=seed) for seed in seeds]
    return augmentation.draw_augmentations(fits, number, (steps, batch), (16, 24))


FIT = make_fit(type("World", (), {"data": None}))


def test_a_flip_is_left_to_right_and_twice_it_is_nothing():
    once = augmentation.shift_and_flip(IMAGES, FLIP)
    assert torch.equal(once, IMAGES.flip(3))
    assert torch.equal(augmentation.shift_and_flip(once, FLIP), IMAGES)


def test_where_nothing_is_drawn_nothing_is_done():
    assert torch.equal(augmentation.shift_and_flip(IMAGES, torch.zeros(4, 3, dtype=torch.int64)), IMAGES)
    assert draws("") is None
    assert augmentation.augment_batches([IMAGES], None, 3)[0] is IMAGES


@pytest.mark.parametrize("down", [-2, 0, 1])
@pytest.mark.parametrize("right", [-3, 0, 2])
@pytest.mark.parametrize("flipped", [0, 1])
def test_a_crop_is_one_out_of_the_image_with_its_edges_reflected(down, right, flipped):
    padded = F.pad(IMAGES.float(), (3, 3, 2, 2), mode="reflect")
    expected = padded[:, :, 2 + down : 18 + down, 3 + right : 27 + right]
    found = augmentation.shift_and_flip(IMAGES, torch.tensor([[down, right, flipped]] * 4))
    assert found.dtype == torch.uint8
    assert torch.equal(found.float(), expected.flip(3) if flipped else expected)


def test_each_image_has_draws_of_its_own():
    found = augmentation.shift_and_flip(IMAGES, torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]]))
    assert [torch.equal(one, other) for one, other in zip(found, IMAGES, strict=True)] == [True, False, False, True]


def test_a_crop_goes_as_far_as_an_eighth_of_each_side_and_a_flip_comes_half_of_the_time():
    found = draws("flip+crop", steps=400)[:, 0].flatten(0, 1)
    assert [(int(one.min()), int(one.max())) for one in found.T] == [(-2, 2), (-3, 3), (0, 1)]
    assert float(found[:, 2].double().mean()) == pytest.approx(0.5, abs=0.03)
    assert len(found.unique(dim=0)) == 5 * 7 * 2


def test_draws_are_of_the_seed_and_the_phase_and_flips_are_shared_by_whoever_flips():
    both, flips, crops = draws("flip+crop"), draws("flip"), draws("crop")
    assert torch.equal(both, draws("flip+crop"))
    assert torch.equal(both, flips + crops), "each has a stream of its own"
    assert torch.equal(draws("flip+crop", seeds=(5, 0, 7))[:, 1], both[:, 0])
    assert torch.equal(draws("flip+crop", steps=20), both[:20]), "a shorter phase begins alike"
    assert not torch.equal(draws("flip", seeds=(1,)), flips)
    assert not torch.equal(draws("flip", number=1), flips)


@pytest.mark.parametrize("word", ["flip", "crop"])
def test_an_augmented_fit_is_another_and_the_same_each_time(word, world):
    (plain,), (one,), (again,) = (
        trained(world, make_fit(world, augment=Augmentation.parse(given) if given else None)) for given in ("", word, word)
    )
    assert same(one.last, again.last)
    assert not same(one.last, plain.last)
    assert same(one.before, plain.before)
    assert one.prior == plain.prior


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_with_draws_of_nothing_it_is_plain_training_of_the_whole_network(trainable, world, monkeypatch):
    phase = Phase(trainable=Trainable.parse(trainable), **SGD, **BRIEF)
    with monkeypatch.context() as patch:
        patch.setattr(backbones, "split_at", lambda *_: None)
        (plain,) = trained(world, make_fit(world, phase))
    real = augmentation.draw_augmentations
    monkeypatch.setattr(augmentation, "draw_augmentations", lambda *given: real(*given) * 0)
    (one,) = trained(world, make_fit(world, phase, augment=Augmentation.parse("flip+crop")))
    assert same(one.last, plain.last)
    assert one.curve == plain.curve


def test_nothing_is_computed_once_where_no_two_images_are_alike(world, monkeypatch):
    monkeypatch.setattr(feature_cache, "compute_activations", lambda *_: pytest.fail("computed once"))
    (found,) = trained(world, make_fit(world, Phase(trainable=HEAD_ONLY, **SGD, **BRIEF), augment=Augmentation.parse("flip")))
    assert moved(found) == {"linear.weight", "linear.bias"}


def test_what_is_no_image_is_refused_in_words():
    with pytest.raises(UserError, match="augment flip is for images") as told:
        augmentation.draw_augmentations(
            [replace(FIT, augment=Augmentation.parse("flip"), preprocessing=Spectrogram())], 0, (1, 1), (16, 16)
        )
    assert told.value.do == "leave augment out"
