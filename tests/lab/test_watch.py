"""Faults planted in a real loop, each named with its step, tensor and cause; sound loops, of which nothing is said."""

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
from xferbench.core.interventions import HeadOnly, Trainable
from xferbench.core.pipeline import Phase, Recipe

HEAD_ONLY = {"trainable": "head", "batchnorm": "eval"}


def make_net(seed=0):
    """A small network as if it had been pretrained: BatchNorm has seen batches."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
        net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        for _ in range(20):
            net(torch.randn(16, 3, 8, 8) * 2 + 1)
    return net


def frozen(net):
    """Rightly: flags and modes, with an optimizer over the head alone."""
    net.requires_grad_(False)[8].requires_grad_(True)
    net.eval()
    return net, torch.optim.AdamW(net[8].parameters(), lr=1e-2)


def batches(steps, seed=0):
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        y = torch.randint(4, (16,), generator=random)
        yield torch.randn(16, 3, 8, 8, generator=random) + y.view(-1, 1, 1, 1) / 2, y


def train(net, optimizer, steps=25, seed=0, watch=None, at=None):
    """The plainest of loops; ``at`` says what happens before a step."""
    for step, (x, y) in enumerate(batches(steps, seed), start=1):
        (at or {}).get(step, lambda: None)()
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        if watch is not None:
            watch.step(loss)


def watched(net, optimizer, steps=25, *, at=None, seed=0, **options):
    with xferbench.watch(net, optimizer, on_event="collect", **options) as watch:
        train(net, optimizer, steps, seed, watch, at)
    return watch


def only(watch):
    (event,) = watch.events
    return event


def no_grad(change):
    def changed():
        with torch.no_grad():
            change()

    return changed


# A frozen tensor moves.


def test_a_module_s_requires_grad_freezes_nothing():
    net, optimizer = make_net().eval(), None
    net[0].requires_grad = False
    net[1].requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    event = only(watched(net, optimizer))
    assert (event.kind, event.tensor, event.step, event.others) == ("frozen-moved", "0.weight", 1, ())
    assert "0.requires_grad = False sets an attribute" in event.cause
    assert event.do == "call 0.requires_grad_(False)"


def test_what_the_recipe_freezes_and_the_optimizer_trains():
    net = make_net().eval()
    event = only(watched(net, torch.optim.SGD(net.parameters(), lr=0.1), recipe=HEAD_ONLY))
    assert (event.kind, event.tensor, event.step, len(event.others)) == ("frozen-moved", "0.weight", 1, 6)
    assert event.cause == "its requires_grad is still True and the optimizer holds it"


@pytest.mark.parametrize("fused", [False, True])
def test_weight_decay_on_a_frozen_tensor_that_a_zero_gradient_was_left_on(fused):
    net = make_net().eval()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1, fused=fused)
    net[0].weight.grad = torch.zeros_like(net[0].weight)
    net[0].requires_grad_(False)
    with xferbench.watch(net, optimizer, on_event="collect") as watch:
        for x, y in batches(5):
            optimizer.zero_grad(set_to_none=False)
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    event = only(watch)
    assert (event.kind, event.tensor, event.step) == ("frozen-moved", "0.weight", 1)
    assert event.cause.startswith("weight decay of 0.1")


def test_momentum_moves_on_what_was_frozen_on_the_way():
    net = make_net().eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9)
    with xferbench.watch(net, optimizer, on_event="collect") as watch:
        for step, (x, y) in enumerate(batches(20), start=1):
            if step == 14:
                net[0].requires_grad_(False)
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    event = only(watch)
    assert (event.kind, event.tensor, event.step, event.since) == ("frozen-moved", "0.weight", 14, 13)
    assert "gradient from before it was frozen" in event.cause


class Decaying(torch.optim.Optimizer):
    """Decays whatever it holds, as some optimizers do."""

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
    net, _ = frozen(make_net())
    event = only(watched(net, Decaying([net[0].weight, *net[8].parameters()])))
    assert (event.kind, event.tensor, event.step) == ("frozen-moved", "0.weight", 1)
    assert event.cause.startswith("weight decay of 0.1: the optimizer holds it")


def test_other_code_writes_and_its_step_is_known_by_the_version():
    net, optimizer = frozen(make_net())
    event = only(watched(net, optimizer, at={17: no_grad(lambda: net[3].bias.add_(0.1))}))
    assert (event.kind, event.tensor, event.step, event.since) == ("frozen-moved", "3.bias", 17, 16)
    assert event.cause.startswith("moved by other code")


def test_a_write_that_no_version_tells_is_found_by_its_values():
    net, optimizer = frozen(make_net())
    event = only(watched(net, optimizer, at={14: lambda: net[3].weight.data.mul_(1.5)}))
    assert (event.kind, event.tensor, event.step, event.since) == ("frozen-moved", "3.weight", 20, 10)


def test_a_single_number_outside_the_sample_is_found_at_the_exit():
    net, optimizer = frozen(make_net())

    def write():
        net[3].weight.data.view(-1)[2] += 1.0

    assert net[3].weight.numel() == 576
    event = only(watched(net, optimizer, at={14: write}))
    assert (event.kind, event.tensor, event.step, event.since) == ("frozen-moved", "3.weight", 25, 20)


def test_a_sparse_write_whose_version_rises_is_found_in_its_step():
    net, optimizer = frozen(make_net())

    def write():
        net[3].weight.view(-1)[2] += 1.0

    event = only(watched(net, optimizer, at={14: no_grad(write)}))
    assert (event.tensor, event.step) == ("3.weight", 14)


def test_a_version_that_rises_for_nothing_is_no_event():
    net, optimizer = frozen(make_net())
    same = {step: no_grad(lambda: (net[0].weight.add_(0), net.load_state_dict(net.state_dict()))) for step in range(4, 25)}
    assert watched(net, optimizer, at=same).events == []


def test_each_tensor_is_told_of_once():
    net, optimizer = frozen(make_net())
    at = {step: no_grad(lambda: net[0].weight.mul_(1.1)) for step in range(4, 25)}
    assert only(watched(net, optimizer, at=at)).step == 4


# Running statistics move.


def test_batchnorm_that_was_not_put_into_evaluation_mode():
    net, optimizer = frozen(make_net())
    net.train()
    event = only(watched(net, optimizer))
    assert (event.kind, event.tensor, event.others, event.step) == ("buffer-moved", "1.running_mean", ("4.running_mean",), 1)
    assert "requires_grad_(False) does not stop running statistics" in event.cause


def test_model_train_undoes_eval_on_the_way_and_the_step_is_known():
    net, optimizer = frozen(make_net())
    event = only(watched(net, optimizer, at={15: net.train, 16: net.eval}, recipe=HEAD_ONLY))
    assert (event.kind, event.step, event.since) == ("buffer-moved", 15, 14)
    assert event.cause.startswith("its layer is in training mode")


def test_statistics_written_in_evaluation_mode():
    net, optimizer = frozen(make_net())
    event = only(watched(net, optimizer, at={15: lambda: net[4].running_var.mul_(2)}))
    assert (event.kind, event.tensor, event.step) == ("buffer-moved", "4.running_var", 15)
    assert event.cause.startswith("written by other code")


def test_statistics_may_move_where_the_recipe_lets_them():
    net, optimizer = frozen(make_net())
    net.train()
    assert watched(net, optimizer, recipe={"trainable": "head", "batchnorm": "train"}).events == []


# What is to train does not.


def test_an_optimizer_built_before_the_unfreezing():
    net, optimizer = frozen(make_net())
    event = only(watched(net, optimizer, at={12: lambda: net[3].requires_grad_(True)}))
    assert (event.kind, event.tensor, event.others, event.step) == ("not-held", "3.weight", ("3.bias",), 20)
    assert "built from 2 others" in event.cause


def test_an_optimizer_over_another_copy():
    net = make_net()
    optimizer = torch.optim.AdamW(copy.deepcopy(net).parameters(), lr=1e-3)
    net.eval()
    event = only(watched(net, optimizer, 5))
    assert (event.kind, event.tensor, event.step) == ("not-held", "0.weight", 1)
    assert "9 of its 9 tensors do not belong to this model" in event.cause


def test_a_head_that_was_replaced_after_the_optimizer_was_built():
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    net[8] = nn.Linear(8, 4)
    event = only(watched(net, optimizer, 5))
    assert (event.kind, event.tensor, event.others) == ("not-held", "8.weight", ("8.bias",))
    assert "2 of its 9 tensors do not belong to this model" in event.cause


def test_what_the_recipe_trains_is_still_frozen():
    net, optimizer = frozen(make_net())
    event = only(watched(net, optimizer, recipe={"trainable": "all", "batchnorm": "eval"}))
    assert (event.kind, event.tensor, event.step) == ("never-moved", "0.weight", 20)
    assert event.cause == "it should train, but its requires_grad is False"


def test_no_gradient_reaches_it():
    net = make_net().eval()
    body, head = net[:8], net[8]
    whole = nn.ModuleDict({"body": body, "head": head})
    optimizer = torch.optim.AdamW(whole.parameters(), lr=1e-3)
    with xferbench.watch(whole, optimizer, on_event="collect") as watch:
        for x, y in batches(30):
            F.cross_entropy(head(body(x).detach()), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    event = only(watch)
    assert (event.kind, event.tensor, len(event.others), event.step) == ("never-moved", "body.0.weight", 6, 20)
    assert event.cause.startswith("no gradient reaches it")


def test_updates_lost_in_rounding():
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
    assert only(watch).cause == "its updates are lost in rounding to bfloat16"


def test_one_row_of_an_embedding_is_movement_enough():
    net = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with xferbench.watch(net, optimizer, on_event="collect") as watch:
        for _ in range(25):
            net(torch.tensor([77])).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert watch.events == []


# Values, losses, shocks.


def test_a_loss_that_is_not_finite():
    net, optimizer = frozen(make_net())
    with xferbench.watch(net, optimizer, on_event="collect") as watch:
        train(net, optimizer, 4, watch=watch)
        watch.step(math.nan)
        watch.step(math.inf)
    event = only(watch)
    assert (event.kind, event.tensor, event.step, event.cause) == ("non-finite", "loss", 4, "the loss is nan")


def test_of_what_is_not_finite_the_first_is_told():
    net, optimizer = frozen(make_net())
    with xferbench.watch(net, optimizer, on_event="collect") as watch:
        for step, (x, y) in enumerate(batches(12), start=1):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            if step == 10:
                net[8].bias.grad.fill_(math.inf)
            optimizer.step()
    assert [(event.kind, event.tensor, event.step) for event in watch.events] == [
        ("non-finite", "8.bias", 10),
    ]
    assert watch.events[0].cause == "its gradient is not finite"


def test_values_that_are_not_finite():
    net, optimizer = frozen(make_net())
    watch = watched(
        net, optimizer, 12, at={12: no_grad(lambda: net[4].running_var.fill_(math.nan))}, recipe={"trainable": "all"}
    )
    assert ("non-finite", "loss", 12) in {(event.kind, event.tensor, event.step) for event in watch.events}
    with xferbench.watch(net, optimizer, on_event="collect") as watch:
        train(net, optimizer, 1)
    assert only(watch).tensor in {"4.running_var", "8.weight"}


def test_a_gradient_alone_that_is_not_finite():
    net, optimizer = frozen(make_net())
    optimizer.param_groups[0]["params"].pop()  # the bias is held by none
    net[8].bias.register_hook(lambda grad: grad * math.nan)
    watch = watched(net, optimizer, 2)
    assert [(event.kind, event.tensor) for event in watch.events] == [("non-finite", "8.bias"), ("not-held", "8.bias")]
    assert watch.events[0].cause == "its gradient is not finite"


def test_the_loss_jumps_when_more_is_unfrozen():
    net, optimizer = frozen(make_net())

    def unfreeze():
        net[3].requires_grad_(True)
        optimizer.add_param_group({"params": list(net[3].parameters()), "lr": 3.0})

    event = only(watched(net, optimizer, 50, at={26: unfreeze}))
    assert (event.kind, event.tensor, event.others) == ("loss-jump", "3.weight", ("3.bias",))
    assert 26 < event.step <= 46
    assert event.since == 25
    assert "2 tensors began to train at step 26" in event.cause


def test_a_fresh_head_shocks_the_backbone():
    net = make_net().train()
    event = only(watched(net, torch.optim.AdamW(net.parameters(), lr=0.03), 12))
    assert (event.kind, event.tensor, event.step) == ("head-shock", "0.weight", 10)
    assert "while its head was untrained" in event.cause


def test_a_head_that_knows_its_task_does_not_shock():
    net = make_net()
    train(net, torch.optim.AdamW(net.parameters(), lr=1e-2), 100)
    watch = watched(net, torch.optim.AdamW(net.parameters(), lr=0.03), 12)
    assert "head-shock" not in {event.kind for event in watch.events}


# Sound loops.

FULL = {
    "SGD": lambda net: torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-4),
    "AdamW": lambda net: torch.optim.AdamW(net.parameters(), lr=1e-3),
    "fused": lambda net: torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", FULL)
def test_full_fine_tuning_is_sound(kind, seed):
    net = make_net(seed)
    assert watched(net, FULL[kind](net), 60, seed=seed).events == []


@pytest.mark.parametrize(
    "recipe", [None, HEAD_ONLY, {"strategy": "linear-probe"}, Phase(trainable=HeadOnly(), batchnorm="eval")]
)
def test_a_linear_probe_is_sound(recipe):
    net, optimizer = frozen(make_net())
    assert watched(net, optimizer, 60, recipe=recipe).events == []


def gradual(net, optimizer, rate):
    def unfreeze(part):
        part.requires_grad_(True)
        optimizer.add_param_group({"params": list(part.parameters()), "lr": rate})

    return {21: lambda: unfreeze(net[3]), 41: lambda: unfreeze(net[0])}


@pytest.mark.parametrize("seed", range(10))
def test_gradual_unfreezing_done_right_is_sound(seed):
    net, optimizer = frozen(make_net(seed))
    assert watched(net, optimizer, 80, at=gradual(net, optimizer, 1e-3), seed=seed).events == []


def test_gradual_unfreezing_by_a_recipe_of_phases_is_sound_and_a_step_too_early_is_told():
    words = ["head", "top:1", "all"]
    phases = tuple(Phase(trainable=Trainable.parse(word), batchnorm="eval", steps=20) for word in words)
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
        watch = watched(
            net,
            optimizer,
            60,
            at={21 - early: lambda: unfreeze(1), 41: lambda: unfreeze(2)},
            recipe=Recipe(phases=phases),
            shape=(3, 8, 8),
        )
        told = [(event.kind, event.tensor, event.step) for event in watch.events]
        assert told == ([("frozen-moved", "3.weight", 16)] if early else [])


def make_groups(net):
    from xferbench.lab.models import backbones

    anatomy = backbones.layer_layout(net, (3, 8, 8))
    names = [name for name, _ in net.named_parameters()]
    return [{name for name in names if backbones.is_within(name, group.prefixes)} for group in anatomy.groups]


def test_training_from_scratch_is_no_head_shock():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    assert watched(net, torch.optim.AdamW(net.parameters(), lr=0.03), 15).events == []
    known = make_net()
    recipe = {"strategy": "scratch"}
    assert watched(known, torch.optim.AdamW(known.parameters(), lr=0.03), 15, recipe=recipe).events == []


def test_a_step_that_a_grad_scaler_skips_is_no_event():
    for fused in (False, True):
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        with xferbench.watch(net, optimizer, on_event="collect") as watch:
            for step, (x, y) in enumerate(batches(25), start=1):
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(net(x), y)).backward()
                if step in {1, 3, 10, 11}:
                    net[0].weight.grad.view(-1)[5] = math.inf
                scaler.step(optimizer)
                scaler.update()
        assert scaler.get_scale() == 0.5, "four steps were skipped"
        assert watch.events == []


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch.compile's own
@pytest.mark.parametrize("wrap", ["compile", "parallel", "part"])
def test_names_are_those_of_the_model_within(wrap):
    net = make_net().eval()
    if wrap == "part":
        net[3] = torch.compile(net[3], backend="eager")
        outer = net
    else:
        outer = torch.compile(net, backend="eager") if wrap == "compile" else nn.DataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    event = only(watched(outer, optimizer, 3, recipe=HEAD_ONLY))
    assert event.tensor == "0.weight"
    assert event.others == ("1.weight", "1.bias", "3.weight", "3.bias", "4.weight", "4.bias")


def test_a_sharded_tensor_is_passed_over_and_the_rest_is_watched():
    class Sharded(nn.Parameter):
        def __tensor_flatten__(self):
            raise AssertionError

    net, optimizer = frozen(make_net())
    net[0].weight = Sharded(net[0].weight.detach(), requires_grad=False)
    event = only(watched(net, optimizer, at={4: no_grad(lambda: (net[0].weight.add_(1), net[3].weight.add_(1)))}))
    assert (event.tensor, event.others, event.step) == ("3.weight", (), 4)


def test_several_optimizers_are_one_training():
    net = make_net()
    parts = [torch.optim.SGD(net[:8].parameters(), lr=1e-3), torch.optim.AdamW(net[8].parameters(), lr=1e-2)]
    with xferbench.watch(net, parts, on_event="collect") as watch:
        for x, y in batches(25):
            F.cross_entropy(net(x), y).backward()
            for optimizer in parts:
                optimizer.step()
                optimizer.zero_grad()
    assert (watch.steps, watch.events) == (25, [])


# What a watch is.


@pytest.mark.parametrize("kind", FULL)
def test_training_is_the_same_to_the_bit_with_a_watch_and_without(kind):
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


def hooks(optimizer):
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def test_the_hooks_go_at_the_exit_whatever_happens():
    net, optimizer = frozen(make_net())
    with xferbench.watch(net, optimizer):
        assert hooks(optimizer) == 2
    assert hooks(optimizer) == 0
    with pytest.raises(ZeroDivisionError), xferbench.watch(net, optimizer):
        raise ZeroDivisionError
    assert hooks(optimizer) == 0
    net.train()
    with pytest.raises(xferbench.TransferWarning), xferbench.watch(net, optimizer, on_event="raise"):
        train(net, optimizer)
    assert hooks(optimizer) == 0


def test_an_event_is_a_warning_or_is_raised():
    net, optimizer = frozen(make_net())
    net.train()
    with (
        pytest.warns(xferbench.TransferWarning, match=r"buffer-moved at step 1: 1\.running_mean and 1 more"),
        xferbench.watch(net, optimizer) as watch,
    ):
        train(net, optimizer, 5)
    assert len(watch.events) == 1
    with (
        pytest.raises(xferbench.TransferWarning, match="do: call") as raised,
        xferbench.watch(net, optimizer, on_event="raise") as other,
    ):
        train(net, optimizer, 5)
    assert (other.steps, raised.value.event) == (1, other.events[0])


def test_the_report_says_step_tensor_cause_and_what_to_do():
    net, optimizer = frozen(make_net())
    assert str(watched(net, optimizer, 3)) == "3 steps watched: nothing to report"
    watch = watched(net, optimizer, at={14: lambda: net[3].weight.data.mul_(1.5)})
    assert str(watch) == watch.report()
    head, what, do = str(watch).splitlines()
    assert head == "25 steps watched: 1 event"
    assert what.startswith("frozen-moved at steps 11 to 20: 3.weight: moved by other code than this optimizer")
    assert do == "  do: find the code that writes to it between two steps"


def test_the_loss_need_not_be_told_and_may_be_a_number():
    net, optimizer = frozen(make_net())
    with xferbench.watch(net, optimizer) as watch:
        train(net, optimizer, 5)
        watch.step(1.5)
    assert (watch.steps, watch.events) == (5, [])
    with pytest.raises(UserError, match="one number"), xferbench.watch(net, optimizer) as watch:
        watch.step(torch.ones(2))


def test_a_watch_may_be_entered_again_and_begins_anew():
    net, optimizer = frozen(make_net())
    watch = xferbench.watch(net, optimizer, on_event="collect")
    for _ in range(2):
        net.train()
        with watch:
            train(net, optimizer, 5)
        assert (watch.steps, [event.kind for event in watch.events]) == (5, ["buffer-moved"])


def test_nothing_at_all_happened():
    net, optimizer = frozen(make_net())
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
def test_what_cannot_be_watched_is_told(change, message):
    net, optimizer = frozen(make_net())
    given = {"model": net, "optimizer": optimizer, **change}
    with pytest.raises(UserError, match=message):
        xferbench.watch(given.pop("model"), given.pop("optimizer"), **given)


def test_a_model_without_a_head_is_watched_unless_the_head_is_asked_for():
    net = nn.Sequential(nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    xferbench.watch(net, optimizer)
    with pytest.raises(UserError, match="head="):
        xferbench.watch(net, optimizer, recipe=HEAD_ONLY)


def test_a_named_head_is_the_head():
    net = make_net().eval()
    net.requires_grad_(False)[3].requires_grad_(True)
    optimizer = torch.optim.SGD(net[3].parameters(), lr=0.1)
    assert watched(net, optimizer, recipe=HEAD_ONLY, head="3").events == []


def test_the_package_is_imported_without_torch():
    code = (
        "import sys, xferbench; xferbench.watch; xferbench.Event; xferbench.TransferWarning; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_is_warned_of_by_the_watch_itself():
    net = make_net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xferbench.watch(net, torch.optim.AdamW(net.parameters(), lr=1e-3)) as watch:
            train(net, watch._optimizers[0], 30, watch=watch)


def test_a_schedule_that_has_not_begun_is_no_fault_and_a_group_without_a_rate_is():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    begin = {26: lambda: optimizer.param_groups[0].update(lr=0.01)}
    assert watched(net, optimizer, 40, at=begin, recipe={"trainable": "all"}).events == []
    net = make_net()
    groups = [{"params": net[0].parameters(), "lr": 0.0}, {"params": [*net[1].parameters(), *net[3:].parameters()]}]
    event = only(watched(net, torch.optim.SGD(groups, lr=0.01), 25, recipe={"trainable": "all"}))
    assert (event.kind, event.tensor, event.cause) == ("never-moved", "0.weight", "its learning rate is 0")
