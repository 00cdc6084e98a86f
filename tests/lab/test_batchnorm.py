"""BatchNorm layers: ghost batches, momentum, recalibration, and the restoration of modes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.func import functional_call, vmap

from xferbench.core.interventions import BatchNormMode
from xferbench.lab.models import backbones, batchnorm


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    )


def make_batch(count=8):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 2 + 1


def copy_state(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def layer_attributes(module):
    """Return the attributes of layers that training may change."""
    return [(part.training, getattr(part, "momentum", None), "forward" in vars(part)) for part in module.modules()]


def is_equal(layer, other):
    return layer.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in layer.items())


def test_only_layers_with_running_statistics_count():
    module = nn.Sequential(
        nn.BatchNorm1d(3), nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3), nn.SyncBatchNorm(3)
    )
    assert list(batchnorm.batchnorm_layers(module)) == ["0", "3"]
    assert batchnorm.statistics_names(nn.Sequential(nn.BatchNorm1d(3))) == {
        "0.running_mean",
        "0.running_var",
        "0.num_batches_tracked",
    }


def test_variances_for_another_epsilon_equal_layers_with_that_epsilon():
    module, x = make_net().eval(), make_batch()
    tensors = copy_state(module)
    edited = tensors | batchnorm.variances_for_epsilon(module, tensors, 1e-3)
    expected = make_net().eval()
    for layer in batchnorm.batchnorm_layers(expected).values():
        layer.eps = 1e-3
    assert torch.allclose(functional_call(module, edited, (x,)), expected(x), atol=1e-6)
    back = batchnorm.variances_for_epsilon(expected, edited, 1e-5)
    assert all(torch.allclose(back[name], tensors[name], atol=1e-6) for name in back)


def test_the_share_from_before_is_what_the_steps_leave_of_the_old_statistics():
    layer = nn.BatchNorm2d(3, momentum=0.01)
    before = copy_state(layer)
    for _ in range(40):
        layer(torch.zeros(8, 3, 6, 6))
    assert batchnorm.training_steps(before, copy_state(layer)) == 40
    assert float(layer.running_var[0]) == pytest.approx(batchnorm.share_from_before(nn.Sequential(layer), 40), rel=1e-4)
    assert batchnorm.share_from_before(nn.Sequential(nn.BatchNorm2d(3, momentum=None)), 40) == 0
    assert batchnorm.training_steps({}, copy_state(layer)) == 0


def test_ghost_batches_equal_successive_slices():
    ghost, sliced, x = nn.BatchNorm2d(3), nn.BatchNorm2d(3), make_batch(8)
    with batchnorm.set_training(sliced, BatchNormMode.parse("train")):
        parts = torch.cat([sliced(part) for part in x.split(2)])
    with batchnorm.set_training(ghost, BatchNormMode.parse("ghost:2")):
        actual = ghost(x)
    assert torch.equal(actual, parts)
    assert is_equal(copy_state(ghost), copy_state(sliced))
    assert ghost.num_batches_tracked == 4


def test_a_remainder_is_distributed_and_a_small_batch_is_one_slice():
    inputs = []
    module = nn.Sequential(nn.BatchNorm2d(3))
    real, type(module[0]).forward = type(module[0]).forward, lambda self, x: inputs.append(len(x)) or x
    try:
        for count in (7, 3, 9):
            with batchnorm.set_training(module, BatchNormMode.parse("ghost:4")):
                module(make_batch(count))
    finally:
        type(module[0]).forward = real
    assert inputs == [7, 3, 5, 4], "never smaller than a slice, so that a variance exists"


def test_ghost_batches_have_the_gradient_of_the_slices():
    x = make_batch(8).double().requires_grad_()
    weight = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(2)).double()
    layer, other = nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    with batchnorm.set_training(layer, BatchNormMode.parse("ghost:4")):
        (layer(x) * weight).sum().backward()
    got, x.grad = x.grad, None
    with batchnorm.set_training(other, BatchNormMode.parse("train")):
        (torch.cat([other(x[:4]), other(x[4:])]) * weight).sum().backward()
    torch.testing.assert_close(got, x.grad)
    torch.testing.assert_close(layer.weight.grad, other.weight.grad)


def test_eval_mode_uses_statistics_without_changing_them():
    module, x = make_net().eval(), make_batch()
    before, expected = copy_state(module), module[:2](x)
    with batchnorm.set_training(module, BatchNormMode.parse("eval")):
        assert torch.equal(module[:2](x), expected)
        assert module[3].training, "dropout trains"
        module(x)
    assert is_equal(copy_state(module), before)


@pytest.mark.parametrize(("mode", "share"), [("train", 0.1), ("momentum:0.001", 0.001), ("momentum:1", 1.0)])
def test_momentum_sets_the_update_of_running_statistics(mode, share):
    module, x = nn.BatchNorm2d(3), make_batch()
    with batchnorm.set_training(module, BatchNormMode.parse(mode)):
        module(x)
    torch.testing.assert_close(module.running_mean, share * x.mean((0, 2, 3)))
    torch.testing.assert_close(module.running_var, 1 - share + share * x.var((0, 2, 3)))


@pytest.mark.parametrize("mode", ["eval", "train", "ghost:2", "momentum:0.5"])
def test_modes_are_restored_even_after_an_exception(mode):
    module = make_net()
    module[1].eval()
    module[5].momentum = None
    before = layer_attributes(module)
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        batchnorm.set_training(module, BatchNormMode.parse(mode), frozen=["0"]),
    ):
        raise RuntimeError("on purpose")
    assert layer_attributes(module) == before
    with batchnorm.set_training(module, BatchNormMode.parse(mode)):
        pass
    assert layer_attributes(module) == before


def test_evaluation_during_training_changes_nothing():
    module, x = make_net(), make_batch()
    with batchnorm.set_training(module, BatchNormMode.parse("ghost:2")):
        within = layer_attributes(module)
        with batchnorm.preserve_modes(module):
            module.eval()
        assert layer_attributes(module) == within
        module(x)
    assert module[1].num_batches_tracked == 4


def test_the_frozen_part_stays_in_eval_mode_and_unknown_prefixes_are_ignored():
    module = make_net()
    with batchnorm.set_training(module, BatchNormMode.parse("train"), frozen=["0", "1", "3", "9.weight", "4.weight"]):
        assert [part.training for part in module] == [False, False, True, False, True, True]


@pytest.mark.parametrize("mode", ["train", "ghost:2", "momentum:0.3", "eval"])
def test_members_in_lockstep_update_their_own_statistics(mode):
    module = make_net()
    module[3].p = 0.0
    batches = torch.stack([make_batch(), 3 * make_batch() - 1])
    start = {name: torch.stack([tensor, tensor]) for name, tensor in copy_state(module).items()}
    together = {name: tensor.clone() for name, tensor in start.items()}
    with batchnorm.set_training(module, BatchNormMode.parse(mode)):
        actual = vmap(lambda tensors, x: functional_call(module, tensors, (x,)))(together, batches)
        for g in range(2):
            tensors = {name: tensor[g].clone() for name, tensor in start.items()}
            torch.testing.assert_close(functional_call(module, tensors, (batches[g],)), actual[g])
            torch.testing.assert_close(tensors, {name: tensor[g] for name, tensor in together.items()})
    assert mode == "eval" or not torch.equal(together["1.running_mean"][0], together["1.running_mean"][1])


def test_recalibrated_statistics_are_the_means_over_batches():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    tensors, batches = copy_state(module), make_batch(12).split(4)
    actual = batchnorm.recalibrate(module, tensors, iter(batches))
    torch.testing.assert_close(actual["0.running_mean"], torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0))
    torch.testing.assert_close(actual["0.running_var"], torch.stack([x.var((0, 2, 3)) for x in batches]).mean(0))
    with batchnorm.set_training(module, BatchNormMode.parse("train")):
        upper = [module[1](module[0](x)) for x in batches]
    torch.testing.assert_close(actual["2.running_mean"], torch.stack([x.mean((0, 2, 3)) for x in upper]).mean(0))
    assert actual["0.num_batches_tracked"] == 3


def test_recalibration_changes_neither_tensors_nor_modes():
    module = make_net()
    tensors, modules, before = (
        {name: tensor + 1 for name, tensor in copy_state(module).items()},
        copy_state(module),
        layer_attributes(module),
    )
    original = {name: tensor.clone() for name, tensor in tensors.items()}
    actual = batchnorm.recalibrate(module, tensors, [make_batch()])
    assert set(actual) == batchnorm.statistics_names(module)
    assert is_equal(tensors, original)
    assert is_equal(copy_state(module), modules)
    assert layer_attributes(module) == before
    with pytest.raises(RuntimeError):
        batchnorm.recalibrate(module, tensors, [make_batch()[:, :2]])
    assert layer_attributes(module) == before


def test_recalibration_equals_an_update_with_momentum_1():
    module, x = make_net(), make_batch()
    module[3].p = 0.0
    tensors = copy_state(module)
    with batchnorm.set_training(module, BatchNormMode.parse("momentum:1")):
        functional_call(module, tensors, (x,))
    actual = batchnorm.recalibrate(module, tensors, [x])
    torch.testing.assert_close({name: tensors[name] for name in actual}, actual)


def test_a_real_network_is_recalibrated_functionally():
    # torchvision's MNASNet rebuilds itself when a state without a version is loaded.
    module = backbones.build("torchvision:mnasnet0_5", 3).eval()
    actual = batchnorm.recalibrate(module, copy_state(module), [torch.randn(4, 3, 64, 64)])
    assert set(actual) == batchnorm.statistics_names(module)
    assert all(torch.isfinite(tensor).all() for tensor in actual.values())


def test_an_unknown_mode_is_an_error_and_changes_nothing():
    module = nn.Sequential(nn.BatchNorm2d(3)).eval()
    with pytest.raises(TypeError, match="unknown BatchNorm mode"), batchnorm.set_training(module, "eval"):
        pass
    assert not module.training
