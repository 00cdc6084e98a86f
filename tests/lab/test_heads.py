"""A head of two layers: where it stands, how it begins, how it trains, and what may be done to a network that has one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import BRIEF, HEAD, PLACE, READY, make_fit, make_trial, make_world, moved, same
from test_loop import regularizer as regularizer_of
from torch import nn
from torch.nn import functional as F

from xferbench.core.errors import UserError
from xferbench.core.interventions import HEAD_ONLY, Head, Trainable
from xferbench.core.pipeline import AuxiliaryDataset, Phase
from xferbench.core.trial import EvaluationSpec, ModelSpec, Trial
from xferbench.lab.evaluation import context, evaluate
from xferbench.lab.models import backbones, heads
from xferbench.lab.training import loop
from xferbench.lab.worker import run_trials
from xferbench.plugins import head_shock

MLP = {f"linear.{layer}.{part}" for layer in (0, 3) for part in ("weight", "bias")}
PROBE = Phase(trainable=HEAD_ONLY, batchnorm="eval", optimizer="sgd", lr=1e-2, **BRIEF)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    made = make_world(folder)
    made.source = AuxiliaryDataset(data=make_npz(folder / "s.npz", train=80, classes=10), classes=tuple(range(10)))
    return made


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(world, *fits):
    found, _ = run_trials._trained_models(fits, make_trial(fits[0]), world.cache)
    return found


def started(world, one):
    network = run_trials.training_inputs(one, make_trial(one), world.cache)[1]
    return network, run_trials.start_tensors(one, network, make_trial(one), world.cache)


def test_it_stands_in_the_place_of_the_plain_one_and_all_below_is_what_it_was(world):
    (plain, before), (deep, start) = (
        started(world, make_fit(world, head=Head.parse(head))) for head in ("random", "mlp:6:0.3")
    )
    assert start.keys() - before.keys() == MLP
    assert all(torch.equal(start[name], tensor) for name, tensor in before.items() if name not in HEAD)
    assert [type(layer) for layer in deep.module.linear] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [tuple(start[f"linear.{layer}.weight"].shape) for layer in (0, 3)] == [(6, plain.anatomy.features), (4, 6)]
    assert deep.module.linear[2].p == 0.3
    whole = sum(parameter.numel() for parameter in deep.module.parameters())
    assert deep.anatomy == replace(plain.anatomy, parameters=whole)
    assert isinstance(plain.module.linear, nn.Linear), "the plain network stays as it is"


def test_half_is_dropped_where_nothing_is_said():
    anatomy = backbones.layer_layout(backbones.build("tiny-resnet", 4), 16)
    assert heads.build_with_head("tiny-resnet", anatomy, Head.parse("mlp:6")).linear[2].p == 0.5


def test_it_is_drawn_by_the_seed_of_the_head_alone(world):
    first, again, other = (started(world, make_fit(world, head=Head.parse("mlp:6"), seed=seed))[1] for seed in (0, 0, 1))
    assert same(first, again)
    assert not any(torch.equal(first[name], other[name]) for name in MLP)
    assert all(torch.equal(first[name], other[name]) for name in first.keys() - MLP)
    bound = started(world, make_fit(world))[0].anatomy.features ** -0.5
    assert 0.8 * bound < float(first["linear.0.weight"].abs().max()) <= bound, "as torch draws layers"


@pytest.mark.parametrize("init", ["random", "matched", "permuted"])
def test_any_start_below_it_will_do(init, world):
    (found,) = trained(world, make_fit(world, init=init, head=Head.parse("mlp:6")))
    assert moved(found) >= MLP


@pytest.mark.parametrize("trainable", ["head", "top:1"])
def test_training_on_cached_activations_is_training_the_whole_network(trainable, world, monkeypatch):
    one = make_fit(world, replace(PROBE, trainable=Trainable.parse(trainable)), head=Head.parse("mlp:6:0"))
    network, start = started(world, one)
    dataset = run_trials.training_inputs(one, make_trial(one), world.cache)[0]
    assert loop.split_phase_model(network, loop.frozen_cut(one.phases[0], network.anatomy), READY)[0] is not None
    (cut,) = loop.train([one], network, [start], dataset)
    monkeypatch.setattr(backbones, "split_at", lambda *_: None)
    (whole,) = loop.train([one], network, [start], dataset)
    torch.testing.assert_close(cut.last, whole.last, rtol=1e-4, atol=1e-5)
    assert moved(cut) == moved(whole) >= MLP
    assert trainable != "head" or moved(cut) == MLP


def test_its_dropout_is_drawn_by_the_seed_and_is_off_at_test_time(world):
    one = make_fit(world, PROBE, head=Head.parse("mlp:6:0.9"))
    network, start = started(world, one)
    dataset = run_trials.training_inputs(one, make_trial(one), world.cache)[0]
    torch.manual_seed(1)
    (first,), (again,) = (loop.train([one], network, [start], dataset) for _ in range(2))
    assert same(first.last, again.last)
    (none,) = loop.train(
        [one],
        replace(network, module=heads.replace_head(backbones.build("tiny-resnet", 4), network.anatomy, Head.parse("mlp:6:0"))),
        [start],
        dataset,
    )
    assert not same(first.last, none.last)
    model = context.LoadedModel(fit=one, fitted=first, network=network, dataset=dataset, source_head={}, cache=world.cache)
    (once, _), (twice, _) = (evaluate.evaluate(model, (), EvaluationSpec(preprocessing=READY)) for _ in range(2))
    assert np.array_equal(once.p_true, twice.p_true)


def look(world, one, *edits, **view):
    trial = Trial(model=ModelSpec(base=one, edits=edits), view=EvaluationSpec(preprocessing=READY, **view), place=PLACE)
    (record,), _ = run_trials.run_trials([trial], frozenset([trial.key]), world.cache)
    assert not record.error, record.error
    return record.predictions


def test_the_pretrained_head_goes_back_onto_the_backbone_below_it(world):
    # With a frozen backbone both are the checkpoint itself.
    deep, plain = (make_fit(world, PROBE, head=Head.parse(head)) for head in ("mlp:6", "random"))
    for edits in (("head:source",), ("batchnorm:restored", "head:source"), ("head:refit",)):
        one, other = (look(world, each, *edits, domain=world.source) for each in (deep, plain))
        np.testing.assert_allclose(one.p_true, other.p_true, atol=1e-5)
    one, other = (look(world, each, "head:source", domain=world.source, mode="training") for each in (deep, plain))
    np.testing.assert_allclose(one.p_true, other.p_true, atol=1e-5)


def test_a_temperature_divides_the_logits_and_an_order_of_classes_moves_the_outputs(world):
    one = make_fit(world, PROBE, head=Head.parse("mlp:6"))
    plain, cooler, rotated = (look(world, one, *edits) for edits in ((), ("temperature:4",), ("classes:rotated",)))
    logits = np.log(plain.probabilities.astype(float))
    expected = F.softmax(torch.from_numpy(logits / 4), 1).numpy()
    np.testing.assert_allclose(cooler.probabilities, expected, atol=2e-3)
    np.testing.assert_allclose(rotated.probabilities, np.roll(plain.probabilities, 1, axis=1), atol=2e-3)


@pytest.mark.parametrize("word", ["l2-sp:1", "ewc:100"])
def test_the_backbone_below_it_can_be_held(word, world):
    source = world.source if word.startswith("ewc") else None
    (found,) = trained(world, make_fit(world, head=Head.parse("mlp:6"), regularizer=regularizer_of(word), source=source))
    assert moved(found) > MLP


@pytest.mark.parametrize("word", ["lwf:1", "replay:4"])
def test_the_pretrained_head_cannot_stand_below_it(word, world):
    one = make_fit(world, head=Head.parse("mlp:6"), regularizer=regularizer_of(word), source=world.source)
    with pytest.raises(ValueError, match="cannot stand below head mlp:6"):
        trained(world, one)


def test_a_head_that_is_no_linear_layer_is_not_replaced():
    model = backbones.build("torchvision:squeezenet1_1", 4)
    anatomy = backbones.layer_layout(model, 64)
    with pytest.raises(UserError, match="head mlp:6 needs a linear head") as told:
        heads.replace_head(model, anatomy, Head.parse("mlp:6"))
    assert told.value.found == "classifier.1, a Conv2d"


def test_a_head_inside_others_is_found_by_its_name():
    model = backbones.build("torchvision:mobilenet_v3_small", 4)
    anatomy = backbones.layer_layout(model, 64)
    assert anatomy.head == "classifier.3"
    heads.replace_head(model, anatomy, Head.parse("mlp:6"))
    assert heads.last_layer(model, anatomy.head) == "classifier.3.3"
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    assert isinstance(heads.with_linear_head(model, anatomy).classifier[3], nn.Linear)
    assert isinstance(model.classifier[3], nn.Sequential), "a copy"


def test_the_shock_of_one_is_measured_against_a_fitted_linear_one(world):
    one = make_fit(world, head=Head.parse("mlp:6"))
    network, start = started(world, one)
    dataset = run_trials.training_inputs(one, make_trial(one), world.cache)[0]
    images, labels = (torch.from_numpy(np.array(part[:32])) for part in (dataset.train.images, dataset.train.labels))
    given = context.MeasureContext(
        before=start,
        after=start,
        network=network,
        images=images,
        labels=labels,
        prepared=READY,
        served=images,
        served_labels=labels,
        ready=READY,
        mode="eval",
    )
    assert head_shock.shock(given)["shock"] > 0
