"""Features that do not tell domains apart: the plain fit at no strength, the reversal by hand, members in lock-step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import BRIEF, READY, make_fit, make_trial, make_world, same
from test_loop import regularizer as regularizer_of

from xferbench.core.errors import UserError
from xferbench.core.interventions import HEAD_ONLY, Augmentation, Head, Trainable
from xferbench.core.pipeline import Phase
from xferbench.lab.data import datasets, domains
from xferbench.lab.training import dann, loop
from xferbench.lab.worker import run_trials

PROBE = Phase(trainable=HEAD_ONLY, batchnorm="eval", lr=1e-2, **BRIEF)
TOP = Phase(trainable=Trainable.parse("top:1"), batchnorm="train-above", **BRIEF)
SGD = {"optimizer": "sgd", "weight_decay": 0.0, "schedule": "constant", "batchnorm": "eval"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    made = make_world(folder)
    made.other = make_npz(folder / "other.npz", train=50)
    return made


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rivalled(world, word, *phases, **more):
    return make_fit(world, *phases, regularizer=regularizer_of(word), unlabelled=world.other, **more)


def prepared(world, *fits):
    trial = make_trial(fits[0])
    dataset, network = run_trials.training_inputs(fits[0], trial, world.cache)
    starts = [run_trials.start_tensors(one, network, trial, world.cache) for one in fits]
    return network, starts, dataset, run_trials._auxiliary_inputs(fits[0], network, world.cache)


def trained(world, *fits):
    return loop.train(fits, *prepared(world, *fits))


@pytest.mark.parametrize("phases", [(Phase(**BRIEF),), (PROBE, Phase(batchnorm="ghost:4", **BRIEF)), (TOP,), (PROBE,)])
@pytest.mark.parametrize("more", [{}, {"augment": Augmentation.parse("flip+crop"), "head": Head.parse("mlp:6")}])
@pytest.mark.parametrize("seeds", [1, 2])
def test_with_no_strength_it_is_plain_training_bit_for_bit(world, phases, more, seeds):
    plain = trained(world, *(make_fit(world, *phases, seed=seed, **more) for seed in range(seeds)))
    found = trained(world, *(rivalled(world, "dann:0", *phases, seed=seed, **more) for seed in range(seeds)))
    for one, other in zip(found, plain, strict=True):
        assert same(one.last, other.last) and same(one.best, other.best)
        assert one.curve == other.curve


def test_the_network_stays_plain_and_some_strength_moves_it_elsewhere(world):
    (plain,), (found,) = trained(world, make_fit(world)), trained(world, rivalled(world, "dann:1"))
    assert found.last.keys() == plain.last.keys() == found.before.keys()
    assert not same(found.last, plain.last)
    assert found.curve[0][1] == plain.curve[0][1], "at the first step the strength is none, and a curve is of the labels alone"


@pytest.mark.parametrize("more", [{}, {"augment": Augmentation.parse("flip")}, {"head": Head.parse("mlp:6:0")}])
def test_members_in_lock_step_are_as_if_each_were_alone(world, more):
    fits = [rivalled(world, "dann:1", Phase(lr=1e-3, **SGD | BRIEF), seed=seed, **more) for seed in range(2)]
    for together, one in zip(trained(world, *fits), fits, strict=True):
        (alone,) = trained(world, one)
        torch.testing.assert_close(together.last, alone.last, rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(together.curve, alone.curve, rtol=1e-3, atol=1e-4)


def test_classifiers_are_drawn_from_each_members_seed(world):
    fits = [rivalled(world, "dann:1", seed=seed) for seed in range(2)]
    network, _, dataset, source = prepared(world, *fits)
    both = dann.discriminator(fits, network, source.unlabelled, dataset.train.images.shape[1:])
    second = dann.discriminator(fits[1:], network, source.unlabelled, dataset.train.images.shape[1:])
    for name, tensor in both.tensors.items():
        assert torch.equal(tensor[1:], second.tensors[name]) and not torch.equal(tensor[0], tensor[1])


def test_a_term_has_no_value_and_the_gradient_of_the_classifier_reversed(world):
    one = rivalled(world, "dann:0.7", Phase(**BRIEF), Phase(**BRIEF))
    network, (start,), dataset, source = prepared(world, one)
    rival = dann.discriminator([one], network, source.unlabelled, dataset.train.images.shape[1:])
    bout = dann.dann_batch(rival, None, [start], one.phases[1], 1, [one], network)
    assert (bout.begun, bout.total) == (3, 6)
    _, rest = loop.split_phase_model(network, 0, READY)
    name, x = "conv1.weight", torch.from_numpy(np.array(dataset.train.images[:16]))
    own = {key: tensor[None].clone() for key, tensor in start.items()}
    own[name].requires_grad_()
    term = dann.dann_loss(bout, 0, rest, own, [x], None)
    assert term.tolist() == [0.0]
    first, back = torch.autograd.grad(term.sum(), [rival.tensors["1.weight"], own[name]])

    both = torch.cat([x, bout.x[0][bout.index[0][0]]])
    by_hand = own[name][0].detach().clone().requires_grad_()
    module = network.module.eval()
    seen = []
    hook = module.get_submodule(network.anatomy.head).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    rest(start | {name: by_hand}, both)
    hook.remove()
    weight = {key: tensor[0] for key, tensor in rival.tensors.items()}
    logits = torch.relu(seen[0] @ weight["1.weight"].T + weight["1.bias"]) @ weight["2.weight"].T + weight["2.bias"]
    domain = torch.tensor([0.0] * 16 + [1.0] * 16)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], domain)
    wanted = torch.autograd.grad(loss, [rival.tensors["1.weight"], by_hand])
    torch.testing.assert_close(first, wanted[0])
    torch.testing.assert_close(back[0], -0.7 * dann.dann_ramp(0.5) * wanted[1])


def test_the_ramp_rises_from_nothing_to_almost_all():
    assert dann.dann_ramp(0) == 0
    assert dann.dann_ramp(0.1) == pytest.approx(0.462, abs=1e-3)
    assert 0.9999 < dann.dann_ramp(1) < 1


def test_images_of_the_other_domain_are_those_that_no_choice_is_made_on(world):
    *_, source = prepared(world, rivalled(world, "dann:1"))
    other = datasets.load_dataset(world.other, READY, None, world.cache)
    given = set(source.unlabelled.example.tolist())
    assert given and given <= set(other.train.example.tolist())
    assert not given & {*domains.held_out_split(other).example.tolist(), *other.test.example.tolist()}


def test_what_it_needs_and_has_not_is_said(world, tmp_path):
    one = rivalled(world, "dann:1")
    with pytest.raises(ValueError, match="without images of another domain"):
        loop.train([one], *prepared(world, replace(one, unlabelled=None)))
    larger = make_npz(tmp_path / "l.npz", side=20)
    with pytest.raises(UserError, match="images of another shape"):
        trained(world, replace(one, unlabelled=larger))
