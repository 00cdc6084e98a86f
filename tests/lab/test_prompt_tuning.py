"""Prompts for networks of transformers: peft computes the hidden states, and the pooler reads the text in them."""

from __future__ import annotations

from copy import deepcopy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_transformers_text import BATCH, ENCODERS, TOKENS

from xferbench.lab.data.batch import example_shape
from xferbench.lab.models import backbones, prompt_tuning
from xferbench.lab.models.transformers_text import Encoder, TextClassifier, TextNetwork, pool, pretrained_body

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of transformers, about what peft calls
    pytest.mark.filterwarnings("ignore:Token type ids are not supported:UserWarning"),  # they are 0
]
COUNT, CHANNELS = 3, 16
VIRTUAL_POSITIONS = slice(COUNT, None)  # of the text behind the prompt
LEFT = {name: tensor.flip(1) for name, tensor in BATCH.items()}  # padding on the left; the words are random anyway
PARTS = {"num_layers": 2, "token_dim": CHANNELS, "num_attention_heads": 2}  # peft does not find all of them itself


def build(kind, auto_class):
    """Return a random network whose weights are large enough for attention to be uneven."""
    config = transformers.AutoConfig.for_model(kind, vocab_size=TOKENS, **ENCODERS[kind])
    config.num_labels, config.pad_token_id = 3, 0
    torch.manual_seed(0)
    model = auto_class.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def with_prompt(network, prompt):
    (name,) = prompt_tuning.prompt_place(network)
    prompt_tuning.insert_prompt(network, len(prompt))
    with torch.no_grad():
        network.get_parameter(f"{name}.virtual_prompt").copy_(prompt)
    return network


def with_prompt_of_peft(model, prompt, task):
    peft = pytest.importorskip("peft", reason="peft is the oracle of prompt tuning")
    config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=len(prompt), **PARTS)
    tuned = peft.get_peft_model(deepcopy(model), config).eval()
    with torch.no_grad():
        tuned.prompt_encoder["default"].embedding.weight.copy_(prompt)
    return tuned


def inputs_of(network, batch):
    body = network.encoder if isinstance(network, TextNetwork) else network
    return {name: batch[name] for name in body.inputs}


@pytest.mark.parametrize("batch", [BATCH, LEFT], ids=["right", "left"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_pools_the_hidden_states_of_peft_behind_the_prompt(kind, pooling, batch):
    model, prompt = build(kind, transformers.AutoModel), torch.randn(COUNT, CHANNELS)
    network = TextNetwork(Encoder(deepcopy(model), pooling), CHANNELS, 3).eval()
    tuned = with_prompt_of_peft(model, prompt, "FEATURE_EXTRACTION")
    with torch.no_grad():
        hidden = tuned(**inputs_of(network, batch)).last_hidden_state
        expected = pool(hidden[:, VIRTUAL_POSITIONS], batch["attention_mask"], pooling)
        actual = with_prompt(network, prompt).encoder(batch)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def logits_from(model, hidden):
    """Return the logits that a classifier of transformers computes from hidden states."""
    if hasattr(model, "pre_classifier"):
        return model.classifier(model.pre_classifier(hidden[:, 0]).relu())
    pooler = getattr(model, "pooler", None) or getattr(model.base_model, "pooler", None)
    return model.classifier(pooler(hidden) if pooler else hidden)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "deberta-v2"])
def test_a_classifier_reads_its_first_token_behind_the_prompt_and_that_of_peft_a_virtual_one(kind):
    model = build(kind, transformers.AutoModelForSequenceClassification)
    prompt = torch.randn(COUNT, CHANNELS)
    network = TextClassifier(deepcopy(model))
    tuned = with_prompt_of_peft(model, prompt, "SEQ_CLS")
    with torch.no_grad():
        output = tuned(**inputs_of(network, BATCH), output_hidden_states=True)
        actual = with_prompt(network, prompt)(BATCH)
        hidden = output.hidden_states[-1]
        torch.testing.assert_close(actual, logits_from(model, hidden[:, VIRTUAL_POSITIONS]), rtol=0, atol=1e-5)
        torch.testing.assert_close(output.logits, logits_from(model, hidden), rtol=0, atol=1e-5)
        assert (actual - output.logits).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_classifier_that_reads_the_last_token_equals_that_of_peft_on_texts_without_padding(kind):
    model, prompt = build(kind, transformers.AutoModelForSequenceClassification), torch.randn(COUNT, CHANNELS)
    network, tuned = TextClassifier(deepcopy(model)), with_prompt_of_peft(model, prompt, "SEQ_CLS")
    texts = {name: tensor[1:] for name, tensor in BATCH.items()}
    padded = {name: torch.nn.functional.pad(tensor, (0, 2)) for name, tensor in texts.items()}
    with torch.no_grad():
        expected = tuned(**inputs_of(network, texts)).logits
        with_prompt(network, prompt)
        torch.testing.assert_close(network(texts), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(network(padded), expected, rtol=0, atol=1e-5)


def test_a_prompt_has_the_width_of_the_input_embeddings():
    """ELECTRA's embeddings are narrower than its hidden states, which peft 0.21 does not allow for."""
    config = transformers.ElectraConfig(vocab_size=TOKENS, **ENCODERS["electra"] | {"embedding_size": 8}, num_labels=3)
    network = with_prompt(TextClassifier(transformers.ElectraForSequenceClassification(config).eval()), torch.randn(2, 8))
    assert network(BATCH).shape == (2, 3)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_prompt_belongs_to_the_lowest_layer_group_and_a_copy_has_its_own(kind):
    network = TextClassifier(build(kind, transformers.AutoModelForSequenceClassification))
    before, (place,) = backbones.layer_layout(network, example_shape(BATCH)), prompt_tuning.prompt_place(network)
    copy = deepcopy(with_prompt(network, torch.zeros(COUNT, CHANNELS)))
    assert backbones.layer_depth(before, network)[f"{place}.virtual_prompt"] == len(before.groups)
    assert backbones.names_by_kind(before, network)["prompt"] == {f"{place}.virtual_prompt"}
    with torch.no_grad():
        prompt = next(parameter for name, parameter in copy.named_parameters() if name.endswith("virtual_prompt"))
        prompt.copy_(torch.randn(COUNT, CHANNELS))
        assert not torch.allclose(copy(BATCH), network(BATCH))
    assert pretrained_body(network) is not pretrained_body(copy)
