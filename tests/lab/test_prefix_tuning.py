"""Prefixes for networks of transformers: peft is the oracle, and a decoder that reads real words first."""

from __future__ import annotations

from copy import deepcopy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_prompt_tuning import CHANNELS, COUNT, PARTS, build, inputs_of
from test_transformers_text import BATCH, TOKENS

from xferbench.core.errors import UserError
from xferbench.lab.models import prefix_tuning
from xferbench.lab.models.transformers_text import Encoder, TextClassifier, TextNetwork

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about what peft calls
HEADS = 2
DECODERS = ["gpt2", "llama"]
WITH_PREFIX, WITHOUT_PREFIX = ["bert", "roberta", "electra", *DECODERS], ["distilbert", "deberta-v2"]


def with_prefix(network, prefix):
    """Insert a prefix, [layers, 2, heads, tokens, channels]."""
    prefix_tuning.insert_prefix(network, prefix.shape[3])
    with torch.no_grad():
        for name, (keys, values) in zip(prefix_tuning.prefix_places(network), prefix, strict=True):
            network.get_parameter(f"{name}.virtual_keys").copy_(keys)
            network.get_parameter(f"{name}.virtual_values").copy_(values)
    return network


def with_prefix_of_peft(model, prefix):
    peft = pytest.importorskip("peft", reason="peft is the oracle of prefix tuning")
    copy = deepcopy(model)
    _accept_past_key_values(copy if model.config.model_type in DECODERS else copy.base_model)
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=prefix.shape[3], **PARTS)
    tuned = peft.get_peft_model(copy, config).eval()
    with torch.no_grad():
        rows = prefix.flatten(0, 1).permute(2, 0, 1, 3).flatten(1)  # [tokens, layers × 2 × heads × channels]
        tuned.prompt_encoder["default"].embedding.weight.copy_(rows)
    return tuned


def _accept_past_key_values(part):
    """Give a network the argument that peft 0.21 looks for, which some versions of transformers call ``cache``."""
    forward = part.forward
    if prefix_tuning._cache_argument(part) != "cache":
        return

    def renamed(input_ids=None, attention_mask=None, past_key_values=None, **others):
        return forward(input_ids=input_ids, attention_mask=attention_mask, cache=past_key_values, **others)

    part.forward = renamed


@pytest.mark.parametrize("kind", WITH_PREFIX)
def test_a_classifier_equals_that_of_peft(kind):
    model = build(kind, transformers.AutoModelForSequenceClassification)
    prefix = torch.randn(2, 2, HEADS, COUNT, CHANNELS // HEADS)
    network, tuned = TextClassifier(deepcopy(model)), with_prefix_of_peft(model, prefix)
    with torch.no_grad():
        before = network(BATCH)
        expected = tuned(**inputs_of(network, BATCH)).logits
        actual = with_prefix(network, prefix)(BATCH)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert (actual - before).abs().max() > 1e-3


@pytest.mark.parametrize("kind", DECODERS)
def test_the_prefix_of_words_is_a_decoder_that_reads_these_words_first(kind):
    network = TextNetwork(Encoder(build(kind, transformers.AutoModel), "last"), CHANNELS, 3).eval()
    words = torch.randint(1, TOKENS, (1, COUNT))
    front = {"input_ids": words, "attention_mask": torch.ones_like(words), "token_type_ids": torch.zeros_like(words)}
    longer = {name: torch.cat([front[name].expand(2, -1), tensor], 1) for name, tensor in BATCH.items()}
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    with torch.no_grad():
        expected = network(longer)
        prefix = torch.stack([torch.stack(pair) for pair in prefix_tuning._keys_and_values(network, tensors, words)])
        torch.testing.assert_close(with_prefix(network, prefix)(BATCH), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", WITH_PREFIX)
def test_the_initial_prefix_is_that_of_words_of_the_vocabulary(kind):
    network = TextNetwork(Encoder(build(kind, transformers.AutoModel), "mean"), CHANNELS, 3).eval()
    tensors = {name: tensor.detach() for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    assert prefix_tuning.initial_prefix(network, tensors, 0) == {}
    prefix_tuning.insert_prefix(network, COUNT)
    first, again, other = (prefix_tuning.initial_prefix(network, tensors, seed) for seed in (0, 0, 1))
    assert len(first) == 4 and all(tensor.any() for tensor in first.values())
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", WITHOUT_PREFIX)
def test_a_network_that_takes_no_past_keys_is_refused(kind):
    network = TextClassifier(build(kind, transformers.AutoModelForSequenceClassification))
    assert prefix_tuning.prefix_places(network) == ()
    with pytest.raises(UserError, match="the backbone takes no prefix") as caught:
        prefix_tuning.insert_prefix(network, COUNT)
    assert caught.value.found.endswith("Model") and "GPT-2" in caught.value.expected and "prompt-tuning" in caught.value.do
