from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from xferbench.core.errors import UserError
from xferbench.core.interventions import RANDOM_HEAD, ZERO_HEAD
from xferbench.lab.models import backbones, checkpoint_reader, initialization

ARCH, HEAD = "tiny-resnet", {"linear.weight", "linear.bias"}


@pytest.fixture(scope="module")
def anatomy():
    return backbones.layer_layout(backbones.build(ARCH, 5), 32)


@pytest.fixture(scope="module")
def state():
    """A checkpoint with another head and BatchNorm layers that have seen something."""
    model = backbones.build(ARCH, 20)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(tensor.shape, generator=generator) + 0.5 if tensor.is_floating_point() else tensor + 9
        for name, tensor in model.state_dict().items()
    }


def start(anatomy, state, init="pretrained", head=RANDOM_HEAD, seeds=(1, 2), **more):
    return initialization.initial_tensors(ARCH, anatomy, state, init=init, head=head, seeds=seeds, **more)


def body(tensors):
    return {name: tensor for name, tensor in tensors.items() if name not in HEAD}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("init", initialization.INIT_KINDS)
def test_all_tensors_are_there_and_the_same_for_the_same_seeds(init, anatomy, state):
    once, again = start(anatomy, state, init), start(anatomy, state, init)
    model = backbones.build(ARCH, 5)
    assert {name: tensor.shape for name, tensor in once.items()} == {
        name: tensor.shape for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    assert same(once, again)
    assert not any(tensor.requires_grad for tensor in once.values())


@pytest.mark.parametrize("init", initialization.INIT_KINDS)
def test_head_and_body_have_seeds_of_their_own(init, anatomy, state):
    first, other_head, other_body = (start(anatomy, state, init, seeds=seeds) for seeds in ((1, 2), (1, 3), (4, 2)))
    assert same(body(first), body(other_head))
    assert not torch.equal(first["linear.weight"], other_head["linear.weight"])
    assert torch.equal(first["linear.weight"], other_body["linear.weight"])
    assert same(body(first), body(other_body)) == (init == "pretrained")


@pytest.mark.parametrize("init", initialization.INIT_KINDS)
def test_no_global_stream_is_touched_and_none_is_used(init, anatomy, state):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = start(anatomy, state, init)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(first, start(anatomy, state, init))


def test_pretrained_is_the_checkpoint_below_a_new_head(anatomy, state):
    found = start(anatomy, state)
    assert same(body(found), {name: tensor for name, tensor in state.items() if name not in HEAD})
    assert found["linear.weight"].shape == (5, 64)


def test_random_is_what_the_architecture_gives_and_needs_no_checkpoint(anatomy):
    found = start(anatomy, None, "random")
    assert (found["bn1.running_var"] == 1).all()
    assert (found["bn1.weight"] == 1).all()
    expected = (2 / found["layer4.0.conv2.weight"][:, 0].numel()) ** 0.5
    assert found["layer4.0.conv2.weight"].std().item() == pytest.approx(expected, rel=0.05)


def test_matched_has_the_mean_and_deviation_of_each_tensor_but_not_its_values(anatomy, state):
    found = start(anatomy, state, "matched")
    name = "layer4.0.conv2.weight"
    assert found[name].mean().item() == pytest.approx(state[name].mean().item(), abs=0.01)
    assert found[name].std().item() == pytest.approx(state[name].std().item(), rel=0.02)
    assert not torch.isin(found[name], state[name]).all()
    assert (found["bn1.running_mean"] == 0).all()


def test_permuted_has_the_values_of_each_tensor_in_another_order_and_whole_batchnorm_layers(anatomy, state):
    found = start(anatomy, state, "permuted")
    for name, tensor in body(found).items():
        assert torch.equal(tensor.flatten().sort().values, state[name].flatten().sort().values)
        assert torch.equal(tensor, state[name]) == backbones.is_within(name, anatomy.batchnorm)


def test_permuted_features_are_of_the_size_of_the_pretrained_ones(shared):
    arch = "cifar-resnet20"
    model = backbones.build(arch, 10).eval()
    anatomy = backbones.layer_layout(model, 32)
    weights = checkpoint_reader.read_checkpoint(shared / "weights" / "resnet20-12fca82f.th")
    lower, _ = backbones.split_at(model, anatomy, len(anatomy.groups))
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sizes = {}
    for init in ("pretrained", "permuted"):
        tensors = initialization.initial_tensors(arch, anatomy, weights, init=init, head=ZERO_HEAD, seeds=(1, 2))
        held = {name: tensors[name] for name, _ in (*lower.named_parameters(), *lower.named_buffers())}
        sizes[init] = torch.func.functional_call(lower, held, (x,)).abs().mean().item()
    assert 0.1 < sizes["permuted"] / sizes["pretrained"] < 10


def test_a_zero_head_gives_no_gradient_to_what_lies_below(anatomy, state):
    found = start(anatomy, state, head=ZERO_HEAD)
    assert all((found[name] == 0).all() for name in HEAD)
    model = backbones.build(ARCH, 5)
    learnt = dict(model.named_parameters())
    leaves = {name: tensor.requires_grad_(name in learnt) for name, tensor in found.items()}
    logits = torch.func.functional_call(model.eval(), leaves, (torch.rand(2, 3, 32, 32),))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert (leaves["layer4.0.conv2.weight"].grad == 0).all()
    assert (leaves["linear.weight"].grad != 0).any()


def test_the_checkpoint_is_left_as_it_was(anatomy, state):
    before = {name: tensor.clone() for name, tensor in state.items()}
    for init in initialization.INIT_KINDS:
        for tensor in start(anatomy, state, init).values():
            tensor.zero_()
    assert same(state, before)


def test_an_unknown_start_is_refused(anatomy, state):
    with pytest.raises(UserError, match="init pretrain"):
        start(anatomy, state, "pretrain")


@pytest.mark.parametrize("init", ["pretrained", "matched", "permuted"])
def test_without_a_checkpoint_only_random_weights_can_be_had(init, anatomy):
    with pytest.raises(UserError, match="no pretrained weights"):
        start(anatomy, None, init)


def test_of_what_is_transferred_in_part_the_lowest_groups_stay_and_those_above_are_drawn(anatomy, state):
    whole, fresh = start(anatomy, state), start(anatomy, None, "random")
    found = start(anatomy, state, transferred="low:2")
    low = [prefix for group in anatomy.groups[:2] for prefix in group.prefixes]
    for name, tensor in found.items():
        assert torch.equal(tensor, (whole if backbones.is_within(name, [*low, anatomy.head]) else fresh)[name]), name
    assert not torch.equal(found["layer4.0.conv2.weight"], whole["layer4.0.conv2.weight"])
    assert same(start(anatomy, state, transferred=f"low:{len(anatomy.groups)}"), whole)


@pytest.mark.parametrize("word", ["low:0", "low:99", "top:1", "low"])
def test_what_cannot_be_transferred_is_a_problem_that_names_the_groups(word, anatomy, state):
    with pytest.raises(UserError, match="transferred") as told:
        start(anatomy, state, transferred=word)
    assert "layer4" in told.value.expected
