"""What holds a network to its source: each term by hand, and the loop's own promises with a term in the loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import BRIEF, HEAD, READY, WEIGHTS, make_fit, make_trial, make_world, moved, same
from test_loop import regularizer as regularizer_of
from torch.func import functional_call
from torch.nn import functional as F

from xferbench.core.interventions import HEAD_ONLY, Augmentation, Head, Regularizer, Trainable
from xferbench.core.pipeline import AuxiliaryDataset, Phase
from xferbench.lab.data import datasets, domains, preprocessing
from xferbench.lab.models import backbones, checkpoint_reader, checkpoints
from xferbench.lab.training import feature_cache, loop, regularizers
from xferbench.lab.worker import run_trials

STEP = {"steps": 1, "batch_size": 16, "optimizer": "sgd", "weight_decay": 0.0, "schedule": "constant", "batchnorm": "eval"}
OUTPUTS = 20  # of the shipped checkpoint's head
SGD = {"optimizer": "sgd", "weight_decay": 0.0, "schedule": "constant", "batchnorm": "eval"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    made = make_world(folder)
    made.source = AuxiliaryDataset(data=make_npz(folder / "s.npz", train=80, classes=10), classes=tuple(range(19, 9, -1)))
    return made


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def held(world, regularizer, *phases, **more):
    """A fit of a regularizer, on the world's source where it needs one."""
    needs = regularizer.startswith(("ewc", "replay"))
    return make_fit(
        world,
        *phases,
        regularizer=regularizer_of(regularizer),
        source=world.source if needs else None,
        **more,
    )


def prepared(world, *fits):
    trial = make_trial(fits[0])
    dataset, network = run_trials.training_inputs(fits[0], trial, world.cache)
    starts = [run_trials.start_tensors(one, network, trial, world.cache) for one in fits]
    return network, starts, dataset, run_trials._auxiliary_inputs(fits[0], network, world.cache)


def trained(world, *fits):
    return loop.train(fits, *prepared(world, *fits))


def path(found):
    """How far a fit's backbone went."""
    gone = ((found.last[name] - found.before[name]).double().square().sum() for name in moved(found) - HEAD)
    return float(sum(gone)) ** 0.5


def logits(network, tensors, images):
    with feature_cache.evaluation_mode(network.module, network.device):
        return functional_call(network.module, tensors, (preprocessing.to_tensor(images, READY),)).double()


def batch(one, dataset):
    """The images and labels of a fit's first batch."""
    index, _ = datasets.train_validation_indices(dataset, one.train_size, one.seed)
    own = index[loop.batch_indices(one.phases[0], one.seed, 0, dataset.train.labels[index])[0]]
    return torch.from_numpy(np.array(dataset.train.images[own])), torch.from_numpy(dataset.train.labels[own])


def pretrained(network, start):
    """The checkpoint as it is: its own body and head."""
    return start | checkpoints.head_tensors(
        network.module, checkpoint_reader.read_checkpoint(run_trials.Path(WEIGHTS.path)), network.anatomy.head
    )


def test_l2_sp_of_enormous_strength_leaves_the_backbone_where_it_was(world):
    phase = Phase(lr=1e-3, **SGD | {"steps": 30, "batch_size": 16})
    free, tied = (path(trained(world, held(world, word, phase))[0]) for word in ("l2-sp:1e-9", "l2-sp:500"))
    assert 0 < tied < 0.05 * free


@pytest.mark.parametrize("word", ["l2-sp:0.1", "ewc:100"])
def test_what_is_held_goes_less_far_and_the_head_is_free(world, word):
    phase = Phase(lr=1e-2, **SGD | {"steps": 20, "batch_size": 16})
    (free,), (tied,) = trained(world, make_fit(world, phase)), trained(world, held(world, word, phase))
    assert path(tied) < path(free)
    assert moved(tied) >= HEAD


def test_the_first_step_of_l2_sp_and_ewc_is_the_one_without_for_nothing_has_moved_yet(world):
    (plain,) = trained(world, make_fit(world, Phase(**STEP)))
    for word in ("l2-sp:100", "ewc:100"):
        (one,) = trained(world, held(world, word, Phase(**STEP)))
        assert one.curve == plain.curve
        torch.testing.assert_close(one.last, plain.last)


def test_l2_sp_is_half_its_strength_times_the_squared_distance(world):
    one = held(world, "l2-sp:3")
    network, (start,), _, _ = prepared(world, one)
    tied = regularizers.build_regularizer([one], network, start, {}, None, [])
    term = regularizers.penalty_term(tied, None, [start], one.phases[0], 0, [one], network)
    name = "conv1.weight"
    parameters = {name: torch.stack([start[name] + 2.0, start[name]]), "linear.weight": torch.ones(2, 4, 5)}
    found = regularizers.penalty_loss(term, 0, torch.zeros(2, 1, 4), parameters, torch.zeros(2, 1), 4)
    assert found.tolist() == pytest.approx([3 / 2 * 4.0 * start[name].numel(), 0.0])


def test_the_importance_of_one_image_is_its_squared_gradient(world):
    one = held(world, "ewc:1")
    network, (start,), _, source = prepared(world, one)
    single = datasets.take(source.memory, slice(1))
    tied = regularizers.build_regularizer([one], network, start, source.head, single, [])
    module = backbones.build("tiny-resnet", OUTPUTS).eval()
    module.load_state_dict(pretrained(network, start))
    image = preprocessing.to_tensor(torch.from_numpy(np.array(single.images)), READY)
    F.cross_entropy(module(image), torch.from_numpy(single.labels)).backward()
    own = {name: parameter.grad.square() for name, parameter in module.named_parameters() if name not in HEAD}
    torch.testing.assert_close(tied.importance, own, rtol=1e-3, atol=1e-7)
    assert any(tensor.sum() > 0 for tensor in own.values())
    assert tied.anchor.keys() == own.keys()


def test_the_importance_of_images_is_the_mean_of_each_ones(world):
    one = held(world, "ewc:1")
    network, (start,), _, source = prepared(world, one)
    part = [datasets.take(source.memory, at) for at in (slice(1), slice(1, 2), slice(2))]
    first, second, both = (
        regularizers.build_regularizer([one], network, start, source.head, own, []).importance for own in part
    )
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2, rtol=1e-3, atol=1e-7)


def test_lwf_is_nothing_at_first_and_then_what_the_source_head_says_otherwise(world):
    (plain,) = trained(world, make_fit(world, Phase(**STEP)))
    one = held(world, "lwf:3", Phase(**STEP))
    (first,) = trained(world, one)
    assert first.curve[0][1] == pytest.approx(plain.curve[0][1], abs=1e-5), "the distance of a network from itself"
    network, (start,), _, source = prepared(world, one)
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tied = regularizers.build_regularizer([one], network, start, source.head, None, [images])
    term = regularizers.penalty_term(tied, None, [start], one.phases[0], 0, [one], network)
    was = logits(network, pretrained(network, start), images)
    now = was + torch.arange(OUTPUTS)
    seen = torch.tensor([[3, 1]])
    both = torch.cat([torch.zeros(2, 4), now[seen[0]].float()], 1)[None]
    p, q = ((answers[seen[0]] / 2).log_softmax(1) for answers in (was, now))
    by_hand = 3 * 4 * (p.exp() * (p - q)).sum(1).mean()
    assert regularizers.penalty_loss(term, 0, both, {}, seen, 4).item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_the_loss_of_rehearsal_is_the_targets_and_the_sources_each_image_weighing_alike(world):
    one = held(world, "replay:4", Phase(**STEP))
    network, (start,), dataset, source = prepared(world, one)
    (found,) = trained(world, one)
    x, y = batch(one, dataset)
    drawn = regularizers.seeds.numpy_stream(one.seed, regularizers.seeds.REPLAY, 0).integers(
        len(source.memory.labels), size=(1, 4)
    )[0]
    old, labels = torch.from_numpy(source.memory.images[drawn]), torch.from_numpy(source.memory.labels[drawn])
    own = F.cross_entropy(logits(network, start, x), y, reduction="none")
    rehearsed = F.cross_entropy(logits(network, pretrained(network, start), old), labels, reduction="none")
    assert found.curve[0][1] == pytest.approx(float((own.sum() + rehearsed.sum()) / 16), rel=1e-4)


@pytest.mark.parametrize("word", ["l2-sp:1", "ewc:100", "lwf:1", "replay:4"])
@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_a_group_in_lock_step_gives_what_each_gives_alone(world, word, batchnorm):
    phase = Phase(lr=1e-3, **SGD | {"steps": 3, "batch_size": 16, "batchnorm": batchnorm})
    fits = [held(world, word, phase, seed=seed) for seed in range(3)]
    for together, one in zip(trained(world, *fits), fits, strict=True):
        (alone,) = trained(world, one)
        torch.testing.assert_close(together.last, alone.last, rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(together.curve, alone.curve, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("word", ["l2-sp:1", "ewc:100", "lwf:1", "replay:4"])
def test_also_where_an_earlier_phase_moved_what_a_later_one_keeps_frozen(world, word):
    phases = (Phase(lr=3e-2, **SGD | BRIEF), Phase(trainable=Trainable.parse("top:1"), lr=3e-2, **SGD | BRIEF))
    fits = [held(world, word, *phases, seed=seed) for seed in range(2)]
    for together, one in zip(trained(world, *fits), fits, strict=True):
        (alone,) = trained(world, one)
        torch.testing.assert_close(together.last, alone.last, rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(together.curve, alone.curve, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("word", ["l2-sp:1", "ewc:100", "lwf:1", "replay:4"])
@pytest.mark.parametrize("trainable", ["top:1", "top:3", "head"])
def test_activations_that_are_computed_once_give_the_same_as_the_whole_network(world, word, trainable, monkeypatch):
    one = held(world, word, Phase(trainable=Trainable.parse(trainable), lr=1e-2, **SGD | BRIEF))
    network, *_ = prepared(world, one)
    assert loop.split_phase_model(network, loop.frozen_cut(one.phases[0], network.anatomy), READY)[0] is not None
    (parted,) = trained(world, one)
    monkeypatch.setattr(backbones, "split_at", lambda *_: None)
    (whole,) = trained(world, one)
    torch.testing.assert_close(parted.last, whole.last, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parted.curve, whole.curve, rtol=1e-4)


def test_what_is_rehearsed_is_never_what_choices_are_made_on(world, monkeypatch):
    given = []
    real = regularizers.penalty_term

    def noted(tied, *rest):
        given.append(set(tied.memory.example.tolist()))
        return real(tied, *rest)

    monkeypatch.setattr(regularizers, "penalty_term", noted)
    trained(world, held(world, "replay:4"))
    source = domains.load_domain(world.source, READY, world.cache)
    held_out = set(domains.held_out_split(source).example.tolist())
    assert len(given) == 1
    assert given[0] and not given[0] & held_out
    assert given[0] | held_out == set(source.train.example.tolist())
    assert not given[0] & set(source.test.example.tolist())


@pytest.mark.parametrize("word", ["replay:4", "lwf:5"])
def test_the_source_head_is_asked_and_never_trained(world, word):
    one = held(world, word, Phase(lr=1e-2, **SGD | BRIEF))
    network, starts, dataset, source = prepared(world, one)
    kept = {name: tensor.clone() for name, tensor in source.head.items()}
    (found,) = loop.train([one], network, starts, dataset, source)
    assert same(source.head, kept)
    assert found.last["linear.weight"].shape[0] == len(dataset.classes)
    assert found.last.keys() == starts[0].keys()


def test_rehearsal_keeps_more_of_the_source_than_nothing_does(world):
    phase = Phase(lr=1e-2, **SGD | {"steps": 20, "batch_size": 16})
    network, _, _, source = prepared(world, held(world, "replay:8", phase))
    labels = torch.from_numpy(source.memory.labels)

    def loss(one):
        (found,) = trained(world, one)
        return F.cross_entropy(logits(network, found.last | source.head, torch.from_numpy(source.memory.images)), labels)

    assert loss(held(world, "replay:8", phase)) < loss(make_fit(world, phase))


@pytest.mark.parametrize(
    ("word", "change"),
    [
        ("ewc:1", {"memory": None}),
        ("replay:4", {"memory": None}),
        ("lwf:1", {"head": {}}),
    ],
)
def test_a_regularizer_that_lacks_what_it_needs_is_an_error(world, word, change):
    one = held(world, word)
    network, starts, dataset, source = prepared(world, one)
    with pytest.raises(ValueError, match=word):
        loop.train([one], network, starts, dataset, replace(source, **change))


def test_nothing_pretrained_holds_nothing(world):
    one = replace(held(world, "l2-sp:1"), init="random", start=None)
    with pytest.raises(ValueError, match="without pretrained weights"):
        loop.train([one], *prepared(world, one))


def distilled(world, word, *phases, **more):
    """A fit that learns from another of the same seed, which has had a brief linear probe."""
    probe = Phase(trainable=HEAD_ONLY, lr=1e-2, **SGD | BRIEF)
    return make_fit(
        world, *phases, regularizer=regularizer_of(word), teacher=make_fit(world, probe, seed=more.get("seed", 0)), **more
    )


def learnt(world, *fits):
    """Fits trained as they are trained for an answer, but not kept."""
    network, starts, dataset, source = prepared(world, *fits)
    return loop.train(fits, network, starts, dataset, run_trials._with_teachers(source, fits, make_trial(fits[0]), world.cache))


@pytest.mark.parametrize("phase", [Phase(**BRIEF), Phase(trainable=HEAD_ONLY, batchnorm="eval", **BRIEF)])
@pytest.mark.parametrize("word", ["distill:0", "ewc:0", "l2-sp:0"])
@pytest.mark.parametrize("augment", ["", "flip+crop"])
def test_what_holds_with_no_strength_is_plain_training_bit_for_bit(world, word, phase, augment):
    (plain,) = learnt(world, make_fit(world, phase, augment=Augmentation.parse(augment) if augment else None))
    make = distilled if word == "distill:0" else held
    (one,) = learnt(world, make(world, word, phase, augment=Augmentation.parse(augment) if augment else None))
    assert same(one.last, plain.last)
    assert same(one.best, plain.best)
    assert one.curve == plain.curve


def test_the_loss_of_a_distilled_step_is_a_share_of_the_labels_and_of_the_softened_teacher(world):
    one = distilled(world, "distill:0.3", Phase(**STEP), init="random")
    network, (start,), dataset, _ = prepared(world, one)
    (found,) = learnt(world, one)
    x, y = batch(one, dataset)
    (taught,), _ = run_trials._trained_models((one.teacher,), make_trial(one), world.cache)
    own, said = (logits(network, tensors, x) for tensors in (start, taught.last))
    apart = F.kl_div((own / 4).log_softmax(1), (said / 4).softmax(1), reduction="batchmean")
    by_hand = 0.7 * F.cross_entropy(own, y) + 0.3 * 16 * apart
    assert found.curve[0][1] == pytest.approx(float(by_hand), rel=1e-4)


def test_with_augmented_images_the_teacher_is_asked_about_what_the_student_sees(world, monkeypatch):
    monkeypatch.setattr(
        loop.augmentation, "draw_augmentations", lambda fits, *_: torch.tensor([0, 0, 1]).expand(1, len(fits), 16, 3)
    )
    one = distilled(world, "distill:0.3", Phase(**STEP), init="random", augment=Augmentation.parse("flip"))
    network, (start,), dataset, _ = prepared(world, one)
    (found,) = learnt(world, one)
    x, y = batch(one, dataset)
    (taught,), _ = run_trials._trained_models((one.teacher,), make_trial(one), world.cache)
    own, said = (logits(network, tensors, x.flip(3)) for tensors in (start, taught.last))
    apart = F.kl_div((own / 4).log_softmax(1), (said / 4).softmax(1), reduction="batchmean")
    assert found.curve[0][1] == pytest.approx(float(0.7 * F.cross_entropy(own, y) + 0.3 * 16 * apart), rel=1e-4)


@pytest.mark.parametrize("word", ["distill:0.5", "lwf:1"])
def test_draws_of_nothing_make_answers_on_the_fly_those_that_are_had_once(world, word, monkeypatch):
    make, phase = (distilled if word.startswith("distill") else held), Phase(lr=1e-2, **SGD | BRIEF)
    (once,) = learnt(world, make(world, word, phase))
    monkeypatch.setattr(loop.augmentation, "shift_and_flip", lambda images, _: images)
    (each,) = learnt(world, make(world, word, phase, augment=Augmentation.parse("flip")))
    torch.testing.assert_close(each.last, once.last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("more", [{}, {"augment": Augmentation.parse("flip")}, {"head": Head.parse("mlp:6:0")}])
def test_students_in_lock_step_learn_each_from_its_own_teacher(world, more):
    phase = Phase(lr=1e-3, **SGD | BRIEF)
    fits = [distilled(world, "distill:0.5", phase, seed=seed, init="random", **more) for seed in range(2)]
    for together, one in zip(learnt(world, *fits), fits, strict=True):
        (alone,) = learnt(world, one)
        torch.testing.assert_close(together.last, alone.last, rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(together.curve, alone.curve, rtol=1e-3, atol=1e-4)


def test_a_student_comes_nearer_to_its_teacher_than_one_that_has_none(world):
    phase = Phase(lr=1e-2, **SGD | {"steps": 20, "batch_size": 16})
    one = distilled(world, "distill:1", phase, init="random")
    network, _, dataset, _ = prepared(world, one)
    index, _ = datasets.train_validation_indices(dataset, one.train_size, one.seed)
    images = torch.from_numpy(np.array(dataset.train.images[index]))
    (taught,), _ = run_trials._trained_models((one.teacher,), make_trial(one), world.cache)
    said = logits(network, taught.last, images).softmax(1)

    def apart(found):
        return float(F.kl_div(logits(network, found.last, images).log_softmax(1), said, reduction="batchmean"))

    assert apart(learnt(world, one)[0]) < apart(learnt(world, make_fit(world, phase, init="random"))[0])


def test_no_teacher_is_an_error_that_says_so(world):
    one = make_fit(world, regularizer=Regularizer.parse("distill:0.5"))
    with pytest.raises(ValueError, match="without a teacher"):
        learnt(world, one)
