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
    The first half of the first phase's steps train the head alone at a rate of 0.01, with BatchNorm in evaluation mode; the
    rest goes on as it was. The number of steps stays the same.

How it is induced
    ``random-head``: all layers from the first step on, at the rate at which the recipe trains the backbone (0.001 for one
    that never does).

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
from xferbench.strategies import HEAD_LR, moving

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.lab.viewed import Seen
    from xferbench.record import Record


def applies(pipeline: Pipeline, _: Facts) -> str:
    if pipeline.recipe.init != "pretrained":
        return "nothing pretrained is adapted"
    first = pipeline.recipe.phases[0]
    return "a single step leaves none for the head alone" if first.trainable != "head" and first.steps < 2 else ""


def probed_first(recipe: Recipe) -> Recipe:
    """Half of the first phase's steps for the head alone; a recipe that begins so already stays as it is."""
    first, *rest = recipe.phases
    if first.trainable == "head":
        return recipe
    probe = replace(first, trainable="head", batchnorm="eval", lr=HEAD_LR, head_lr=None, warmup=0, steps=first.steps // 2)
    left = first.steps - probe.steps
    return replace(recipe, phases=(probe, replace(first, steps=left, warmup=min(first.warmup, left - 1)), *rest))


def cure(pipeline: Pipeline, _: Facts) -> Pipeline:
    return replace(pipeline, recipe=probed_first(pipeline.recipe))


def induce(pipeline: Pipeline, _: Facts) -> Mapping[str, Pipeline]:
    whole = replace(moving(pipeline.recipe), trainable="all", batchnorm="train", layer_decay=1.0)
    recipe = replace(pipeline.recipe, head="random", phases=(replace(whole, head_lr=None),), name="random head")
    return {"random-head": replace(pipeline, recipe=recipe)}


def shock(seen: Seen) -> dict[str, float]:
    """Norm of the backbone's gradient at the start, over the same with a head fitted to the same images."""
    import torch
    from torch.func import functional_call
    from torch.nn import functional as F

    from xferbench.lab import backbones, features, penultimate, preprocess

    network, prefix = seen.network, [seen.network.anatomy.head]
    start = {name: tensor.to(network.device) for name, tensor in seen.before.items()}
    x = penultimate.head_inputs(network, start, seen.images, seen.prepared)
    weight, bias = penultimate.fitted(x, seen.labels, network.anatomy.classes)
    shapes = {name: tensor for name, tensor in start.items() if backbones.within(name, prefix)}
    probed = {name: (weight if name.endswith("weight") else bias).reshape(old.shape).to(old) for name, old in shapes.items()}
    images, labels = preprocess.tensor(seen.images.to(network.device), seen.prepared), seen.labels.to(network.device)

    def norm(head: Mapping[str, torch.Tensor]) -> float:
        body = {
            name: start[name].clone().requires_grad_()
            for name, _ in network.module.named_parameters()
            if not backbones.within(name, prefix)
        }
        with features.inference(network.module, network.device), torch.enable_grad():
            loss = F.cross_entropy(functional_call(network.module, {**start, **head, **body}, (images,)).float(), labels)
            gradients = torch.autograd.grad(loss, list(body.values()), allow_unused=True)
        return float(sum(gradient.square().sum() for gradient in gradients if gradient is not None) ** 0.5)

    return {"shock": norm(shapes) / max(norm(probed), 1e-12)}


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
    measures={"shock": "xferbench.plugins.head_shock:shock@1"},
    derived=dip,
    remedy="train the head alone first, then the rest",
)
