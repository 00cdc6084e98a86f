"""What plugins measure themselves, by hand on networks that are small enough for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import READY, make_fit, make_trial, make_world
from torch import nn

from xferbench.core.interventions import EVAL_MODE, HEAD_ONLY, PRETRAINED, RANDOM_HEAD, TRAIN_MODE, ZERO_HEAD, TrainModeByClass
from xferbench.core.pipeline import Data, Phase, Preprocessing
from xferbench.core.trial import TrainingSpec
from xferbench.lab.data import datasets, preprocessing
from xferbench.lab.evaluation import context, evaluate
from xferbench.lab.models import backbones
from xferbench.lab.training import loop
from xferbench.lab.training.network import Architecture
from xferbench.lab.worker import run_trials
from xferbench.plugins import feature_distortion, head_shock, preprocessing_variants, train_serve_skew

RAW = Preprocessing()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    made = make_world(folder)
    made.data = make_npz(folder / "target.npz", test=130)
    return made


def given(world, one, *, mode=EVAL_MODE, ready=READY, **change):
    """What a measure is given of a fit."""
    trial = make_trial(one, mode=mode)
    (fitted,), _ = run_trials._trained_models((one,), trial, world.cache)
    dataset, network = run_trials.training_inputs(one, trial, world.cache)
    model = context.LoadedModel(spec=one, trained=fitted, network=network, dataset=dataset, source_head={}, cache=world.cache)
    return replace(evaluate.measure_context(model, fitted.last, replace(trial.view, preprocessing=ready)), **change)


# Kumar et al. 2022: a linear network x ↦ v·Bx. The gradient of B is v (error) xᵀ, so that B moves in the span of the training
# images alone.


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
        parameters=sum(one.numel() for one in module.parameters()),
        groups=groups,
        head="head",
        batchnorm=(),
        features=6,
        classes=2,
    )
    start = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    return Architecture(module=module, layout=layout, device=torch.device("cpu"), cache=cache), start


def make_halves(count=24):
    """Images with light in their upper half alone, and in their lower half alone; labels by which column is brighter."""
    generator = np.random.default_rng(0)
    upper, lower = np.zeros((2, count, 3, 4, 4), np.uint8)
    upper[:, :, :2] = lower[:, :, 2:] = generator.integers(1, 256, (count, 3, 2, 4))
    return upper, lower, (upper[..., 0].sum((1, 2)) > upper[..., 1].sum((1, 2))).astype(np.int64)


def adapted(cache, **phase):
    """The linear network before and after it is adapted to upper halves, as a measure is given it, by the images looked at."""
    upper, lower, labels = make_halves()
    network, start = make_linear(cache)
    split = datasets.Split(images=upper, labels=labels, groups=np.empty(0), example=np.arange(len(labels), dtype=np.uint64))
    dataset = datasets.Dataset(classes=("a", "b"), train=split, validation=split, test=split, left_out=())
    one = TrainingSpec(
        arch="linear",
        init=PRETRAINED,
        start=None,
        head=RANDOM_HEAD,
        phases=(Phase(steps=20, batch_size=8, lr=0.05, optimizer="sgd", weight_decay=0.0, **phase),),
        data=Data(digest="d"),
        train_size=None,
        preprocessing=RAW,
        seed=0,
    )
    (fitted,) = loop.train([one], network, [start], dataset)
    assert fitted.curve[-1][1] < fitted.curve[0][1], "it learns"

    def moved(images):
        blank = {
            "test_images": None,
            "test_labels": None,
            "preprocessing": RAW,
            "mode": EVAL_MODE,
            "train_labels": None,
            "train_preprocessing": RAW,
        }
        own = context.MeasureContext(
            before=fitted.before, after=fitted.last, network=network, train_images=torch.from_numpy(images), **blank
        )
        return feature_distortion.distortion(own)["distortion"]

    return moved, upper, lower


def test_features_of_what_is_orthogonal_to_the_training_images_do_not_move_and_those_in_their_span_do(tmp_path):
    moved, upper, lower = adapted(tmp_path)
    assert moved(lower) == 0.0
    assert moved(upper) > 1e-4
    assert moved(upper // 2 + lower // 2) > 0, "in part"


def test_a_linear_probe_moves_no_features_at_all(tmp_path):
    moved, upper, lower = adapted(tmp_path, trainable=HEAD_ONLY)
    assert moved(upper) == moved(lower) == 0.0


def test_distortion_is_the_squared_way_by_the_squared_length(tmp_path):
    network, start = make_linear(tmp_path)
    upper, _, labels = make_halves(4)
    own = {"before": start, "after": start | {"body.weight": 1.5 * start["body.weight"]}, "network": network}
    shown = {"train_images": torch.from_numpy(upper), "train_labels": torch.from_numpy(labels), "train_preprocessing": RAW}
    found = context.MeasureContext(**own, **shown, test_images=None, test_labels=None, preprocessing=RAW, mode=EVAL_MODE)
    assert feature_distortion.distortion(found)["distortion"] == pytest.approx(0.25, rel=1e-5)


def test_a_head_of_zeros_sends_exactly_nothing_back(world):
    assert head_shock.shock(given(world, make_fit(world, head=ZERO_HEAD))) == {"shock": 0.0}


def test_a_random_head_shocks_more_than_one_that_was_fitted_to_the_same_images(world):
    seen = given(world, make_fit(world))
    assert head_shock.shock(seen)["shock"] > 1.0
    louder = {name: 10 * tensor if "linear" in name else tensor for name, tensor in seen.before.items()}
    assert head_shock.shock(replace(seen, before=louder))["shock"] > 2 * head_shock.shock(seen)["shock"]


def test_the_shock_is_the_ratio_of_two_gradients_by_hand(tmp_path):
    network, start = make_linear(tmp_path)
    upper, _, labels = make_halves()
    shown = {"train_images": torch.from_numpy(upper), "train_labels": torch.from_numpy(labels), "train_preprocessing": RAW}
    seen = context.MeasureContext(
        before=start,
        after=start,
        network=network,
        **shown,
        test_images=None,
        test_labels=None,
        preprocessing=RAW,
        mode=EVAL_MODE,
    )
    x, y = preprocessing.to_tensor(shown["train_images"], RAW).flatten(1).double(), shown["train_labels"]
    features = x @ start["body.weight"].double().T

    def norm(weight, bias):
        p = (features @ weight.T + bias).softmax(1)
        error = (p - nn.functional.one_hot(y, 2)) / len(y)
        return ((error @ weight).T @ x).norm()

    from xferbench.lab.evaluation import penultimate_features

    fitted = norm(*penultimate_features.fit_logistic_regression(features.float(), y, 2))
    expected = norm(start["head.weight"].double(), start["head.bias"].double()) / fitted
    assert head_shock.shock(seen)["shock"] == pytest.approx(float(expected), rel=1e-2)


def test_in_evaluation_mode_no_answer_depends_on_its_batch(world):
    assert train_serve_skew.batch_dependence(given(world, make_fit(world))) == {"batch-dependence": 0.0}


@pytest.mark.parametrize("mode", [TRAIN_MODE, TrainModeByClass()], ids=str)
def test_with_the_statistics_of_batches_answers_depend_on_them(world, mode):
    assert 0 < train_serve_skew.batch_dependence(given(world, make_fit(world), mode=mode))["batch-dependence"] <= 1


@pytest.mark.parametrize("count", [5, 20, 40])
def test_also_where_there_are_few_images(world, count):
    seen = given(world, make_fit(world), mode=TRAIN_MODE)
    few = replace(seen, test_images=seen.test_images[:count], test_labels=seen.test_labels[:count])
    assert train_serve_skew.batch_dependence(few)["batch-dependence"] > 0
    assert train_serve_skew.batch_dependence(replace(few, mode=EVAL_MODE))["batch-dependence"] == 0


def test_a_network_without_batchnorm_does_not_mind_the_mode(tmp_path):
    network, start = make_linear(tmp_path)
    upper, _, labels = make_halves()
    shown = {
        "test_images": torch.from_numpy(upper),
        "test_labels": torch.from_numpy(labels),
        "preprocessing": RAW,
        "mode": "train",
    }
    seen = context.MeasureContext(
        before=start, after=start, network=network, train_images=None, train_labels=None, train_preprocessing=RAW, **shown
    )
    assert train_serve_skew.batch_dependence(seen) == {"batch-dependence": 0.0}


def test_what_a_diverged_network_answers_is_not_said_to_be_independent_of_anything(world):
    seen = given(world, make_fit(world))
    broken = {name: tensor * float("nan") if name == "linear.bias" else tensor for name, tensor in seen.after.items()}
    assert np.isnan(train_serve_skew.batch_dependence(replace(seen, after=broken))["batch-dependence"])


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5,)])
@pytest.mark.parametrize("std", [(0.229, 0.224, 0.225), (0.25,)])
def test_twice_is_normalising_twice(mean, std):
    ready = Preprocessing(mean=mean, std=std)
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    once = preprocessing.to_tensor(pixels, ready)
    again = (once - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    torch.testing.assert_close(
        preprocessing.to_tensor(pixels, preprocessing_variants.normalized_twice(ready)), again, rtol=1e-4, atol=1e-4
    )
