"""Virtual tokens in the small BERT of the embedded language, by hooks on its layers. Imports torch.

No module is renamed or inserted, so checkpoints, layer groups and torch.fx work as before.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from xferbench.lab.models.backbones import ADDED_NAMES
from xferbench.lab.models.tiny_bert import tiny_bert

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.lab.models.tiny_bert import Bert

(PROMPT,) = ADDED_NAMES["prompt"]
KEYS, VALUES = ADDED_NAMES["prefix"]


def prepend_prompt(model: Bert, tokens: int) -> None:
    """Let a prompt, a parameter of the word embeddings, precede each text. It leaves with the output of the encoder."""
    embeddings = model.embeddings
    embeddings.word_embeddings.register_forward_hook(partial(_join, name=PROMPT))
    embeddings.token_type_embeddings.register_forward_pre_hook(lambda _layer, inputs: F.pad(inputs[0], (tokens, 0)))
    embeddings.position_embeddings.register_forward_pre_hook(
        lambda _layer, inputs: torch.ones_like(F.pad(inputs[0], (tokens, 0))).cumsum(1) - 1
    )
    model.encoder.register_forward_pre_hook(lambda _layer, inputs: (inputs[0], F.pad(inputs[1], (tokens, 0))))
    model.encoder.register_forward_hook(lambda _layer, _inputs, hidden: hidden[:, tokens:])


def attend_to_prefix(model: Bert, tokens: int) -> None:
    """Let each attention layer see a prefix, parameters of its key and value projections. The text moves up by its length."""
    for layer in model.encoder.layer:
        attention = layer.attention.self
        attention.key.register_forward_hook(partial(_join, name=KEYS))
        attention.value.register_forward_hook(partial(_join, name=VALUES))
        attention.register_forward_pre_hook(lambda _layer, inputs: (inputs[0], F.pad(inputs[1], (tokens, 0))))
    model.embeddings.position_embeddings.register_forward_pre_hook(lambda _layer, inputs: inputs[0] + tokens)


def projections(model: Bert) -> list[tuple[nn.Module, nn.Module]]:
    """Return the layers that compute keys and values, from the input up."""
    return [(layer.attention.self.key, layer.attention.self.value) for layer in model.encoder.layer]


def keys_and_values(model: Bert, tensors: Mapping[str, Tensor], words: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values [tokens, channels] of each layer for the ids [1, tokens] of words, without virtual tokens."""
    with torch.device("meta"):
        plain = tiny_bert(1, model.embeddings.word_embeddings.num_embeddings, model.pooling)
    outputs: dict[nn.Module, Tensor] = {}
    for layer in (layer for pair in projections(plain) for layer in pair):
        layer.register_forward_hook(lambda layer, _inputs, output: outputs.__setitem__(layer, output[0]))
    batch = {"input_ids": words, "attention_mask": torch.ones_like(words), "token_type_ids": torch.zeros_like(words)}
    functional_call(plain.eval(), {name: tensors[name] for name, _ in plain.named_parameters()}, (batch,))
    return [(outputs[key], outputs[value]) for key, value in projections(plain)]


def _join(layer: nn.Module, _inputs: object, vectors: Tensor, *, name: str) -> Tensor:
    """Put the virtual tokens [tokens, channels] of a layer before its output [texts, length, channels]."""
    virtual: Tensor = getattr(layer, name)
    return torch.cat([virtual.to(vectors.dtype).expand(vectors.shape[0], -1, -1), vectors], 1)
