"""Networks for text of transformers: built from a folder, split below the head, and read with their own names."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from xferbench.core.errors import UserError
from xferbench.data import language, weights_folder
from xferbench.lab.data.batch import example_shape
from xferbench.lab.models import arch_detection, backbones, checkpoint_reader, checkpoints, graph_split
from xferbench.lab.models.transformers_text import pool

ADAPTED = {"bert": ["query", "value"], "roberta": ["query", "value"]}  # the layers with an adapter
SAVED = {"bert": ["classifier", "pooler"], "roberta": ["classifier"]}  # what the pretrained network may lack
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # of transformers, which peft calls
TOKENS = len(language.vocabulary_lines())
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ENCODERS = {
    "bert": SMALL,
    "roberta": SMALL | {"pad_token_id": 0},
    "electra": SMALL | {"embedding_size": 16},
    "deberta-v2": SMALL,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "llama": SMALL,
}
BATCH = {
    "input_ids": torch.tensor([[2, 7, 8, 3, 0, 0], [2, 9, 10, 11, 12, 3]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]),
    "token_type_ids": torch.zeros(2, 6, dtype=torch.long),
}


def save(folder, kind, model_class):
    config = transformers.AutoConfig.for_model(kind, vocab_size=TOKENS, **ENCODERS[kind])
    config.num_labels, config.pad_token_id = 3, 0
    torch.manual_seed(0)
    model = model_class.from_config(config).eval()
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(language.vocabulary_lines()) + "\n")
    return model


def load(folder, classes):
    """Return the network of a folder with its weights, as a run loads it."""
    weights = folder / "model.safetensors"
    arch = arch_detection.detect_arch(weights)
    network = backbones.build(arch, classes).eval()
    layout = backbones.layer_layout(network, example_shape(BATCH))
    checkpoints.load_backbone(network, checkpoint_reader.read_checkpoint(weights), layout.head)
    return network, layout


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_pretrained_network_gets_a_head_on_its_own_hidden_states(kind, tmp_path):
    model = save(tmp_path, kind, transformers.AutoModel)
    network, layout = load(tmp_path, 5)
    assert (layout.head, layout.classes, layout.features) == ("classifier", 5, 16)
    inputs = {name: BATCH[name] for name in network.encoder.inputs}
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
        pooling = "last" if kind in {"gpt2", "llama"} else "cls"
        torch.testing.assert_close(network.encoder(BATCH), pool(hidden, BATCH["attention_mask"], pooling))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2"])
def test_the_frozen_part_is_computed_once_below_the_head(kind, tmp_path):
    save(tmp_path, kind, transformers.AutoModel)
    network, layout = load(tmp_path, 3)
    lower, upper = graph_split.split_at(network, layout, len(layout.groups))
    with torch.no_grad():
        torch.testing.assert_close(upper(lower(BATCH)), network(BATCH))


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "deberta-v2"])
def test_a_classifier_is_read_as_it_is(kind, tmp_path):
    model = save(tmp_path, kind, transformers.AutoModelForSequenceClassification)
    network = backbones.build(arch_detection.detect_arch(tmp_path / "model.safetensors"), 3).eval()
    state = checkpoint_reader.read_checkpoint(tmp_path / "model.safetensors")
    network.load_state_dict({f"model.{name}": tensor for name, tensor in state.items()}, strict=False)
    inputs = {name: BATCH[name] for name in network.inputs}
    with torch.no_grad():
        torch.testing.assert_close(network(BATCH), model(**inputs).logits)


def test_the_pooling_of_sentence_transformers_is_read(tmp_path):
    save(tmp_path, "bert", transformers.AutoModel)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}')
    network, _ = load(tmp_path, 3)
    assert network.encoder.pooling == "mean"


def test_a_stated_pooling_replaces_that_of_a_pretrained_network(tmp_path):
    save(tmp_path, "bert", transformers.AutoModel)
    arch = f"transformers:{tmp_path}"
    assert [backbones.build(arch, 3, pooling=pooling).encoder.pooling for pooling in ("", "mean", "last")] == [
        "cls",
        "mean",
        "last",
    ]


def test_a_classifier_has_no_pooling_to_choose(tmp_path):
    save(tmp_path, "bert", transformers.AutoModelForSequenceClassification)
    with pytest.raises(UserError, match="pooling"):
        backbones.build(f"transformers:{tmp_path}", 3, pooling="mean")


def save_adapter(folder, base, kind="bert", *, base_class=transformers.AutoModel, **more):
    """Save a pretrained network, and an adapter on it with a trained head. Return the adapted network."""
    save(base, kind, base_class)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    settings = {"task_type": "SEQ_CLS", "r": 2, "lora_alpha": 8, "target_modules": ADAPTED[kind], "init_lora_weights": False}
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings | more)).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("base_class", [transformers.AutoModel, transformers.AutoModelForMaskedLM])
def test_an_adapter_is_read_with_the_network_that_it_was_trained_on(kind, base_class, tmp_path):
    adapted = save_adapter(tmp_path / "adapter", tmp_path / "base", kind, base_class=base_class, modules_to_save=SAVED[kind])
    weights = weights_folder.find_weights(tmp_path / "adapter")
    arch = arch_detection.detect_arch(weights)
    network = backbones.build(arch, 3).eval()
    state = checkpoint_reader.read_checkpoint(weights)
    network.load_state_dict({f"model.{name}": tensor for name, tensor in state.items()})
    with torch.no_grad():
        torch.testing.assert_close(network(BATCH), adapted(**{name: BATCH[name] for name in network.inputs}).logits)


def test_the_network_of_an_adapter_is_found_by_a_relative_path(tmp_path):
    save_adapter(tmp_path / "runs" / "last", tmp_path / "models" / "base")
    file = tmp_path / "runs" / "last" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "models/base"}))
    files = weights_folder.weights_files(weights_folder.find_weights(tmp_path / "runs" / "last"))
    names = [path.relative_to(tmp_path).as_posix() for path in files]
    assert names == [
        "runs/last/adapter_model.safetensors",
        "runs/last/adapter_config.json",
        "models/base/model.safetensors",
        "models/base/config.json",
        "models/base/vocab.txt",
    ]


def test_an_adapter_without_a_head_is_refused(tmp_path):
    save_adapter(tmp_path / "adapter", tmp_path / "base", task_type=None)
    with pytest.raises(UserError, match=r"LORA, rank 2\); it holds no head, because modules_to_save is null"):
        weights_folder.find_weights(tmp_path / "adapter")


def test_an_adapter_of_another_kind_is_refused(tmp_path):
    save_adapter(tmp_path / "adapter", tmp_path / "base")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "IA3"}))
    with pytest.raises(UserError, match=r"IA3 in adapter_config\.json"):
        checkpoint_reader.read_checkpoint(tmp_path / "adapter")


def test_pooling_ignores_padding_on_either_side():
    hidden = torch.arange(12.0).view(1, 4, 3)
    for mask, first, last in (([1, 1, 0, 0], 0, 1), ([0, 0, 1, 1], 2, 3)):
        visible = torch.tensor([mask])
        assert torch.equal(pool(hidden, visible, "cls"), hidden[:, first])
        assert torch.equal(pool(hidden, visible, "last"), hidden[:, last])
        assert torch.equal(pool(hidden, visible, "mean"), hidden[:, [first, last]].mean(1))


def test_a_folder_without_a_tokenizer_says_how_to_save_it(tmp_path):
    save(tmp_path, "bert", transformers.AutoModelForSequenceClassification)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError) as caught:
        arch_detection.detect_arch(tmp_path)
    assert "without its tokenizer" in caught.value.found
    assert "save_pretrained" in caught.value.do


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "deberta-v2"])
def test_the_layers_that_a_classifier_adds_may_be_missing_in_the_pretrained_network(kind, tmp_path):
    pretrained = save(tmp_path / "before", kind, transformers.AutoModel)
    save(tmp_path / "after", kind, transformers.AutoModelForSequenceClassification)
    network = backbones.build(arch_detection.detect_arch(tmp_path / "after" / "model.safetensors"), 3).eval()
    layout = backbones.layer_layout(network, example_shape(BATCH))
    state = checkpoint_reader.read_checkpoint(tmp_path / "before" / "model.safetensors")
    without_pooler = {name: tensor for name, tensor in state.items() if "pooler" not in name}
    tensors, _ = checkpoints.match_tensors(network, without_pooler, layout.head)
    body = network.model.base_model_prefix
    for name, tensor in pretrained.named_parameters():
        if "pooler" not in name:
            torch.testing.assert_close(tensors[f"model.{body}.{name}"], tensor.detach())
    without_embeddings = {name: tensor for name, tensor in without_pooler.items() if "word_embeddings" not in name}
    with pytest.raises(UserError, match="do not fit"):
        checkpoints.match_tensors(network, without_embeddings, layout.head)
