"""Costs of strategies, compared with counts by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from xferbench.core.interventions import BATCHNORM_EVAL, BATCHNORM_TRAIN, PRETRAINED, RANDOM, Trainable
from xferbench.core.pipeline import Phase
from xferbench.core.transforms import Preprocessing
from xferbench.lab.evaluation import cost
from xferbench.lab.models import backbones, bottleneck_adapters

HEAD = 2 * 6 + 2


def network(adapters=0):
    # Weights 4·3·9 and 6·4·9, biases 4 and 6, a norm of 4 + 4 with statistics 4 + 4 and a counter, and a head of 2·6 + 2.
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    layout = backbones.layer_layout(model, 8)
    if adapters:
        bottleneck_adapters.insert_adapters(model, layout, (3, 8, 8), adapters)
    return layout, model


def phases(*spellings, batchnorm=BATCHNORM_EVAL):
    return [Phase(trainable=Trainable.parse(spelling), batchnorm=batchnorm) for spelling in spellings]


WHOLE = 108 + 4 + 216 + 6 + 8 + HEAD


@pytest.mark.parametrize(
    ("spellings", "trainable", "stored"),
    [
        (("head",), HEAD, HEAD),
        (("bias",), HEAD + 4 + 4 + 6, HEAD + 4 + 4 + 6),
        (("norm",), HEAD + 8, HEAD + 8),
        (("all",), WHOLE, WHOLE),
        (("head", "all"), WHOLE, WHOLE),
        (("lora:1",), HEAD + (4 + 27) + (6 + 36), HEAD + (4 + 27) + (6 + 36)),
        (("lora:1", "lora:1"), HEAD + 2 * (4 + 27 + 6 + 36), HEAD + 2 * (4 + 27 + 6 + 36)),
        (("lora:10",), HEAD + 310 + 420, HEAD + 108 + 216),
        (("lora:1", "all"), WHOLE, WHOLE),
    ],
)
def test_trained_parameters_and_stored_bytes(spellings, trainable, stored):
    assert cost.compute_cost(phases(*spellings), *network()) == {"trainable": trainable, "stored": 4 * stored}


def test_adapters_count_for_all_phases():
    layout, model = network(adapters=2)
    widths = [tensor.shape[0] for name, tensor in model.named_parameters() if name.endswith("adapter_up")]
    adapter_count = sum(2 * width + 2 + 2 * width + width for width in widths)
    assert widths
    assert cost.compute_cost(phases("head", "adapter:2"), layout, model) == {
        "trainable": HEAD + adapter_count,
        "stored": 4 * (HEAD + adapter_count),
    }


def test_moving_statistics_are_stored_but_not_trained():
    layout, model = network()
    assert cost.compute_cost(phases("head", batchnorm=BATCHNORM_TRAIN), layout, model) == {
        "trainable": HEAD,
        "stored": 4 * (HEAD + 9),
    }


def test_a_network_without_pretraining_is_stored_whole():
    layout, model = network()
    costs = cost.compute_cost(phases("head"), layout, model, init=RANDOM)
    assert costs == {"trainable": HEAD, "stored": 4 * (WHOLE + 9)}


def test_measure_cost_includes_multiply_adds():
    layout, model = network()
    network_spec, procedure = SimpleNamespace(init=PRETRAINED), SimpleNamespace(phases=tuple(phases("bias")))
    trial = SimpleNamespace(spec=SimpleNamespace(network=network_spec, procedure=procedure))
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    test = SimpleNamespace(images=images, preprocessing=Preprocessing())
    architecture = SimpleNamespace(layout=layout, module=model)
    context = SimpleNamespace(trial=trial, network=architecture, test=test)
    assert cost.measure_cost(context) == cost.compute_cost(phases("bias"), layout, model) | {"multiply_adds": WORK}


# A first convolution at 6 × 6 positions, a second at 4 × 4, and the head.
WORK = 36 * 4 * 27 + 16 * 6 * 36 + 6 * 2


def test_multiply_adds_count_convolutions_and_matrix_products():
    _, model = network()
    model.train()
    assert cost.multiply_adds(model, (3, 8, 8)) == WORK
    assert model.training and not model[1].num_batches_tracked, "the count changes nothing"


def test_adapters_add_multiply_adds_and_low_rank_updates_add_none():
    layout, model = network(adapters=2)
    places = {4: 36, 6: 16}  # by width
    adapter_work = 0
    for name, tensor in model.named_parameters():
        if name.endswith("adapter_up"):
            width = tensor.shape[0]
            adapter_work += 2 * 2 * width * places[width]
    assert adapter_work
    assert cost.compute_cost(phases("adapter:2"), layout, model, shape=(3, 8, 8))["multiply_adds"] == WORK + adapter_work
    plain = network()
    assert cost.compute_cost(phases("lora:2"), *plain, shape=(3, 8, 8))["multiply_adds"] == WORK


@pytest.mark.parametrize(("name", "millions"), [("resnet18", 1814.1), ("vit_b_16", 17564.2)])
def test_multiply_adds_equal_published_counts(name, millions):
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    assert cost.multiply_adds(model, (3, 224, 224)) / 1e6 == pytest.approx(millions, rel=0.01)
