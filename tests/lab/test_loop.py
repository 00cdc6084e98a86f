"""The one training loop, on a small network and a small dataset."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from torch import nn

from xferbench.core import files
from xferbench.core.interventions import HEAD_ONLY, RANDOM_HEAD, ZERO_HEAD, Augmentation, Head, Regularizer, Trainable
from xferbench.core.pipeline import Phase, Preprocessing, WeightsFile
from xferbench.core.trial import ComputeContext, EvaluationSpec, ModelSpec, TrainingSpec, Trial
from xferbench.core.version import LAB_VERSION
from xferbench.data import inputs
from xferbench.lab.data import datasets, preprocessing
from xferbench.lab.models import backbones, checkpoints
from xferbench.lab.training import feature_cache, loop
from xferbench.lab.training.network import Architecture, PhaseModel
from xferbench.lab.worker import run_trials

READY = Preprocessing(mean=(0.5,), std=(0.25,))
PLACE = ComputeContext(device="cpu", torch="0.0", lab=LAB_VERSION)
SHIPPED = inputs.SHIPPED_WEIGHTS_FOLDER / "tiny-resnet-0.safetensors"
WEIGHTS = WeightsFile(digest=files.sha256(SHIPPED), path=str(SHIPPED))
HEAD = {"linear.weight", "linear.bias"}
BRIEF = {"steps": 3, "batch_size": 16}


def make_world(folder, **more):
    """A dataset of four classes and 120 small training images, and a cache."""
    return SimpleNamespace(data=make_npz(folder / "d.npz", **more), cache=folder / "cache")


def make_fit(world, *phases, seed=0, init="pretrained", head=RANDOM_HEAD, **more):
    return TrainingSpec(
        arch="tiny-resnet",
        init=init,
        start=None if init == "random" else WEIGHTS,
        head=head,
        phases=phases or (Phase(**BRIEF),),
        data=world.data,
        train_size=60,
        preprocessing=READY,
        seed=seed,
        **more,
    )


def regularizer(word):
    """The value that a word spells, or None; a strength of 0, which no suite may ask for, is put in past its check."""
    if not word.endswith(":0"):
        return Regularizer.parse(word) if word else None
    value = Regularizer.parse(word.removesuffix("0") + "1")
    object.__setattr__(value, "weight" if hasattr(value, "weight") else "strength", 0.0)
    return value


def make_trial(one, **view):
    return Trial(model=ModelSpec(base=one), view=EvaluationSpec(preprocessing=READY, **view), place=PLACE)


def prepared(world, *fits):
    """Network, starts and dataset of some fits."""
    trial = make_trial(fits[0])
    dataset, network = run_trials.training_inputs(fits[0], trial, world.cache)
    return network, [run_trials.start_tensors(one, network, trial, world.cache) for one in fits], dataset


def trained(world, *fits):
    return loop.train(fits, *prepared(world, *fits))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def double(monkeypatch):
    """Everything in float64, where rounding cannot hide a difference nor grow into one."""
    values, activations = preprocessing.to_tensor, feature_cache.compute_activations
    monkeypatch.setattr(preprocessing, "to_tensor", lambda *given: values(*given).double())
    monkeypatch.setattr(feature_cache, "compute_activations", lambda *given: activations(*given).double())
    return lambda start: {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in start.items()}


def moved(found):
    """Names of the tensors that training changed."""
    return {name for name, tensor in found.last.items() if not torch.equal(tensor, found.before[name])}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


OPTIMIZERS = ({"optimizer": "adamw"}, {"optimizer": "sgd", "lr": 1e-2})


@pytest.mark.parametrize("batchnorm", ["eval", "train", "ghost:4", "momentum:0.01"])
@pytest.mark.parametrize("trainable", ["all", "head", "top:1", "norm"])
def test_fits_trained_in_lock_step_are_as_if_each_were_alone(trainable, batchnorm, world, double):
    # In float64 and to 1e-8. In float32 they are as near as rounding lets them: small ghost batches amplify it a millionfold.
    phase = Phase(
        trainable=Trainable.parse(trainable), batchnorm=batchnorm, **OPTIMIZERS[len(trainable + batchnorm) % 2], **BRIEF
    )
    fits = [make_fit(world, phase, seed=seed, init="permuted") for seed in range(3)]
    network, starts, dataset = prepared(world, *fits)
    starts = [double(start) for start in starts]
    together = loop.train(fits, network, starts, dataset)
    for one, start, found in zip(fits, starts, together, strict=True):
        (alone,) = loop.train([one], network, [start], dataset)
        torch.testing.assert_close(found.last, alone.last, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found.best, alone.best, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found.curve, alone.curve, rtol=1e-6)
    assert not same(together[0].last, together[1].last)


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": Augmentation.parse("flip+crop")},
        {"head": Head.parse("mlp:6:0")},
        {"head": Head.parse("mlp:6:0"), "augment": Augmentation.parse("crop")},
    ],
)
def test_so_are_those_with_a_head_of_two_layers_or_augmented_images(changes, world, double):
    fits = [make_fit(world, Phase(optimizer="sgd", lr=1e-2, **BRIEF), seed=seed, **changes) for seed in range(3)]
    network, starts, dataset = prepared(world, *fits)
    starts = [double(start) for start in starts]
    for one, start, found in zip(fits, starts, loop.train(fits, network, starts, dataset), strict=True):
        (alone,) = loop.train([one], network, [start], dataset)
        torch.testing.assert_close(found.last, alone.last, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found.curve, alone.curve, rtol=1e-6)


def test_in_float32_a_group_is_its_members_within_rounding(world):
    fits = [make_fit(world, seed=seed) for seed in range(3)]
    for found, one in zip(trained(world, *fits), fits, strict=True):
        (alone,) = trained(world, one)
        np.testing.assert_allclose([loss for _, loss, _ in found.curve], [loss for _, loss, _ in alone.curve], atol=1e-4)


@pytest.mark.parametrize("trainable", ["all", "lora:4", "adapter:4"])
def test_in_bfloat16_as_on_an_accelerator_a_group_is_its_members_within_its_precision(trainable, world, monkeypatch):
    monkeypatch.setattr(feature_cache, "autocast", lambda device: torch.autocast(device.type, torch.bfloat16))
    phase = Phase(trainable=Trainable.parse(trainable), steps=2, batch_size=8)
    fits = [make_fit(world, phase, seed=seed) for seed in range(2)]
    coarse = trained(world, *fits)
    for found, one in zip(coarse, fits, strict=True):
        (alone,) = trained(world, one)
        np.testing.assert_allclose([row[1] for row in found.curve], [row[1] for row in alone.curve], rtol=0.05)
        assert {tensor.dtype for tensor in found.last.values()} == {torch.float32, torch.int64}
    monkeypatch.undo()
    assert trained(world, fits[0])[0].curve != coarse[0].curve


class Part(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.bn, self.dropout = nn.Conv2d(width, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.bn(self.conv(x)).relu())


class Noisy(nn.Module):
    """A network with dropout in every layer group."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(Part(3), Part(4), Part(4), Part(4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(self.body(x).mean((2, 3)))


def noisy(world, seeds, **changes):
    torch.manual_seed(0)
    module = Noisy()
    network = Architecture(
        module=module, anatomy=backbones.layer_layout(module, 16), device=torch.device("cpu"), cache=world.cache
    )
    fits = [make_fit(world, Phase(**BRIEF, **changes), seed=seed) for seed in seeds]
    start = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    dataset = datasets.load_dataset(world.data, READY, None, world.cache)
    return loop.train(fits, network, [start] * len(fits), dataset)


def test_dropout_is_the_same_each_time_and_another_for_each_member(world):
    torch.manual_seed(11)
    first, again = noisy(world, [0])[0], noisy(world, [0])[0]
    assert same(first.last, again.last)
    assert not same(first.last, noisy(world, [0], lr=2e-3)[0].last)
    together = noisy(world, [0, 0])
    assert not same(together[0].last, together[1].last), "one seed, but dropout of their own"
    assert all(
        same(*pair) for pair in zip((one.last for one in together), (one.last for one in noisy(world, [0, 0])), strict=True)
    )


@pytest.mark.parametrize("trainable", ["head", "top:1", "top:3"])
def test_training_on_cached_activations_is_training_the_whole_network(trainable, world, monkeypatch):
    # With SGD, since Adam makes a step of full size out of the rounding of a gradient that is nearly zero.
    one = make_fit(world, Phase(trainable=Trainable.parse(trainable), batchnorm="eval", optimizer="sgd", lr=1e-2, **BRIEF))
    (cut,) = trained(world, one)
    monkeypatch.setattr(backbones, "split_at", lambda *_: None)
    (whole,) = trained(world, one)
    torch.testing.assert_close(cut.last, whole.last, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cut.curve, whole.curve, rtol=1e-5)
    assert moved(cut) == moved(whole)


def test_dropout_below_the_cut_is_off_whether_or_not_the_network_can_be_parted(world, monkeypatch):
    (cut,) = noisy(world, [0], trainable=HEAD_ONLY, batchnorm="eval", optimizer="sgd")
    monkeypatch.setattr(backbones, "split_at", lambda *_: None)
    (whole,) = noisy(world, [0], trainable=HEAD_ONLY, batchnorm="eval", optimizer="sgd")
    torch.testing.assert_close(cut.last, whole.last)


@pytest.mark.parametrize(
    ("trainable", "batchnorm", "which"),
    [
        ("head", "eval", lambda name: name in HEAD),
        ("top:1", "eval", lambda name: name.startswith(("linear", "layer4")) and "running" not in name and "num_" not in name),
        ("norm", "eval", lambda name: name in HEAD or (".bn" in f".{name}" and name.endswith(("weight", "bias")))),
        ("head", "train", lambda name: name in HEAD or "running" in name or "num_batches" in name),
        ("all", "train", lambda _: True),
    ],
)
def test_what_is_to_train_moves_and_nothing_else_does(trainable, batchnorm, which, world):
    # BatchNorm's buffers move in train mode although everything but the head is frozen: the drift itself.
    (found,) = trained(world, make_fit(world, Phase(trainable=Trainable.parse(trainable), batchnorm=batchnorm, **BRIEF)))
    assert moved(found) == {name for name in found.last if which(name)}


def test_a_frozen_tensor_that_moves_all_the_same_is_an_error_that_names_it(world, monkeypatch):
    real = PhaseModel.__call__

    def meddling(self, tensors, x):
        if "layer3.0.conv1.weight" in tensors:
            tensors["layer3.0.conv1.weight"].data.add_(1e-6)
        return real(self, tensors, x)

    monkeypatch.setattr(PhaseModel, "__call__", meddling)
    monkeypatch.setattr(backbones, "split_at", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"phase 2: layer3\.0\.conv1\.weight$"):
        trained(world, make_fit(world, Phase(**BRIEF), Phase(trainable=HEAD_ONLY, batchnorm="eval", **BRIEF)))


def test_a_buffer_that_moves_in_eval_mode_is_an_error(world, monkeypatch):
    real = PhaseModel.__call__

    def meddling(self, tensors, x):
        tensors["bn1.running_mean"].data.add_(1e-6)
        return real(self, tensors, x)

    monkeypatch.setattr(PhaseModel, "__call__", meddling)
    with pytest.raises(RuntimeError, match="running_mean"):
        trained(world, make_fit(world, Phase(batchnorm="eval", **BRIEF)))


def test_rates_reach_the_layers_that_they_are_meant_for(world, double):
    step = {"steps": 1, "batch_size": 16, "optimizer": "sgd", "weight_decay": 0.0, "schedule": "constant", "batchnorm": "eval"}
    network, (start,), dataset = prepared(world, make_fit(world))
    even, decayed = (
        loop.train([make_fit(world, Phase(lr=1e-2, **step, **rates))], network, [double(start)], dataset)[0]
        for rates in ({}, {"head_lr": 3e-2, "layer_decay": 0.1})
    )
    depth = backbones.layer_depth(network.anatomy, network.module)
    assert set(depth.values()) == {0, 1, 2, 3, 4, 5}
    for name in moved(even):
        ratio = ((decayed.last[name] - decayed.before[name]).norm() / (even.last[name] - even.before[name]).norm()).item()
        assert ratio == pytest.approx(3.0 if depth[name] == 0 else 0.1 ** (depth[name] - 1), rel=1e-6), name


def test_a_warm_up_makes_the_first_step_small(world):
    step = {"steps": 1, "batch_size": 16, "optimizer": "sgd", "weight_decay": 0.0, "schedule": "constant", "batchnorm": "eval"}
    (full,) = trained(world, make_fit(world, Phase(lr=1e-2, **step)))
    (warm,) = trained(world, make_fit(world, Phase(lr=1e-2, warmup=9, **step)))
    way = {name: full.last[name] - full.before[name] for name in HEAD}
    torch.testing.assert_close(
        {name: warm.last[name] - warm.before[name] for name in HEAD}, {n: t / 10 for n, t in way.items()}
    )


def test_weight_decay_shrinks_what_trains_and_not_what_is_frozen(world):
    (light,), (heavy,) = (
        trained(
            world,
            make_fit(world, Phase(trainable=Trainable.parse("top:1"), batchnorm="eval", weight_decay=decay, lr=1e-2, **BRIEF)),
        )
        for decay in (0.0, 50.0)
    )
    assert heavy.last["layer4.0.conv1.weight"].norm() < 0.9 * light.last["layer4.0.conv1.weight"].norm()
    assert torch.equal(heavy.last["conv1.weight"], light.last["conv1.weight"])


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    steps=st.integers(1, 12),
    size=st.integers(1, 20),
    order=st.sampled_from(["shuffled", "class"]),
)
def test_every_example_comes_once_an_epoch_and_in_class_order_the_classes_come_one_by_one(labels, steps, size, order):
    labels = np.array(labels)
    phase = Phase(steps=steps, batch_size=size, order=order)
    found = loop.batch_indices(phase, 0, 0, labels)
    assert found.shape == (steps, min(size, len(labels)))
    flat = found.ravel()
    for start in range(0, len(flat), len(labels)):
        epoch = flat[start : start + len(labels)]
        assert len(set(epoch)) == len(epoch)
        assert order == "shuffled" or (np.diff(labels[epoch]) >= 0).all()
    assert (found == loop.batch_indices(phase, 0, 0, labels)).all()


def test_epochs_phases_and_seeds_have_orders_of_their_own():
    labels, phase = np.arange(20) % 2, Phase(steps=2, batch_size=20)
    first = loop.batch_indices(phase, 0, 0, labels)
    assert (first[0] != first[1]).any()
    assert (first != loop.batch_indices(phase, 0, 1, labels)).any()
    assert (first != loop.batch_indices(phase, 1, 0, labels)).any()
    by_class = loop.batch_indices(replace(phase, order="class"), 0, 0, labels)
    assert (by_class[0] != by_class[1]).any(), "within a class"


def test_an_unknown_order_or_optimizer_is_an_error(world):
    for change in ({"order": "sorted"}, {"optimizer": "adam"}):
        with pytest.raises(ValueError, match=next(iter(change.values()))):
            trained(world, make_fit(world, Phase(**BRIEF, **change)))


def test_arms_that_differ_in_one_factor_share_subset_order_and_head(world):
    recipes = [
        make_fit(world),
        make_fit(world, Phase(lr=3e-2, batchnorm="eval", optimizer="sgd", **BRIEF)),
        make_fit(world, Phase(trainable=HEAD_ONLY, **BRIEF), Phase(**BRIEF)),
        *(make_fit(world, init=init) for init in ("random", "matched", "permuted")),
    ]
    first, *others = [prepared(world, one)[1][0] for one in recipes]
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in HEAD)
    seen = []
    real = loop.batch_indices
    dataset = datasets.load_dataset(world.data, READY, None, world.cache)
    for one in recipes:
        index, _ = datasets.train_validation_indices(dataset, one.train_size, one.seed)
        seen.append(index[real(one.phases[0], one.seed, 0, dataset.train.labels[index])])
    assert all((one == seen[0]).all() for one in seen)
    assert not torch.equal(first["linear.weight"], prepared(world, make_fit(world, seed=1))[1][0]["linear.weight"])


def test_a_zero_head_sends_no_gradient_into_the_backbone_at_the_first_step(world):
    step = Phase(steps=1, batch_size=16, optimizer="sgd", weight_decay=0.0, batchnorm="eval")
    (zero,) = trained(world, make_fit(world, step, head=ZERO_HEAD))
    assert moved(zero) == HEAD
    assert zero.curve[0][1] == pytest.approx(np.log(4)), "every class is equally likely"
    (random,) = trained(world, make_fit(world, step))
    assert len(moved(random)) > 20


@pytest.mark.parametrize("init", ["random", "matched", "permuted"])
def test_every_way_to_begin_trains(init, world):
    (found,) = trained(world, make_fit(world, Phase(steps=30, batch_size=16, lr=1e-2), init=init))
    losses = [loss for _, loss, _ in found.curve]
    assert not found.diverged
    assert losses[-1] < losses[0]


def test_the_task_is_learnt(world):
    (found,) = trained(world, make_fit(world, Phase(steps=20, batch_size=16, lr=1e-2)))
    assert found.curve[-1][2] > 0.9


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_rate_far_too_high_is_a_diverged_fit_and_no_crash(optimizer, world):
    phases = (
        Phase(lr=1e6, optimizer=optimizer, steps=12, batch_size=16),
        Phase(trainable=HEAD_ONLY, batchnorm="eval", **BRIEF),
    )
    (found,) = trained(world, make_fit(world, *phases))
    assert found.diverged
    assert not all(torch.isfinite(tensor).all() for tensor in found.last.values())
    assert found.prior == pytest.approx([0.25] * 4)


def test_one_members_divergence_is_not_its_neighbours(world):
    fits = [make_fit(world, Phase(batchnorm="eval", optimizer="sgd", **BRIEF), seed=seed) for seed in range(2)]
    network, starts, dataset = prepared(world, *fits)
    starts[0] = {name: tensor * 1e30 if name in HEAD else tensor for name, tensor in starts[0].items()}
    broken, whole = loop.train(fits, network, starts, dataset)
    assert broken.diverged
    assert not whole.diverged
    (alone,) = trained(world, fits[1])
    torch.testing.assert_close(whole.last, alone.last, rtol=1e-4, atol=1e-5)


def test_the_best_tensors_are_those_of_the_best_checkpoint_the_first_of_equals(world, monkeypatch):
    scores, seen = iter([0.1, 0.8, 0.5, 0.8, 0.2]), []

    def scripted(rest, tensors, material, device):
        seen.append({name: tensor.clone() for name, tensor in tensors.items()})
        return next(scores)

    monkeypatch.setattr(loop, "_accuracy", scripted)
    (found,) = trained(world, make_fit(world, Phase(steps=5, batch_size=16)))
    assert same(found.best, seen[1])
    assert same(found.last, seen[4])
    assert [(step, score) for step, _, score in found.curve] == [(1, 0.1), (2, 0.8), (3, 0.5), (4, 0.8), (5, 0.2)]


def test_the_curve_has_five_rows_over_all_phases_and_the_mean_loss_since_the_one_before(world, monkeypatch):
    losses = []
    real = loop.F.cross_entropy

    def noted(logits, *given, **named):
        loss = real(logits, *given, **named)
        losses.append(loss.mean().item())
        return loss

    monkeypatch.setattr(loop.F, "cross_entropy", noted)
    (found,) = trained(world, make_fit(world, Phase(steps=10, batch_size=16)))
    assert [step for step, _, _ in found.curve] == [2, 4, 6, 8, 10]
    np.testing.assert_allclose([loss for _, loss, _ in found.curve], np.reshape(losses, (5, 2)).mean(1), rtol=1e-5)
    (parted,) = trained(world, make_fit(world, *[Phase(steps=steps, batch_size=16) for steps in (3, 5, 7)]))
    assert [step for step, _, _ in parted.curve] == [3, 6, 9, 12, 15]


def test_what_is_before_a_fit_is_not_changed_by_it(world):
    one = make_fit(world)
    network, (start,), dataset = prepared(world, one)
    kept = {name: tensor.clone() for name, tensor in start.items()}
    (found,) = loop.train([one], network, [start], dataset)
    assert same(start, kept)
    assert same(found.before, kept)


def test_the_network_is_a_structure_alone_and_its_own_tensors_neither_matter_nor_change(world):
    one = make_fit(world, Phase(batchnorm="ghost:4", **BRIEF))
    (first,) = trained(world, one)
    network, starts, dataset = prepared(world, one)
    other = backbones.build("tiny-resnet", 4)
    kept = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    (again,) = loop.train([one], replace(network, module=other), starts, dataset)
    assert same(first.last, again.last)
    assert same(dict(other.state_dict()), kept)
    assert other.training


def test_a_network_of_timm_trains_in_lock_step_as_alone(world, tmp_path):
    pytest.importorskip("timm")
    file = tmp_path / "w.safetensors"
    checkpoints.save_tensors(backbones.build("timm:mobilenetv3_small_050", 9).state_dict(), file)
    weights = WeightsFile(digest=files.sha256(file), path=str(file))
    fits = [replace(make_fit(world, seed=seed), arch="timm:mobilenetv3_small_050", start=weights) for seed in (0, 1)]
    network, starts, dataset = prepared(world, *fits)
    together = loop.train(fits, network, starts, dataset)
    (alone,) = loop.train(fits[1:], network, starts[1:], dataset)
    assert moved(together[1]) == moved(alone)
    assert "classifier.weight" in moved(alone)
    torch.testing.assert_close(together[1].last["conv_stem.weight"], alone.last["conv_stem.weight"], rtol=0.05, atol=0.01)


def test_in_train_mode_above_the_cut_the_frozen_groups_keep_their_statistics_and_the_others_move(world, monkeypatch):
    phase = Phase(trainable=Trainable.parse("top:2"), batchnorm="train-above", **BRIEF)
    (found,) = trained(world, make_fit(world, phase))
    names = {name.partition(".")[0] for name in moved(found)}
    assert names == {"layer3", "layer4", "linear"}
    assert any("running_mean" in name for name in moved(found))
    monkeypatch.setattr(backbones, "split_at", lambda *_: None)
    (uncut,) = trained(world, make_fit(world, phase))
    assert moved(uncut) == moved(found)
    np.testing.assert_allclose([row[1] for row in uncut.curve], [row[1] for row in found.curve], rtol=1e-4)
