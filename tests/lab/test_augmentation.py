"""Flips and crops: their effect on an image, their random streams, and their effect on training."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from test_loop import BRIEF, changed_names, is_equal, make_spec, make_workspace, train
from torch.nn import functional as F

from xferbench.core.errors import UserError
from xferbench.core.interventions import BATCHNORM_EVAL, HEAD_ONLY, Augmentation, Trainable
from xferbench.core.pipeline import Phase
from xferbench.core.sections import replace_flat
from xferbench.core.transforms import Spectrogram
from xferbench.lab.data import augmentation
from xferbench.lab.models import graph_split
from xferbench.lab.training import feature_cache

IMAGES = torch.randint(256, (4, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FLIP = torch.tensor([[0, 0, 1]] * 4)
SGD = {"optimizer": "sgd", "lr": 1e-2, "batchnorm": BATCHNORM_EVAL}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw_augmentations(spelling, seeds=(0,), number=0, steps=50, batch=8):
    specs = [replace_flat(SPEC, augment=Augmentation.parse(spelling) if spelling else None, seed=seed) for seed in seeds]
    return augmentation.draw_augmentations(specs, number, (steps, batch), (16, 24))


SPEC = make_spec(type("Workspace", (), {"data": None}))


def test_two_horizontal_flips_cancel():
    once = augmentation.shift_and_flip(IMAGES, FLIP)
    assert torch.equal(once, IMAGES.flip(3))
    assert torch.equal(augmentation.shift_and_flip(once, FLIP), IMAGES)


def test_without_draws_the_batches_are_unchanged():
    assert torch.equal(augmentation.shift_and_flip(IMAGES, torch.zeros(4, 3, dtype=torch.int64)), IMAGES)
    assert draw_augmentations("") is None
    assert augmentation.augment_batches([IMAGES], None, 3)[0] is IMAGES


@pytest.mark.parametrize("down", [-2, 0, 1])
@pytest.mark.parametrize("right", [-3, 0, 2])
@pytest.mark.parametrize("flipped", [0, 1])
def test_a_crop_equals_a_crop_of_the_reflection_padded_image(down, right, flipped):
    padded = F.pad(IMAGES.float(), (3, 3, 2, 2), mode="reflect")
    expected = padded[:, :, 2 + down : 18 + down, 3 + right : 27 + right]
    actual = augmentation.shift_and_flip(IMAGES, torch.tensor([[down, right, flipped]] * 4))
    assert actual.dtype == torch.uint8
    assert torch.equal(actual.float(), expected.flip(3) if flipped else expected)


def test_each_image_has_its_own_draws():
    actual = augmentation.shift_and_flip(IMAGES, torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]]))
    assert [torch.equal(image, original) for image, original in zip(actual, IMAGES, strict=True)] == [True, False, False, True]


def test_crops_shift_by_at_most_an_eighth_and_half_of_the_images_are_flipped():
    actual = draw_augmentations("flip+crop", steps=400)[:, 0].flatten(0, 1)
    assert [(int(column.min()), int(column.max())) for column in actual.T] == [(-2, 2), (-3, 3), (0, 1)]
    assert float(actual[:, 2].double().mean()) == pytest.approx(0.5, abs=0.03)
    assert len(actual.unique(dim=0)) == 5 * 7 * 2


def test_draws_depend_on_seed_and_phase_and_flips_are_the_same_with_and_without_crops():
    both, flips, crops = draw_augmentations("flip+crop"), draw_augmentations("flip"), draw_augmentations("crop")
    assert torch.equal(both, draw_augmentations("flip+crop"))
    assert torch.equal(both, flips + crops), "flips and crops have separate streams"
    assert torch.equal(draw_augmentations("flip+crop", seeds=(5, 0, 7))[:, 1], both[:, 0])
    assert torch.equal(draw_augmentations("flip+crop", steps=20), both[:20]), "a shorter phase has the same first draws"
    assert not torch.equal(draw_augmentations("flip", seeds=(1,)), flips)
    assert not torch.equal(draw_augmentations("flip", number=1), flips)


@pytest.mark.parametrize("spelling", ["flip", "crop"])
def test_augmented_training_differs_and_is_reproducible(spelling, workspace):
    (plain,), (result,), (again,) = (
        train(workspace, make_spec(workspace, augment=Augmentation.parse(augment) if augment else None))
        for augment in ("", spelling, spelling)
    )
    assert is_equal(result.last, again.last)
    assert not is_equal(result.last, plain.last)
    assert is_equal(result.before, plain.before)
    assert result.prior == plain.prior


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_zero_draws_equal_plain_training_of_the_whole_network(trainable, workspace, monkeypatch):
    phase = Phase(trainable=Trainable.parse(trainable), **SGD, **BRIEF)
    with monkeypatch.context() as patch:
        patch.setattr(graph_split, "split_at", lambda *_: None)
        (plain,) = train(workspace, make_spec(workspace, phase))
    real = augmentation.draw_augmentations
    monkeypatch.setattr(augmentation, "draw_augmentations", lambda *args: real(*args) * 0)
    (result,) = train(workspace, make_spec(workspace, phase, augment=Augmentation.parse("flip+crop")))
    assert is_equal(result.last, plain.last)
    assert result.curve == plain.curve


def test_augmentation_disables_precomputed_activations(workspace, monkeypatch):
    monkeypatch.setattr(feature_cache, "compute_activations", lambda *_: pytest.fail("computed once"))
    (actual,) = train(
        workspace, make_spec(workspace, Phase(trainable=HEAD_ONLY, **SGD, **BRIEF), augment=Augmentation.parse("flip"))
    )
    assert changed_names(actual) == {"linear.weight", "linear.bias"}


def test_examples_that_are_not_images_are_refused():
    with pytest.raises(UserError, match="augment flip is for images") as error:
        augmentation.draw_augmentations(
            [replace_flat(SPEC, augment=Augmentation.parse("flip"), preprocessing=Spectrogram())], 0, (1, 1), (16, 16)
        )
    assert error.value.do == "leave augment out"
