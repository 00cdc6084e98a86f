"""Low-rank updates: peft is the oracle, and of what is kept only the weights have moved, by no more than their rank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_loop import (  # noqa: F401
    BRIEF,
    HEAD,
    changed_names,
    float64,
    is_equal,
    make_spec,
    one_thread,
    parse_regularizer,
    prepare_training,
    train,
    workspace,
)

from xferbench.core.interventions import BATCHNORM_EVAL, BATCHNORM_TRAIN, HEAD_ONLY, Trainable
from xferbench.core.pipeline import Phase
from xferbench.lab.data import datasets, preprocessing
from xferbench.lab.models import backbones, checkpoint_reader, lora
from xferbench.lab.training import examples, loop, seeds
from xferbench.lab.training.network import AuxiliaryInputs

SGD = {"optimizer": "sgd", "lr": 3e-2, "batchnorm": BATCHNORM_EVAL}
LORA = Phase(trainable=Trainable.parse("lora:2"), **SGD, **BRIEF)


def make_rngs(*members):
    return [np.random.default_rng(member) for member in members]


def test_merged_weights_equal_the_start_bit_for_bit():
    start = {"linear.weight": torch.randn(2, 3, 5), "conv.weight": torch.randn(2, 8, 1, 3, 3), "head.bias": torch.randn(2, 4)}
    lora_names = {"linear.weight", "conv.weight"}
    actual = lora.phase_parameters(LORA, start, lora_names, make_rngs(0, 1))
    shapes = {name: tuple(tensor.shape) for name, tensor in actual.items()}
    assert shapes == {
        "linear.weight:A": (2, 2, 5),
        "linear.weight:B": (2, 3, 2),
        "conv.weight:A": (2, 2, 9),
        "conv.weight:B": (2, 8, 2),
        "head.bias": (2, 4),
    }
    assert all(tensor.requires_grad for tensor in actual.values())
    assert not any(start[name].requires_grad for name in lora_names)
    assert is_equal(lora.merge_weights(start, actual), start)
    a = actual["conv.weight:A"]
    assert 0.8 / 3 < a.abs().max() <= 1 / 3
    assert not torch.equal(a[0], a[1]), "each member has its own draws"


def test_the_merged_weight_adds_alpha_over_r_times_b_a():
    start = {"w": torch.randn(1, 4, 3, 2, 2)}
    a, b = torch.randn(1, 8, 12), torch.randn(1, 4, 8)
    (actual,) = lora.merge_weights(start, {"w:A": a, "w:B": b})["w"]
    torch.testing.assert_close(actual, start["w"][0] + 2 * (b[0] @ a[0]).view(4, 3, 2, 2))
    assert lora.weight_depths({"w:A": a, "w:B": b, "v": a}, {"w": 3, "v": 1}) == {"w:A": 3, "w:B": 3, "v": 1}


@pytest.mark.parametrize("batchnorm", [BATCHNORM_EVAL, BATCHNORM_TRAIN], ids=str)
def test_lora_changes_weights_by_a_matrix_of_its_rank_and_nothing_else(batchnorm, workspace):  # noqa: F811
    spec = make_spec(workspace, replace(LORA, batchnorm=batchnorm))
    (network, (start,), dataset) = prepare_training(workspace, spec)
    (actual,) = loop.train([spec], network, [start], dataset)
    weights = backbones.names_by_kind(network.layout, network.module)["lora"]
    statistics = {name for name, _ in network.module.named_buffers()} if batchnorm == BATCHNORM_TRAIN else set()
    assert changed_names(actual) == HEAD | weights | statistics
    for name in weights:
        ranks = torch.linalg.svdvals((actual.last[name] - actual.before[name]).flatten(1).double())
        assert (ranks[2:] < 1e-5 * ranks[0]).all(), name
        assert ranks[1] > 1e-5 * ranks[0] or min(actual.last[name].flatten(1).shape) < 2, name


@pytest.mark.parametrize("step", [{"optimizer": "adamw"}, SGD])
def test_training_in_lockstep_equals_training_alone(step, workspace, float64):  # noqa: F811
    specs = [make_spec(workspace, Phase(trainable=Trainable.parse("lora:3"), **step, **BRIEF), seed=seed) for seed in range(2)]
    network, starts, dataset = prepare_training(workspace, *specs)
    starts = [float64(start) for start in starts]
    together = loop.train(specs, network, starts, dataset)
    for spec, start, actual in zip(specs, starts, together, strict=True):
        (alone,) = loop.train([spec], network, [start], dataset)
        torch.testing.assert_close(actual.last, alone.last, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(actual.best, alone.best, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("spelling", ["bias", "lora:2", "adapter:2", "prompt:2", "prefix:2", "norm"])
def test_lora_disables_precomputed_activations(spelling, workspace):  # noqa: F811
    network, _, _ = prepare_training(workspace, make_spec(workspace))
    assert loop.frozen_cut(Phase(trainable=Trainable.parse(spelling), batchnorm=BATCHNORM_EVAL), network.layout) == 0


def test_bias_training_changes_only_biases_and_head(workspace):  # noqa: F811
    (actual,) = train(workspace, make_spec(workspace, replace(LORA, trainable=Trainable.parse("bias"))))
    assert changed_names(actual) == HEAD | {name for name in actual.last if name.endswith("bias")}


def test_the_next_phase_starts_from_the_merged_weights(workspace):  # noqa: F811
    (both,) = train(workspace, make_spec(workspace, LORA, Phase(trainable=HEAD_ONLY, **SGD, **BRIEF)))
    (first,) = train(workspace, make_spec(workspace, LORA))
    body = [name for name in first.last if name not in HEAD]
    assert all(torch.equal(both.last[name], first.last[name]) for name in body)
    (twice,) = train(workspace, make_spec(workspace, LORA, LORA))
    kernel = "layer2.0.conv1.weight"
    ranks = torch.linalg.svdvals((twice.last[kernel] - twice.before[kernel]).flatten(1).double())
    assert ranks[2] > 1e-5 * ranks[0] and (ranks[4:] < 1e-5 * ranks[0]).all(), "each phase has a separate update"


def test_regularizers_apply_to_the_merged_weights(workspace):  # noqa: F811
    phase = replace(LORA, trainable=Trainable.parse("lora:16"), weight_decay=0.0, steps=10)
    network, starts, dataset = prepare_training(workspace, make_spec(workspace, phase))
    free, regularized = (
        loop.train(
            [make_spec(workspace, phase, regularizer=parse_regularizer(spelling))],
            network,
            starts,
            dataset,
            AuxiliaryInputs(head={}),
        )[0]
        for spelling in ("", "l2-sp:10")
    )
    kernel = "layer3.0.conv1.weight"
    distances = [(result.last[kernel] - result.before[kernel]).norm() for result in (free, regularized)]
    assert distances[1] < 0.9 * distances[0]


def test_lora_equals_peft_and_the_reader_merges_its_file(workspace, tmp_path):  # noqa: F811
    peft = pytest.importorskip("peft")
    spec = make_spec(workspace, replace(LORA, schedule="constant", weight_decay=0.01))
    network, (start,), dataset = prepare_training(workspace, spec)
    (actual,) = loop.train([spec], network, [start], dataset)

    weights = sorted(backbones.names_by_kind(network.layout, network.module)["lora"])
    layers = [name.removesuffix(".weight") for name in weights]
    plain = backbones.build("tiny-resnet", 4)
    plain.load_state_dict(start)
    config = peft.LoraConfig(r=2, lora_alpha=lora.ALPHA, target_modules=layers, modules_to_save=["linear"])
    model = peft.get_peft_model(plain, config).eval()
    parameters = dict(model.named_parameters())
    rng = seeds.numpy_stream(0, seeds.LOW_RANK, 0)
    for layer in layers:
        a = parameters[f"base_model.model.{layer}.lora_A.default.weight"]
        with torch.no_grad():
            rows = a.flatten(1).shape[1]
            a.copy_(torch.from_numpy(rng.uniform(-1, 1, (2, rows)) / rows**0.5).view_as(a))
        assert not parameters[f"base_model.model.{layer}.lora_B.default.weight"].any()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], SGD["lr"], 0.9, weight_decay=0.01)
    chosen, _ = datasets.train_validation_indices(dataset, spec.data.train_size, 0)
    x = preprocessing.to_tensor(torch.from_numpy(np.array(dataset.train.images[chosen])), spec.data.preprocessing)
    y = torch.from_numpy(dataset.train.labels[chosen])
    for index in examples.batch_indices(spec.procedure.phases[0], 0, 0, y.numpy()):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()

    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    merged = model.merge_and_unload().state_dict()
    assert any((merged[name] - start[name]).abs().max() > 1e-3 for name in weights)
    torch.testing.assert_close(actual.last, dict(merged), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.last, checkpoint_reader.read_checkpoint(tmp_path / "whole.pt"), rtol=1e-5, atol=1e-5)
