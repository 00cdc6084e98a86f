"""Faults in the first batches of texts of a watched model: padding, labels, cut texts and ids. Imports torch.

The checks read the arguments of the model's own forward pass, through hooks that are removed after the first steps. They are
exact, and silent where an argument is not of the usual form.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xferbench.lab.models.call_arguments import argument_names, named_arguments
from xferbench.lab.monitor import diagnosis, user_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Reporter = Callable[[str, str, diagnosis.Message], None]

IGNORED_LABEL = -100  # of torch's cross-entropy, and of transformers
MIN_PADDING = 2  # padding ids at the end of a text; a single one may be a word, or the token that ends a text
MIN_TEXTS = 16  # texts that must all fill the longest length before they count as cut


@dataclass(slots=True, kw_only=True)
class LabelCounts:
    """Labels seen so far: how many, and how many of them the loss uses."""

    seen: int = 0
    used: int = 0
    are_per_text: bool = True


@dataclass(slots=True, kw_only=True)
class LengthCounts:
    """Texts seen so far: how many, how many have the longest possible length, and that length."""

    seen: int = 0
    longest: int = 0
    limit: int = 0


@dataclass(slots=True, kw_only=True)
class TextInputs:
    """The hooks on the networks for text within a model, and what they have seen.

    Attributes:
        report: called with the kind, the name of a tensor and the message of a fault as soon as a batch shows it.
        max_length: the number of tokens at which the tokenizer cuts a text, or None if only the network limits it.
        hooks: removes the hooks when it is closed.
    """

    report: Reporter
    max_length: int | None = None
    hooks: ExitStack = field(default_factory=ExitStack)
    labels: LabelCounts = field(default_factory=LabelCounts)
    lengths: LengthCounts = field(default_factory=LengthCounts)

    def attach(self, model: nn.Module) -> None:
        """Watch every network within a model that takes ``input_ids``, and its embeddings."""
        for name, network in find_text_networks(model).items():
            hook = partial(self._before_forward, name)
            self.hooks.callback(network.register_forward_pre_hook(hook, with_kwargs=True).remove)
            for layer_name, layer in user_model.named_modules(network).items():
                if type(layer) is nn.Embedding:
                    full_name = ".".join(filter(None, (name, layer_name, "weight")))
                    self.hooks.callback(layer.register_forward_pre_hook(partial(self._before_embedding, full_name)).remove)

    def explain_labels(self, *, is_last_step: bool) -> diagnosis.Message | None:
        """Return an explanation if all labels are ignored.

        Labels of texts are decided after each step, and those of tokens after the last watched step, because the loss may use
        no token of a short batch.
        """
        labels = self.labels
        is_broken = labels.seen and not labels.used and (labels.are_per_text or is_last_step)
        return diagnosis.explain_ignored_labels(labels.seen) if is_broken else None

    def explain_lengths(self) -> diagnosis.Message | None:
        """Return an explanation if all texts have the longest possible length."""
        lengths = self.lengths
        is_broken = lengths.seen >= MIN_TEXTS and lengths.longest == lengths.seen
        return diagnosis.explain_cut_texts(lengths.seen, lengths.limit) if is_broken else None

    def _before_forward(self, name: str, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        inputs = named_arguments(network, args, kwargs)
        ids, mask, labels = (inputs.get(key) for key in ("input_ids", "attention_mask", "labels"))
        if not (isinstance(ids, Tensor) and ids.ndim == 2 and _has_integers(ids)):
            return
        mask = mask if isinstance(mask, Tensor) and mask.shape == ids.shape else None
        has_other_mask = inputs.get("attention_mask") is not None and mask is None
        padding = find_padding(ids, network)
        if padding is not None and not has_other_mask:
            self._check_mask(".".join(filter(None, (name, "input_ids"))), network, padding, mask)
        if not (isinstance(labels, Tensor) and _has_integers(labels)):
            return
        self._count_labels(labels)
        if labels.shape == ids.shape[:1]:  # a chunk of a longer text is cut on purpose, but has labels of tokens
            hidden = mask == 0 if mask is not None else padding
            self._count_lengths(network, torch.ones_like(ids, dtype=torch.bool) if hidden is None else ~hidden)

    def _check_mask(self, tensor: str, network: nn.Module, padding: Tensor, mask: Tensor | None) -> None:
        """Report padding that the attention sees. A decoder's tokens cannot see padding that follows them."""
        if "attention_mask" not in argument_names(network) or "lengths" in argument_names(network):
            return
        visible = padding if mask is None else padding & (mask != 0)
        direction = attention_direction(network)
        if direction == "causal":
            visible = visible.long().cumprod(1)
        elif direction != "both" or has_shared_padding(network):
            return
        count = int(visible.sum())
        if count:
            message = diagnosis.explain_visible_padding(count, visible.numel(), has_mask=mask is not None)
            self.report("padding-visible", tensor, message)

    def _count_labels(self, labels: Tensor) -> None:
        self.labels.seen += labels.numel()
        self.labels.used += int((labels != IGNORED_LABEL).sum())
        self.labels.are_per_text &= labels.ndim == 1

    def _count_lengths(self, network: nn.Module, visible: Tensor) -> None:
        limits = [limit for limit in (self.max_length, position_limit(network)) if limit]
        if limits:
            self.lengths.limit = min(limits)
            self.lengths.seen += len(visible)
            self.lengths.longest += int((visible.sum(1) >= self.lengths.limit).sum())

    def _before_embedding(self, name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        """Report an id without a row. The lookup fails after this: on a GPU without naming the layer."""
        if torch.compiler.is_compiling() or not (args and isinstance(args[0], Tensor) and _has_integers(args[0])):
            return
        ids, rows = args[0], len(layer.weight) if layer.weight.ndim == 2 else 0
        if not rows:  # of a weight that FSDP or ZeRO has flattened or emptied
            return
        lowest, highest = (int(value) for value in ids.aminmax())
        if highest >= rows or lowest < 0:
            self.report("id-outside", name, diagnosis.explain_id_outside(highest if highest >= rows else lowest, rows))


def find_text_networks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost modules whose forward pass takes ``input_ids``, by name."""
    networks: dict[str, nn.Module] = {}
    for name, module in user_model.named_modules(model).items():
        is_inner = any(not outer or name.startswith(f"{outer}.") for outer in networks)
        if not is_inner and "input_ids" in argument_names(module):
            networks[name] = module
    return networks


def find_padding(ids: Tensor, network: nn.Module) -> Tensor | None:
    """Return which ids are padding, a mask of the shape of ``ids`` [texts, tokens]; None if the padding id is not known.

    Padding is two or more padding ids at the beginning or at the end of a text that has other ids too.
    """
    pad = getattr(text_config(network), "pad_token_id", None)
    if type(pad) is not int:
        return None
    is_pad = ids == pad
    runs = (is_pad.long().cumprod(1), is_pad.flip(1).long().cumprod(1).flip(1))
    padding = torch.stack([(run > 0) & (run.sum(1, keepdim=True) >= MIN_PADDING) for run in runs]).any(0)
    return padding & ~is_pad.all(1, keepdim=True)


def text_config(network: nn.Module) -> Any:
    """Return the configuration of a network, or of the first network of transformers within it, or None."""
    configs = (getattr(module, "config", None) for module in network.modules())
    return next((config for config in configs if hasattr(config, "pad_token_id")), None)


def has_shared_padding(network: nn.Module) -> bool:
    """Check whether the padding id is also that of another token, such as the one that ends a text."""
    config = text_config(network)
    names = ("bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id", "cls_token_id")
    others = [getattr(config, name, None) for name in names]
    return any(config.pad_token_id in (other if isinstance(other, list) else [other]) for other in others)


def attention_direction(network: nn.Module) -> str:
    """Return ``both`` if every token of a network sees all others, ``causal`` if it sees the earlier ones, or ""."""
    if getattr(text_config(network), "is_encoder_decoder", False):
        return "both"
    flags = {flag for module in network.modules() if isinstance(flag := getattr(module, "is_causal", None), bool)}
    return {frozenset({True}): "causal", frozenset({False}): "both"}.get(frozenset(flags), "")


def position_limit(network: nn.Module) -> int | None:
    """Return the number of tokens for which a network has embeddings of positions, or None.

    Networks like RoBERTa count positions from the row after their padding.
    """
    for name, layer in network.named_modules():
        if type(layer) is nn.Embedding and name.endswith(("position_embeddings", "wpe", "embed_positions")):
            return int(layer.num_embeddings) - (0 if layer.padding_idx is None else layer.padding_idx + 1)
    return None


def _has_integers(tensor: Tensor) -> bool:
    """Check that a tensor has whole numbers to read."""
    return tensor.numel() > 0 and not tensor.is_meta and not tensor.is_floating_point() and not tensor.is_complex()
