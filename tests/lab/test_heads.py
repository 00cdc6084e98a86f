"""MLP heads: replacement, initialization and training, and evaluation of a network with such a head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import (
    BRIEF,
    CONTEXT,
    HEAD,
    PREPROCESSING,
    changed_names,
    is_equal,
    make_spec,
    make_trial,
    make_workspace,
    parse_regularizer,
)
from torch import nn
from torch.nn import functional as F

from xferbench.core.errors import UserError
from xferbench.core.interventions import (
    BATCHNORM_EVAL,
    EVAL_MODE,
    HEAD_ONLY,
    RANDOM,
    TRAIN_MODE,
    Edit,
    Head,
    MatchedMoments,
    PermutedWeights,
    Trainable,
)
from xferbench.core.pipeline import AuxiliaryDataset, Phase
from xferbench.core.trial import EvaluationSpec, ModelSpec, Trial
from xferbench.lab.evaluation import context, evaluate
from xferbench.lab.models import backbones, graph_split, heads
from xferbench.lab.training import loop
from xferbench.lab.worker import run_trials
from xferbench.plugins import head_shock

MLP = {f"linear.{layer}.{part}" for layer in (0, 3) for part in ("weight", "bias")}
PROBE = Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, optimizer="sgd", lr=1e-2, **BRIEF)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    workspace = make_workspace(folder)
    workspace.source = AuxiliaryDataset(data=make_npz(folder / "s.npz", train=80, classes=10), classes=tuple(range(10)))
    return workspace


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(workspace, *specs):
    result, _ = run_trials._trained_models(specs, make_trial(specs[0]), workspace.cache)
    return result


def prepare(workspace, spec):
    network = run_trials.training_inputs(spec, make_trial(spec), workspace.cache)[1]
    return network, run_trials.start_tensors(spec, network, make_trial(spec), workspace.cache)


def test_an_mlp_head_replaces_the_linear_head_and_leaves_the_body_unchanged(workspace):
    (plain, before), (deep, start) = (
        prepare(workspace, make_spec(workspace, head=Head.parse(head))) for head in ("random", "mlp:6:0.3")
    )
    assert start.keys() - before.keys() == MLP
    assert all(torch.equal(start[name], tensor) for name, tensor in before.items() if name not in HEAD)
    assert [type(layer) for layer in deep.module.linear] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [tuple(start[f"linear.{layer}.weight"].shape) for layer in (0, 3)] == [(6, plain.layout.features), (4, 6)]
    assert deep.module.linear[2].p == 0.3
    count = sum(parameter.numel() for parameter in deep.module.parameters())
    assert deep.layout == replace(plain.layout, parameters=count)
    assert isinstance(plain.module.linear, nn.Linear), "the plain network does not change"


def test_the_default_dropout_rate_is_one_half():
    layout = backbones.layer_layout(backbones.build("tiny-resnet", 4), 16)
    assert heads.build_with_head("tiny-resnet", layout, Head.parse("mlp:6")).linear[2].p == 0.5


def test_an_mlp_head_depends_on_the_head_seed_only(workspace):
    first, again, other = (
        prepare(workspace, make_spec(workspace, head=Head.parse("mlp:6"), seed=seed))[1] for seed in (0, 0, 1)
    )
    assert is_equal(first, again)
    assert not any(torch.equal(first[name], other[name]) for name in MLP)
    assert all(torch.equal(first[name], other[name]) for name in first.keys() - MLP)
    bound = prepare(workspace, make_spec(workspace))[0].layout.features ** -0.5
    assert 0.8 * bound < float(first["linear.0.weight"].abs().max()) <= bound, "the initialization of torch"


@pytest.mark.parametrize("init", [RANDOM, MatchedMoments(), PermutedWeights()], ids=str)
def test_an_mlp_head_works_with_every_initialization(init, workspace):
    (result,) = train(workspace, make_spec(workspace, init=init, head=Head.parse("mlp:6")))
    assert changed_names(result) >= MLP


@pytest.mark.parametrize("trainable", ["head", "top:1"])
def test_training_on_cached_activations_equals_training_the_whole_network(trainable, workspace, monkeypatch):
    spec = make_spec(workspace, replace(PROBE, trainable=Trainable.parse(trainable)), head=Head.parse("mlp:6:0"))
    network, start = prepare(workspace, spec)
    dataset = run_trials.training_inputs(spec, make_trial(spec), workspace.cache)[0]
    frozen = loop.frozen_cut(spec.procedure.phases[0], network.layout)
    assert loop.split_phase_model(network, frozen, PREPROCESSING)[0] is not None
    (cut,) = loop.train([spec], network, [start], dataset)
    monkeypatch.setattr(graph_split, "split_at", lambda *_: None)
    (whole,) = loop.train([spec], network, [start], dataset)
    torch.testing.assert_close(cut.last, whole.last, rtol=1e-4, atol=1e-5)
    assert changed_names(cut) == changed_names(whole) >= MLP
    assert trainable != "head" or changed_names(cut) == MLP


def test_dropout_depends_on_the_seed_and_is_off_in_evaluation(workspace):
    spec = make_spec(workspace, PROBE, head=Head.parse("mlp:6:0.9"))
    network, start = prepare(workspace, spec)
    dataset = run_trials.training_inputs(spec, make_trial(spec), workspace.cache)[0]
    torch.manual_seed(1)
    (first,), (again,) = (loop.train([spec], network, [start], dataset) for _ in range(2))
    assert is_equal(first.last, again.last)
    (none,) = loop.train(
        [spec],
        replace(network, module=heads.replace_head(backbones.build("tiny-resnet", 4), network.layout, Head.parse("mlp:6:0"))),
        [start],
        dataset,
    )
    assert not is_equal(first.last, none.last)
    model = context.LoadedModel(
        spec=spec, trained=first, network=network, dataset=dataset, source_head={}, cache=workspace.cache
    )
    (once, _), (twice, _) = (evaluate.evaluate(model, (), EvaluationSpec(preprocessing=PREPROCESSING)) for _ in range(2))
    assert np.array_equal(once.p_true, twice.p_true)


def evaluate_spec(workspace, spec, *edits, **view):
    trial = Trial(
        model=ModelSpec(base=spec, edits=edits), view=EvaluationSpec(preprocessing=PREPROCESSING, **view), context=CONTEXT
    )
    (record,), _ = run_trials.run_trials([trial], frozenset([trial.key]), workspace.cache)
    assert not record.error, record.error
    return record.predictions


def test_the_pretrained_head_can_be_restored(workspace):
    # With a frozen backbone, both networks are the checkpoint itself.
    deep, plain = (make_spec(workspace, PROBE, head=Head.parse(head)) for head in ("mlp:6", "random"))
    for edits in (
        (Edit.parse("head:source"),),
        (Edit.parse("batchnorm:restored"), Edit.parse("head:source")),
        (Edit.parse("head:refit"),),
    ):
        predictions, expected = (evaluate_spec(workspace, spec, *edits, domain=workspace.source) for spec in (deep, plain))
        np.testing.assert_allclose(predictions.p_true, expected.p_true, atol=1e-5)
    predictions, expected = (
        evaluate_spec(workspace, spec, Edit.parse("head:source"), domain=workspace.source, mode=TRAIN_MODE)
        for spec in (deep, plain)
    )
    np.testing.assert_allclose(predictions.p_true, expected.p_true, atol=1e-5)


def test_temperature_and_class_order_change_the_logits(workspace):
    spec = make_spec(workspace, PROBE, head=Head.parse("mlp:6"))
    plain, cooler, rotated = (
        evaluate_spec(workspace, spec, *edits)
        for edits in ((), (Edit.parse("temperature:4"),), (Edit.parse("classes:rotated"),))
    )
    logits = np.log(plain.probabilities.astype(float))
    expected = F.softmax(torch.from_numpy(logits / 4), 1).numpy()
    np.testing.assert_allclose(cooler.probabilities, expected, atol=2e-3)
    np.testing.assert_allclose(rotated.probabilities, np.roll(plain.probabilities, 1, axis=1), atol=2e-3)


@pytest.mark.parametrize("spelling", ["l2-sp:1", "ewc:100"])
def test_regularizers_of_the_backbone_work_with_an_mlp_head(spelling, workspace):
    source = workspace.source if spelling.startswith("ewc") else None
    (result,) = train(
        workspace, make_spec(workspace, head=Head.parse("mlp:6"), regularizer=parse_regularizer(spelling), source=source)
    )
    assert changed_names(result) > MLP


@pytest.mark.parametrize("spelling", ["lwf:1", "replay:4"])
def test_regularizers_with_the_pretrained_head_refuse_an_mlp_head(spelling, workspace):
    spec = make_spec(workspace, head=Head.parse("mlp:6"), regularizer=parse_regularizer(spelling), source=workspace.source)
    with pytest.raises(ValueError, match="cannot be combined with head mlp:6"):
        train(workspace, spec)


def test_a_nonlinear_head_is_not_replaced():
    model = backbones.build("torchvision:squeezenet1_1", 4)
    layout = backbones.layer_layout(model, 64)
    with pytest.raises(UserError, match="head mlp:6 needs a linear head") as error:
        heads.replace_head(model, layout, Head.parse("mlp:6"))
    assert error.value.found == "classifier.1, a Conv2d"


def test_a_nested_head_is_replaced_by_name():
    model = backbones.build("torchvision:mobilenet_v3_small", 4)
    layout = backbones.layer_layout(model, 64)
    assert layout.head == "classifier.3"
    heads.replace_head(model, layout, Head.parse("mlp:6"))
    assert heads.last_layer(model, layout.head) == "classifier.3.3"
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    assert isinstance(heads.with_linear_head(model, layout).classifier[3], nn.Linear)
    assert isinstance(model.classifier[3], nn.Sequential), "a copy"


def test_gradient_shock_of_an_mlp_head_uses_a_fitted_linear_head(workspace):
    spec = make_spec(workspace, head=Head.parse("mlp:6"))
    network, start = prepare(workspace, spec)
    dataset = run_trials.training_inputs(spec, make_trial(spec), workspace.cache)[0]
    images, labels = (torch.from_numpy(np.array(part[:32])) for part in (dataset.train.images, dataset.train.labels))
    examples = context.Examples(images=images, labels=labels, preprocessing=PREPROCESSING)
    measure_context = context.MeasureContext(
        before=start,
        after=start,
        network=network,
        train=examples,
        test=examples,
        mode=EVAL_MODE,
        trial=None,
    )
    assert head_shock.shock(measure_context)["shock"] > 0
