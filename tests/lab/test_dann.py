"""DANN: strength 0, the reversed gradient computed by hand, and groups in lockstep."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import BRIEF, PREPROCESSING, is_equal, make_spec, make_trial, make_workspace, parse_regularizer

from xferbench.core.errors import UserError
from xferbench.core.interventions import (
    BATCHNORM_EVAL,
    HEAD_ONLY,
    Augmentation,
    BatchNormTrainAbove,
    GhostBatchNorm,
    Head,
    Trainable,
)
from xferbench.core.pipeline import Phase
from xferbench.core.sections import replace_flat
from xferbench.lab.data import datasets, domains
from xferbench.lab.training import dann, loop
from xferbench.lab.worker import run_trials

PROBE = Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, lr=1e-2, **BRIEF)
TOP = Phase(trainable=Trainable.parse("top:1"), batchnorm=BatchNormTrainAbove(), **BRIEF)
SGD = {"optimizer": "sgd", "weight_decay": 0.0, "schedule": "constant", "batchnorm": BATCHNORM_EVAL}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    workspace = make_workspace(folder)
    workspace.other = make_npz(folder / "other.npz", train=50)
    return workspace


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_dann_spec(workspace, spelling, *phases, **more):
    return make_spec(workspace, *phases, regularizer=parse_regularizer(spelling), unlabelled=workspace.other, **more)


def prepare(workspace, *specs):
    trial = make_trial(specs[0])
    dataset, network = run_trials.training_inputs(specs[0], trial, workspace.cache)
    starts = [run_trials.start_tensors(spec, network, trial, workspace.cache) for spec in specs]
    return network, starts, dataset, run_trials._auxiliary_inputs(specs[0], network, workspace.cache)


def train(workspace, *specs):
    return loop.train(specs, *prepare(workspace, *specs))


@pytest.mark.parametrize(
    "phases", [(Phase(**BRIEF),), (PROBE, Phase(batchnorm=GhostBatchNorm(examples=4), **BRIEF)), (TOP,), (PROBE,)]
)
@pytest.mark.parametrize("more", [{}, {"augment": Augmentation.parse("flip+crop"), "head": Head.parse("mlp:6")}])
@pytest.mark.parametrize("seeds", [1, 2])
def test_strength_0_equals_plain_training_bit_for_bit(workspace, phases, more, seeds):
    plain = train(workspace, *(make_spec(workspace, *phases, seed=seed, **more) for seed in range(seeds)))
    results = train(workspace, *(make_dann_spec(workspace, "dann:0", *phases, seed=seed, **more) for seed in range(seeds)))
    for result, plain_result in zip(results, plain, strict=True):
        assert is_equal(result.last, plain_result.last) and is_equal(result.best, plain_result.best)
        assert result.curve == plain_result.curve


def test_a_positive_strength_changes_the_result_but_not_the_structure(workspace):
    (plain,), (result,) = train(workspace, make_spec(workspace)), train(workspace, make_dann_spec(workspace, "dann:1"))
    assert result.last.keys() == plain.last.keys() == result.before.keys()
    assert not is_equal(result.last, plain.last)
    assert result.curve[0][1] == plain.curve[0][1], (
        "the strength is 0 at the first step, and the curve reports the loss of the labels only"
    )


@pytest.mark.parametrize("more", [{}, {"augment": Augmentation.parse("flip")}, {"head": Head.parse("mlp:6:0")}])
def test_training_in_lockstep_equals_training_alone(workspace, more):
    specs = [make_dann_spec(workspace, "dann:1", Phase(lr=1e-3, **SGD | BRIEF), seed=seed, **more) for seed in range(2)]
    for together, spec in zip(train(workspace, *specs), specs, strict=True):
        (alone,) = train(workspace, spec)
        torch.testing.assert_close(together.last, alone.last, rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(together.curve, alone.curve, rtol=1e-3, atol=1e-4)


def test_discriminators_depend_on_the_seed_of_each_member(workspace):
    specs = [make_dann_spec(workspace, "dann:1", seed=seed) for seed in range(2)]
    network, _, dataset, source = prepare(workspace, *specs)
    both = dann.build_discriminator(specs, network, source.unlabelled, dataset.train.images.shape[1:])
    second = dann.build_discriminator(specs[1:], network, source.unlabelled, dataset.train.images.shape[1:])
    for name, tensor in both.tensors.items():
        assert torch.equal(tensor[1:], second.tensors[name]) and not torch.equal(tensor[0], tensor[1])


def test_the_loss_is_0_and_its_gradient_is_reversed(workspace):
    spec = make_dann_spec(workspace, "dann:0.7", Phase(**BRIEF), Phase(**BRIEF))
    network, (start,), dataset, source = prepare(workspace, spec)
    discriminator = dann.build_discriminator([spec], network, source.unlabelled, dataset.train.images.shape[1:])
    dann_phase = dann.build_dann_phase(discriminator, None, [start], spec.procedure.phases[1], 1, [spec], network)
    assert (dann_phase.previous_steps, dann_phase.total_steps) == (3, 6)
    _, rest = loop.split_phase_model(network, 0, PREPROCESSING)
    name, x = "conv1.weight", torch.from_numpy(np.array(dataset.train.images[:16]))
    tensors = {key: tensor[None].clone() for key, tensor in start.items()}
    tensors[name].requires_grad_()
    term = dann.dann_loss(dann_phase, 0, rest, tensors, [x], None)
    assert term.tolist() == [0.0]
    first, back = torch.autograd.grad(term.sum(), [discriminator.tensors["1.weight"], tensors[name]])

    both = torch.cat([x, dann_phase.x[0][dann_phase.index[0][0]]])
    by_hand = tensors[name][0].detach().clone().requires_grad_()
    module = network.module.eval()
    layer_inputs = []
    hook = module.get_submodule(network.layout.head).register_forward_pre_hook(lambda _, inputs: layer_inputs.append(inputs[0]))
    rest(start | {name: by_hand}, both)
    hook.remove()
    weight = {key: tensor[0] for key, tensor in discriminator.tensors.items()}
    logits = torch.relu(layer_inputs[0] @ weight["1.weight"].T + weight["1.bias"]) @ weight["2.weight"].T + weight["2.bias"]
    domain = torch.tensor([0.0] * 16 + [1.0] * 16)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], domain)
    expected = torch.autograd.grad(loss, [discriminator.tensors["1.weight"], by_hand])
    torch.testing.assert_close(first, expected[0])
    torch.testing.assert_close(back[0], -0.7 * dann.dann_ramp(0.5) * expected[1])


def test_the_ramp_rises_from_0_to_almost_1():
    assert dann.dann_ramp(0) == 0
    assert dann.dann_ramp(0.1) == pytest.approx(0.462, abs=1e-3)
    assert 0.9999 < dann.dann_ramp(1) < 1


def test_images_of_the_other_domain_exclude_held_out_and_test_images(workspace):
    *_, source = prepare(workspace, make_dann_spec(workspace, "dann:1"))
    other = datasets.load_dataset(workspace.other, PREPROCESSING, None, workspace.cache)
    digests = set(source.unlabelled.example.tolist())
    assert digests and digests <= set(other.train.example.tolist())
    assert not digests & {*domains.held_out_split(other).example.tolist(), *other.test.example.tolist()}


def test_missing_or_differently_shaped_images_are_errors(workspace, tmp_path):
    spec = make_dann_spec(workspace, "dann:1")
    with pytest.raises(ValueError, match="without images of another domain"):
        loop.train([spec], *prepare(workspace, replace_flat(spec, unlabelled=None)))
    larger = make_npz(tmp_path / "l.npz", side=20)
    with pytest.raises(UserError, match="images of another shape"):
        train(workspace, replace_flat(spec, unlabelled=larger))
