"""Measures of plugins, compared with computations by hand on small networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import make_spec, make_trial, make_workspace
from torch import nn

from xferbench.core.interventions import EVAL_MODE, HEAD_ONLY, PRETRAINED, RANDOM_HEAD, TRAIN_MODE, ZERO_HEAD, TrainModeByClass
from xferbench.core.pipeline import Data, Phase
from xferbench.core.transforms import Preprocessing
from xferbench.core.trial import InitialNetwork, TrainingData, TrainingProcedure, TrainingSpec
from xferbench.lab.data import datasets, preprocessing
from xferbench.lab.evaluation import context, evaluate
from xferbench.lab.models import backbones
from xferbench.lab.training import loop
from xferbench.lab.training.network import Architecture
from xferbench.lab.worker import run_trials
from xferbench.plugins import feature_distortion, head_shock, preprocessing_variants, train_serve_skew

RAW = Preprocessing()
UNUSED = {"test": None, "mode": EVAL_MODE, "trial": None}  # fields of a context that a measure of training images ignores


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    context_data = make_workspace(folder)
    context_data.data = make_npz(folder / "target.npz", test=130)
    return context_data


def make_measure_context(workspace, spec, *, mode=EVAL_MODE, domain=None, **changes):
    """The context that a measure receives for a training."""
    trial = make_trial(spec, mode=mode)
    (model_state,), _ = run_trials._trained_models((spec,), trial, workspace.cache)
    dataset, network = run_trials.training_inputs(spec, trial, workspace.cache)
    model = context.LoadedModel(
        spec=spec, trained=model_state, network=network, dataset=dataset, source_head={}, cache=workspace.cache
    )
    return replace(evaluate.measure_context(model, model_state.last, replace(trial.view, domain=domain)), **changes)


def make_examples(images, labels=None):
    return context.Examples(images=torch.from_numpy(images), labels=labels, preprocessing=RAW)


# Kumar et al. 2022: a linear network x ↦ v·Bx. The gradient of B is v (error) xᵀ, so that B moves only in the span of the
# training images.


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3 * 4 * 4, 6, bias=False), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)))


def make_linear(cache):
    torch.manual_seed(0)
    module = Linear()
    groups = (backbones.LayerGroup(name="body", prefixes=("body",)),)
    layout = backbones.LayerLayout(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        groups=groups,
        head="head",
        batchnorm=(),
        features=6,
        classes=2,
    )
    start = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    return Architecture(module=module, layout=layout, device=torch.device("cpu"), cache=cache), start


def make_halves(count=24):
    """Images with light only in one half, upper and lower; the label is the brighter column."""
    generator = np.random.default_rng(0)
    upper, lower = np.zeros((2, count, 3, 4, 4), np.uint8)
    upper[:, :, :2] = lower[:, :, 2:] = generator.integers(1, 256, (count, 3, 2, 4))
    return upper, lower, (upper[..., 0].sum((1, 2)) > upper[..., 1].sum((1, 2))).astype(np.int64)


def measure_distortion_of_training(cache, **phase):
    """Adapt the linear network to upper halves. Returns a function that measures distortion, and both halves."""
    upper, lower, labels = make_halves()
    network, start = make_linear(cache)
    split = datasets.Split(images=upper, labels=labels, groups=np.empty(0), example=np.arange(len(labels), dtype=np.uint64))
    dataset = datasets.Dataset(classes=("a", "b"), train=split, validation=split, test=split, left_out=())
    spec = TrainingSpec(
        network=InitialNetwork(arch="linear", init=PRETRAINED, start=None, head=RANDOM_HEAD),
        data=TrainingData(dataset=Data(digest="d"), train_size=None, preprocessing=RAW),
        procedure=TrainingProcedure(
            phases=(Phase(steps=20, batch_size=8, lr=0.05, optimizer="sgd", weight_decay=0.0, **phase),)
        ),
        seed=0,
    )
    (model,) = loop.train([spec], network, [start], dataset)
    assert model.curve[-1][1] < model.curve[0][1], "it learns"

    def measure(images):
        measure_context = context.MeasureContext(
            before=model.before, after=model.last, network=network, train=make_examples(images), **UNUSED
        )
        return feature_distortion.distortion(measure_context)["distortion"]

    return measure, upper, lower


def test_features_move_only_in_the_span_of_the_training_images(tmp_path):
    measure, upper, lower = measure_distortion_of_training(tmp_path)
    assert measure(lower) == 0.0
    assert measure(upper) > 1e-4
    assert measure(upper // 2 + lower // 2) > 0, "the part in the span moves"


def test_a_linear_probe_moves_no_features(tmp_path):
    measure, upper, lower = measure_distortion_of_training(tmp_path, trainable=HEAD_ONLY)
    assert measure(upper) == measure(lower) == 0.0


def test_distortion_is_the_squared_movement_over_the_squared_length(tmp_path):
    network, start = make_linear(tmp_path)
    upper, _, labels = make_halves(4)
    states = {"before": start, "after": start | {"body.weight": 1.5 * start["body.weight"]}, "network": network}
    train = make_examples(upper, torch.from_numpy(labels))
    measure_context = context.MeasureContext(**states, train=train, **UNUSED)
    assert feature_distortion.distortion(measure_context)["distortion"] == pytest.approx(0.25, rel=1e-5)


def test_a_zero_head_gives_the_body_no_gradient(workspace):
    assert head_shock.shock(make_measure_context(workspace, make_spec(workspace, head=ZERO_HEAD))) == {"shock": 0.0}


def test_a_random_head_shocks_more_than_a_fitted_head(workspace):
    measure_context = make_measure_context(workspace, make_spec(workspace))
    assert head_shock.shock(measure_context)["shock"] > 1.0
    scaled = {name: 10 * tensor if "linear" in name else tensor for name, tensor in measure_context.before.items()}
    assert head_shock.shock(replace(measure_context, before=scaled))["shock"] > 2 * head_shock.shock(measure_context)["shock"]


def test_the_shock_is_the_ratio_of_two_gradients(tmp_path):
    network, start = make_linear(tmp_path)
    upper, _, labels = make_halves()
    train = make_examples(upper, torch.from_numpy(labels))
    measure_context = context.MeasureContext(before=start, after=start, network=network, train=train, **UNUSED)
    x, y = preprocessing.to_tensor(train.images, RAW).flatten(1).double(), train.labels
    features = x @ start["body.weight"].double().T

    def gradient_norm(weight, bias):
        probabilities = (features @ weight.T + bias).softmax(1)
        error = (probabilities - nn.functional.one_hot(y, 2)) / len(y)
        return ((error @ weight).T @ x).norm()

    from xferbench.lab.evaluation import penultimate_features

    fitted = gradient_norm(*penultimate_features.fit_logistic_regression(features.float(), y, 2))
    expected = gradient_norm(start["head.weight"].double(), start["head.bias"].double()) / fitted
    assert head_shock.shock(measure_context)["shock"] == pytest.approx(float(expected), rel=1e-2)


def test_in_evaluation_mode_no_answer_depends_on_its_batch(workspace):
    assert train_serve_skew.batch_dependence(make_measure_context(workspace, make_spec(workspace))) == {"batch-dependence": 0.0}


@pytest.mark.parametrize("mode", [TRAIN_MODE, TrainModeByClass()], ids=str)
def test_in_train_mode_answers_depend_on_their_batch(workspace, mode):
    assert (
        0
        < train_serve_skew.batch_dependence(make_measure_context(workspace, make_spec(workspace), mode=mode))[
            "batch-dependence"
        ]
        <= 1
    )


@pytest.mark.parametrize("count", [5, 20, 40])
def test_few_images_also_show_batch_dependence(workspace, count):
    measure_context = make_measure_context(workspace, make_spec(workspace), mode=TRAIN_MODE)
    test = measure_context.test
    few = replace(measure_context, test=replace(test, images=test.images[:count], labels=test.labels[:count]))
    assert train_serve_skew.batch_dependence(few)["batch-dependence"] > 0
    assert train_serve_skew.batch_dependence(replace(few, mode=EVAL_MODE))["batch-dependence"] == 0


def test_a_network_without_batchnorm_has_no_batch_dependence(tmp_path):
    network, start = make_linear(tmp_path)
    upper, _, labels = make_halves()
    test = make_examples(upper, torch.from_numpy(labels))
    measure_context = context.MeasureContext(
        before=start, after=start, network=network, train=None, test=test, mode=TRAIN_MODE, trial=None
    )
    assert train_serve_skew.batch_dependence(measure_context) == {"batch-dependence": 0.0}


def test_the_batch_dependence_of_a_diverged_network_is_undefined(workspace):
    measure_context = make_measure_context(workspace, make_spec(workspace))
    diverged = {
        name: tensor * float("nan") if name == "linear.bias" else tensor for name, tensor in measure_context.after.items()
    }
    assert np.isnan(train_serve_skew.batch_dependence(replace(measure_context, after=diverged))["batch-dependence"])


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5,)])
@pytest.mark.parametrize("std", [(0.229, 0.224, 0.225), (0.25,)])
def test_normalized_twice_normalizes_twice(mean, std):
    form = Preprocessing(mean=mean, std=std)
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    once = preprocessing.to_tensor(pixels, form)
    expected = (once - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    torch.testing.assert_close(
        preprocessing.to_tensor(pixels, preprocessing_variants.normalized_twice(form)), expected, rtol=1e-4, atol=1e-4
    )
