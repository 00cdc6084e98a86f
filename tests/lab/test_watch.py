"""Faults in a real training loop, each reported with step, tensor and cause; and correct loops without events."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import warnings

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn import functional as F

import xferbench
from xferbench.core.errors import UserError
from xferbench.core.interventions import BATCHNORM_EVAL, HeadOnly, Trainable
from xferbench.core.pipeline import Phase, Recipe

HEAD_ONLY = {"trainable": "head", "batchnorm": "eval"}


def make_net(seed=0):
    """Return a small network that looks pretrained, because BatchNorm has processed batches."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
        net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        for _ in range(20):
            net(torch.randn(16, 3, 8, 8) * 2 + 1)
    return net


def freeze_body(net):
    """Freeze everything but the head, correctly: flags, modes, and an optimizer of the head alone."""
    net.requires_grad_(False)[8].requires_grad_(True)
    net.eval()
    return net, torch.optim.AdamW(net[8].parameters(), lr=1e-2)


def generate_batches(steps, seed=0):
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        y = torch.randint(4, (16,), generator=random)
        yield torch.randn(16, 3, 8, 8, generator=random) + y.view(-1, 1, 1, 1) / 2, y


def train(net, optimizer, steps=25, seed=0, watch=None, actions=None):
    """Train in a simple loop. ``actions`` maps steps to functions that are called before them."""
    for step, (x, y) in enumerate(generate_batches(steps, seed), start=1):
        (actions or {}).get(step, lambda: None)()
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        if watch is not None:
            watch.step(loss)


def train_watched(net, optimizer, steps=25, *, actions=None, seed=0, **options):
    with xferbench.watch(net, optimizer, on_event="collect", **options) as watch:
        train(net, optimizer, steps, seed, watch, actions)
    return watch


def only_event(watch):
    (event,) = watch.events
    return event


def without_gradients(change):
    def change_without_gradients():
        with torch.no_grad():
            change()

    return change_without_gradients


# A frozen tensor moves.


def test_requires_grad_of_a_module_freezes_nothing():
    net, optimizer = make_net().eval(), None
    net[0].requires_grad = False
    net[1].requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    event = only_event(train_watched(net, optimizer))
    assert (event.kind, event.tensor, event.step, event.others) == ("frozen-moved", "0.weight", 1, ())
    assert "0.requires_grad = False sets an attribute" in event.cause
    assert event.do == "call 0.requires_grad_(False)"


def test_the_optimizer_trains_a_tensor_that_the_recipe_freezes():
    net = make_net().eval()
    event = only_event(train_watched(net, torch.optim.SGD(net.parameters(), lr=0.1), recipe=HEAD_ONLY))
    assert (event.kind, event.tensor, event.step, len(event.others)) == ("frozen-moved", "0.weight", 1, 6)
    assert event.cause == "its requires_grad is still True and the optimizer holds it"


@pytest.mark.parametrize("fused", [False, True])
def test_weight_decay_moves_a_frozen_tensor_with_a_zero_gradient(fused):
    net = make_net().eval()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1, fused=fused)
    net[0].weight.grad = torch.zeros_like(net[0].weight)
    net[0].requires_grad_(False)
    with xferbench.watch(net, optimizer, on_event="collect") as watch:
        for x, y in generate_batches(5):
            optimizer.zero_grad(set_to_none=False)
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    event = only_event(watch)
    assert (event.kind, event.tensor, event.step) == ("frozen-moved", "0.weight", 1)
    assert event.cause.startswith("weight decay of 0.1")


def test_momentum_moves_a_tensor_that_was_frozen_during_training():
    net = make_net().eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9)
    with xferbench.watch(net, optimizer, on_event="collect") as watch:
        for step, (x, y) in enumerate(generate_batches(20), start=1):
            if step == 14:
                net[0].requires_grad_(False)
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    event = only_event(watch)
    assert (event.kind, event.tensor, event.step, event.since) == ("frozen-moved", "0.weight", 14, 13)
    assert "gradient from before it was frozen" in event.cause


class Decaying(torch.optim.Optimizer):
    """Decays every tensor, as some optimizers do."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "weight_decay": 0.1})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for tensor in group["params"]:
                tensor.mul_(0.99)
                if tensor.grad is not None:
                    tensor.sub_(tensor.grad)


def test_weight_decay_without_a_gradient():
    net, _ = freeze_body(make_net())
    event = only_event(train_watched(net, Decaying([net[0].weight, *net[8].parameters()])))
    assert (event.kind, event.tensor, event.step) == ("frozen-moved", "0.weight", 1)
    assert event.cause.startswith("weight decay of 0.1: the optimizer holds it")


def test_a_write_by_other_code_is_dated_by_the_version():
    net, optimizer = freeze_body(make_net())
    event = only_event(train_watched(net, optimizer, actions={17: without_gradients(lambda: net[3].bias.add_(0.1))}))
    assert (event.kind, event.tensor, event.step, event.since) == ("frozen-moved", "3.bias", 17, 16)
    assert event.cause.startswith("moved by other code")


def test_a_write_without_a_version_is_detected_by_values():
    net, optimizer = freeze_body(make_net())
    event = only_event(train_watched(net, optimizer, actions={14: lambda: net[3].weight.data.mul_(1.5)}))
    assert (event.kind, event.tensor, event.step, event.since) == ("frozen-moved", "3.weight", 20, 10)


def test_a_single_value_outside_the_sample_is_detected_at_exit():
    net, optimizer = freeze_body(make_net())

    def write():
        net[3].weight.data.view(-1)[2] += 1.0

    assert net[3].weight.numel() == 576
    event = only_event(train_watched(net, optimizer, actions={14: write}))
    assert (event.kind, event.tensor, event.step, event.since) == ("frozen-moved", "3.weight", 25, 20)


def test_a_sparse_write_that_raises_the_version_is_detected_in_its_step():
    net, optimizer = freeze_body(make_net())

    def write():
        net[3].weight.view(-1)[2] += 1.0

    event = only_event(train_watched(net, optimizer, actions={14: without_gradients(write)}))
    assert (event.tensor, event.step) == ("3.weight", 14)


def test_a_raised_version_without_a_change_is_no_event():
    net, optimizer = freeze_body(make_net())
    same = {
        step: without_gradients(lambda: (net[0].weight.add_(0), net.load_state_dict(net.state_dict()))) for step in range(4, 25)
    }
    assert train_watched(net, optimizer, actions=same).events == []


def test_each_tensor_is_reported_once():
    net, optimizer = freeze_body(make_net())
    actions = {step: without_gradients(lambda: net[0].weight.mul_(1.1)) for step in range(4, 25)}
    assert only_event(train_watched(net, optimizer, actions=actions)).step == 4


# Running statistics move.


def test_batchnorm_in_training_mode_is_reported():
    net, optimizer = freeze_body(make_net())
    net.train()
    event = only_event(train_watched(net, optimizer))
    assert (event.kind, event.tensor, event.others, event.step) == ("buffer-moved", "1.running_mean", ("4.running_mean",), 1)
    assert "requires_grad_(False) does not stop running statistics" in event.cause


def test_model_train_that_undoes_eval_is_dated():
    net, optimizer = freeze_body(make_net())
    event = only_event(train_watched(net, optimizer, actions={15: net.train, 16: net.eval}, recipe=HEAD_ONLY))
    assert (event.kind, event.step, event.since) == ("buffer-moved", 15, 14)
    assert event.cause.startswith("its layer is in training mode")


def test_statistics_written_in_evaluation_mode_are_reported():
    net, optimizer = freeze_body(make_net())
    event = only_event(train_watched(net, optimizer, actions={15: lambda: net[4].running_var.mul_(2)}))
    assert (event.kind, event.tensor, event.step) == ("buffer-moved", "4.running_var", 15)
    assert event.cause.startswith("written by other code")


def test_statistics_may_move_if_the_recipe_allows_it():
    net, optimizer = freeze_body(make_net())
    net.train()
    assert train_watched(net, optimizer, recipe={"trainable": "head", "batchnorm": "train"}).events == []


# A trainable tensor does not move.


def test_an_optimizer_built_before_the_unfreezing_is_reported():
    net, optimizer = freeze_body(make_net())
    event = only_event(train_watched(net, optimizer, actions={12: lambda: net[3].requires_grad_(True)}))
    assert (event.kind, event.tensor, event.others, event.step) == ("not-held", "3.weight", ("3.bias",), 20)
    assert "built from 2 others" in event.cause


def test_an_optimizer_over_another_copy_is_reported():
    net = make_net()
    optimizer = torch.optim.AdamW(copy.deepcopy(net).parameters(), lr=1e-3)
    net.eval()
    event = only_event(train_watched(net, optimizer, 5))
    assert (event.kind, event.tensor, event.step) == ("not-held", "0.weight", 1)
    assert "9 of its 9 tensors do not belong to this model" in event.cause


def test_a_head_replaced_after_the_optimizer_was_built_is_reported():
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    net[8] = nn.Linear(8, 4)
    event = only_event(train_watched(net, optimizer, 5))
    assert (event.kind, event.tensor, event.others) == ("not-held", "8.weight", ("8.bias",))
    assert "2 of its 9 tensors do not belong to this model" in event.cause


def test_a_frozen_tensor_that_the_recipe_trains_is_reported():
    net, optimizer = freeze_body(make_net())
    event = only_event(train_watched(net, optimizer, recipe={"trainable": "all", "batchnorm": "eval"}))
    assert (event.kind, event.tensor, event.step) == ("never-moved", "0.weight", 1)
    assert event.cause == "it should train, but its requires_grad is False"


def test_a_flag_that_was_set_on_a_frozen_module_is_reported_without_a_recipe():
    net = make_net().eval()
    net.requires_grad_(False)
    net[3].requires_grad = True  # no parameter has this attribute
    net[8].requires_grad_(True)
    event = only_event(train_watched(net, torch.optim.SGD(net.parameters(), lr=0.01), 3))
    assert (event.kind, event.tensor, event.others, event.step) == ("never-moved", "3.weight", ("3.bias",), 1)
    assert event.do == "call 3.requires_grad_(True) before the first step"


def test_the_innermost_flag_of_a_module_decides():
    net = make_net().eval()
    net.requires_grad = False
    for layer in net:
        layer.requires_grad = True  # as all parameters of the layer
    assert train_watched(net, torch.optim.AdamW(net.parameters(), lr=1e-3), 3).events == []


def test_an_assigned_number_of_outputs_is_reported():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))
    net[3].out_features, net[0].out_channels = 4, 16
    first, second = train_watched(net, torch.optim.AdamW(net.parameters(), lr=1e-3), 3).events
    assert (first.kind, first.tensor, first.step) == ("layer-size", "0.weight", 1)
    assert (second.kind, second.tensor, second.step) == ("layer-size", "3.weight", 1)
    assert "7 outputs, although out_features is 4" in second.cause


@pytest.mark.parametrize(
    ("momentum", "text"), [(0.0, "before the training"), (0.97, "the last batch"), (1.0, "the last batch")]
)
def test_a_momentum_that_spoils_running_statistics_is_reported(momentum, text):
    net = make_net()
    norms = [layer for layer in net if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = momentum
    event = only_event(train_watched(net, torch.optim.AdamW(net.parameters(), lr=1e-3), 3))
    assert (event.kind, event.step, len(event.others)) == ("batchnorm-momentum", 1, len(norms) - 1)
    assert event.tensor.endswith("running_mean")
    assert text in event.cause


@pytest.mark.parametrize("momentum", [None, 0.001, 0.5])
def test_a_usable_momentum_is_no_fault(momentum):
    net = make_net()
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = momentum
    assert train_watched(net, torch.optim.AdamW(net.parameters(), lr=1e-3), 3).events == []


def test_frozen_statistics_need_no_momentum():
    net = make_net()
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.0
    net.eval()
    assert train_watched(net, torch.optim.AdamW(net.parameters(), lr=1e-3), 3).events == []


def test_a_tensor_without_a_gradient_is_reported():
    net = make_net().eval()
    body, head = net[:8], net[8]
    model = nn.ModuleDict({"body": body, "head": head})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with xferbench.watch(model, optimizer, on_event="collect") as watch:
        for x, y in generate_batches(30):
            F.cross_entropy(head(body(x).detach()), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    event = only_event(watch)
    assert (event.kind, event.tensor, len(event.others), event.step) == ("never-moved", "body.0.weight", 6, 20)
    assert event.cause.startswith("no gradient reaches it")


def test_updates_lost_in_rounding_are_reported():
    net = nn.Linear(8, 4).to(torch.bfloat16)
    with torch.no_grad():
        net.weight.fill_(1.0)
        net.bias.fill_(1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    with xferbench.watch(net, optimizer, on_event="collect") as watch:
        for _ in range(25):
            net(torch.ones(2, 8, dtype=torch.bfloat16)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert only_event(watch).cause == "its updates are lost in rounding to bfloat16"


def test_one_changed_row_of_an_embedding_is_enough_movement():
    net = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with xferbench.watch(net, optimizer, on_event="collect") as watch:
        for _ in range(25):
            net(torch.tensor([77])).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert watch.events == []


# Values, losses and head shock.


def test_a_non_finite_loss_is_reported():
    net, optimizer = freeze_body(make_net())
    with xferbench.watch(net, optimizer, on_event="collect") as watch:
        train(net, optimizer, 4, watch=watch)
        watch.step(math.nan)
        watch.step(math.inf)
    event = only_event(watch)
    assert (event.kind, event.tensor, event.step, event.cause) == ("non-finite", "loss", 4, "the loss is nan")


def test_only_the_first_non_finite_value_is_reported():
    net, optimizer = freeze_body(make_net())
    with xferbench.watch(net, optimizer, on_event="collect") as watch:
        for step, (x, y) in enumerate(generate_batches(12), start=1):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            if step == 10:
                net[8].bias.grad.fill_(math.inf)
            optimizer.step()
    assert [(event.kind, event.tensor, event.step) for event in watch.events] == [
        ("non-finite", "8.bias", 10),
    ]
    assert watch.events[0].cause == "its gradient is not finite"


def test_non_finite_values_are_reported():
    net, optimizer = freeze_body(make_net())
    watch = train_watched(
        net,
        optimizer,
        12,
        actions={12: without_gradients(lambda: net[4].running_var.fill_(math.nan))},
        recipe={"trainable": "all"},
    )
    assert ("non-finite", "loss", 12) in {(event.kind, event.tensor, event.step) for event in watch.events}
    with xferbench.watch(net, optimizer, on_event="collect") as watch:
        train(net, optimizer, 1)
    assert only_event(watch).tensor in {"4.running_var", "8.weight"}


def test_a_non_finite_gradient_is_reported():
    net, optimizer = freeze_body(make_net())
    optimizer.param_groups[0]["params"].pop()  # no optimizer holds the bias
    net[8].bias.register_hook(lambda grad: grad * math.nan)
    watch = train_watched(net, optimizer, 2)
    assert [(event.kind, event.tensor) for event in watch.events] == [("non-finite", "8.bias"), ("not-held", "8.bias")]
    assert watch.events[0].cause == "its gradient is not finite"


def test_a_loss_jump_after_unfreezing_is_reported():
    net, optimizer = freeze_body(make_net())

    def unfreeze():
        net[3].requires_grad_(True)
        optimizer.add_param_group({"params": list(net[3].parameters()), "lr": 3.0})

    event = only_event(train_watched(net, optimizer, 50, actions={26: unfreeze}))
    assert (event.kind, event.tensor, event.others) == ("loss-jump", "3.weight", ("3.bias",))
    assert 26 < event.step <= 46
    assert event.since == 25
    assert "2 tensors began to train at step 26" in event.cause


def test_head_shock_under_a_new_head_is_reported():
    net = make_net().train()
    event = only_event(train_watched(net, torch.optim.AdamW(net.parameters(), lr=0.03), 12))
    assert (event.kind, event.tensor, event.step) == ("head-shock", "0.weight", 10)
    assert "while its head was untrained" in event.cause


def test_a_trained_head_causes_no_shock():
    net = make_net()
    train(net, torch.optim.AdamW(net.parameters(), lr=1e-2), 100)
    watch = train_watched(net, torch.optim.AdamW(net.parameters(), lr=0.03), 12)
    assert "head-shock" not in {event.kind for event in watch.events}


# Correct loops.

FULL = {
    "SGD": lambda net: torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-4),
    "AdamW": lambda net: torch.optim.AdamW(net.parameters(), lr=1e-3),
    "fused": lambda net: torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", FULL)
def test_full_fine_tuning_has_no_events(kind, seed):
    net = make_net(seed)
    assert train_watched(net, FULL[kind](net), 60, seed=seed).events == []


@pytest.mark.parametrize(
    "recipe", [None, HEAD_ONLY, {"strategy": "linear-probe"}, Phase(trainable=HeadOnly(), batchnorm=BATCHNORM_EVAL)]
)
def test_a_linear_probe_has_no_events(recipe):
    net, optimizer = freeze_body(make_net())
    assert train_watched(net, optimizer, 60, recipe=recipe).events == []


def unfreeze_gradually(net, optimizer, rate):
    def unfreeze(layer):
        layer.requires_grad_(True)
        optimizer.add_param_group({"params": list(layer.parameters()), "lr": rate})

    return {21: lambda: unfreeze(net[3]), 41: lambda: unfreeze(net[0])}


@pytest.mark.parametrize("seed", range(10))
def test_correct_gradual_unfreezing_has_no_events(seed):
    net, optimizer = freeze_body(make_net(seed))
    assert train_watched(net, optimizer, 80, actions=unfreeze_gradually(net, optimizer, 1e-3), seed=seed).events == []


def test_gradual_unfreezing_by_phases_is_reported_only_if_too_early():
    spellings = ["head", "top:1", "all"]
    phases = tuple(Phase(trainable=Trainable.parse(spelling), batchnorm=BATCHNORM_EVAL, steps=20) for spelling in spellings)
    for early in (0, 5):
        net = make_net()
        order = [list(net[8].parameters()), list(net[3:5].parameters()), list(net[:3].parameters())]
        net.eval().requires_grad_(False)
        optimizer = torch.optim.SGD(order[0], lr=1e-2)
        net[8].requires_grad_(True)

        def unfreeze(number, order=order, optimizer=optimizer):
            for tensor in order[number]:
                tensor.requires_grad_(True)
            optimizer.add_param_group({"params": order[number]})

        assert make_groups(net)[-1] == {"3.weight", "3.bias", "4.weight", "4.bias"}
        watch = train_watched(
            net,
            optimizer,
            60,
            actions={21 - early: lambda: unfreeze(1), 41: lambda: unfreeze(2)},
            recipe=Recipe(phases=phases),
            shape=(3, 8, 8),
        )
        events = [(event.kind, event.tensor, event.step) for event in watch.events]
        assert events == ([("frozen-moved", "3.weight", 16)] if early else [])


def make_groups(net):
    from xferbench.lab.models import backbones

    layout = backbones.layer_layout(net, (3, 8, 8))
    names = [name for name, _ in net.named_parameters()]
    return [{name for name in names if backbones.is_within(name, group.prefixes)} for group in layout.groups]


def test_training_from_scratch_has_no_head_shock():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    assert train_watched(net, torch.optim.AdamW(net.parameters(), lr=0.03), 15).events == []
    pretrained = make_net()
    recipe = {"strategy": "scratch"}
    assert train_watched(pretrained, torch.optim.AdamW(pretrained.parameters(), lr=0.03), 15, recipe=recipe).events == []


def test_a_step_that_a_grad_scaler_skips_is_no_event():
    for fused in (False, True):
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        with xferbench.watch(net, optimizer, on_event="collect") as watch:
            for step, (x, y) in enumerate(generate_batches(25), start=1):
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(net(x), y)).backward()
                if step in {1, 3, 10, 11}:
                    net[0].weight.grad.view(-1)[5] = math.inf
                scaler.step(optimizer)
                scaler.update()
        assert scaler.get_scale() == 0.5, "four steps were skipped"
        assert watch.events == []


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # from torch.compile itself
@pytest.mark.parametrize("wrap", ["compile", "parallel", "part"])
def test_names_are_those_of_the_wrapped_model(wrap):
    net = make_net().eval()
    if wrap == "part":
        net[3] = torch.compile(net[3], backend="eager")
        outer = net
    else:
        outer = torch.compile(net, backend="eager") if wrap == "compile" else nn.DataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    event = only_event(train_watched(outer, optimizer, 3, recipe=HEAD_ONLY))
    assert event.tensor == "0.weight"
    assert event.others == ("1.weight", "1.bias", "3.weight", "3.bias", "4.weight", "4.bias")


def test_a_sharded_tensor_is_skipped_and_the_others_are_watched():
    class Sharded(nn.Parameter):
        def __tensor_flatten__(self):
            raise AssertionError

    net, optimizer = freeze_body(make_net())
    net[0].weight = Sharded(net[0].weight.detach(), requires_grad=False)
    event = only_event(
        train_watched(net, optimizer, actions={4: without_gradients(lambda: (net[0].weight.add_(1), net[3].weight.add_(1)))})
    )
    assert (event.tensor, event.others, event.step) == ("3.weight", (), 4)


def test_several_optimizers_are_watched_together():
    net = make_net()
    optimizers = [torch.optim.SGD(net[:8].parameters(), lr=1e-3), torch.optim.AdamW(net[8].parameters(), lr=1e-2)]
    with xferbench.watch(net, optimizers, on_event="collect") as watch:
        for x, y in generate_batches(25):
            F.cross_entropy(net(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert (watch.steps, watch.events) == (25, [])


# The watch itself.


@pytest.mark.parametrize("kind", FULL)
def test_training_is_bit_identical_with_and_without_a_watch(kind):
    ends = []
    for with_watch in (True, False):
        torch.manual_seed(3)
        net = nn.Sequential(*make_net()[:8], nn.Dropout(0.5), nn.Linear(8, 4))
        optimizer = FULL[kind](net)
        if with_watch:
            with xferbench.watch(net, optimizer, recipe=HEAD_ONLY, on_event="collect", every=1) as watch:
                train(net, optimizer, 30, watch=watch)
            assert watch.events
        else:
            train(net, optimizer, 30)
        ends.append(({name: tensor.clone() for name, tensor in net.state_dict().items()}, torch.get_rng_state()))
    assert all(torch.equal(tensor, ends[1][0][name]) for name, tensor in ends[0][0].items())
    assert torch.equal(ends[0][1], ends[1][1])


def count_hooks(optimizer):
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def test_hooks_are_removed_at_exit_after_errors_too():
    net, optimizer = freeze_body(make_net())
    with xferbench.watch(net, optimizer):
        assert count_hooks(optimizer) == 2
    assert count_hooks(optimizer) == 0
    with pytest.raises(ZeroDivisionError), xferbench.watch(net, optimizer):
        raise ZeroDivisionError
    assert count_hooks(optimizer) == 0
    net.train()
    with pytest.raises(xferbench.TransferWarning), xferbench.watch(net, optimizer, on_event="raise"):
        train(net, optimizer)
    assert count_hooks(optimizer) == 0


def test_an_event_is_a_warning_or_is_raised():
    net, optimizer = freeze_body(make_net())
    net.train()
    with (
        pytest.warns(xferbench.TransferWarning, match=r"buffer-moved at step 1: 1\.running_mean and 1 more"),
        xferbench.watch(net, optimizer) as watch,
    ):
        train(net, optimizer, 5)
    assert len(watch.events) == 1
    with (
        pytest.raises(xferbench.TransferWarning, match="do: call") as raised,
        xferbench.watch(net, optimizer, on_event="raise") as raising_watch,
    ):
        train(net, optimizer, 5)
    assert (raising_watch.steps, raised.value.event) == (1, raising_watch.events[0])


def test_the_report_has_step_tensor_cause_and_advice():
    net, optimizer = freeze_body(make_net())
    assert str(train_watched(net, optimizer, 3)) == "3 steps watched: nothing to report"
    watch = train_watched(net, optimizer, actions={14: lambda: net[3].weight.data.mul_(1.5)})
    assert str(watch) == watch.report()
    head, event_line, do = str(watch).splitlines()
    assert head == "25 steps watched: 1 event"
    assert event_line.startswith("frozen-moved at steps 11 to 20: 3.weight: moved by other code than this optimizer")
    assert do == "  do: find the code that writes to it between two steps"


def test_the_loss_is_optional_and_may_be_a_number():
    net, optimizer = freeze_body(make_net())
    with xferbench.watch(net, optimizer) as watch:
        train(net, optimizer, 5)
        watch.step(1.5)
    assert (watch.steps, watch.events) == (5, [])
    with pytest.raises(UserError, match="one number"), xferbench.watch(net, optimizer) as watch:
        watch.step(torch.ones(2))


def test_a_watch_may_be_entered_again_and_starts_over():
    net, optimizer = freeze_body(make_net())
    watch = xferbench.watch(net, optimizer, on_event="collect")
    for _ in range(2):
        net.train()
        with watch:
            train(net, optimizer, 5)
        assert (watch.steps, [event.kind for event in watch.events]) == (5, ["buffer-moved"])


def test_a_watch_without_steps_reports_nothing():
    net, optimizer = freeze_body(make_net())
    with xferbench.watch(net, optimizer) as watch:
        pass
    assert str(watch) == "0 steps watched: nothing to report"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "watch: model"),
        ({"optimizer": 3}, "watch: optimizer"),
        ({"optimizer": [3]}, "watch: optimizer"),
        ({"recipe": 3}, "watch: recipe"),
        ({"recipe": {"trainabel": "head"}}, "did you mean 'trainable'"),
        ({"recipe": {"trainable": "hat"}}, "recipe.trainable"),
        ({"recipe": {"trainable": "top:1"}}, "pass the shape of one input"),
        ({"recipe": {"trainable": "top:9"}, "shape": (3, 8, 8)}, "top:N with N from 1 to"),
        ({"head": "9"}, "head: no such module"),
        ({"every": 0}, "watch: every"),
        ({"on_event": "rise"}, "did you mean 'raise'"),
    ],
)
def test_wrong_arguments_raise(change, message):
    net, optimizer = freeze_body(make_net())
    arguments = {"model": net, "optimizer": optimizer, **change}
    with pytest.raises(UserError, match=message):
        xferbench.watch(arguments.pop("model"), arguments.pop("optimizer"), **arguments)


def test_a_model_without_a_head_is_watched_unless_the_recipe_needs_one():
    net = nn.Sequential(nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    xferbench.watch(net, optimizer)
    with pytest.raises(UserError, match="head="):
        xferbench.watch(net, optimizer, recipe=HEAD_ONLY)


def test_the_head_argument_selects_the_head():
    net = make_net().eval()
    net.requires_grad_(False)[3].requires_grad_(True)
    optimizer = torch.optim.SGD(net[3].parameters(), lr=0.1)
    assert train_watched(net, optimizer, recipe=HEAD_ONLY, head="3").events == []


def test_the_package_is_imported_without_torch():
    code = (
        "import sys, xferbench; xferbench.watch; xferbench.Event; xferbench.TransferWarning; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_watch_itself_gives_no_warning():
    net = make_net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xferbench.watch(net, torch.optim.AdamW(net.parameters(), lr=1e-3)) as watch:
            train(net, watch._optimizers[0], 30, watch=watch)


def test_a_zero_rate_is_reported_only_for_one_group_of_several():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    begin = {26: lambda: optimizer.param_groups[0].update(lr=0.01)}
    assert train_watched(net, optimizer, 40, actions=begin, recipe={"trainable": "all"}).events == []
    net = make_net()
    groups = [{"params": net[0].parameters(), "lr": 0.0}, {"params": [*net[1].parameters(), *net[3:].parameters()]}]
    event = only_event(train_watched(net, torch.optim.SGD(groups, lr=0.01), 25, recipe={"trainable": "all"}))
    assert (event.kind, event.tensor, event.cause) == ("never-moved", "0.weight", "its learning rate is 0")
