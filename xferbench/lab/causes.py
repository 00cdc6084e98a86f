"""Why a tensor moved that should not have, or did not that should: from what can be seen of it, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Told: TypeAlias = tuple[str, str]  # the cause, and what to do


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is seen of a parameter.

    Attributes:
        learnt: its ``requires_grad``; marked: the module on which ``requires_grad = False`` was set as a plain attribute.
        held: whether the optimizer holds it, with rate ``lr`` and weight ``decay``.
        gradient: the norm of its gradient, None where it has none.
        shrunk: the one factor by which its values were multiplied, if there is one.
        outside: whether it was seen to be written between two steps of the optimizer; inside: within one.
        narrow: its type, where that has 16 bits or fewer.
    """

    learnt: bool
    marked: str = ""
    held: bool = False
    lr: float = 0.0
    decay: float = 0.0
    gradient: float | None = None
    shrunk: float | None = None
    outside: bool = False
    inside: bool = False
    narrow: str = ""


OUT = "give the optimizer only what is to train"
OTHER = (
    "moved by other code than this optimizer (load_state_dict, copy_, an average of weights, a second optimizer)",
    "look for what writes to it between two steps",
)


def frozen(case: Case) -> Told:
    """Why a frozen parameter moved."""
    if not case.held or (case.outside and not case.inside and case.gradient is None):
        return OTHER
    if case.learnt and case.marked:
        told = f"{case.marked}.requires_grad = False sets an attribute of the module; the tensor's own is still True"
        return f"{told}, and the optimizer holds it", f"call {case.marked}.requires_grad_(False)"
    if case.learnt:
        return "its requires_grad is still True and the optimizer holds it", f"call requires_grad_(False) on it, and {OUT}"
    if case.decay and case.shrunk is not None:
        told = f"weight decay of {case.decay:g}: the optimizer holds it, and shrinks it though it learns nothing"
        return told, f"{OUT}; zero_grad(set_to_none=True) lets torch's own optimizers pass it over"
    if case.gradient is not None:
        told = "the optimizer holds it with a gradient from before it was frozen, so that momentum or decay go on moving it"
        return told, f"set its grad to None when it is frozen, and {OUT}"
    decay = f", with weight decay of {case.decay:g}" if case.decay else ""
    return f"the optimizer holds it{decay}, and moves it without a gradient", OUT


def buffer(*, training: bool, counted: bool) -> Told:
    """Why frozen running statistics moved: of a layer in training mode now, or that has counted batches since, or neither."""
    if training or counted:
        told = (
            f"its layer {'is' if training else 'ran'} in training mode: requires_grad_(False) does not stop running statistics"
        )
        return f"{told}, and model.train() undoes .eval()", "call .eval() on the frozen layers after every model.train()"
    return "written by other code while in evaluation mode (load_state_dict, copy_)", "look for what writes to it"


def missing(strangers: int, held: int) -> Told:
    """Why the optimizer does not hold what is trainable, given how many tensors it holds that are not the model's."""
    if strangers:
        told = f"the optimizer does not hold it: {strangers} of its {held} tensors are not this model's"
        return told, "build the optimizer from this very model, after it was copied and after modules were replaced"
    told = f"the optimizer does not hold it, though it is to train: it was built from {held} others, before this was unfrozen"
    return told, "optimizer.add_param_group({'params': [...]}) at the unfreezing, or build the optimizer after it"


def still(case: Case) -> Told | None:
    """Why a parameter did not move that is to train; None where that means nothing."""
    if not case.learnt:
        return "it is to train, but its requires_grad is False", "call requires_grad_(True) on it before the first step"
    if case.gradient is None:
        told = "no gradient reaches it: it plays no part in the loss, or lies behind detach() or no_grad()"
        return told, "let the loss depend on it, or freeze it"
    if not case.lr:
        return "its learning rate is 0", "give its group a rate, or freeze it"
    if not case.gradient:
        return "its gradient is zero", "look for zero weights above it, or units that are never active"
    if case.narrow:
        told = f"its updates are lost in rounding to {case.narrow}"
        return told, "keep the weights in float32 (autocast the computation alone)"
    return None  # in float32 a gradient of rounding noise, as of a bias below BatchNorm, moves nothing: no fault
