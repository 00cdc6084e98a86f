"""A small BERT for the embedded language: 2 layers of width 64. Imports torch.

Tensors have the names of ``BertModel`` in transformers (``encoder.layer.0.attention.self.query.weight`` …), so its state dicts
load. The network has no pooler; it works with torch.fx, torch.func and the meta device.

References:
    Devlin, Chang, Lee, Toutanova. BERT: pre-training of deep bidirectional transformers for language understanding. NAACL 2019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xferbench.core.errors import UserError, suggest
from xferbench.core.pipeline import POOLINGS

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDTH, HEADS, LAYERS = 64, 2, 2
MAX_TOKENS = 64  # of a text; the number of learned positions
SEGMENTS = 2
DROPOUT = 0.1
EPSILON = 1e-12  # of the LayerNorms, as in BERT
INITIAL_STD = 0.02  # of the weights, as in BERT


class Embeddings(nn.Module):
    """The sum of the embeddings of tokens, positions and segments, with LayerNorm and dropout."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary_size, WIDTH, padding_idx=0)
        self.position_embeddings = nn.Embedding(MAX_TOKENS, WIDTH)
        self.token_type_embeddings = nn.Embedding(SEGMENTS, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPSILON)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Map ids [B, L] and segments [B, L] to vectors [B, L, WIDTH]."""
        # torch.fx traces no torch.arange of a length that it does not know.
        positions = torch.ones_like(input_ids).cumsum(1) - 1
        embedded = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(embedded + self.position_embeddings(positions)))


class SelfAttention(nn.Module):
    """Attention of all tokens to all tokens, with dropout of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Map vectors [B, L, WIDTH] to their weighted means. ``bias`` [B, 1, 1, L] is added to the scores of the keys."""
        query, key, value = (
            layer(hidden).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + bias
        weights = self.dropout(scores.softmax(-1))
        return (weights @ value).transpose(1, 2).flatten(2)


class Output(nn.Module):
    """A linear layer with dropout whose result is added to its block's input and normalized."""

    def __init__(self, width_in: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPSILON)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, hidden: Tensor, block_input: Tensor) -> Tensor:
        """Map [B, L, width_in] and [B, L, WIDTH] to [B, L, WIDTH]."""
        return self.LayerNorm(self.dropout(self.dense(hidden)) + block_input)


class Attention(nn.Module):
    """The first half of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.self = SelfAttention()
        self.output = Output(WIDTH)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Map [B, L, WIDTH] to [B, L, WIDTH]."""
        return self.output(self.self(hidden, bias), hidden)


class Intermediate(nn.Module):
    """The wide layer of the second half of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, 4 * WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, L, WIDTH] to [B, L, 4 WIDTH]."""
        return F.gelu(self.dense(hidden))


class Layer(nn.Module):
    """Attention and a feed-forward network, each followed by LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.intermediate = Intermediate()
        self.output = Output(4 * WIDTH)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Map [B, L, WIDTH] to [B, L, WIDTH]."""
        attended = self.attention(hidden, bias)
        return self.output(self.intermediate(attended), attended)


class Layers(nn.ModuleList):
    """The layers in their order. Unlike a plain list, it is called, so that :func:`~.backbones.layer_layout` looks into it."""

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Map [B, L, WIDTH] to [B, L, WIDTH]."""
        for layer in self:
            hidden = layer(hidden, bias)
        return hidden


class Encoder(nn.Module):
    """The layers, under the name that they have in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layers(Layer() for _ in range(LAYERS))

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Map [B, L, WIDTH] to [B, L, WIDTH]."""
        return self.layer(hidden, bias)


class Bert(nn.Module):
    """An encoder whose pooled output goes through dropout into ``classifier``.

    Args:
        classes: The number of outputs.
        vocabulary_size: The number of tokens. Token 0 is the padding.
        pooling: What the classifier sees: the vector of the first token (``cls``), the mean of those that the mask keeps
            (``mean``), or that of the last one that the mask keeps (``last``).
    """

    def __init__(self, classes: int, vocabulary_size: int, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.embeddings = Embeddings(vocabulary_size)
        self.encoder = Encoder()
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(WIDTH, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.embeddings.word_embeddings.weight[0] = 0

    def extra_repr(self) -> str:
        """Return the pooling, which is part of the key of cached features."""
        return f"pooling={self.pooling}"

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Map ``input_ids``, ``attention_mask`` and ``token_type_ids``, int64 [B, L] each, to logits [B, classes].

        L is at most :data:`MAX_TOKENS`.
        """
        hidden = self.embeddings(batch["input_ids"], batch["token_type_ids"])
        mask = batch["attention_mask"]
        # With a finite minimum, a text that the mask hides wholly has equal weights; with minus infinity it would have NaN.
        bias = (1 - mask)[:, None, None].to(hidden.dtype) * torch.finfo(torch.float32).min
        hidden = self.encoder(hidden, bias)
        return self.classifier(self.dropout(self._pool(hidden, mask)))

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map [B, L, WIDTH] to [B, WIDTH]."""
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "last":
            # The number of visible tokens up to a position is highest from the last of them on; argmax returns the first.
            last = mask.cumsum(1).argmax(1)
            return hidden.gather(1, last[:, None, None].expand(-1, 1, WIDTH)).squeeze(1)
        weights = mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def tiny_bert(classes: int, vocabulary_size: int, pooling: str = "cls") -> Bert:
    """Build a BERT of 2 layers of width 64, with 0.17 M parameters for 1000 tokens.

    Raises:
        UserError: If the pooling is unknown.
    """
    if pooling not in POOLINGS:
        raise UserError("no such pooling", found=pooling, expected=suggest(pooling, POOLINGS), do="choose a known one")
    return Bert(classes, vocabulary_size, pooling)
