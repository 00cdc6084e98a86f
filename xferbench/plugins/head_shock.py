"""A fresh head whose gradients wreck good features in the first steps.

Symptom
    Fine-tuning everything from a random head ends below a linear probe of the same backbone, or dips before it recovers.

Cause
    The gradient that reaches the backbone passes through the head's weights. While these are random it is large and says
    nothing: features move far before the head has learnt what they are good for.

Remedy
    Train the head alone first. A head of zeros sends nothing back at the first step and helps less; warm-up was not seen to
    help. The dip often recovers: the final accuracy is judged, the dip only reported.

How it is cured
    Half of the steps up to the end of the first phase that moves the backbone train the head alone at a rate of 0.01, with
    BatchNorm in evaluation mode; the rest goes on as it was. The number of steps stays the same. A recipe that begins so (at a
    rate of 0.001 or more, for a quarter of the next phase's steps or more) is not exposed.

How it is induced
    ``random-head``: all layers from the first step on, at the rate and with the BatchNorm with which the recipe trains the
    backbone (of one that never does, at 0.001).

Measured beside it
    ``shock``: the norm of the backbone's gradient at the start, over that with a head that was fitted to the same images.
    ``dip``: how far the subject's validation accuracy lies below the cured one's at the first checkpoint.

References
    Kumar et al. 2022, Fine-tuning can distort pretrained features (arXiv:2202.10054); Ren et al. 2023, How to prepare your
    task head for finetuning (arXiv:2302.05779).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.design import HARM, Facts, Pipeline, Plugin, Recipe
from xferbench.strategies import HEAD_LR, begins_with_probe, deep, moving

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.lab.viewed import Seen
    from xferbench.record import Record

SHOCKED, CHUNK = 64, 16  # images on which gradients are taken, and at once


def applies(pipeline: Pipeline, _: Facts) -> str:
    if pipeline.recipe.init != "pretrained":
        return "nothing pretrained is adapted"
    short = probed_first(pipeline.recipe) == pipeline.recipe and not _untouched(pipeline.recipe)
    return "a single step leaves none for the head alone" if short else ""


def _untouched(recipe: Recipe) -> bool:
    """Whether no gradient of a fresh head reaches the backbone: it never trains, or the head has had its time before."""
    return begins_with_probe(recipe) or all(phase.trainable == "head" for phase in recipe.phases)


def probed_first(recipe: Recipe) -> Recipe:
    """Half of the steps up to the end of the first phase that moves the backbone, for the head alone."""
    at = next((at for at, phase in enumerate(recipe.phases) if phase.trainable != "head"), None)
    if at is None or begins_with_probe(recipe):
        return recipe
    first, steps = recipe.phases[at], sum(phase.steps for phase in recipe.phases[: at + 1])
    if steps < 2:
        return recipe
    probe = replace(first, trainable="head", batchnorm="eval", lr=HEAD_LR, head_lr=None, warmup=0, steps=steps // 2)
    left = steps - probe.steps
    after = replace(first, steps=left, warmup=min(first.warmup, left - 1))
    return replace(recipe, phases=(probe, after, *recipe.phases[at + 1 :]))


def cure(pipeline: Pipeline, _: Facts) -> Pipeline:
    return replace(pipeline, recipe=probed_first(pipeline.recipe))


def induce(pipeline: Pipeline, _: Facts) -> Mapping[str, Pipeline]:
    phase = replace(moving(pipeline.recipe), trainable="all", head_lr=None)
    head = pipeline.recipe.head if deep(pipeline.recipe.head) else "random"
    recipe = replace(pipeline.recipe, head=head, phases=(phase,), name="random head")
    return {"random-head": replace(pipeline, recipe=recipe)}


def shock(seen: Seen) -> dict[str, float]:
    """Norm of the backbone's gradient at the start, over the same with a head fitted to the same images."""
    import torch
    from torch.func import functional_call
    from torch.nn import functional as F

    from xferbench.lab import backbones, features, heads, penultimate, preprocess

    network, prefix = seen.network, [seen.network.anatomy.head]
    start = {name: tensor.to(network.device) for name, tensor in seen.before.items()}
    x = penultimate.head_inputs(network, start, seen.images, seen.prepared)
    weight, bias = penultimate.fitted(x, seen.labels, network.anatomy.classes)
    own = {name: tensor for name, tensor in start.items() if backbones.within(name, prefix)}
    below = {name: tensor for name, tensor in start.items() if name not in own}
    plain = heads.plain(network.module, network.anatomy)
    shapes = {name: tensor.shape for name, tensor in plain.named_parameters() if backbones.within(name, prefix)}
    probed = {name: (weight if name.endswith("weight") else bias).reshape(shape) for name, shape in shapes.items()}
    probed = {name: tensor.to(network.device, torch.float32) for name, tensor in probed.items()}
    images, labels = seen.images[:SHOCKED].to(network.device), seen.labels[:SHOCKED].to(network.device)

    def norm(module: torch.nn.Module, head: Mapping[str, torch.Tensor]) -> float:
        names = (name for name, _ in module.named_parameters() if name in below)
        body = {name: below[name].clone().requires_grad_() for name in names}
        with features.inference(module, network.device), torch.enable_grad():
            for x, y in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
                made = preprocess.tensor(x, seen.prepared)
                logits = functional_call(module, {**below, **head, **body}, (made,)).float()
                F.cross_entropy(logits, y, reduction="sum").backward()
        total = sum(float(tensor.grad.square().sum()) for tensor in body.values() if tensor.grad is not None)
        return float(total**0.5) / len(labels)

    return {"shock": norm(network.module, own) / max(norm(plain, probed), 1e-12)}


def dip(answers: Mapping[tuple[str, str, int], Record], seeds: Sequence[int]) -> dict[str, float]:
    """Mean over seeds of cured − subject in validation accuracy at the first checkpoint."""
    firsts = [tuple(answers[arm, "test", seed].curve[0][2] for arm in ("cured", "subject")) for seed in seeds]
    return {"dip": sum(cured - subject for cured, subject in firsts) / len(firsts)}


plugin = Plugin(
    id="head-shock",
    version=1,
    question="Do the fresh head's first gradients wreck the features?",
    page=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(HARM,),
    measures={"shock": "xferbench.plugins.head_shock:shock@2"},
    derived=dip,
    remedy="train the head alone first, then the rest",
)
