"""The small BERT: padding, pooling, many networks at once, its layout, and the same outputs as transformers."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from torch.func import functional_call, stack_module_state, vmap

from xferbench.core.errors import UserError
from xferbench.core.pipeline import POOLINGS
from xferbench.lab.data import batch as batches
from xferbench.lab.models import graph_split
from xferbench.lab.models.backbones import layer_layout
from xferbench.lab.models.tiny_bert import MAX_TOKENS, WIDTH, tiny_bert

TOKENS, CLASSES = 100, 3
SHAPE = tuple((name, (12,), torch.int64) for name in ("attention_mask", "input_ids", "token_type_ids"))
every_pooling = pytest.mark.parametrize("pooling", POOLINGS)


@pytest.fixture(autouse=True)
def fixed_seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def build(pooling="cls"):
    """Build a network whose weights are large enough for attention to be uneven."""
    net = tiny_bert(CLASSES, TOKENS, pooling).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def random_batch(count=5, length=12, pads=0):
    """Return random texts of different lengths in both segments."""
    lengths = torch.randint(3, length + 1, (count, 1))
    mask = (torch.arange(length + pads) < lengths).long()
    ids = torch.randint(1, TOKENS, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.randint(2, mask.shape) * mask}


def pad(batch, count, *, left=False, value=0):
    """Add tokens that the mask hides."""
    sides = (count, 0) if left else (0, count)
    fill = {"input_ids": value, "attention_mask": 0, "token_type_ids": 0}
    return {name: torch.nn.functional.pad(tensor, sides, value=fill[name]) for name, tensor in batch.items()}


@every_pooling
def test_logits_have_one_column_per_class(pooling):
    assert build(pooling)(random_batch(4)).shape == (4, CLASSES)
    assert build(pooling)(random_batch(2, length=MAX_TOKENS)).shape == (2, CLASSES)


def test_the_network_has_few_parameters():
    assert 0.15e6 < sum(parameter.numel() for parameter in tiny_bert(8, 1000).parameters()) < 0.18e6


def test_an_unknown_pooling_is_an_error():
    with pytest.raises(UserError, match="did you mean 'mean'"):
        tiny_bert(2, 10, "maen")


def test_the_padding_token_starts_at_zero_and_gets_no_gradient():
    net = tiny_bert(CLASSES, TOKENS)
    net(pad(random_batch(), 4)).sum().backward()
    weight = net.embeddings.word_embeddings.weight
    assert not weight[0].any()
    assert not weight.grad[0].any()


@every_pooling
@pytest.mark.parametrize("value", [0, 7])
def test_padding_that_the_mask_hides_changes_nothing(pooling, value):
    net, batch = build(pooling), random_batch()
    assert torch.allclose(net(batch), net(pad(batch, 20, value=value)), atol=1e-6)


@every_pooling
def test_padding_without_the_mask_changes_the_logits(pooling):
    net, batch = build(pooling), pad(random_batch(), 8)
    unmasked = batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}
    assert not torch.allclose(net(batch), net(unmasked), atol=1e-2)


def test_the_last_visible_token_is_found_on_either_side_of_the_padding():
    net, batch = build("last"), random_batch(1, length=12)
    batch["attention_mask"][:] = 1
    net.embeddings.position_embeddings.weight.data.zero_()  # so that only the pooling depends on the side
    assert torch.allclose(net(batch), net(pad(batch, 5)), atol=1e-6)
    assert torch.allclose(net(batch), net(pad(batch, 5, left=True)), atol=1e-6)


@every_pooling
def test_a_text_that_the_mask_hides_wholly_has_finite_logits_and_gradients(pooling):
    net, batch = build(pooling), random_batch()
    batch["attention_mask"][0] = 0
    logits = net(batch)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters() if parameter.grad is not None)


@every_pooling
def test_positions_and_segments_matter(pooling):
    net, batch = build(pooling), random_batch()
    for name in ("input_ids", "token_type_ids"):
        assert not torch.allclose(net(batch), net(batch | {name: batch[name].flip(1)}), atol=1e-2)


def test_dropout_is_on_only_in_training():
    net, batch = build(), random_batch()
    assert torch.equal(net(batch), net(batch))
    assert not torch.equal(net.train()(batch), net(batch))


@every_pooling
def test_networks_at_once_compute_the_same_as_one_by_one(pooling):
    nets, batch = [build(pooling) for _ in range(3)], random_batch()
    weights, buffers = stack_module_state(nets)

    def call_network(weights, buffers):
        return functional_call(nets[0], (weights, buffers), (batch,))

    expected = torch.stack([net(batch) for net in nets])
    assert torch.allclose(vmap(call_network)(weights, buffers), expected, atol=1e-5)


def test_networks_at_once_can_train_on_texts_of_their_own():
    nets, texts = [build().train() for _ in range(3)], [random_batch() for _ in range(3)]
    weights, buffers = stack_module_state(nets)
    stacked = {name: torch.stack([batch[name] for batch in texts]) for name in texts[0]}

    def loss(weights, buffers, batch):
        return functional_call(nets[0], (weights, buffers), (batch,)).square().sum()

    gradients = vmap(torch.func.grad(loss), randomness="different")(weights, buffers, stacked)
    assert all(gradient.isfinite().all() and gradient[0].any() for gradient in gradients.values())


@every_pooling
def test_the_layout_has_the_classifier_as_head_and_each_layer_as_groups(pooling):
    net = tiny_bert(CLASSES, TOKENS, pooling)
    layout = layer_layout(net, SHAPE)
    assert (layout.head, layout.features, layout.classes) == ("classifier", WIDTH, CLASSES)
    assert len(layout.groups) >= 4
    assert layout.groups[0].name.startswith("embeddings")
    assert layer_layout(net.to("meta"), SHAPE) == layout


@every_pooling
def test_the_network_can_be_split_below_its_head(pooling):
    net, batch = build(pooling), random_batch()
    layout = layer_layout(net, SHAPE)
    lower, upper = graph_split.split_at(net, layout, len(layout.groups))
    assert lower(batch).shape == (5, WIDTH)
    assert torch.allclose(upper(lower(batch)), net(batch), atol=1e-6)
    assert {name for name, _ in upper.named_parameters()} == {"classifier.weight", "classifier.bias"}


@every_pooling
def test_the_lower_part_has_no_dropout_after_the_pooling(pooling):
    net, batch = build(pooling), random_batch()
    layout = layer_layout(net, SHAPE)
    lower, upper = graph_split.split_at(net.train(), layout, len(layout.groups))
    features = lower.eval()(batch)
    assert not torch.equal(upper.train()(features), upper(features))


def test_a_batch_of_zeros_of_its_shape_runs():
    assert build()(batches.zeros(SHAPE, 2, "cpu")).isfinite().all()


def test_outputs_and_names_equal_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=TOKENS,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=MAX_TOKENS,
        attn_implementation="eager",
    )
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    net, batch = build(), random_batch()
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    loaded = net.load_state_dict(bert.state_dict(), strict=False)
    assert loaded.missing_keys == ["classifier.weight", "classifier.bias"]
    assert set(loaded.unexpected_keys) <= {"embeddings.position_ids"}
    expected = bert(**batch).last_hidden_state[:, 0]
    net.classifier = torch.nn.Identity()
    assert torch.allclose(net(batch), expected, atol=1e-5)
