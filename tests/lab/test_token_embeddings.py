"""Token ids without an embedding are refused before a network reads them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from xferbench.core.errors import UserError
from xferbench.lab.models import tiny_bert, token_embeddings

ROWS = 12


def test_an_id_without_an_embedding_is_refused_with_the_split():
    network = tiny_bert.tiny_bert(2, ROWS)
    assert token_embeddings.input_embeddings(network).num_embeddings == ROWS
    within = torch.tensor([[0, ROWS - 1]])
    token_embeddings.check_ids(network, {"training": within, "test": torch.empty(0, 2, dtype=torch.long)})
    with pytest.raises(UserError, match="without an embedding, for example in the test texts") as caught:
        token_embeddings.check_ids(network, {"training": within, "test": within + 1})
    assert caught.value.found == f"id {ROWS}, and {ROWS} embeddings"
    assert "resize_token_embeddings" in caught.value.do


def test_a_network_of_user_code_is_not_checked():
    token_embeddings.check_ids(nn.Embedding(ROWS, 4), {"training": torch.tensor([ROWS])})
