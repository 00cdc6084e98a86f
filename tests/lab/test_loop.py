"""The training loop, on a small network and a small dataset."""

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
from xferbench.core.interventions import (
    BATCHNORM_EVAL,
    BATCHNORM_TRAIN,
    HEAD_ONLY,
    PRETRAINED,
    RANDOM,
    RANDOM_HEAD,
    ZERO_HEAD,
    Augmentation,
    BatchNormMomentum,
    BatchNormTrainAbove,
    GhostBatchNorm,
    Head,
    MatchedMoments,
    PermutedWeights,
    Regularizer,
    Trainable,
)
from xferbench.core.pipeline import Phase, WeightsFile
from xferbench.core.sections import from_flat, replace_flat
from xferbench.core.transforms import Preprocessing
from xferbench.core.trial import ComputeContext, EvaluationSpec, ModelSpec, TrainingSpec, Trial
from xferbench.core.version import LAB_VERSION
from xferbench.data import inputs
from xferbench.lab.data import datasets, preprocessing
from xferbench.lab.models import backbones, checkpoints, graph_split
from xferbench.lab.training import examples, feature_cache, loop
from xferbench.lab.training.network import Architecture, PhaseModel
from xferbench.lab.worker import run_trials

PREPROCESSING = Preprocessing(mean=(0.5,), std=(0.25,))
CONTEXT = ComputeContext(device="cpu", torch="0.0", lab=LAB_VERSION)
SHIPPED = inputs.SHIPPED_WEIGHTS_FOLDER / "tiny-resnet-0.safetensors"
WEIGHTS = WeightsFile(digest=files.sha256(SHIPPED), path=str(SHIPPED))
HEAD = {"linear.weight", "linear.bias"}
BRIEF = {"steps": 3, "batch_size": 16}


def make_workspace(folder, **more):
    """Make a dataset of four classes and 120 small training images, and a cache."""
    return SimpleNamespace(data=make_npz(folder / "d.npz", **more), cache=folder / "cache")


def make_spec(workspace, *phases, seed=0, init=PRETRAINED, head=RANDOM_HEAD, **more):
    """Make a training spec; ``more`` has other fields by their names in keys."""
    fields = {
        "arch": "tiny-resnet",
        "init": init,
        "start": None if init == RANDOM else WEIGHTS,
        "head": head,
        "phases": phases or (Phase(**BRIEF),),
        "data": workspace.data,
        "train_size": 60,
        "preprocessing": PREPROCESSING,
        "seed": seed,
    }
    return from_flat(TrainingSpec, fields | more)


def parse_regularizer(spelling):
    """Parse a regularizer or "". A strength of 0, which no suite may contain, bypasses the check."""
    if not spelling.endswith(":0"):
        return Regularizer.parse(spelling) if spelling else None
    value = Regularizer.parse(spelling.removesuffix("0") + "1")
    object.__setattr__(value, "weight" if hasattr(value, "weight") else "strength", 0.0)
    return value


def make_trial(spec, **view):
    return Trial(model=ModelSpec(base=spec), view=EvaluationSpec(preprocessing=PREPROCESSING, **view), context=CONTEXT)


def prepare_training(workspace, *specs):
    """Network, start tensors and dataset of some trainings."""
    trial = make_trial(specs[0])
    dataset, network = run_trials.training_inputs(specs[0], trial, workspace.cache)
    return network, [run_trials.start_tensors(spec, network, trial, workspace.cache) for spec in specs], dataset


def train(workspace, *specs):
    return loop.train(specs, *prepare_training(workspace, *specs))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def float64(monkeypatch):
    """Compute in float64, so that rounding neither hides a difference nor causes one."""
    values, activations = preprocessing.to_tensor, feature_cache.compute_activations
    monkeypatch.setattr(preprocessing, "to_tensor", lambda *args: values(*args).double())
    monkeypatch.setattr(feature_cache, "compute_activations", lambda *args: activations(*args).double())
    return lambda start: {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in start.items()}


def changed_names(result):
    """Names of the tensors that training changed."""
    return {name for name, tensor in result.last.items() if not torch.equal(tensor, result.before[name])}


def is_equal(tensors, other):
    return tensors.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in tensors.items())


OPTIMIZERS = ({"optimizer": "adamw"}, {"optimizer": "sgd", "lr": 1e-2})


@pytest.mark.parametrize(
    "batchnorm", [BATCHNORM_EVAL, BATCHNORM_TRAIN, GhostBatchNorm(examples=4), BatchNormMomentum(momentum=0.01)], ids=str
)
@pytest.mark.parametrize("trainable", ["all", "head", "top:1", "norm"])
def test_training_in_lockstep_equals_training_alone(trainable, batchnorm, workspace, float64):
    # In float64, because small ghost batches amplify the rounding of float32 a millionfold.
    phase = Phase(
        trainable=Trainable.parse(trainable), batchnorm=batchnorm, **OPTIMIZERS[len(f"{trainable}{batchnorm}") % 2], **BRIEF
    )
    specs = [make_spec(workspace, phase, seed=seed, init=PermutedWeights()) for seed in range(3)]
    network, starts, dataset = prepare_training(workspace, *specs)
    starts = [float64(start) for start in starts]
    together = loop.train(specs, network, starts, dataset)
    for spec, start, result in zip(specs, starts, together, strict=True):
        (alone,) = loop.train([spec], network, [start], dataset)
        torch.testing.assert_close(result.last, alone.last, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(result.best, alone.best, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(result.curve, alone.curve, rtol=1e-6)
    assert not is_equal(together[0].last, together[1].last)


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": Augmentation.parse("flip+crop")},
        {"head": Head.parse("mlp:6:0")},
        {"head": Head.parse("mlp:6:0"), "augment": Augmentation.parse("crop")},
    ],
)
def test_lockstep_with_an_mlp_head_or_augmentation_equals_training_alone(changes, workspace, float64):
    specs = [make_spec(workspace, Phase(optimizer="sgd", lr=1e-2, **BRIEF), seed=seed, **changes) for seed in range(3)]
    network, starts, dataset = prepare_training(workspace, *specs)
    starts = [float64(start) for start in starts]
    for spec, start, result in zip(specs, starts, loop.train(specs, network, starts, dataset), strict=True):
        (alone,) = loop.train([spec], network, [start], dataset)
        torch.testing.assert_close(result.last, alone.last, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(result.curve, alone.curve, rtol=1e-6)


def test_lockstep_in_float32_equals_training_alone_within_rounding(workspace):
    specs = [make_spec(workspace, seed=seed) for seed in range(3)]
    for result, spec in zip(train(workspace, *specs), specs, strict=True):
        (alone,) = train(workspace, spec)
        np.testing.assert_allclose([loss for _, loss, _ in result.curve], [loss for _, loss, _ in alone.curve], atol=1e-4)


@pytest.mark.parametrize("trainable", ["all", "lora:4", "adapter:4"])
def test_lockstep_in_bfloat16_equals_training_alone_within_its_precision(trainable, workspace, monkeypatch):
    monkeypatch.setattr(feature_cache, "autocast", lambda device: torch.autocast(device.type, torch.bfloat16))
    phase = Phase(trainable=Trainable.parse(trainable), steps=2, batch_size=8)
    specs = [make_spec(workspace, phase, seed=seed) for seed in range(2)]
    coarse = train(workspace, *specs)
    for result, spec in zip(coarse, specs, strict=True):
        (alone,) = train(workspace, spec)
        np.testing.assert_allclose([row[1] for row in result.curve], [row[1] for row in alone.curve], rtol=0.05)
        assert {tensor.dtype for tensor in result.last.values()} == {torch.float32, torch.int64}
    monkeypatch.undo()
    assert train(workspace, specs[0])[0].curve != coarse[0].curve


class Part(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.bn, self.dropout = nn.Conv2d(width, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.bn(self.conv(x)).relu())


class NoisyNetwork(nn.Module):
    """A network with dropout in every layer group."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(Part(3), Part(4), Part(4), Part(4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(self.body(x).mean((2, 3)))


def train_noisy(workspace, seeds, **changes):
    torch.manual_seed(0)
    module = NoisyNetwork()
    network = Architecture(
        module=module, layout=backbones.layer_layout(module, 16), device=torch.device("cpu"), cache=workspace.cache
    )
    specs = [make_spec(workspace, Phase(**BRIEF, **changes), seed=seed) for seed in seeds]
    start = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    dataset = datasets.load_dataset(workspace.data, PREPROCESSING, None, workspace.cache)
    return loop.train(specs, network, [start] * len(specs), dataset)


def test_dropout_is_reproducible_and_differs_between_members(workspace):
    torch.manual_seed(11)
    first, again = train_noisy(workspace, [0])[0], train_noisy(workspace, [0])[0]
    assert is_equal(first.last, again.last)
    assert not is_equal(first.last, train_noisy(workspace, [0], lr=2e-3)[0].last)
    together = train_noisy(workspace, [0, 0])
    assert not is_equal(together[0].last, together[1].last), "one seed, but separate dropout"
    assert all(
        is_equal(*pair)
        for pair in zip(
            (result.last for result in together), (result.last for result in train_noisy(workspace, [0, 0])), strict=True
        )
    )


@pytest.mark.parametrize("trainable", ["head", "top:1", "top:3"])
def test_training_on_cached_activations_equals_training_the_whole_network(trainable, workspace, monkeypatch):
    # SGD, because Adam makes a full step from the rounding error of a gradient near zero.
    spec = make_spec(
        workspace, Phase(trainable=Trainable.parse(trainable), batchnorm=BATCHNORM_EVAL, optimizer="sgd", lr=1e-2, **BRIEF)
    )
    (cut,) = train(workspace, spec)
    monkeypatch.setattr(graph_split, "split_at", lambda *_: None)
    (whole,) = train(workspace, spec)
    torch.testing.assert_close(cut.last, whole.last, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cut.curve, whole.curve, rtol=1e-5)
    assert changed_names(cut) == changed_names(whole)


def test_dropout_below_the_cut_is_off_with_and_without_a_split(workspace, monkeypatch):
    (cut,) = train_noisy(workspace, [0], trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, optimizer="sgd")
    monkeypatch.setattr(graph_split, "split_at", lambda *_: None)
    (whole,) = train_noisy(workspace, [0], trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, optimizer="sgd")
    torch.testing.assert_close(cut.last, whole.last)


@pytest.mark.parametrize(
    ("trainable", "batchnorm", "is_trained"),
    [
        ("head", BATCHNORM_EVAL, lambda name: name in HEAD),
        (
            "top:1",
            BATCHNORM_EVAL,
            lambda name: name.startswith(("linear", "layer4")) and "running" not in name and "num_" not in name,
        ),
        ("norm", BATCHNORM_EVAL, lambda name: name in HEAD or (".bn" in f".{name}" and name.endswith(("weight", "bias")))),
        ("head", BATCHNORM_TRAIN, lambda name: name in HEAD or "running" in name or "num_batches" in name),
        ("all", BATCHNORM_TRAIN, lambda _: True),
    ],
)
def test_exactly_the_trainable_tensors_change(trainable, batchnorm, is_trained, workspace):
    # In train mode, BatchNorm statistics change although everything except the head is frozen: the drift itself.
    (result,) = train(
        workspace, make_spec(workspace, Phase(trainable=Trainable.parse(trainable), batchnorm=batchnorm, **BRIEF))
    )
    assert changed_names(result) == {name for name in result.last if is_trained(name)}


def test_a_change_of_a_frozen_tensor_is_an_error_that_names_it(workspace, monkeypatch):
    real = PhaseModel.__call__

    def change_tensor(self, tensors, x):
        if "layer3.0.conv1.weight" in tensors:
            tensors["layer3.0.conv1.weight"].data.add_(1e-6)
        return real(self, tensors, x)

    monkeypatch.setattr(PhaseModel, "__call__", change_tensor)
    monkeypatch.setattr(graph_split, "split_at", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"phase 2: layer3\.0\.conv1\.weight$"):
        train(workspace, make_spec(workspace, Phase(**BRIEF), Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, **BRIEF)))


def test_a_change_of_a_buffer_in_eval_mode_is_an_error(workspace, monkeypatch):
    real = PhaseModel.__call__

    def change_tensor(self, tensors, x):
        tensors["bn1.running_mean"].data.add_(1e-6)
        return real(self, tensors, x)

    monkeypatch.setattr(PhaseModel, "__call__", change_tensor)
    with pytest.raises(RuntimeError, match="running_mean"):
        train(workspace, make_spec(workspace, Phase(batchnorm=BATCHNORM_EVAL, **BRIEF)))


ONE_SGD_STEP = {
    "steps": 1,
    "batch_size": 16,
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "schedule": "constant",
    "batchnorm": BATCHNORM_EVAL,
}


def test_learning_rates_apply_to_their_layers(workspace, float64):
    network, (start,), dataset = prepare_training(workspace, make_spec(workspace))
    even, decayed = (
        loop.train([make_spec(workspace, Phase(lr=1e-2, **ONE_SGD_STEP, **rates))], network, [float64(start)], dataset)[0]
        for rates in ({}, {"head_lr": 3e-2, "layer_decay": 0.1})
    )
    depth = backbones.layer_depth(network.layout, network.module)
    assert set(depth.values()) == {0, 1, 2, 3, 4, 5}
    for name in changed_names(even):
        ratio = ((decayed.last[name] - decayed.before[name]).norm() / (even.last[name] - even.before[name]).norm()).item()
        assert ratio == pytest.approx(3.0 if depth[name] == 0 else 0.1 ** (depth[name] - 1), rel=1e-6), name


def test_warmup_reduces_the_first_step(workspace):
    (full,) = train(workspace, make_spec(workspace, Phase(lr=1e-2, **ONE_SGD_STEP)))
    (warm,) = train(workspace, make_spec(workspace, Phase(lr=1e-2, warmup=9, **ONE_SGD_STEP)))
    changes = {name: full.last[name] - full.before[name] for name in HEAD}
    torch.testing.assert_close(
        {name: warm.last[name] - warm.before[name] for name in HEAD}, {n: t / 10 for n, t in changes.items()}
    )


def step_norm(model):
    return sum((model.last[name] - model.before[name]).square().sum() for name in changed_names(model)).sqrt().item()


def test_clipping_bounds_the_norm_of_the_gradient_of_all_parameters(workspace):
    (free,) = train(workspace, make_spec(workspace, Phase(lr=1e-2, **ONE_SGD_STEP)))
    (loose,) = train(workspace, make_spec(workspace, Phase(lr=1e-2, clip=1e6, **ONE_SGD_STEP)))
    (clipped,) = train(workspace, make_spec(workspace, Phase(lr=1e-2, clip=0.1, **ONE_SGD_STEP)))
    assert step_norm(free) > 1e-2 * 0.1
    assert step_norm(loose) == pytest.approx(step_norm(free), rel=1e-4)
    assert step_norm(clipped) == pytest.approx(1e-2 * 0.1, rel=1e-3)


def test_clipping_treats_each_member_of_a_group_alone(workspace):
    phase = Phase(lr=1e-2, clip=0.1, **ONE_SGD_STEP)
    group = train(workspace, make_spec(workspace, phase, seed=0), make_spec(workspace, phase, seed=1))
    for seed, member in enumerate(group):
        (alone,) = train(workspace, make_spec(workspace, phase, seed=seed))
        torch.testing.assert_close(member.last, alone.last, rtol=1e-4, atol=1e-5)


def test_label_smoothing_trains_towards_the_smoothed_labels(workspace):
    phase = Phase(trainable=Trainable.parse("head"), batchnorm=BATCHNORM_EVAL, lr=1e-1, steps=200, batch_size=16)
    (hard,), (smooth,) = (
        train(workspace, make_spec(workspace, replace(phase, label_smoothing=smoothing))) for smoothing in (0.0, 0.4)
    )
    head = "linear.weight"
    assert smooth.last[head].norm() < 0.7 * hard.last[head].norm()


def test_weight_decay_applies_to_trained_tensors_only(workspace):
    (light,), (heavy,) = (
        train(
            workspace,
            make_spec(
                workspace,
                Phase(trainable=Trainable.parse("top:1"), batchnorm=BATCHNORM_EVAL, weight_decay=decay, lr=1e-2, **BRIEF),
            ),
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
def test_every_epoch_uses_each_example_once_and_class_order_sorts_it(labels, steps, size, order):
    labels = np.array(labels)
    phase = Phase(steps=steps, batch_size=size, order=order)
    result = examples.batch_indices(phase, 0, 0, labels)
    assert result.shape == (steps, min(size, len(labels)))
    flat = result.ravel()
    for start in range(0, len(flat), len(labels)):
        epoch = flat[start : start + len(labels)]
        assert len(set(epoch)) == len(epoch)
        assert order == "shuffled" or (np.diff(labels[epoch]) >= 0).all()
    assert (result == examples.batch_indices(phase, 0, 0, labels)).all()


def test_the_order_differs_between_epochs_phases_and_seeds():
    labels, phase = np.arange(20) % 2, Phase(steps=2, batch_size=20)
    first = examples.batch_indices(phase, 0, 0, labels)
    assert (first[0] != first[1]).any()
    assert (first != examples.batch_indices(phase, 0, 1, labels)).any()
    assert (first != examples.batch_indices(phase, 1, 0, labels)).any()
    by_class = examples.batch_indices(replace(phase, order="class"), 0, 0, labels)
    assert (by_class[0] != by_class[1]).any(), "within a class"


def test_an_unknown_order_or_optimizer_is_an_error(workspace):
    for change in ({"order": "sorted"}, {"optimizer": "adam"}):
        with pytest.raises(ValueError, match=next(iter(change.values()))):
            train(workspace, make_spec(workspace, Phase(**BRIEF, **change)))


def test_arms_that_differ_in_one_factor_share_subset_order_and_head(workspace):
    recipes = [
        make_spec(workspace),
        make_spec(workspace, Phase(lr=3e-2, batchnorm=BATCHNORM_EVAL, optimizer="sgd", **BRIEF)),
        make_spec(workspace, Phase(trainable=HEAD_ONLY, **BRIEF), Phase(**BRIEF)),
        *(make_spec(workspace, init=init) for init in (RANDOM, MatchedMoments(), PermutedWeights())),
    ]
    first, *others = [prepare_training(workspace, spec)[1][0] for spec in recipes]
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in HEAD)
    snapshots = []
    real = examples.batch_indices
    dataset = datasets.load_dataset(workspace.data, PREPROCESSING, None, workspace.cache)
    for spec in recipes:
        index, _ = datasets.train_validation_indices(dataset, spec.data.train_size, spec.seed)
        snapshots.append(index[real(spec.procedure.phases[0], spec.seed, 0, dataset.train.labels[index])])
    assert all((order == snapshots[0]).all() for order in snapshots)
    assert not torch.equal(
        first["linear.weight"], prepare_training(workspace, make_spec(workspace, seed=1))[1][0]["linear.weight"]
    )


def test_a_zero_head_gives_the_backbone_no_gradient_at_the_first_step(workspace):
    step = Phase(steps=1, batch_size=16, optimizer="sgd", weight_decay=0.0, batchnorm=BATCHNORM_EVAL)
    (zero,) = train(workspace, make_spec(workspace, step, head=ZERO_HEAD))
    assert changed_names(zero) == HEAD
    assert zero.curve[0][1] == pytest.approx(np.log(4)), "every class is equally likely"
    (random,) = train(workspace, make_spec(workspace, step))
    assert len(changed_names(random)) > 20


@pytest.mark.parametrize("init", [RANDOM, MatchedMoments(), PermutedWeights()], ids=str)
def test_training_works_with_every_initialization(init, workspace):
    (result,) = train(workspace, make_spec(workspace, Phase(steps=30, batch_size=16, lr=1e-2), init=init))
    losses = [loss for _, loss, _ in result.curve]
    assert not result.diverged
    assert losses[-1] < losses[0]


def test_the_training_learns_the_task(workspace):
    (result,) = train(workspace, make_spec(workspace, Phase(steps=20, batch_size=16, lr=1e-2)))
    assert result.curve[-1][2] > 0.9


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_excessive_learning_rate_diverges_without_an_error(optimizer, workspace):
    phases = (
        Phase(lr=1e6, optimizer=optimizer, steps=12, batch_size=16),
        Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, **BRIEF),
    )
    (result,) = train(workspace, make_spec(workspace, *phases))
    assert result.diverged
    assert not all(torch.isfinite(tensor).all() for tensor in result.last.values())
    assert result.prior == pytest.approx([0.25] * 4)


def test_divergence_of_one_member_does_not_affect_the_others(workspace):
    specs = [make_spec(workspace, Phase(batchnorm=BATCHNORM_EVAL, optimizer="sgd", **BRIEF), seed=seed) for seed in range(2)]
    network, starts, dataset = prepare_training(workspace, *specs)
    starts[0] = {name: tensor * 1e30 if name in HEAD else tensor for name, tensor in starts[0].items()}
    diverged, healthy = loop.train(specs, network, starts, dataset)
    assert diverged.diverged
    assert not healthy.diverged
    (alone,) = train(workspace, specs[1])
    torch.testing.assert_close(healthy.last, alone.last, rtol=1e-4, atol=1e-5)


def test_the_best_tensors_are_those_of_the_first_best_validation(workspace, monkeypatch):
    scores, snapshots = iter([0.1, 0.8, 0.5, 0.8, 0.2]), []

    def next_score(rest, tensors, material, device):
        snapshots.append({name: tensor.clone() for name, tensor in tensors.items()})
        return next(scores)

    monkeypatch.setattr(loop, "_accuracy", next_score)
    (result,) = train(workspace, make_spec(workspace, Phase(steps=5, batch_size=16)))
    assert is_equal(result.best, snapshots[1])
    assert is_equal(result.last, snapshots[4])
    assert [(step, score) for step, _, score in result.curve] == [(1, 0.1), (2, 0.8), (3, 0.5), (4, 0.8), (5, 0.2)]


def test_the_curve_has_five_rows_with_the_mean_loss_since_the_previous_one(workspace, monkeypatch):
    losses = []
    real = loop.F.cross_entropy

    def record_loss(logits, *args, **kwargs):
        loss = real(logits, *args, **kwargs)
        losses.append(loss.mean().item())
        return loss

    monkeypatch.setattr(loop.F, "cross_entropy", record_loss)
    (result,) = train(workspace, make_spec(workspace, Phase(steps=10, batch_size=16)))
    assert [step for step, _, _ in result.curve] == [2, 4, 6, 8, 10]
    np.testing.assert_allclose([loss for _, loss, _ in result.curve], np.reshape(losses, (5, 2)).mean(1), rtol=1e-5)
    (parted,) = train(workspace, make_spec(workspace, *[Phase(steps=steps, batch_size=16) for steps in (3, 5, 7)]))
    assert [step for step, _, _ in parted.curve] == [3, 6, 9, 12, 15]


def test_training_does_not_change_the_start_tensors(workspace):
    spec = make_spec(workspace)
    network, (start,), dataset = prepare_training(workspace, spec)
    expected = {name: tensor.clone() for name, tensor in start.items()}
    (result,) = loop.train([spec], network, [start], dataset)
    assert is_equal(start, expected)
    assert is_equal(result.before, expected)


def test_the_tensors_of_the_module_are_neither_used_nor_changed(workspace):
    spec = make_spec(workspace, Phase(batchnorm=GhostBatchNorm(examples=4), **BRIEF))
    (first,) = train(workspace, spec)
    network, starts, dataset = prepare_training(workspace, spec)
    module = backbones.build("tiny-resnet", 4)
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    (repeated,) = loop.train([spec], replace(network, module=module), starts, dataset)
    assert is_equal(first.last, repeated.last)
    assert is_equal(dict(module.state_dict()), expected)
    assert module.training


def test_lockstep_of_a_timm_network_equals_training_alone(workspace, tmp_path):
    pytest.importorskip("timm")
    file = tmp_path / "w.safetensors"
    checkpoints.save_tensors(backbones.build("timm:mobilenetv3_small_050", 9).state_dict(), file)
    weights = WeightsFile(digest=files.sha256(file), path=str(file))
    specs = [replace_flat(make_spec(workspace, seed=seed), arch="timm:mobilenetv3_small_050", start=weights) for seed in (0, 1)]
    network, starts, dataset = prepare_training(workspace, *specs)
    together = loop.train(specs, network, starts, dataset)
    (alone,) = loop.train(specs[1:], network, starts[1:], dataset)
    assert changed_names(together[1]) == changed_names(alone)
    assert "classifier.weight" in changed_names(alone)
    torch.testing.assert_close(together[1].last["conv_stem.weight"], alone.last["conv_stem.weight"], rtol=0.05, atol=0.01)


def test_train_above_changes_statistics_only_above_the_cut(workspace, monkeypatch):
    phase = Phase(trainable=Trainable.parse("top:2"), batchnorm=BatchNormTrainAbove(), **BRIEF)
    (result,) = train(workspace, make_spec(workspace, phase))
    names = {name.partition(".")[0] for name in changed_names(result)}
    assert names == {"layer3", "layer4", "linear"}
    assert any("running_mean" in name for name in changed_names(result))
    monkeypatch.setattr(graph_split, "split_at", lambda *_: None)
    (uncut,) = train(workspace, make_spec(workspace, phase))
    assert changed_names(uncut) == changed_names(result)
    np.testing.assert_allclose([row[1] for row in uncut.curve], [row[1] for row in result.curve], rtol=1e-4)
