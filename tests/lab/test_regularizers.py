"""Regularizers: each term computed by hand, and the properties of the training loop with a term in the loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import (
    BRIEF,
    HEAD,
    PREPROCESSING,
    WEIGHTS,
    changed_names,
    is_equal,
    make_spec,
    make_trial,
    make_workspace,
    parse_regularizer,
)
from torch.func import functional_call
from torch.nn import functional as F

from xferbench.core.interventions import (
    BATCHNORM_EVAL,
    BATCHNORM_TRAIN,
    HEAD_ONLY,
    RANDOM,
    Augmentation,
    Head,
    Regularizer,
    Trainable,
)
from xferbench.core.pipeline import AuxiliaryDataset, Phase
from xferbench.core.sections import replace_flat
from xferbench.lab.data import datasets, domains, preprocessing
from xferbench.lab.models import backbones, checkpoint_reader, checkpoints, graph_split
from xferbench.lab.training import examples, feature_cache, loop, regularizers
from xferbench.lab.worker import run_trials

STEP = {
    "steps": 1,
    "batch_size": 16,
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "schedule": "constant",
    "batchnorm": BATCHNORM_EVAL,
}
OUTPUTS = 20  # of the shipped checkpoint's head
SGD = {"optimizer": "sgd", "weight_decay": 0.0, "schedule": "constant", "batchnorm": BATCHNORM_EVAL}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    workspace = make_workspace(folder)
    workspace.source = AuxiliaryDataset(data=make_npz(folder / "s.npz", train=80, classes=10), classes=tuple(range(19, 9, -1)))
    return workspace


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_regularized_spec(workspace, spelling, *phases, **more):
    """A training with a regularizer, with the source of the workspace if it needs one."""
    needs_source = spelling.startswith(("ewc", "replay"))
    return make_spec(
        workspace,
        *phases,
        regularizer=parse_regularizer(spelling),
        source=workspace.source if needs_source else None,
        **more,
    )


def prepare(workspace, *specs):
    trial = make_trial(specs[0])
    dataset, network = run_trials.training_inputs(specs[0], trial, workspace.cache)
    starts = [run_trials.start_tensors(spec, network, trial, workspace.cache) for spec in specs]
    return network, starts, dataset, run_trials._auxiliary_inputs(specs[0], network, workspace.cache)


def train(workspace, *specs):
    return loop.train(specs, *prepare(workspace, *specs))


def distance_from_start(result):
    """The distance of the backbone from its start."""
    squares = ((result.last[name] - result.before[name]).double().square().sum() for name in changed_names(result) - HEAD)
    return float(sum(squares)) ** 0.5


def compute_logits(network, tensors, images):
    with feature_cache.evaluation_mode(network.module, network.device):
        return functional_call(network.module, tensors, (preprocessing.to_tensor(images, PREPROCESSING),)).double()


def first_batch(spec, dataset):
    """The images and labels of the first batch."""
    index, _ = datasets.train_validation_indices(dataset, spec.data.train_size, spec.seed)
    rows = index[examples.batch_indices(spec.procedure.phases[0], spec.seed, 0, dataset.train.labels[index])[0]]
    return torch.from_numpy(np.array(dataset.train.images[rows])), torch.from_numpy(dataset.train.labels[rows])


def with_pretrained_head(network, start):
    """The tensors of the checkpoint, including its head."""
    return start | checkpoints.head_tensors(
        network.module, checkpoint_reader.read_checkpoint(run_trials.Path(WEIGHTS.path)), network.layout.head
    )


def test_a_very_strong_l2_sp_keeps_the_backbone_at_its_start(workspace):
    phase = Phase(lr=1e-3, **SGD | {"steps": 30, "batch_size": 16})
    free, regularized = (
        distance_from_start(train(workspace, make_regularized_spec(workspace, spelling, phase))[0])
        for spelling in ("l2-sp:1e-9", "l2-sp:500")
    )
    assert 0 < regularized < 0.05 * free


@pytest.mark.parametrize("spelling", ["l2-sp:0.1", "ewc:100"])
def test_a_regularizer_limits_the_backbone_but_not_the_head(workspace, spelling):
    phase = Phase(lr=1e-2, **SGD | {"steps": 20, "batch_size": 16})
    (free,), (regularized,) = (
        train(workspace, make_spec(workspace, phase)),
        train(workspace, make_regularized_spec(workspace, spelling, phase)),
    )
    assert distance_from_start(regularized) < distance_from_start(free)
    assert changed_names(regularized) >= HEAD


def test_l2_sp_and_ewc_do_not_change_the_first_step(workspace):
    (plain,) = train(workspace, make_spec(workspace, Phase(**STEP)))
    for spelling in ("l2-sp:100", "ewc:100"):
        (result,) = train(workspace, make_regularized_spec(workspace, spelling, Phase(**STEP)))
        assert result.curve == plain.curve
        torch.testing.assert_close(result.last, plain.last)


def test_l2_sp_equals_half_its_strength_times_the_squared_distance(workspace):
    spec = make_regularized_spec(workspace, "l2-sp:3")
    network, (start,), _, _ = prepare(workspace, spec)
    state = regularizers.build_regularizer([spec], network, start, {}, None, [])
    term = regularizers.build_penalty_term(state, None, [start], spec.procedure.phases[0], 0, [spec], network)
    name = "conv1.weight"
    parameters = {name: torch.stack([start[name] + 2.0, start[name]]), "linear.weight": torch.ones(2, 4, 5)}
    actual = regularizers.penalty_loss(term, 0, torch.zeros(2, 1, 4), parameters, torch.zeros(2, 1), 4)
    assert actual.tolist() == pytest.approx([3 / 2 * 4.0 * start[name].numel(), 0.0])


def test_the_importance_from_one_image_is_its_squared_gradient(workspace):
    spec = make_regularized_spec(workspace, "ewc:1")
    network, (start,), _, source = prepare(workspace, spec)
    single = datasets.take(source.memory, slice(1))
    state = regularizers.build_regularizer([spec], network, start, source.head, single, [])
    module = backbones.build("tiny-resnet", OUTPUTS).eval()
    module.load_state_dict(with_pretrained_head(network, start))
    image = preprocessing.to_tensor(torch.from_numpy(np.array(single.images)), PREPROCESSING)
    F.cross_entropy(module(image), torch.from_numpy(single.labels)).backward()
    expected = {name: parameter.grad.square() for name, parameter in module.named_parameters() if name not in HEAD}
    torch.testing.assert_close(state.importance, expected, rtol=1e-3, atol=1e-7)
    assert any(tensor.sum() > 0 for tensor in expected.values())
    assert state.anchor.keys() == expected.keys()


def test_the_importance_from_several_images_is_the_mean(workspace):
    spec = make_regularized_spec(workspace, "ewc:1")
    network, (start,), _, source = prepare(workspace, spec)
    memories = [datasets.take(source.memory, index) for index in (slice(1), slice(1, 2), slice(2))]
    first, second, both = (
        regularizers.build_regularizer([spec], network, start, source.head, memory, []).importance for memory in memories
    )
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2, rtol=1e-3, atol=1e-7)


def test_lwf_is_0_at_the_start_and_then_the_divergence_from_the_source_head(workspace):
    (plain,) = train(workspace, make_spec(workspace, Phase(**STEP)))
    spec = make_regularized_spec(workspace, "lwf:3", Phase(**STEP))
    (first,) = train(workspace, spec)
    assert first.curve[0][1] == pytest.approx(plain.curve[0][1], abs=1e-5), "the divergence of a network from itself is 0"
    network, (start,), _, source = prepare(workspace, spec)
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    state = regularizers.build_regularizer([spec], network, start, source.head, None, [images])
    term = regularizers.build_penalty_term(state, None, [start], spec.procedure.phases[0], 0, [spec], network)
    before = compute_logits(network, with_pretrained_head(network, start), images)
    after = before + torch.arange(OUTPUTS)
    index = torch.tensor([[3, 1]])
    both = torch.cat([torch.zeros(2, 4), after[index[0]].float()], 1)[None]
    p, q = ((outputs[index[0]] / 2).log_softmax(1) for outputs in (before, after))
    by_hand = 3 * 4 * (p.exp() * (p - q)).sum(1).mean()
    assert regularizers.penalty_loss(term, 0, both, {}, index, 4).item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_replay_weighs_source_and_target_images_equally(workspace):
    spec = make_regularized_spec(workspace, "replay:4", Phase(**STEP))
    network, (start,), dataset, source = prepare(workspace, spec)
    (actual,) = train(workspace, spec)
    x, y = first_batch(spec, dataset)
    rows = regularizers.seeds.numpy_stream(spec.seed, regularizers.seeds.REPLAY, 0).integers(
        len(source.memory.labels), size=(1, 4)
    )[0]
    old, labels = torch.from_numpy(source.memory.images[rows]), torch.from_numpy(source.memory.labels[rows])
    target_losses = F.cross_entropy(compute_logits(network, start, x), y, reduction="none")
    source_losses = F.cross_entropy(
        compute_logits(network, with_pretrained_head(network, start), old), labels, reduction="none"
    )
    assert actual.curve[0][1] == pytest.approx(float((target_losses.sum() + source_losses.sum()) / 16), rel=1e-4)


@pytest.mark.parametrize("spelling", ["l2-sp:1", "ewc:100", "lwf:1", "replay:4"])
@pytest.mark.parametrize("batchnorm", [BATCHNORM_EVAL, BATCHNORM_TRAIN], ids=str)
def test_regularized_training_in_lockstep_equals_training_alone(workspace, spelling, batchnorm):
    phase = Phase(lr=1e-3, **SGD | {"steps": 3, "batch_size": 16, "batchnorm": batchnorm})
    specs = [make_regularized_spec(workspace, spelling, phase, seed=seed) for seed in range(3)]
    for together, spec in zip(train(workspace, *specs), specs, strict=True):
        (alone,) = train(workspace, spec)
        torch.testing.assert_close(together.last, alone.last, rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(together.curve, alone.curve, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spelling", ["l2-sp:1", "ewc:100", "lwf:1", "replay:4"])
def test_lockstep_with_layers_that_a_later_phase_freezes(workspace, spelling):
    phases = (Phase(lr=3e-2, **SGD | BRIEF), Phase(trainable=Trainable.parse("top:1"), lr=3e-2, **SGD | BRIEF))
    specs = [make_regularized_spec(workspace, spelling, *phases, seed=seed) for seed in range(2)]
    for together, spec in zip(train(workspace, *specs), specs, strict=True):
        (alone,) = train(workspace, spec)
        torch.testing.assert_close(together.last, alone.last, rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(together.curve, alone.curve, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spelling", ["l2-sp:1", "ewc:100", "lwf:1", "replay:4"])
@pytest.mark.parametrize("trainable", ["top:1", "top:3", "head"])
def test_regularized_training_on_cached_activations_equals_the_whole_network(workspace, spelling, trainable, monkeypatch):
    spec = make_regularized_spec(workspace, spelling, Phase(trainable=Trainable.parse(trainable), lr=1e-2, **SGD | BRIEF))
    network, *_ = prepare(workspace, spec)
    frozen = loop.frozen_cut(spec.procedure.phases[0], network.layout)
    assert loop.split_phase_model(network, frozen, PREPROCESSING)[0] is not None
    (parted,) = train(workspace, spec)
    monkeypatch.setattr(graph_split, "split_at", lambda *_: None)
    (whole,) = train(workspace, spec)
    torch.testing.assert_close(parted.last, whole.last, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parted.curve, whole.curve, rtol=1e-4)


def test_replay_never_uses_held_out_or_test_images(workspace, monkeypatch):
    memories = []
    real = regularizers.build_penalty_term

    def record_memory(state, *args):
        memories.append(set(state.memory.example.tolist()))
        return real(state, *args)

    monkeypatch.setattr(regularizers, "build_penalty_term", record_memory)
    train(workspace, make_regularized_spec(workspace, "replay:4"))
    source = domains.load_domain(workspace.source, PREPROCESSING, workspace.cache)
    held_out = set(domains.held_out_split(source).example.tolist())
    assert len(memories) == 1
    assert memories[0] and not memories[0] & held_out
    assert memories[0] | held_out == set(source.train.example.tolist())
    assert not memories[0] & set(source.test.example.tolist())


@pytest.mark.parametrize("spelling", ["replay:4", "lwf:5"])
def test_the_source_head_is_not_trained(workspace, spelling):
    spec = make_regularized_spec(workspace, spelling, Phase(lr=1e-2, **SGD | BRIEF))
    network, starts, dataset, source = prepare(workspace, spec)
    head = {name: tensor.clone() for name, tensor in source.head.items()}
    (actual,) = loop.train([spec], network, starts, dataset, source)
    assert is_equal(source.head, head)
    assert actual.last["linear.weight"].shape[0] == len(dataset.classes)
    assert actual.last.keys() == starts[0].keys()


def test_replay_preserves_source_performance(workspace):
    phase = Phase(lr=1e-2, **SGD | {"steps": 20, "batch_size": 16})
    network, _, _, source = prepare(workspace, make_regularized_spec(workspace, "replay:8", phase))
    labels = torch.from_numpy(source.memory.labels)

    def loss(spec):
        (actual,) = train(workspace, spec)
        return F.cross_entropy(
            compute_logits(network, actual.last | source.head, torch.from_numpy(source.memory.images)), labels
        )

    assert loss(make_regularized_spec(workspace, "replay:8", phase)) < loss(make_spec(workspace, phase))


@pytest.mark.parametrize(
    ("spelling", "change"),
    [
        ("ewc:1", {"memory": None}),
        ("replay:4", {"memory": None}),
        ("lwf:1", {"head": {}}),
    ],
)
def test_a_missing_requirement_is_an_error(workspace, spelling, change):
    spec = make_regularized_spec(workspace, spelling)
    network, starts, dataset, source = prepare(workspace, spec)
    with pytest.raises(ValueError, match=spelling):
        loop.train([spec], network, starts, dataset, replace(source, **change))


def test_l2_sp_needs_pretrained_weights(workspace):
    spec = replace_flat(make_regularized_spec(workspace, "l2-sp:1"), init=RANDOM, start=None)
    with pytest.raises(ValueError, match="without pretrained weights"):
        loop.train([spec], *prepare(workspace, spec))


def make_distilled_spec(workspace, spelling, *phases, **more):
    """A training with a teacher of the same seed, which had a brief linear probe."""
    probe = Phase(trainable=HEAD_ONLY, lr=1e-2, **SGD | BRIEF)
    return make_spec(
        workspace,
        *phases,
        regularizer=parse_regularizer(spelling),
        teacher=make_spec(workspace, probe, seed=more.get("seed", 0)),
        **more,
    )


def train_with_teacher(workspace, *specs):
    """Train with teachers as :mod:`run_trials` does, without its cache."""
    network, starts, dataset, source = prepare(workspace, *specs)
    return loop.train(
        specs, network, starts, dataset, run_trials._with_teachers(source, specs, make_trial(specs[0]), workspace.cache)
    )


@pytest.mark.parametrize("phase", [Phase(**BRIEF), Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, **BRIEF)])
@pytest.mark.parametrize("spelling", ["distill:0", "ewc:0", "l2-sp:0"])
@pytest.mark.parametrize("augment", ["", "flip+crop"])
def test_strength_0_equals_plain_training_bit_for_bit(workspace, spelling, phase, augment):
    (plain,) = train_with_teacher(
        workspace, make_spec(workspace, phase, augment=Augmentation.parse(augment) if augment else None)
    )
    make = make_distilled_spec if spelling == "distill:0" else make_regularized_spec
    (result,) = train_with_teacher(
        workspace, make(workspace, spelling, phase, augment=Augmentation.parse(augment) if augment else None)
    )
    assert is_equal(result.last, plain.last)
    assert is_equal(result.best, plain.best)
    assert result.curve == plain.curve


def test_the_distillation_loss_weighs_labels_and_softened_teacher_outputs(workspace):
    spec = make_distilled_spec(workspace, "distill:0.3", Phase(**STEP), init=RANDOM)
    network, (start,), dataset, _ = prepare(workspace, spec)
    (actual,) = train_with_teacher(workspace, spec)
    x, y = first_batch(spec, dataset)
    (teacher,), _ = run_trials._trained_models((spec.procedure.teacher,), make_trial(spec), workspace.cache)
    student_logits, teacher_logits = (compute_logits(network, tensors, x) for tensors in (start, teacher.last))
    divergence = F.kl_div((student_logits / 4).log_softmax(1), (teacher_logits / 4).softmax(1), reduction="batchmean")
    by_hand = 0.7 * F.cross_entropy(student_logits, y) + 0.3 * 16 * divergence
    assert actual.curve[0][1] == pytest.approx(float(by_hand), rel=1e-4)


def test_with_augmentation_the_teacher_sees_the_images_of_the_student(workspace, monkeypatch):
    def draw_flips(specs, *_):
        is_teacher = specs[0].procedure.augment is None
        return None if is_teacher else torch.tensor([0, 0, 1]).expand(1, len(specs), 16, 3)

    monkeypatch.setattr(loop.augmentation, "draw_augmentations", draw_flips)
    spec = make_distilled_spec(workspace, "distill:0.3", Phase(**STEP), init=RANDOM, augment=Augmentation.parse("flip"))
    network, (start,), dataset, _ = prepare(workspace, spec)
    (actual,) = train_with_teacher(workspace, spec)
    x, y = first_batch(spec, dataset)
    (teacher,), _ = run_trials._trained_models((spec.procedure.teacher,), make_trial(spec), workspace.cache)
    student_logits, teacher_logits = (compute_logits(network, tensors, x.flip(3)) for tensors in (start, teacher.last))
    divergence = F.kl_div((student_logits / 4).log_softmax(1), (teacher_logits / 4).softmax(1), reduction="batchmean")
    assert actual.curve[0][1] == pytest.approx(
        float(0.7 * F.cross_entropy(student_logits, y) + 0.3 * 16 * divergence), rel=1e-4
    )


@pytest.mark.parametrize("spelling", ["distill:0.5", "lwf:1"])
def test_reference_outputs_on_the_fly_equal_precomputed_ones(workspace, spelling, monkeypatch):
    make, phase = (
        (make_distilled_spec if spelling.startswith("distill") else make_regularized_spec),
        Phase(lr=1e-2, **SGD | BRIEF),
    )
    (once,) = train_with_teacher(workspace, make(workspace, spelling, phase))
    monkeypatch.setattr(loop.augmentation, "shift_and_flip", lambda images, _: images)
    (each,) = train_with_teacher(workspace, make(workspace, spelling, phase, augment=Augmentation.parse("flip")))
    torch.testing.assert_close(each.last, once.last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("more", [{}, {"augment": Augmentation.parse("flip")}, {"head": Head.parse("mlp:6:0")}])
def test_each_student_in_lockstep_has_its_own_teacher(workspace, more):
    phase = Phase(lr=1e-3, **SGD | BRIEF)
    specs = [make_distilled_spec(workspace, "distill:0.5", phase, seed=seed, init=RANDOM, **more) for seed in range(2)]
    for together, spec in zip(train_with_teacher(workspace, *specs), specs, strict=True):
        (alone,) = train_with_teacher(workspace, spec)
        torch.testing.assert_close(together.last, alone.last, rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(together.curve, alone.curve, rtol=1e-3, atol=1e-4)


def test_distillation_brings_the_student_closer_to_the_teacher(workspace):
    phase = Phase(lr=1e-2, **SGD | {"steps": 20, "batch_size": 16})
    spec = make_distilled_spec(workspace, "distill:1", phase, init=RANDOM)
    network, _, dataset, _ = prepare(workspace, spec)
    index, _ = datasets.train_validation_indices(dataset, spec.data.train_size, spec.seed)
    images = torch.from_numpy(np.array(dataset.train.images[index]))
    (teacher,), _ = run_trials._trained_models((spec.procedure.teacher,), make_trial(spec), workspace.cache)
    teacher_probabilities = compute_logits(network, teacher.last, images).softmax(1)

    def divergence(actual):
        return float(
            F.kl_div(compute_logits(network, actual.last, images).log_softmax(1), teacher_probabilities, reduction="batchmean")
        )

    assert divergence(train_with_teacher(workspace, spec)[0]) < divergence(
        train_with_teacher(workspace, make_spec(workspace, phase, init=RANDOM))[0]
    )


def test_distillation_without_a_teacher_is_an_error(workspace):
    spec = make_spec(workspace, regularizer=Regularizer.parse("distill:0.5"))
    with pytest.raises(ValueError, match="without a teacher"):
        train_with_teacher(workspace, spec)
