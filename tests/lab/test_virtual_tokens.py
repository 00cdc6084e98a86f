"""Virtual tokens in the small BERT: transformers is the oracle, and nothing but them and the head is trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_loop import CONTEXT, changed_names, one_thread  # noqa: F401
from test_text_training import network_of, table  # noqa: F401
from test_tiny_bert import MAX_TOKENS, POOLINGS, TOKENS, WIDTH, build, fixed_seed, random_batch  # noqa: F401
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from xferbench.core import files
from xferbench.core.errors import UserError
from xferbench.core.interventions import (
    BATCHNORM_EVAL,
    HEAD_ONLY,
    PRETRAINED,
    RANDOM_HEAD,
    Adapters,
    PrefixTokens,
    PromptTokens,
)
from xferbench.core.pipeline import Phase, WeightsFile
from xferbench.core.trial import EvaluationSpec, InitialNetwork, ModelSpec, TrainingData, TrainingProcedure, TrainingSpec, Trial
from xferbench.data import inputs
from xferbench.lab.data import preprocessing, tokens
from xferbench.lab.data.batch import example_shape
from xferbench.lab.models import added_parameters, backbones, graph_split, prefix_tuning, transformers_text
from xferbench.lab.training import loop
from xferbench.lab.worker import run_trials

COUNT = 4  # virtual tokens
PROMPT, PREFIX = PromptTokens(tokens=COUNT), PrefixTokens(tokens=COUNT)
BRIEF = {"batchnorm": BATCHNORM_EVAL, "steps": 3, "batch_size": 16}
every_kind = pytest.mark.parametrize("kind", [PROMPT, PREFIX], ids=str)


def with_tokens(net, *added):
    """Insert virtual tokens with random values into a network, and return its layout."""
    layout = backbones.layer_layout(net, example_shape(random_batch()))
    added_parameters.insert(net, layout, example_shape(random_batch()), added)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if backbones.is_added(name):
                parameter.copy_(torch.randn(parameter.shape))
    return layout


def as_in_transformers(net, pooling):
    """Return the network with the weights of a small BERT whose head passes everything on."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=TOKENS,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=MAX_TOKENS,
    )
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    bert.load_state_dict({name: tensor for name, tensor in net.state_dict().items() if "classifier" not in name})
    network = transformers_text.TextNetwork(transformers_text.Encoder(bert, pooling), WIDTH, 3).eval()
    network.classifier.load_state_dict(net.classifier.state_dict())
    return network


@every_kind
@pytest.mark.parametrize("pooling", POOLINGS)
def test_outputs_equal_those_of_transformers(pooling, kind):
    net, batch = build(pooling), random_batch()
    other = as_in_transformers(net, pooling)
    with_tokens(net, kind)
    with_tokens(other, kind)
    (prompt,) = [parameter for name, parameter in net.named_parameters() if name.endswith("virtual_prompt")] or [None]
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name.endswith("virtual_prompt"):
                parameter.copy_(prompt)
            elif backbones.is_added(name):  # a prefix has heads as its first axis there
                block, which = int(name.split(".")[4]), name.rpartition("virtual_")[2].removesuffix("s")
                source = net.get_parameter(f"encoder.layer.{block}.attention.self.{which}.virtual_{which}s")
                parameter.copy_(source.unflatten(-1, (2, -1)).transpose(0, 1))
        torch.testing.assert_close(net(batch), other(batch), rtol=0, atol=1e-5)


@every_kind
def test_padding_changes_nothing(kind):
    net = build("mean")
    with_tokens(net, kind)
    batch = random_batch()
    padded = {name: nn.functional.pad(tensor, (0, 5)) for name, tensor in batch.items()}
    torch.testing.assert_close(net(padded), net(batch), rtol=0, atol=1e-5)


def test_a_prompt_of_words_is_the_text_with_these_words_in_front():
    plain, net, batch = build("mean"), build("mean"), random_batch()
    net.load_state_dict(plain.state_dict())
    with_tokens(net, PROMPT)
    words = torch.randint(1, TOKENS, (1, COUNT))
    with torch.no_grad():
        net.embeddings.word_embeddings.virtual_prompt.copy_(plain.embeddings.word_embeddings(words)[0])
    fill = {"input_ids": words, "attention_mask": torch.ones_like(words), "token_type_ids": torch.zeros_like(words)}
    longer = {name: torch.cat([fill[name].expand(len(tensor), -1), tensor], 1) for name, tensor in batch.items()}
    hidden = []
    plain.encoder.register_forward_hook(lambda _layer, _inputs, output: hidden.append(output[:, COUNT:]))
    plain(longer)
    net.encoder.register_forward_hook(lambda _layer, _inputs, output: hidden.append(output))
    net(batch)
    torch.testing.assert_close(hidden[1], hidden[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("added", [(PROMPT,), (PREFIX,), (PROMPT, PREFIX, Adapters(channels=2))], ids=str)
def test_every_split_and_many_networks_at_once_compute_the_same(added):
    net, batch = build(), random_batch()
    layout = with_tokens(net, *added)
    after, splits = net(batch), 0
    for below in range(1, len(layout.groups) + 1):
        if parts := graph_split.split_at(net, layout, below):
            torch.testing.assert_close(parts[1](parts[0](batch)), after, rtol=1e-4, atol=1e-5)
            splits += 1
    assert parts, "a linear probe before the tokens are trained needs the cut below the head"
    parameters, buffers = stack_module_state([net, net])
    stacked = {name: torch.stack([tensor, tensor]) for name, tensor in batch.items()}
    together = vmap(lambda tensors, x: functional_call(net, tensors, (x,)))(parameters | buffers, stacked)
    torch.testing.assert_close(together, torch.stack([after, after]), rtol=1e-4, atol=1e-5)


def test_the_tokens_belong_to_the_layer_group_of_their_layer_and_start_as_words():
    net = build()
    layout = with_tokens(net, PROMPT, PREFIX)
    depth = backbones.layer_depth(layout, net)
    prefix = [name for name in depth if name.endswith("virtual_keys")]
    assert depth["embeddings.word_embeddings.virtual_prompt"] == len(layout.groups)
    assert depth[prefix[0]] > depth[prefix[1]]
    tensors = dict(net.named_parameters())
    first, other = (added_parameters.initial_tensors(net, tensors, seed) for seed in (0, 1))
    assert {name: tuple(tensor.shape) for name, tensor in first.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items() if backbones.is_added(name)
    }
    words = net.embeddings.word_embeddings.weight
    (prompt,) = (tensor for name, tensor in first.items() if name.endswith("virtual_prompt"))
    assert all((words == row).all(1).any() for row in prompt)
    assert all(not torch.equal(first[name], other[name]) for name in first)
    kinds = backbones.names_by_kind(layout, net)
    assert kinds["prompt"] | kinds["prefix"] == set(first)
    assert not set(first) & (kinds["norm"] | kinds["bias"] | kinds["lora"] | kinds["adapter"])


def test_the_keys_and_values_of_words_are_those_of_the_network_without_virtual_tokens():
    plain, net = build(), build()
    net.load_state_dict(plain.state_dict())
    words = torch.randint(1, TOKENS, (1, COUNT))
    before = prefix_tuning._keys_and_values(plain, dict(plain.named_parameters()), words)
    with_tokens(net, PROMPT, PREFIX)
    after = prefix_tuning._keys_and_values(net, dict(net.named_parameters()), words)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "reason"), [(PROMPT, "the backbone takes no prompt"), (PREFIX, "the backbone takes no prefix")], ids=str
)
def test_a_network_without_tokens_is_refused(kind, reason):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2))
    layout = backbones.layer_layout(net, 2)
    assert added_parameters.places(net, layout, (3, 2, 2))[kind.spelling] == ()
    with pytest.raises(UserError, match=reason) as caught:
        added_parameters.insert(net, layout, (3, 2, 2), (kind,))
    assert caught.value.found == "Sequential" and "tiny-bert" in caught.value.expected and "lora" in caught.value.do


def test_two_numbers_of_virtual_tokens_in_one_training_are_refused():
    phases = [Phase(trainable=PROMPT), Phase(trainable=HEAD_ONLY), Phase(trainable=PREFIX), Phase(trainable=PROMPT)]
    assert added_parameters.kinds(phases) == (PROMPT, PREFIX)
    with pytest.raises(UserError, match="prompt of several sizes"):
        added_parameters.kinds([*phases, Phase(trainable=PromptTokens(tokens=9))])


def prepare(table, tmp_path, *phases, seeds=(0,), start=None):  # noqa: F811
    """Return specs of trainings of the small BERT, with the network, the start tensors and the dataset."""
    data, transform = table
    specs = [
        TrainingSpec(
            network=start or network_of("tiny-bert", tmp_path),
            data=TrainingData(dataset=data, train_size=80, preprocessing=replace(transform, max_length=16)),
            procedure=TrainingProcedure(phases=phases),
            seed=seed,
        )
        for seed in seeds
    ]
    view = EvaluationSpec(preprocessing=specs[0].data.preprocessing)
    trial = Trial(model=ModelSpec(base=specs[0]), view=view, context=CONTEXT)
    dataset, network = run_trials.training_inputs(specs[0], trial, tmp_path / "cache")
    return specs, network, [run_trials.start_tensors(spec, network, trial, tmp_path / "cache") for spec in specs], dataset


@every_kind
def test_only_the_virtual_tokens_and_the_head_are_trained(kind, table, tmp_path):  # noqa: F811
    phases = Phase(trainable=HEAD_ONLY, **BRIEF), Phase(trainable=kind, lr=1e-2, **BRIEF)
    specs, network, starts, dataset = prepare(table, tmp_path, *phases)
    (actual,) = loop.train(specs, network, starts, dataset)
    added = {name for name in actual.last if backbones.is_added(name)}
    assert changed_names(actual) == {"classifier.weight", "classifier.bias"} | added
    assert len(added) == (1 if kind == PROMPT else 4)


@every_kind
def test_training_in_lockstep_equals_training_alone(kind, table, tmp_path):  # noqa: F811
    specs, network, starts, dataset = prepare(table, tmp_path, Phase(trainable=kind, dropout=0.0, **BRIEF), seeds=(0, 1))
    doubles = [{name: t.double() if t.is_floating_point() else t for name, t in start.items()} for start in starts]
    together = loop.train(specs, network, doubles, dataset)
    for spec, start, actual in zip(specs, doubles, together, strict=True):
        (alone,) = loop.train([spec], network, [start], dataset)
        torch.testing.assert_close(actual.last, alone.last, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("kind", "share"), [(PROMPT, 0.9), (PREFIX, 0.998)], ids=str)  # few scores go to a short prefix
def test_trained_virtual_tokens_fit_new_texts_better_than_their_initial_ones(kind, share, tmp_path):
    weights = inputs.SHIPPED_WEIGHTS_FOLDER / inputs.SHIPPED_WEIGHTS["tiny-bert"]
    start = WeightsFile(digest=files.sha256(weights), path=str(weights))
    source = InitialNetwork(arch="tiny-bert", init=PRETRAINED, start=start, head=RANDOM_HEAD)
    near = inputs.digest_data("synthetic:text-near"), tokens.recorded_tokens(weights)
    phase = Phase(trainable=kind, batchnorm=BATCHNORM_EVAL, lr=1e-2, steps=60, batch_size=16)
    specs, network, starts, dataset = prepare(near, tmp_path, phase, start=source)
    (trained,) = loop.train(specs, network, starts, dataset)
    texts = preprocessing.to_tensor(torch.from_numpy(np.array(dataset.test.images[:500])), specs[0].data.preprocessing)
    labels = torch.from_numpy(dataset.test.labels[:500])
    initial = {name: tensor for name, tensor in trained.before.items() if backbones.is_added(name)}
    with torch.no_grad():
        losses = [
            float(nn.functional.cross_entropy(functional_call(network.module.eval(), tensors, (texts,)), labels))
            for tensors in (trained.last, trained.last | initial)
        ]
    assert losses[0] < share * losses[1], losses
