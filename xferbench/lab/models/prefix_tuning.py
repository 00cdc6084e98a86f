"""Prefix tuning: each attention layer sees keys and values of virtual tokens before those of a text. Imports torch.

The virtual tokens have no hidden states, so every pooler reads the text alone. The text gets the positions after them, as in
peft. The keys and values are trained themselves, without a network that computes them. They start as those of random words of
the vocabulary, which Li and Liang found better than random numbers where there are few examples.

References:
    Li, Liang. Prefix-tuning: optimizing continuous prompts for generation. ACL 2021, arXiv:2101.00190.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from xferbench.core.errors import UserError
from xferbench.lab.models import call_arguments, tiny_bert_tokens, transformers_models, transformers_text
from xferbench.lab.models.backbones import ADDED_NAMES
from xferbench.lab.models.batchnorm import preserve_modes
from xferbench.lab.models.tiny_bert import Bert
from xferbench.lab.models.token_embeddings import input_embeddings
from xferbench.lab.training import seeds

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYS, VALUES = ADDED_NAMES["prefix"]
CACHE_ARGUMENTS = ("cache", "past_key_values")  # what the versions of transformers call past keys and values


def prefix_places(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that hold a prefix; none if the network takes no past keys and values."""
    places = {layer for pair in _places(module) for layer in pair}
    return tuple(name for name, layer in module.named_modules() if layer in places)


def insert_prefix(module: nn.Module, tokens: int) -> None:
    """Let the attention layers of a network see a prefix. Its keys and values are 0 until they are set.

    Args:
        module: the network, which is changed in place.
        tokens: the number of virtual tokens.

    Raises:
        UserError: if the network takes no past keys and values.
    """
    places = _places(module)
    if not places:
        found = type(transformers_text.pretrained_body(module) or module).__name__
        expected = "tiny-bert, or a network for text of transformers that takes past keys and values, such as BERT or GPT-2"
        do = "choose another strategy, such as lora or prompt-tuning"
        raise UserError("the backbone takes no prefix", found=found, expected=expected, do=do)
    words = torch.zeros(1, tokens, dtype=torch.long)
    start = dict(module.named_parameters()) | dict(module.named_buffers())
    for (key_place, value_place), (keys, values) in zip(places, _keys_and_values(module, start, words), strict=True):
        key_place.register_parameter(KEYS, nn.Parameter(torch.zeros_like(keys)))
        value_place.register_parameter(VALUES, nn.Parameter(torch.zeros_like(values)))
    if isinstance(module, Bert):
        tiny_bert_tokens.attend_to_prefix(module, tokens)
    elif (body := transformers_text.pretrained_body(module)) is not None:
        body.register_forward_pre_hook(_pass_prefix, with_kwargs=True)


def initial_prefix(module: nn.Module, tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return the initial prefix of a network by name: keys and values of random words of its vocabulary; {} without a prefix.

    Args:
        module: the network with its prefix.
        tensors: its other tensors at the start of the training, on the CPU.
        seed: the seed of the training.
    """
    if not any(name.endswith(KEYS) for name, _ in module.named_parameters()):
        return {}
    places, names = _places(module), {layer: name for name, layer in module.named_modules()}
    rng, tokens = seeds.numpy_stream(seed, seeds.VIRTUAL_TOKENS, 1), getattr(places[0][0], KEYS).shape[-2]
    words = torch.from_numpy(rng.integers(input_embeddings(module).num_embeddings, size=(1, tokens)))
    initial: dict[str, Tensor] = {}
    for (key_place, value_place), (keys, values) in zip(places, _keys_and_values(module, tensors, words), strict=True):
        initial |= {f"{names[key_place]}.{KEYS}": keys.clone(), f"{names[value_place]}.{VALUES}": values.clone()}
    return initial


def _places(module: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Return the layers that hold the keys and the values of a prefix, from the input up; none if the network takes no prefix.

    In a network of transformers, it is the first layer of each block, so that the prefix belongs to the block's layer group.
    """
    if isinstance(module, Bert):
        return tiny_bert_tokens.projections(module)
    body = transformers_text.pretrained_body(module)
    if body is None or not _cache_argument(body):
        return []
    try:
        layers = len(_run_with_cache(body, {}, torch.zeros(1, 2, dtype=torch.long)))
    except Exception:  # noqa: BLE001 - whatever a network raises, it takes no past keys and values
        return []
    blocks = next((part for part in body.modules() if isinstance(part, nn.ModuleList) and len(part) == layers), ())
    firsts = [next(layer for layer in block.modules() if _is_layer(layer)) for block in blocks]
    return [(layer, layer) for layer in firsts]


def _is_layer(module: nn.Module) -> bool:
    return next(module.children(), None) is None and next(module.parameters(), None) is not None


def _keys_and_values(module: nn.Module, tensors: Mapping[str, Tensor], words: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values of each attention layer for the ids [1, tokens] of words, without the axis of texts."""
    with torch.no_grad():
        if isinstance(module, Bert):
            return tiny_bert_tokens.keys_and_values(module, tensors, words)
        body = transformers_text.pretrained_body(module)
        prefix = next(f"{name}." for name, part in module.named_modules() if part is body)
        body_tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        return [(keys[0], values[0]) for keys, values in _run_with_cache(body, body_tensors, words)]


def _run_with_cache(body: nn.Module, tensors: Mapping[str, Tensor], words: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values [1, heads, tokens, channels] that each attention layer stores for later tokens."""
    cache = transformers_models.import_transformers().DynamicCache()
    words = words.to(next(body.parameters()).device)
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words), _cache_argument(body): cache}
    with torch.no_grad(), preserve_modes(body):
        functional_call(body.eval(), dict(tensors), (), inputs)
    return [(layer.keys[:, :, -words.shape[1] :], layer.values[:, :, -words.shape[1] :]) for layer in cache.layers]


def _cache_argument(body: nn.Module) -> str:
    names = call_arguments.argument_names(body)
    return next((name for name in CACHE_ARGUMENTS if name in names), "")


def _pass_prefix(body: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Add the prefix to a call as past keys and values, which the mask shows. A call that has some is left as it is."""
    inputs, cache_argument = call_arguments.named_arguments(body, arguments, named), _cache_argument(body)
    if inputs.get(cache_argument) is not None:
        return None
    mask, cache, tokens = inputs["attention_mask"], transformers_models.import_transformers().DynamicCache(), 0
    holders = [layer for layer in body.modules() if hasattr(layer, KEYS)]
    for index, layer in enumerate(holders):
        keys, values = (getattr(layer, name).expand(mask.shape[0], -1, -1, -1) for name in (KEYS, VALUES))
        cache.update(keys, values, index)
        tokens = keys.shape[-2]
    return (), inputs | {cache_argument: cache, "attention_mask": F.pad(mask, (tokens, 0), value=1)}
