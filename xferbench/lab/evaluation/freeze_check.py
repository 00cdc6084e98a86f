"""The freeze check: compares the tensors that moved with the recipe, and names the likeliest cause. Imports torch.

It returns numbers and no verdict. The part of a number's name before the slash says what it means; see :func:`check_freeze`.
"""

from __future__ import annotations

from functools import partial
from math import inf, isfinite, isnan, sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call

from xferbench.core.interventions import HEAD_ONLY
from xferbench.lab.data import preprocessing
from xferbench.lab.evaluation import edits
from xferbench.lab.models import backbones, batchnorm, heads
from xferbench.lab.training import expected_changes, feature_cache

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xferbench.core.pipeline import Recipe
    from xferbench.lab.evaluation.context import MeasureContext
    from xferbench.lab.training.network import Architecture, Tensors

HALF_DTYPES = (torch.bfloat16, torch.float16)  # float16 represents usual values of bfloat16 exactly, so bfloat16 comes first
MIN_STEPS = 3  # steps: in fewer, a head or a scale of zeros may block all gradients
CHANCE_SIGMAS = 4.0  # standard deviations of the correlation of independent tensors
MAX_CHANCE_CORRELATION = 0.2  # upper bound of the correlation of independent tensors
MIN_GROUP_VALUES = 1000  # a smaller layer group is reported only if all groups are uncorrelated
GROWTH_FACTOR = 2.0  # growth of a weight norm above which training explains that the weights are uncorrelated
MIN_UNIFORM_VALUES = 1000  # fewer weights of a head are not compared with the uniform distribution
HALF_PRECISION = 2.0**-8  # relative rounding of bfloat16
KOLMOGOROV_QUANTILE = 1.63  # √n times the distance from a continuous distribution exceeds it with a probability of 1 %
FAINT_GRADIENT = 1e-4  # gradient, as a share of the largest one
LARGE_FACTOR = 100.0  # change of a norm above which it is reported
PROBE_IMAGES = 32  # images used for gradients


def expected_names(network: Architecture, recipe: Recipe) -> tuple[set[str], set[str]]:
    """Return the names of the tensors that a recipe may move, and of those that it must move.

    A recipe without phases says only that a head was trained. If the best step is kept, only what the first phase trains must
    have moved.

    Raises:
        UserError: if the network has fewer layer groups than the recipe requires.
    """
    module, layout = network.module, network.layout
    trainable_names = partial(backbones.trainable_names, layout, module)
    statistics, buffers = batchnorm.statistics_names(module), {name for name, _ in module.named_buffers()}
    if not recipe.phases:
        return buffers.union(name for name, _ in module.named_parameters()), trainable_names(HEAD_ONLY)
    parts = [(layout.head,), *(group.prefixes for group in layout.groups)]
    changes = expected_changes.changes_by_phase(recipe.phases, trainable_names, parts)
    may: set[str] = set()
    for change in changes:
        may |= change.trainable
        may |= {name for name in statistics if backbones.is_within(name, change.statistics or ())}
        may |= {name for name in buffers - statistics if backbones.is_within(name, change.buffers)}
    kept = changes[:1] if recipe.stop == "best" else changes
    must = [change.trainable for change, phase in zip(kept, recipe.phases, strict=False) if phase.steps >= MIN_STEPS]
    return may, set().union(*must)


def check_freeze(context: MeasureContext) -> dict[str, float]:
    """Compare the tensors before and after training with the recipe.

    Returns:
        Numbers by name, where ``T`` is a tensor and ``G`` a layer group:

        - ``violations``: the number of violations, which are the ``frozen-moved``, ``buffer-moved``, ``never-moved`` and
          ``not-loaded`` entries. If no group was loaded, all groups count as one violation.
        - ``frozen/T`` and ``trained/T``: the relative change ‖after − before‖ / ‖before‖ of each tensor that the recipe
          freezes or trains. Without a recipe, the name is ``moved/T``.
        - ``frozen-moved/T`` and ``buffer-moved/T``: a frozen tensor that moved.
        - ``never-moved/T``: a trainable tensor that did not move although it has a gradient.
        - ``not-loaded/G``: a layer group whose weights are uncorrelated with those before.
        - ``cause/…``: the likeliest cause.
        - ``odd/…``: an anomaly that is no violation.
    """
    network, recipe = context.network, context.expected_training
    may, must = expected_names(network, recipe)
    after = {name: tensor.cpu() for name, tensor in context.after.items()}
    before = {name: tensor.cpu() for name, tensor in context.before.items() if name in after}
    parameters = {name for name, _ in network.module.named_parameters()}
    compared = [name for name in after if name in before and not name.endswith(batchnorm.BATCH_COUNTER)]
    moved = {name for name in compared if not is_same(before[name], after[name])}

    not_loaded = uncorrelated_groups(context, before, after)
    none_loaded = bool(not_loaded) and len(not_loaded) == len(weights_by_group(network, before))
    prefixes = [prefix for group in network.layout.groups if group.name in not_loaded for prefix in group.prefixes]
    moved_by_training = {name for name in moved if not backbones.is_within(name, prefixes)}
    unexpected = moved_by_training - may
    unmoved, reachable = unmoved_tensors(context, must, before, after)

    expectation = {name: "trained" if name in may else "frozen" for name in compared} if recipe.phases else {}
    causes = ["not-loaded" if none_loaded else "partly-loaded"] * bool(not_loaded)
    causes += explain_buffers(network, before, after, unexpected - parameters)
    causes += explain_moved(context, may, before, after, unexpected & parameters)
    causes += explain_unmoved(network, reachable, unmoved)
    marks = {
        "frozen-moved": [name for name in after if name in unexpected & parameters],
        "buffer-moved": [name for name in after if name in unexpected - parameters],
        "never-moved": [name for name in after if name in unmoved],
        "not-loaded": not_loaded,
        "cause": causes,
    }
    return {
        "violations": float(len(unexpected) + len(unmoved) + (1 if none_loaded else len(not_loaded))),
        **{
            f"{expectation.get(name, 'moved')}/{name}": relative_change(before[name], after[name]) if name in moved else 0.0
            for name in compared
        },
        **{f"{kind}/{name}": 1.0 for kind, names in marks.items() for name in names},
        **find_anomalies(before, after, moved_by_training),
    }


def is_same(before: Tensor, after: Tensor) -> bool:
    """Check whether a tensor is unchanged, up to a conversion to half precision and back."""
    if torch.equal(before, after):
        return True
    return before.is_floating_point() and any(torch.equal(before.to(half).to(after.dtype), after) for half in HALF_DTYPES)


def relative_change(before: Tensor, after: Tensor) -> float:
    """Compute the relative change ‖after − before‖ / ‖before‖.

    Returns:
        The relative change; the root mean square of ``after`` if ``before`` is all zeros; infinity if it is not a number.
    """
    old, new = before.double(), after.double()
    norm = float(old.norm()) or old.numel() ** 0.5
    value = float((new - old).norm()) / norm
    return inf if isnan(value) else value


def weights_by_group(network: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the names of the weight matrices and kernels of each layer group that has any."""
    parameters = [name for name, _ in network.module.named_parameters() if not backbones.is_added(name)]
    weights = [name for name in parameters if name in tensors and tensors[name].ndim > 1]
    by_group = {
        group.name: [name for name in weights if backbones.is_within(name, group.prefixes)] for group in network.layout.groups
    }
    return {group: names for group, names in by_group.items() if names}


def uncorrelated_groups(context: MeasureContext, before: Tensors, after: Tensors) -> list[str]:
    """Return the layer groups most of whose weights are uncorrelated with those before, as if randomly initialized again.

    The correlation of independent tensors is 0 ± 1/√n. A group is not returned if its weights have grown, because training at
    too high a rate explains that. Groups of few values are returned only if all groups are uncorrelated.
    """
    groups = weights_by_group(context.network, before)
    uncorrelated = [
        group
        for group, names in groups.items()
        if 2 * sum(_is_uncorrelated(before[name], after[name]) for name in names) > len(names)
        and not any(is_same(before[name], after[name]) for name in names)
    ]
    if uncorrelated and context.build_random is not None:
        initial_norms = {name: float(tensor.detach().norm()) for name, tensor in context.build_random().named_parameters()}

        def has_grown(name: str) -> bool:
            return bool(after[name].norm() > GROWTH_FACTOR * max(float(before[name].norm()), initial_norms[name]))

        uncorrelated = [group for group in uncorrelated if 2 * sum(map(has_grown, groups[group])) < len(groups[group])]
    large = [group for group in uncorrelated if sum(before[name].numel() for name in groups[group]) > MIN_GROUP_VALUES]
    return uncorrelated if len(uncorrelated) == len(groups) else large


def _is_uncorrelated(before: Tensor, after: Tensor) -> bool:
    """Check whether the correlation is that of independent tensors; False for a tensor that is constant or not finite."""
    pair = torch.stack([before.flatten().double(), after.flatten().double()])
    correlation = abs(float(torch.corrcoef(pair)[0, 1]))
    return correlation < min(MAX_CHANCE_CORRELATION, CHANCE_SIGMAS / sqrt(before.numel()))


def unmoved_tensors(context: MeasureContext, must: set[str], before: Tensors, after: Tensors) -> tuple[set[str], set[str]]:
    """Return the tensors that did not move although they must, and all that must move, among those that a gradient reaches.

    No optimizer moves a tensor that the output does not depend on. A faint gradient may be lost in rounding, so nothing counts
    as unmoved if all gradients of the unmoved tensors are faint. If a tensor has no counterpart before training, as a new head,
    its values tell whether it was trained.
    """
    unmoved = {name for name in must & before.keys() if is_same(before[name], after[name])}
    unmoved |= untrained_head(context) if must - before.keys() else set()
    if not unmoved:
        return set(), set()
    shares = gradient_shares(context, must)
    reachable = {name for name, share in shares.items() if share}
    is_certain = any(shares[name] > FAINT_GRADIENT for name in unmoved)
    return unmoved & reachable if is_certain else set(), reachable


def untrained_head(context: MeasureContext) -> set[str]:
    """Return the names of the head's tensors if the head looks untrained, else an empty set.

    A head looks untrained if its weights have the uniform distribution of initial weights in PyTorch. Training, unless it is
    minute, moves some of many weights beyond the limits of this distribution. A head also looks untrained if its weights have
    the standard deviation and the range of initial weights, and it predicts no better than the majority class.
    """
    assert context.build_random is not None, "the caller compares heads only if it can build a fresh one"
    head = context.network.layout.head
    name = f"{heads.last_layer(context.network.module, head)}.weight"
    initial, weight = dict(context.build_random().named_parameters())[name].detach(), context.after[name].cpu()
    if is_initial_uniform(weight):
        return {tensor for tensor in context.after if backbones.is_within(tensor, [head])}
    spread = float(weight.std() / initial.std().clamp_min(1e-12))
    is_like_initial = 0.95 < spread < 1.05 and float(weight.abs().max() / initial.abs().max()) < 1.05
    is_zero = not bool(initial.any()) and not bool(weight.any())
    if not (is_like_initial or is_zero):
        return set()
    with feature_cache.evaluation_mode(context.network.module, context.network.device):
        images = preprocessing.to_tensor(context.test.images.to(context.network.device), context.test.preprocessing)
        predictions = functional_call(context.network.module, context.after, (images,)).argmax(1).cpu()
    labels = context.test.labels
    majority = float(labels.bincount().max()) / len(labels)
    bound = majority + 2 * (majority * (1 - majority) / len(labels)) ** 0.5
    is_untrained = float((predictions == labels).double().mean()) <= bound
    return {tensor for tensor in context.after if is_untrained and backbones.is_within(tensor, [head])}


def is_initial_uniform(weight: Tensor) -> bool:
    """Check whether the weights of a layer are uniform between ±1/√fan-in, as ``nn.Linear`` and ``nn.Conv2d`` initialize them.

    The distance from that distribution is that of Kolmogorov and Smirnov, at a level of 1 %. Few weights are never recognized,
    because a brief training may leave all of them within the limits.
    """
    if weight.numel() < MIN_UNIFORM_VALUES or not bool(weight.isfinite().all()):
        return False
    values = weight.double().flatten().sort().values * weight[0].numel() ** 0.5
    if float(values.abs().max()) > 1 + HALF_PRECISION:
        return False
    ranks = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    expected = ((values + 1) / 2).clamp(0, 1)
    distance = max(float((ranks[1:] - expected).max()), float((expected - ranks[:-1]).max()))
    return distance * sqrt(len(values)) < KOLMOGOROV_QUANTILE


def gradient_shares(context: MeasureContext, names: Iterable[str]) -> dict[str, float]:
    """Compute the largest entry of each tensor's gradient as a share of the largest of all; 0 for an unused tensor."""
    module, device = context.network.module, context.network.device
    leaves = {name: context.after[name].detach().clone().requires_grad_() for name in sorted(names)}
    if not leaves:
        return {}
    with feature_cache.evaluation_mode(module, device), torch.enable_grad():
        images = preprocessing.to_tensor(context.test.images[:PROBE_IMAGES].to(device), context.test.preprocessing)
        logits = functional_call(module, {**context.after, **leaves}, (images,)).float()
        total = (logits * torch.linspace(-1.0, 1.0, logits.numel(), device=device).view_as(logits).cos()).sum()
        computed = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves, computed, strict=True)
    sizes = {name: 0.0 if gradient is None else float(gradient.abs().max()) for name, gradient in pairs}
    return {name: size / (max(sizes.values()) or 1.0) for name, size in sizes.items()}


def explain_buffers(network: Architecture, before: Tensors, after: Tensors, moved: set[str]) -> list[str]:
    """Return the causes for buffers that should not have moved: BatchNorm's statistics, or other buffers.

    Statistics that are not finite have no cause that the tensors show. Statistics that moved while the counters of batches
    stayed were not moved by training mode.
    """
    statistics, buffers = batchnorm.statistics_names(network.module), {name for name, _ in network.module.named_buffers()}
    others = ["buffers"] * bool(moved & buffers - statistics)
    changed = {name: after[name] for name in moved & statistics if bool(after[name].isfinite().all())}
    if not changed:
        return others
    initial = edits.initial_statistics(changed)
    if all(torch.equal(tensor, initial[name]) for name, tensor in changed.items()):
        return ["reset", *others]
    counters = [float(after[name]) for name in after if name.endswith(batchnorm.BATCH_COUNTER)]
    is_counted = max(counters, default=0.0) > 0 and batchnorm.training_steps(before, after) == 0
    return ["overwritten" if is_counted else "statistics", *others]


def explain_moved(context: MeasureContext, may: set[str], before: Tensors, after: Tensors, moved: set[str]) -> list[str]:
    """Return the causes that match the pattern of frozen parameters that moved."""
    if not moved:
        return []
    network = context.network
    if is_weight_decay(before, after, moved):
        return ["decay"]
    frozen = {name for name, _ in network.module.named_parameters() if name in before} - may
    if moved >= {name for name, share in gradient_shares(context, frozen).items() if share > FAINT_GRADIENT}:
        return ["nothing-frozen"]
    norms = [name for name, layer in network.module.named_modules() if isinstance(layer, backbones.NORM_LAYERS)]
    if all(backbones.is_within(name, norms) for name in moved):
        return ["norm"]
    groups = [group for group in network.layout.groups if any(backbones.is_within(name, group.prefixes) for name in moved)]
    return [f"group/{group.name}" for group in groups]


def explain_unmoved(network: Architecture, must: set[str], unmoved: set[str]) -> list[str]:
    """Return the causes that match the pattern of trainable parameters that did not move."""
    if not unmoved:
        return []
    head = {name for name in must if backbones.is_within(name, [network.layout.head])}
    if unmoved == must:
        return ["nothing-trained"]
    if unmoved == must - head:
        return ["only-head"]
    return ["head"] if unmoved & head else ["left-out"]


def is_weight_decay(before: Tensors, after: Tensors, names: Iterable[str]) -> bool:
    """Check whether weight decay alone explains how some tensors moved.

    It does if each tensor was multiplied by a factor below 1, up to a tenth of the total movement.
    """
    residual = total = 0.0
    for name in names:
        old, new = before[name].double().flatten(), after[name].double().flatten()
        factor = min(1.0, float(old @ new / (old @ old).clamp_min(1e-30)))
        residual += float((new - factor * old).square().sum())
        total += float((new - old).square().sum())
    return total > 0 and residual < 0.01 * total


def find_anomalies(before: Tensors, after: Tensors, moved: set[str]) -> dict[str, float]:
    """Return anomalies that are no violations.

    These are tensors whose norm changed by a factor of 100, or that became all zeros or not finite; weights that became half
    precision; and the number of steps that BatchNorm ran in training mode.
    """
    anomalies = {}
    for name in sorted(moved):
        old, new = float(before[name].double().norm()), float(after[name].double().norm())
        if old and new == 0:
            anomalies[f"odd/zeros/{name}"] = 1.0
        elif old and isfinite(new) and not 1 / LARGE_FACTOR < new / old < LARGE_FACTOR:
            anomalies[f"odd/scale/{name}"] = new / old
    anomalies |= {f"odd/not finite/{name}": 1.0 for name in sorted(moved) if not bool(after[name].isfinite().all())}
    floats = [name for name in before if before[name].is_floating_point() and after[name].is_floating_point()]
    halves = [half for half in HALF_DTYPES if _fits_half(after, floats, half) and not _fits_half(before, floats, half)]
    anomalies |= {f"odd/{str(half).removeprefix('torch.')}": 1.0 for half in halves[:1]}
    steps = batchnorm.training_steps(before, after)
    return anomalies | ({"odd/steps in train mode": steps} if steps > 0 else {})


def _fits_half(tensors: Tensors, names: Iterable[str], half: torch.dtype) -> bool:
    return all(torch.equal(tensors[name].to(half).to(tensors[name].dtype), tensors[name]) for name in names)
