"""The input embeddings of a network for text, and the token ids that have none. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xferbench.core.errors import UserError
from xferbench.lab.models import transformers_text
from xferbench.lab.models.tiny_bert import Bert

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from torch import Tensor, nn


def input_embeddings(module: nn.Module) -> nn.Embedding:
    """Return the embeddings of the tokens of ``tiny-bert`` or of a network for text of transformers."""
    body: Any = transformers_text.pretrained_body(module)
    embeddings: nn.Embedding = module.embeddings.word_embeddings if isinstance(module, Bert) else body.get_input_embeddings()
    return embeddings


def check_ids(module: nn.Module, ids_by_split: Mapping[str, Tensor | np.ndarray]) -> None:
    """Check that every token id has an embedding. A network of user code is not checked.

    A tokenizer has more tokens than its network if tokens were added and the embeddings were not resized, or if it was saved
    with another network.

    Args:
        module: the network.
        ids_by_split: the token ids [n, length] of each split.

    Raises:
        UserError: if an id has no embedding.
    """
    if not isinstance(module, Bert) and transformers_text.pretrained_body(module) is None:
        return
    rows = input_embeddings(module).num_embeddings
    for split, ids in ids_by_split.items():
        if len(ids) and (highest := int(ids.max())) >= rows:
            raise UserError(
                f"the tokenizer has tokens without an embedding, for example in the {split} texts",
                found=f"id {highest}, and {rows} embeddings",
                expected="ids below the number of embeddings",
                do="call model.resize_token_embeddings(len(tokenizer)) before training, or save the tokenizer of the network",
            )
