"""Explains why a frozen tensor moved, or why a trainable one did not. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Message: TypeAlias = tuple[str, str]  # the cause, and what to do


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterState:
    """The observable state of a parameter.

    Attributes:
        requires_grad: the flag of the tensor.
        flagged_module: the module on which the opposite of the flag was set as a plain attribute, or "".
        in_optimizer: whether the optimizer holds the tensor.
        lr: the learning rate of its group.
        weight_decay: the weight decay of its group.
        gradient_norm: the norm of its gradient, or None if it has none.
        decay_factor: the one factor by which all its values were multiplied, or None.
        written_between_steps: whether a write was seen between two steps of the optimizer.
        written_in_step: whether a write was seen inside a step.
        narrow_dtype: its dtype if that has at most 16 bits, or "".
    """

    requires_grad: bool
    flagged_module: str = ""
    in_optimizer: bool = False
    lr: float = 0.0
    weight_decay: float = 0.0
    gradient_norm: float | None = None
    decay_factor: float | None = None
    written_between_steps: bool = False
    written_in_step: bool = False
    narrow_dtype: str = ""


LIMIT_OPTIMIZER_ADVICE = "pass only the trainable tensors to the optimizer"
OTHER_CODE_CAUSE = (
    "moved by other code than this optimizer (load_state_dict, copy_, an average of weights, a second optimizer)",
    "find the code that writes to it between two steps",
)


def explain_frozen(state: ParameterState) -> Message:
    """Explain why a frozen parameter moved."""
    written_outside = state.written_between_steps and not state.written_in_step
    if not state.in_optimizer or (written_outside and state.gradient_norm is None):
        return OTHER_CODE_CAUSE
    if state.requires_grad and state.flagged_module:
        module = state.flagged_module
        cause = f"{module}.requires_grad = False sets an attribute of the module; the flag of the tensor itself is still True"
        return f"{cause}, and the optimizer holds it", f"call {module}.requires_grad_(False)"
    if state.requires_grad:
        return (
            "its requires_grad is still True and the optimizer holds it",
            f"call requires_grad_(False) on it, and {LIMIT_OPTIMIZER_ADVICE}",
        )
    if state.weight_decay and state.decay_factor is not None:
        cause = f"weight decay of {state.weight_decay:g}: the optimizer holds it, and shrinks it although it does not train"
        return cause, f"{LIMIT_OPTIMIZER_ADVICE}; zero_grad(set_to_none=True) makes torch's own optimizers skip it"
    if state.gradient_norm is not None:
        cause = "the optimizer holds it with a gradient from before it was frozen, so momentum or weight decay still moves it"
        return cause, f"set its grad to None when you freeze it, and {LIMIT_OPTIMIZER_ADVICE}"
    decay = f", with weight decay of {state.weight_decay:g}" if state.weight_decay else ""
    return f"the optimizer holds it{decay}, and moves it without a gradient", LIMIT_OPTIMIZER_ADVICE


def explain_buffer(*, is_training: bool, has_counted: bool) -> Message:
    """Explain why frozen running statistics moved.

    Args:
        is_training: whether the layer is in training mode now.
        has_counted: whether the layer has counted batches since it was frozen.
    """
    if is_training or has_counted:
        verb = "is" if is_training else "ran"
        cause = f"its layer {verb} in training mode: requires_grad_(False) does not stop running statistics"
        return f"{cause}, and model.train() undoes .eval()", "call .eval() on the frozen layers after every model.train()"
    return "written by other code while in evaluation mode (load_state_dict, copy_)", "find the code that writes to it"


def explain_missing(foreign: int, total: int) -> Message:
    """Explain why the optimizer does not hold a trainable tensor.

    Args:
        foreign: how many tensors in the optimizer do not belong to the model.
        total: how many tensors the optimizer holds.
    """
    if foreign:
        cause = f"the optimizer does not hold it: {foreign} of its {total} tensors do not belong to this model"
        return cause, "build the optimizer from this model, after copying it and after replacing modules"
    cause = (
        f"the optimizer does not hold it, although it should train: it was built from {total} others, before this was unfrozen"
    )
    return cause, "call optimizer.add_param_group({'params': [...]}) when you unfreeze it, or build the optimizer afterwards"


def explain_size(attribute: str, stated: int, rows: int) -> Message:
    """Explain that the size that a layer states is not that of its weight.

    Args:
        attribute: the name of the attribute with the size.
        stated: its value.
        rows: the number of rows of the weight, which is the number of outputs.
    """
    cause = f"its layer has {rows} outputs, although {attribute} is {stated}: assigning {attribute} does not change the weight"
    return cause, "replace the layer by a new one of the right size, and give that to the optimizer"


def explain_momentum(momentum: float) -> Message:
    """Explain why running statistics with such a momentum do not describe the training images."""
    if momentum == 0:
        cause = "its momentum is 0: training uses the statistics of each batch, and evaluation those from before the training"
        return cause, "set momentum to 0.1, the default; or call .eval() on the layer after every model.train()"
    cause = f"its momentum is {momentum:g}: evaluation uses little more than the statistics of the last batch"
    return cause, "set momentum to 0.1, the default; the momentum of Keras is 1 minus that of torch"


def explain_still(state: ParameterState) -> Message | None:
    """Explain why a trainable parameter did not move. Return None if that is no fault."""
    if not state.requires_grad:
        return _explain_flag(state.flagged_module)
    if state.gradient_norm is None:
        cause = "no gradient reaches it: the loss does not depend on it, or it lies behind detach() or no_grad()"
        return cause, "let the loss depend on it, or freeze it"
    if not state.lr:
        return "its learning rate is 0", "set a learning rate for its group, or freeze it"
    if not state.gradient_norm:
        return "its gradient is zero", "look for zero weights above it, or units that are never active"
    if state.narrow_dtype:
        cause = f"its updates are lost in rounding to {state.narrow_dtype}"
        return cause, "keep the weights in float32 (use autocast for the computation only)"
    # In float32, a gradient of rounding noise moves nothing, for example at a bias below BatchNorm. That is no fault.
    return None


def _explain_flag(module: str) -> Message:
    if not module:
        return "it should train, but its requires_grad is False", "call requires_grad_(True) on it before the first step"
    cause = f"{module}.requires_grad = True sets an attribute of the module; the flag of the tensor itself is still False"
    return cause, f"call {module}.requires_grad_(True) before the first step"


def explain_visible_padding(count: int, total: int, *, has_mask: bool) -> Message:
    """Explain that the attention sees padding.

    Args:
        count: the number of visible padding tokens of a batch.
        total: the number of its tokens.
        has_mask: whether the model received an attention mask.
    """
    missing = "its attention mask is 1 there" if has_mask else "the model received no attention_mask"
    cause = f"{count} of the {total} tokens of a batch are padding that other tokens see: {missing}"
    return cause, "pass the attention_mask of the tokenizer to the model, in training and in serving"


def explain_ignored_labels(count: int) -> Message:
    """Explain that the loss uses no label.

    Args:
        count: the number of labels.
    """
    cause = f"all {count} labels so far are -100, which the loss ignores: nothing is learned from them"
    return cause, "check the column of labels, and how the collator masks prompts and truncates texts"


def explain_cut_texts(count: int, limit: int) -> Message:
    """Explain that every text has the longest possible length.

    Args:
        count: the number of texts.
        limit: that length in tokens.
    """
    cause = f"all {count} texts so far fill {limit} tokens, the most that are possible, so their ends seem to be cut off"
    return cause, "raise max_length, split the texts, or choose which part of a text is kept (truncation_side)"


def explain_id_outside(value: int, rows: int) -> Message:
    """Explain that an embedding has no row for an id.

    Args:
        value: the id.
        rows: the number of rows of the embedding.
    """
    cause = f"it is looked up at {value}, but has {rows} rows"
    do = "use the tokenizer of this network; after adding tokens call resize_token_embeddings(len(tokenizer)); for positions, "
    return cause, f"{do}truncate texts to {rows} tokens"
