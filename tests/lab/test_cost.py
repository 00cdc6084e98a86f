"""What a strategy trains and stores, counted by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from xferbench.core.interventions import Trainable
from xferbench.core.pipeline import Phase, Preprocessing
from xferbench.lab.evaluation import cost
from xferbench.lab.models import backbones, bottleneck_adapters

HEAD = 2 * 6 + 2


def network(adapters=0):
    # weights 4·3·9 and 6·4·9, biases 4 and 6, a norm of 4 + 4, its statistics 4 + 4 and a counter; a head of 2·6 + 2
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    anatomy = backbones.layer_layout(model, 8)
    if adapters:
        bottleneck_adapters.insert_adapters(model, anatomy, (3, 8, 8), adapters)
    return anatomy, model


def phases(*words, batchnorm="eval"):
    return [Phase(trainable=Trainable.parse(word), batchnorm=batchnorm) for word in words]


WHOLE = 108 + 4 + 216 + 6 + 8 + HEAD


@pytest.mark.parametrize(
    ("words", "trainable", "stored"),
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
def test_what_is_trained_and_what_differs_from_the_checkpoint(words, trainable, stored):
    assert cost.compute_cost(phases(*words), *network()) == {"trainable": trainable, "stored": 4 * stored}


def test_an_adapter_is_counted_whichever_phase_trains_it():
    anatomy, model = network(adapters=2)
    widths = [tensor.shape[0] for name, tensor in model.named_parameters() if name.endswith("adapter_up")]
    own = sum(2 * width + 2 + 2 * width + width for width in widths)
    assert widths
    assert cost.compute_cost(phases("head", "adapter:2"), anatomy, model) == {
        "trainable": HEAD + own,
        "stored": 4 * (HEAD + own),
    }


def test_statistics_that_move_are_stored_and_trained_by_nobody():
    anatomy, model = network()
    assert cost.compute_cost(phases("head", batchnorm="train"), anatomy, model) == {"trainable": HEAD, "stored": 4 * (HEAD + 9)}


def test_of_a_network_that_does_not_begin_at_the_checkpoint_all_is_stored():
    anatomy, model = network()
    found = cost.compute_cost(phases("head"), anatomy, model, init="random")
    assert found == {"trainable": HEAD, "stored": 4 * (WHOLE + 9)}


def test_a_plugin_may_measure_it():
    anatomy, model = network()
    one = SimpleNamespace(phases=tuple(phases("bias")), init="pretrained")
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    of_network = SimpleNamespace(anatomy=anatomy, module=model)
    seen = SimpleNamespace(fit=one, network=of_network, served=images, ready=Preprocessing())
    assert cost.measure_cost(seen) == cost.compute_cost(phases("bias"), anatomy, model) | {"multiply_adds": WORK}


# a first convolution of 6 × 6 places, a second of 4 × 4, and the head
WORK = 36 * 4 * 27 + 16 * 6 * 36 + 6 * 2


def test_the_work_at_an_image_is_that_of_convolutions_and_matrix_products():
    _, model = network()
    model.train()
    assert cost.multiply_adds(model, (3, 8, 8)) == WORK
    assert model.training and not model[1].num_batches_tracked, "nothing was changed by looking"


def test_adapters_cost_work_and_low_ranks_none():
    anatomy, model = network(adapters=2)
    places = {4: 36, 6: 16}  # by width
    own = 0
    for name, tensor in model.named_parameters():
        if name.endswith("adapter_up"):
            width = tensor.shape[0]
            own += 2 * 2 * width * places[width]
    assert own
    assert cost.compute_cost(phases("adapter:2"), anatomy, model, shape=(3, 8, 8))["multiply_adds"] == WORK + own
    plain = network()
    assert cost.compute_cost(phases("lora:2"), *plain, shape=(3, 8, 8))["multiply_adds"] == WORK


@pytest.mark.parametrize(("name", "millions"), [("resnet18", 1814.1), ("vit_b_16", 17564.2)])
def test_published_counts_are_met(name, millions):
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    assert cost.multiply_adds(model, (3, 224, 224)) / 1e6 == pytest.approx(millions, rel=0.01)
