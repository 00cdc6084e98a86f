"""BatchNorm layers: ghost batches, momentum, recalibration; and that everything is put back."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.func import functional_call, vmap

from xferbench.lab.models import backbones, batchnorm


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    )


def make_batch(count=8):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 2 + 1


def state(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def ways(module):
    """All that training may change of how layers run."""
    return [(part.training, getattr(part, "momentum", None), "forward" in vars(part)) for part in module.modules()]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


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


def test_ghost_batches_are_the_slices_one_after_another():
    whole, sliced, x = nn.BatchNorm2d(3), nn.BatchNorm2d(3), make_batch(8)
    with batchnorm.set_training(sliced, "train"):
        parts = torch.cat([sliced(part) for part in x.split(2)])
    with batchnorm.set_training(whole, "ghost:2"):
        found = whole(x)
    assert torch.equal(found, parts)
    assert equal(state(whole), state(sliced))
    assert whole.num_batches_tracked == 4


def test_a_rest_is_shared_among_the_slices_and_a_small_batch_is_one():
    seen = []
    module = nn.Sequential(nn.BatchNorm2d(3))
    real, type(module[0]).forward = type(module[0]).forward, lambda self, x: seen.append(len(x)) or x
    try:
        for count in (7, 3, 9):
            with batchnorm.set_training(module, "ghost:4"):
                module(make_batch(count))
    finally:
        type(module[0]).forward = real
    assert seen == [7, 3, 5, 4], "never smaller than a slice, so that there is always something to take a variance of"


def test_ghost_batches_have_the_gradient_of_the_slices():
    x = make_batch(8).double().requires_grad_()
    weight = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(2)).double()
    one, other = nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    with batchnorm.set_training(one, "ghost:4"):
        (one(x) * weight).sum().backward()
    got, x.grad = x.grad, None
    with batchnorm.set_training(other, "train"):
        (torch.cat([other(x[:4]), other(x[4:])]) * weight).sum().backward()
    torch.testing.assert_close(got, x.grad)
    torch.testing.assert_close(one.weight.grad, other.weight.grad)


def test_in_eval_mode_statistics_are_used_and_stay():
    module, x = make_net().eval(), make_batch()
    before, expected = state(module), module[:2](x)
    with batchnorm.set_training(module, "eval"):
        assert torch.equal(module[:2](x), expected)
        assert module[3].training, "dropout trains"
        module(x)
    assert equal(state(module), before)


@pytest.mark.parametrize(("word", "share"), [("train", 0.1), ("momentum:0.001", 0.001), ("momentum:1", 1.0)])
def test_running_statistics_take_their_share_of_the_batch(word, share):
    module, x = nn.BatchNorm2d(3), make_batch()
    with batchnorm.set_training(module, word):
        module(x)
    torch.testing.assert_close(module.running_mean, share * x.mean((0, 2, 3)))
    torch.testing.assert_close(module.running_var, 1 - share + share * x.var((0, 2, 3)))


@pytest.mark.parametrize("word", ["eval", "train", "ghost:2", "momentum:0.5"])
def test_whatever_happens_layers_run_afterwards_as_before(word):
    module = make_net()
    module[1].eval()
    module[5].momentum = None
    before = ways(module)
    with pytest.raises(RuntimeError, match="on purpose"), batchnorm.set_training(module, word, frozen=["0"]):
        raise RuntimeError("on purpose")
    assert ways(module) == before
    with batchnorm.set_training(module, word):
        pass
    assert ways(module) == before


def test_a_look_in_the_middle_of_training_disturbs_nothing():
    module, x = make_net(), make_batch()
    with batchnorm.set_training(module, "ghost:2"):
        within = ways(module)
        with batchnorm.preserve_modes(module):
            module.eval()
        assert ways(module) == within
        module(x)
    assert module[1].num_batches_tracked == 4


@pytest.mark.parametrize("word", ["evaluate", "", "ghost:x", "momentum:"])
def test_an_unknown_word_is_an_error_and_changes_nothing(word):
    module = make_net()
    before = ways(module)
    with pytest.raises(ValueError, match=r".+"), batchnorm.set_training(module, word):
        pass
    assert ways(module) == before


def test_what_lies_below_a_frozen_cut_stays_in_eval_and_names_that_are_not_there_are_passed_over():
    module = make_net()
    with batchnorm.set_training(module, "train", frozen=["0", "1", "3", "9.weight", "4.weight"]):
        assert [part.training for part in module] == [False, False, True, False, True, True]


@pytest.mark.parametrize("word", ["train", "ghost:2", "momentum:0.3", "eval"])
def test_members_of_a_group_move_their_own_statistics_as_if_alone(word):
    module = make_net()
    module[3].p = 0.0
    batches = torch.stack([make_batch(), 3 * make_batch() - 1])
    start = {name: torch.stack([tensor, tensor]) for name, tensor in state(module).items()}
    together = {name: tensor.clone() for name, tensor in start.items()}
    with batchnorm.set_training(module, word):
        found = vmap(lambda own, x: functional_call(module, own, (x,)))(together, batches)
        for g in range(2):
            own = {name: tensor[g].clone() for name, tensor in start.items()}
            torch.testing.assert_close(functional_call(module, own, (batches[g],)), found[g])
            torch.testing.assert_close(own, {name: tensor[g] for name, tensor in together.items()})
    assert word == "eval" or not torch.equal(together["1.running_mean"][0], together["1.running_mean"][1])


def test_recalibrated_statistics_are_the_means_over_batches():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    own, batches = state(module), make_batch(12).split(4)
    found = batchnorm.recalibrate(module, own, iter(batches))
    torch.testing.assert_close(found["0.running_mean"], torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0))
    torch.testing.assert_close(found["0.running_var"], torch.stack([x.var((0, 2, 3)) for x in batches]).mean(0))
    with batchnorm.set_training(module, "train"):
        upper = [module[1](module[0](x)) for x in batches]
    torch.testing.assert_close(found["2.running_mean"], torch.stack([x.mean((0, 2, 3)) for x in upper]).mean(0))
    assert found["0.num_batches_tracked"] == 3


def test_recalibration_leaves_the_tensors_the_module_and_its_ways_alone():
    module = make_net()
    own, modules, before = {name: tensor + 1 for name, tensor in state(module).items()}, state(module), ways(module)
    kept = {name: tensor.clone() for name, tensor in own.items()}
    found = batchnorm.recalibrate(module, own, [make_batch()])
    assert set(found) == batchnorm.statistics_names(module)
    assert equal(own, kept)
    assert equal(state(module), modules)
    assert ways(module) == before
    with pytest.raises(RuntimeError):
        batchnorm.recalibrate(module, own, [make_batch()[:, :2]])
    assert ways(module) == before


def test_recalibrating_on_the_data_of_a_momentum_of_1_is_what_that_left():
    module, x = make_net(), make_batch()
    module[3].p = 0.0
    own = state(module)
    with batchnorm.set_training(module, "momentum:1"):
        functional_call(module, own, (x,))
    found = batchnorm.recalibrate(module, own, [x])
    torch.testing.assert_close({name: own[name] for name in found}, found)


def test_a_real_network_is_recalibrated_without_being_loaded():
    # torchvision's MNASNet rebuilds itself when a state without a version is loaded.
    module = backbones.build("torchvision:mnasnet0_5", 3).eval()
    found = batchnorm.recalibrate(module, state(module), [torch.randn(4, 3, 64, 64)])
    assert set(found) == batchnorm.statistics_names(module)
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
