"""Networks for text in folders that transformers saved. Imports torch.

Nothing is downloaded, and no code of the folder runs.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from xferbench.data import weights_settings
from xferbench.lab.data import tokenizers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from xferbench.lab.data.batch import Batch

CLASSIFIER_SUFFIX = "ForSequenceClassification"
# The ends of the class names of pretrained networks; their own heads are left out.
PRETRAINED_SUFFIXES = ("Model", "ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForPreTraining")
DECODERS = ("gpt2", "gpt_neo", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "bloom")
DROPOUT = 0.1  # before a new head, as in transformers


class TextClassifier(nn.Module):
    """A classifier of transformers as a network from a batch of tokens to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.inputs = accepted_inputs(model)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of a batch of ``input_ids``, ``attention_mask`` and ``token_type_ids``."""
        logits: Tensor = self.model(**{name: batch[name] for name in self.inputs}).logits
        return logits


def pretrained_body(module: nn.Module) -> nn.Module | None:
    """Return the pretrained network of transformers in a network for text, which computes hidden states; None in any other."""
    if isinstance(module, TextNetwork):
        return module.encoder.model
    return module.model.base_model if isinstance(module, TextClassifier) else None


def added_layers(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that a classifier of transformers adds to its pretrained network, for any module.

    They start from random weights with the head: what is outside the pretrained network, such as ``pre_classifier`` of
    DistilBERT or ``classifier.dense`` of RoBERTa, and the pooler, which encoders without next-sentence prediction lack.
    """
    body = module.model.base_model_prefix if isinstance(module, TextClassifier) else ""
    if not isinstance(module, TextClassifier) or not hasattr(module.model, body):
        return ()
    outside = [f"model.{name}" for name, _ in module.model.named_children() if name != body]
    return (*outside, f"model.{body}.pooler")


class Encoder(nn.Module):
    """A pretrained network of transformers as a network from a batch of tokens to one vector for each text.

    Args:
        model: the network.
        pooling: ``cls`` for the first visible token, ``mean`` of the visible tokens, or ``last`` for the last one.
    """

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling
        self.inputs = accepted_inputs(model)

    def extra_repr(self) -> str:
        """Return the pooling, which is part of the key of cached features."""
        return f"pooling={self.pooling}"

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors [texts, channels]."""
        hidden: Tensor = self.model(**{name: batch[name] for name in self.inputs}).last_hidden_state
        return pool(hidden, batch["attention_mask"], self.pooling)


class TextNetwork(nn.Module):
    """An encoder with dropout and a linear head, which is no part of the pretrained network."""

    def __init__(self, encoder: Encoder, channels: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits [texts, classes]."""
        logits: Tensor = self.classifier(self.dropout(self.encoder(batch)))
        return logits


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Return one vector for each text: [texts, tokens, channels] and [texts, tokens] become [texts, channels]."""
    if pooling == "mean":
        visible = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * visible).sum(1) / visible.sum(1).clamp(min=1)
    # The counter of visible tokens is 1 from the first of them on, and highest from the last one on.
    counter = mask.cumsum(1)
    place = (counter >= 1).long().argmax(1) if pooling == "cls" else counter.argmax(1)
    return hidden.gather(1, place[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)


def accepted_inputs(model: nn.Module) -> tuple[str, ...]:
    """Return the inputs that a network gets. Networks without segment embeddings get no ``token_type_ids``."""
    has_segments = getattr(model.config, "type_vocab_size", 0) > 1
    has_argument = "token_type_ids" in inspect.signature(model.forward).parameters
    return ("input_ids", "attention_mask", *(("token_type_ids",) if has_segments and has_argument else ()))


def is_text_network(config: Mapping[str, Any], folder: Path) -> bool:
    """Return whether a folder holds a network for text: a tokenizer, and an architecture that classifies or is pretrained."""
    is_known = weights_settings.architecture_name(config).endswith((CLASSIFIER_SUFFIX, *PRETRAINED_SUFFIXES))
    return is_known and weights_settings.takes_text(config, folder)


def is_finished(config: Mapping[str, Any]) -> bool:
    """Return whether a network for text has a head that classifies."""
    return weights_settings.architecture_name(config).endswith(CLASSIFIER_SUFFIX)


def pooling_of(config: Mapping[str, Any], folder: Path) -> str:
    """Return the pooling of a pretrained network.

    It is that of sentence-transformers if the folder records one, the last token of a decoder, and else the first token.
    """
    recorded = weights_settings.read_json((weights_settings.base_folder(folder) or folder) / weights_settings.POOLING_FILE)
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
    stated = [pooling for key, pooling in modes.items() if recorded.get(key) is True]
    return stated[0] if len(stated) == 1 else "last" if config.get("model_type") in DECODERS else "cls"


def build_text_network(
    transformers: Any, config: Any, folder: Path, classes: int | None, pooling: str = ""
) -> TextClassifier | TextNetwork:
    """Build the network of a folder with random weights.

    Args:
        transformers: the library.
        config: its configuration of the network.
        folder: the folder.
        classes: number of outputs; None for those of the folder.
        pooling: of a network without a head of its own; "" for :func:`pooling_of`.
    """
    settings = config.to_dict()
    if classes is not None:
        config.num_labels = classes
    if config.pad_token_id is None:  # transformers finds the last token of a text by it
        config.pad_token_id = tokenizers.load_from_folder(weights_settings.tokenizer_folder(folder)).padding
    if is_finished(settings):
        return TextClassifier(transformers.AutoModelForSequenceClassification.from_config(config, trust_remote_code=False))
    arguments = pretrained_arguments(transformers.MODEL_MAPPING[type(config)])
    model = transformers.AutoModel.from_config(config, trust_remote_code=False, **arguments)
    encoder = Encoder(model, pooling or pooling_of(settings, folder))
    return TextNetwork(encoder, hidden_size(config), config.num_labels)


def pretrained_arguments(model_class: type) -> dict[str, bool]:
    """Return the arguments that build a pretrained network without a layer above its hidden states."""
    parameters = inspect.signature(model_class.__init__).parameters  # type: ignore[misc] # of a class
    return {"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}


def hidden_size(config: Any) -> int:
    """Return the number of channels of the hidden states."""
    return int(next(getattr(config, name) for name in ("hidden_size", "dim", "n_embd", "d_model") if hasattr(config, name)))
