"""Prompt tuning: embeddings of virtual tokens precede those of each text. Imports torch.

The virtual tokens get the first positions, segment 0 and a mask of ones, as in peft. They are no part of the hidden states that
leave the pretrained network. So a pooler of the first token reads the token that the text begins with ([CLS]), one of the last
token reads the last token of the text, and a mean is that of the text. (peft 0.21 lets a pooler of the first token read a
virtual token, and one of the last token the end of the padding.)

References:
    Lester, Al-Rfou, Constant. The power of scale for parameter-efficient prompt tuning. EMNLP 2021, arXiv:2104.08691.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xferbench.core.errors import UserError
from xferbench.lab.models import call_arguments, tiny_bert_tokens, transformers_text
from xferbench.lab.models.backbones import ADDED_NAMES
from xferbench.lab.models.batchnorm import preserve_modes
from xferbench.lab.models.tiny_bert import Bert
from xferbench.lab.models.token_embeddings import input_embeddings
from xferbench.lab.training import seeds

if TYPE_CHECKING:
    from collections.abc import Mapping

(PROMPT,) = ADDED_NAMES["prompt"]


def prompt_place(module: nn.Module) -> tuple[str, ...]:
    """Return the name of the input embeddings that a prompt can precede; none if the network does not take embeddings."""
    body = transformers_text.pretrained_body(module)
    if not isinstance(module, Bert) and (body is None or not _takes_embeddings(body)):
        return ()
    embeddings = input_embeddings(module)
    return tuple(name for name, layer in module.named_modules() if layer is embeddings)


def insert_prompt(module: nn.Module, tokens: int) -> None:
    """Let a prompt precede each text that a network reads. The embeddings [tokens, channels] are 0 until they are set.

    Args:
        module: the network, which is changed in place.
        tokens: the number of virtual tokens.

    Raises:
        UserError: if the network does not take embeddings of tokens.
    """
    body = transformers_text.pretrained_body(module)
    if not prompt_place(module):
        expected = "tiny-bert, or a network for text of transformers that takes inputs_embeds"
        do = "choose another strategy, such as lora"
        raise UserError("the backbone takes no prompt", found=type(body or module).__name__, expected=expected, do=do)
    embeddings = input_embeddings(module)
    embeddings.register_parameter(PROMPT, nn.Parameter(torch.zeros(tokens, embeddings.weight.shape[1])))
    if body is None:
        tiny_bert_tokens.prepend_prompt(module, tokens)
        return
    body.register_forward_pre_hook(_prepend_prompt, with_kwargs=True)
    if isinstance(pooler := getattr(body, "pooler", None), nn.Module):
        pooler.register_forward_pre_hook(partial(_drop_from_inputs, tokens=tokens))
    body.register_forward_hook(partial(_drop_from_hidden_states, tokens=tokens))


def initial_prompt(module: nn.Module, tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return the initial prompt of a network by name: the embeddings of random words of its vocabulary; {} without a prompt."""
    rng, initial = seeds.numpy_stream(seed, seeds.VIRTUAL_TOKENS, 0), {}
    for name, parameter in module.named_parameters():
        if name.endswith(PROMPT):
            words = tensors[f"{name.removesuffix(PROMPT)}weight"]
            initial[name] = words[torch.from_numpy(rng.integers(len(words), size=len(parameter)))].detach().clone()
    return initial


def _takes_embeddings(body: Any) -> bool:
    """Return whether a network of transformers has one hidden state for each embedding that it gets."""
    if not isinstance(body.get_input_embeddings(), nn.Embedding):
        return False
    try:
        with torch.no_grad(), preserve_modes(body):
            embeddings = body.get_input_embeddings().weight[None, :2]
            mask = torch.ones(1, 2, dtype=torch.long, device=embeddings.device)
            hidden = body.eval()(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
    except Exception:  # noqa: BLE001 - whatever a network raises, it does not take embeddings
        return False
    return bool(hidden.shape[1] == 2)


def _prepend_prompt(body: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace the token ids of a call by their embeddings with the prompt before them."""
    inputs = call_arguments.named_arguments(body, arguments, named)
    embeddings = body.get_input_embeddings()
    prompt: Tensor = getattr(embeddings, PROMPT)
    tokens, words = len(prompt), embeddings(inputs.pop("input_ids"))
    inputs["inputs_embeds"] = torch.cat([prompt.to(words.dtype).expand(words.shape[0], -1, -1), words], 1)
    inputs["attention_mask"] = F.pad(inputs["attention_mask"], (tokens, 0), value=1)
    if inputs.get("token_type_ids") is not None:
        inputs["token_type_ids"] = F.pad(inputs["token_type_ids"], (tokens, 0))
    return (), inputs


def _drop_from_inputs(_layer: object, inputs: tuple[Tensor, ...], *, tokens: int) -> tuple[Tensor, ...]:
    return (inputs[0][:, tokens:], *inputs[1:])


def _drop_from_hidden_states(_body: object, _inputs: object, output: Any, *, tokens: int) -> Any:
    output.last_hidden_state = output.last_hidden_state[:, tokens:]
    return output
