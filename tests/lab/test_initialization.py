from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from xferbench.core.errors import UserError
from xferbench.core.interventions import (
    PRETRAINED,
    RANDOM,
    RANDOM_HEAD,
    ZERO_HEAD,
    MatchedMoments,
    PermutedWeights,
    ShuffledSource,
    TransferLowest,
)
from xferbench.lab.models import backbones, checkpoint_reader, graph_split, initialization

ARCH, HEAD = "tiny-resnet", {"linear.weight", "linear.bias"}


@pytest.fixture(scope="module")
def layout():
    return backbones.layer_layout(backbones.build(ARCH, 5), 32)


@pytest.fixture(scope="module")
def state():
    """A checkpoint with another head and BatchNorm statistics that are not initial."""
    model = backbones.build(ARCH, 20)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(tensor.shape, generator=generator) + 0.5 if tensor.is_floating_point() else tensor + 9
        for name, tensor in model.state_dict().items()
    }


def initialize(layout, state, init=PRETRAINED, head=RANDOM_HEAD, seeds=(1, 2), **more):
    return initialization.initial_tensors(ARCH, layout, state, init=init, head=head, seeds=seeds, **more)


def body_tensors(tensors):
    return {name: tensor for name, tensor in tensors.items() if name not in HEAD}


def is_equal(tensors, other):
    return tensors.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("init", [PRETRAINED, RANDOM, MatchedMoments(), PermutedWeights()])
def test_all_tensors_are_returned_and_depend_on_the_seeds_only(init, layout, state):
    once, again = initialize(layout, state, init), initialize(layout, state, init)
    model = backbones.build(ARCH, 5)
    assert {name: tensor.shape for name, tensor in once.items()} == {
        name: tensor.shape for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    assert is_equal(once, again)
    assert not any(tensor.requires_grad for tensor in once.values())


@pytest.mark.parametrize("init", [PRETRAINED, RANDOM, MatchedMoments(), PermutedWeights()])
def test_head_and_body_have_separate_seeds(init, layout, state):
    first, other_head, other_body = (initialize(layout, state, init, seeds=seeds) for seeds in ((1, 2), (1, 3), (4, 2)))
    assert is_equal(body_tensors(first), body_tensors(other_head))
    assert not torch.equal(first["linear.weight"], other_head["linear.weight"])
    assert torch.equal(first["linear.weight"], other_body["linear.weight"])
    assert is_equal(body_tensors(first), body_tensors(other_body)) == (init == PRETRAINED)


@pytest.mark.parametrize("init", [PRETRAINED, RANDOM, MatchedMoments(), PermutedWeights()])
def test_global_random_streams_are_neither_used_nor_changed(init, layout, state):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = initialize(layout, state, init)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert is_equal(first, initialize(layout, state, init))


def test_pretrained_tensors_are_those_of_the_checkpoint_below_a_new_head(layout, state):
    tensors = initialize(layout, state)
    assert is_equal(body_tensors(tensors), {name: tensor for name, tensor in state.items() if name not in HEAD})
    assert tensors["linear.weight"].shape == (5, 64)


def test_random_tensors_are_those_of_the_architecture_without_a_checkpoint(layout):
    tensors = initialize(layout, None, RANDOM)
    assert (tensors["bn1.running_var"] == 1).all()
    assert (tensors["bn1.weight"] == 1).all()
    expected = (2 / tensors["layer4.0.conv2.weight"][:, 0].numel()) ** 0.5
    assert tensors["layer4.0.conv2.weight"].std().item() == pytest.approx(expected, rel=0.05)


def test_matched_tensors_have_the_mean_and_deviation_of_the_pretrained_ones(layout, state):
    tensors = initialize(layout, state, MatchedMoments())
    name = "layer4.0.conv2.weight"
    assert tensors[name].mean().item() == pytest.approx(state[name].mean().item(), abs=0.01)
    assert tensors[name].std().item() == pytest.approx(state[name].std().item(), rel=0.02)
    assert not torch.isin(tensors[name], state[name]).all()
    assert (tensors["bn1.running_mean"] == 0).all()


def test_permuted_tensors_are_shuffled_except_in_batchnorm_layers(layout, state):
    tensors = initialize(layout, state, PermutedWeights())
    for name, tensor in body_tensors(tensors).items():
        assert torch.equal(tensor.flatten().sort().values, state[name].flatten().sort().values)
        assert torch.equal(tensor, state[name]) == backbones.is_within(name, layout.batchnorm)


def test_permuted_features_have_the_scale_of_pretrained_ones(shared):
    arch = "cifar-resnet20"
    model = backbones.build(arch, 10).eval()
    layout = backbones.layer_layout(model, 32)
    weights = checkpoint_reader.read_checkpoint(shared / "weights" / "resnet20-12fca82f.th")
    lower, _ = graph_split.split_at(model, layout, len(layout.groups))
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sizes = {}
    for init in (PRETRAINED, PermutedWeights()):
        tensors = initialization.initial_tensors(arch, layout, weights, init=init, head=ZERO_HEAD, seeds=(1, 2))
        part_tensors = {name: tensors[name] for name, _ in (*lower.named_parameters(), *lower.named_buffers())}
        sizes[init] = torch.func.functional_call(lower, part_tensors, (x,)).abs().mean().item()
    assert 0.1 < sizes[PermutedWeights()] / sizes[PRETRAINED] < 10


def test_a_zero_head_gives_the_body_no_gradient(layout, state):
    tensors = initialize(layout, state, head=ZERO_HEAD)
    assert all((tensors[name] == 0).all() for name in HEAD)
    model = backbones.build(ARCH, 5)
    parameters = dict(model.named_parameters())
    leaves = {name: tensor.requires_grad_(name in parameters) for name, tensor in tensors.items()}
    logits = torch.func.functional_call(model.eval(), leaves, (torch.rand(2, 3, 32, 32),))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert (leaves["layer4.0.conv2.weight"].grad == 0).all()
    assert (leaves["linear.weight"].grad != 0).any()


def test_the_checkpoint_is_not_changed(layout, state):
    before = {name: tensor.clone() for name, tensor in state.items()}
    for init in (PRETRAINED, RANDOM, MatchedMoments(), PermutedWeights()):
        for tensor in initialize(layout, state, init).values():
            tensor.zero_()
    assert is_equal(state, before)


@pytest.mark.parametrize("init", [PRETRAINED, MatchedMoments(), PermutedWeights()])
def test_other_initializations_need_a_checkpoint(init, layout):
    with pytest.raises(UserError, match="no pretrained weights"):
        initialize(layout, None, init)


def test_partial_transfer_keeps_the_lowest_groups_and_draws_the_others(layout, state):
    whole, fresh = initialize(layout, state), initialize(layout, None, RANDOM)
    tensors = initialize(layout, state, transferred=TransferLowest(groups=2))
    low = [prefix for group in layout.groups[:2] for prefix in group.prefixes]
    for name, tensor in tensors.items():
        assert torch.equal(tensor, (whole if backbones.is_within(name, [*low, layout.head]) else fresh)[name]), name
    assert not torch.equal(tensors["layer4.0.conv2.weight"], whole["layer4.0.conv2.weight"])
    assert is_equal(initialize(layout, state, transferred=TransferLowest(groups=len(layout.groups))), whole)


def test_the_error_for_too_many_transferred_groups_names_the_groups(layout, state):
    with pytest.raises(UserError, match="transferred") as error:
        initialize(layout, state, transferred=TransferLowest(groups=99))
    assert "layer4" in error.value.expected


def test_a_start_that_the_lab_must_train_first_is_an_error(layout, state):
    with pytest.raises(TypeError, match="not an initialization from a checkpoint: shuffled-source"):
        initialize(layout, state, ShuffledSource())
