"""Low-rank updates: peft is the oracle, and of what is kept only the weights have moved, by no more than their rank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_loop import BRIEF, HEAD, double, make_fit, moved, one_thread, prepared, same, trained, world  # noqa: F401
from test_loop import regularizer as regularizer_of

from xferbench.core.interventions import HEAD_ONLY, Trainable
from xferbench.core.pipeline import Phase
from xferbench.lab.data import datasets, preprocessing
from xferbench.lab.models import backbones, checkpoint_reader, lora
from xferbench.lab.training import loop, seeds
from xferbench.lab.training.network import AuxiliaryInputs

SGD = {"optimizer": "sgd", "lr": 3e-2, "batchnorm": "eval"}
LORA = Phase(trainable=Trainable.parse("lora:2"), **SGD, **BRIEF)


def streams(*members):
    return [np.random.default_rng(member) for member in members]


def test_a_weight_begins_as_what_it_was_bit_for_bit():
    begun = {"linear.weight": torch.randn(2, 3, 5), "conv.weight": torch.randn(2, 8, 1, 3, 3), "head.bias": torch.randn(2, 4)}
    low = {"linear.weight", "conv.weight"}
    found = lora.phase_parameters(LORA, begun, low, streams(0, 1))
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    assert shapes == {
        "linear.weight:A": (2, 2, 5),
        "linear.weight:B": (2, 3, 2),
        "conv.weight:A": (2, 2, 9),
        "conv.weight:B": (2, 8, 2),
        "head.bias": (2, 4),
    }
    assert all(tensor.requires_grad for tensor in found.values())
    assert not any(begun[name].requires_grad for name in low)
    assert same(lora.merge_weights(begun, found), begun)
    a = found["conv.weight:A"]
    assert 0.8 / 3 < a.abs().max() <= 1 / 3
    assert not torch.equal(a[0], a[1]), "each member draws its own"


def test_what_is_kept_is_the_weight_and_alpha_over_r_times_b_a():
    begun = {"w": torch.randn(1, 4, 3, 2, 2)}
    a, b = torch.randn(1, 8, 12), torch.randn(1, 4, 8)
    (found,) = lora.merge_weights(begun, {"w:A": a, "w:B": b})["w"]
    torch.testing.assert_close(found, begun["w"][0] + 2 * (b[0] @ a[0]).view(4, 3, 2, 2))
    assert lora.weight_depths({"w:A": a, "w:B": b, "v": a}, {"w": 3, "v": 1}) == {"w:A": 3, "w:B": 3, "v": 1}


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_weights_move_by_a_matrix_of_that_rank_and_everything_else_stays(batchnorm, world):  # noqa: F811
    one = make_fit(world, replace(LORA, batchnorm=batchnorm))
    (network, (start,), dataset) = prepared(world, one)
    (found,) = loop.train([one], network, [start], dataset)
    weights = backbones.names_by_kind(network.anatomy, network.module)["lora"]
    statistics = {name for name, _ in network.module.named_buffers()} if batchnorm == "train" else set()
    assert moved(found) == HEAD | weights | statistics
    for name in weights:
        ranks = torch.linalg.svdvals((found.last[name] - found.before[name]).flatten(1).double())
        assert (ranks[2:] < 1e-5 * ranks[0]).all(), name
        assert ranks[1] > 1e-5 * ranks[0] or min(found.last[name].flatten(1).shape) < 2, name


@pytest.mark.parametrize("step", [{"optimizer": "adamw"}, SGD])
def test_fits_trained_in_lock_step_are_as_if_each_were_alone(step, world, double):  # noqa: F811
    fits = [make_fit(world, Phase(trainable=Trainable.parse("lora:3"), **step, **BRIEF), seed=seed) for seed in range(2)]
    network, starts, dataset = prepared(world, *fits)
    starts = [double(start) for start in starts]
    together = loop.train(fits, network, starts, dataset)
    for one, start, found in zip(fits, starts, together, strict=True):
        (alone,) = loop.train([one], network, [start], dataset)
        torch.testing.assert_close(found.last, alone.last, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found.best, alone.best, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("word", ["bias", "lora:2", "adapter:2", "norm"])
def test_nothing_is_computed_once_where_something_trains_in_every_group(word, world):  # noqa: F811
    network, _, _ = prepared(world, make_fit(world))
    assert loop.frozen_cut(Phase(trainable=Trainable.parse(word), batchnorm="eval"), network.anatomy) == 0


def test_biases_move_and_all_else_stays(world):  # noqa: F811
    (found,) = trained(world, make_fit(world, replace(LORA, trainable=Trainable.parse("bias"))))
    assert moved(found) == HEAD | {name for name in found.last if name.endswith("bias")}


def test_a_phase_that_follows_begins_with_the_sum(world):  # noqa: F811
    (both,) = trained(world, make_fit(world, LORA, Phase(trainable=HEAD_ONLY, **SGD, **BRIEF)))
    (first,) = trained(world, make_fit(world, LORA))
    body = [name for name in first.last if name not in HEAD]
    assert all(torch.equal(both.last[name], first.last[name]) for name in body)
    (twice,) = trained(world, make_fit(world, LORA, LORA))
    kernel = "layer2.0.conv1.weight"
    ranks = torch.linalg.svdvals((twice.last[kernel] - twice.before[kernel]).flatten(1).double())
    assert ranks[2] > 1e-5 * ranks[0] and (ranks[4:] < 1e-5 * ranks[0]).all(), "each phase has an update of its own"


def test_what_holds_a_fit_to_its_start_holds_the_weights(world):  # noqa: F811
    phase = replace(LORA, trainable=Trainable.parse("lora:16"), weight_decay=0.0, steps=10)
    network, starts, dataset = prepared(world, make_fit(world, phase))
    free, held = (
        loop.train(
            [make_fit(world, phase, regularizer=regularizer_of(word))],
            network,
            starts,
            dataset,
            AuxiliaryInputs(head={}),
        )[0]
        for word in ("", "l2-sp:10")
    )
    kernel = "layer3.0.conv1.weight"
    way = [(one.last[kernel] - one.before[kernel]).norm() for one in (free, held)]
    assert way[1] < 0.9 * way[0]


def test_it_trains_what_peft_trains_and_the_reader_merges_pefts_file_to_the_same(world, tmp_path):  # noqa: F811
    peft = pytest.importorskip("peft")
    one = make_fit(world, replace(LORA, schedule="constant", weight_decay=0.01))
    network, (start,), dataset = prepared(world, one)
    (found,) = loop.train([one], network, [start], dataset)

    weights = sorted(backbones.names_by_kind(network.anatomy, network.module)["lora"])
    layers = [name.removesuffix(".weight") for name in weights]
    plain = backbones.build("tiny-resnet", 4)
    plain.load_state_dict(start)
    asked = peft.LoraConfig(r=2, lora_alpha=lora.ALPHA, target_modules=layers, modules_to_save=["linear"])
    model = peft.get_peft_model(plain, asked).eval()
    own = dict(model.named_parameters())
    rng = seeds.numpy_stream(0, seeds.LOW_RANK, 0)
    for layer in layers:
        a = own[f"base_model.model.{layer}.lora_A.default.weight"]
        with torch.no_grad():
            rows = a.flatten(1).shape[1]
            a.copy_(torch.from_numpy(rng.uniform(-1, 1, (2, rows)) / rows**0.5).view_as(a))
        assert not own[f"base_model.model.{layer}.lora_B.default.weight"].any()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], SGD["lr"], 0.9, weight_decay=0.01)
    chosen, _ = datasets.train_validation_indices(dataset, one.train_size, 0)
    x = preprocessing.to_tensor(torch.from_numpy(np.array(dataset.train.images[chosen])), one.preprocessing)
    y = torch.from_numpy(dataset.train.labels[chosen])
    for index in loop.batch_indices(one.phases[0], 0, 0, y.numpy()):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()

    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    merged = model.merge_and_unload().state_dict()
    assert any((merged[name] - start[name]).abs().max() > 1e-3 for name in weights)
    torch.testing.assert_close(found.last, dict(merged), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.last, checkpoint_reader.read_checkpoint(tmp_path / "whole.pt"), rtol=1e-5, atol=1e-5)
