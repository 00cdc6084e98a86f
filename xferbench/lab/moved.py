"""What moved in a network against what was to move: tensor by tensor, with the likeliest cause. It passes no verdict.

Every number has a name of two parts, and what it means is said by the first: see :func:`compared`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call

from xferbench.core.interventions import HEAD_ONLY
from xferbench.lab import backbones, batchnorm, checkpoints, features, preprocess

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xferbench.design import Recipe
    from xferbench.lab.fit import Network, Tensors
    from xferbench.lab.viewed import Seen

HALVES = (torch.bfloat16, torch.float16)  # usual values of the first are values of the second too
FEW = 3  # steps: in fewer a head or a scale of zeros may let no gradient through
CHANCE, ALIKE = 4.0, 0.2  # standard deviations within which independent tensors correlate; above this none are
MANY = 1000  # numbers of a group that is told alone
GROWN = 2.0  # times as large as before, or as drawn: so far has training gone with what lost its likeness by it
FAINT = 1e-4  # of the largest gradient
LARGE, PROBED = 100.0, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """Names of the tensors that may move, and of those that must; ``said`` where anybody told."""

    may: frozenset[str]
    must: frozenset[str]
    said: bool


def belief(network: Network, recipe: Recipe) -> Belief:
    """What a recipe moves. One without phases says nothing, but that there was a head to train.

    BatchNorm's statistics may move in any phase that does not run it in evaluation mode, other buffers with their layer group.
    Where the best step is kept, only what the first phase trains is sure to have moved.

    Raises:
        Problem: where the network has fewer layer groups than the recipe says.
    """
    module, anatomy = network.module, network.anatomy
    statistics, buffers = batchnorm.buffers(module), {name for name, _ in module.named_buffers()}
    learnt = [backbones.trainable(anatomy, module, phase.trainable) for phase in recipe.phases]
    if not learnt:
        everything = frozenset(buffers.union(name for name, _ in module.named_parameters()))
        return Belief(may=everything, must=frozenset(backbones.trainable(anatomy, module, HEAD_ONLY)), said=False)
    distance, may = backbones.depth(anatomy, module), set().union(*learnt)
    thawed = {distance[name] for name in may}
    for phase, names in zip(recipe.phases, learnt, strict=True):
        if phase.batchnorm == "train-above":
            may |= {name for name in statistics if distance[name] in {distance[one] for one in names}}
        elif phase.batchnorm != "eval":
            may |= statistics
    may |= {name for name in buffers - statistics if distance[name] in thawed}
    sure = list(zip(recipe.phases, learnt, strict=True))[: 1 if recipe.stop == "best" else None]
    must = set().union(*(names for phase, names in sure if phase.steps >= FEW))
    return Belief(may=frozenset(may), must=frozenset(must), said=True)


def compared(seen: Seen) -> dict[str, float]:
    """Numbers by name.

    ``violations``: how many there are, those below together. ``frozen/T`` and ``trained/T``: how far each tensor went,
    ‖after − before‖ / ‖before‖, by what was believed of it (``moved/T`` where nothing was). ``frozen-moved/T`` and
    ``buffer-moved/T``: what was to stay and did not; ``never-moved/T``: what was to train, did not, and has a gradient;
    ``not-loaded/G``: a layer group that has nothing in common with before (all of them are one violation). ``cause/…``: the
    likeliest. ``odd/…``: what came to notice and is no violation.
    """
    network, believed = seen.network, belief(seen.network, seen.believed)
    after = {name: tensor.cpu() for name, tensor in seen.after.items()}
    before = {name: tensor.cpu() for name, tensor in seen.before.items() if name in after}
    parameters = {name for name, _ in network.module.named_parameters()}
    lost = unlike(seen, before, after)
    prefixes = [prefix for group in network.anatomy.groups if group.name in lost for prefix in group.prefixes]
    loaded = {name for name in after if not backbones.within(name, prefixes)}
    values = [name for name in after if name in before and not name.endswith(checkpoints.COUNTER)]
    moved = {name for name in values if not same(before[name], after[name])}
    strayed = (moved - believed.may) & loaded
    still = {name for name in believed.must & before.keys() if same(before[name], after[name])}
    still |= untouched_head(seen) if believed.must - before.keys() else set()
    still, must = sure(seen, believed.must, still)
    whole = bool(lost) and len(lost) == len(layered(network, before))
    why = ["not-loaded" if whole else "partly-loaded"] * bool(lost)
    why += of_statistics(network, strayed) + of_strayed(seen, believed, before, after, strayed & parameters)
    why += of_still(network, must, still)
    return {
        "violations": float(len(strayed) + len(still) + (1 if whole else len(lost))),
        **{f"{_side(name, believed)}/{name}": change(before[name], after[name]) if name in moved else 0.0 for name in values},
        **{f"frozen-moved/{name}": 1.0 for name in after if name in strayed & parameters},
        **{f"buffer-moved/{name}": 1.0 for name in after if name in strayed - parameters},
        **{f"never-moved/{name}": 1.0 for name in after if name in still},
        **{f"not-loaded/{name}": 1.0 for name in lost},
        **{f"cause/{word}": 1.0 for word in why},
        **odd(before, after, moved & loaded),
    }


def _side(name: str, believed: Belief) -> str:
    if not believed.said:
        return "moved"
    return "trained" if name in believed.may else "frozen"


def same(before: Tensor, after: Tensor) -> bool:
    """Whether a tensor is what it was, perhaps by way of half precision."""
    if torch.equal(before, after):
        return True
    return before.is_floating_point() and any(torch.equal(before.to(half).to(after.dtype), after) for half in HALVES)


def change(before: Tensor, after: Tensor) -> float:
    """‖after − before‖ / ‖before‖; of what was all zeros, the root mean square of what it became. Infinity where undefined."""
    old, new = before.double(), after.double()
    size = float(old.norm()) or old.numel() ** 0.5
    value = float((new - old).norm()) / size
    return value if value == value else float("inf")  # noqa: PLR0124 - a NaN


def layered(network: Network, tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The weight matrices and kernels of each layer group that has any."""
    names = [name for name, _ in network.module.named_parameters() if not backbones.adapts(name)]
    own = [name for name in names if name in tensors and tensors[name].ndim > 1]
    found = {one.name: [name for name in own if backbones.within(name, one.prefixes)] for one in network.anatomy.groups}
    return {group: names for group, names in found.items() if names}


def unlike(seen: Seen, before: Tensors, after: Tensors) -> list[str]:
    """Layer groups most of whose weights are uncorrelated with those of before (0 ± 1/√n), as if they were drawn anew.

    What too hot a rate made unlike has grown by it, and is none of them; nor is a single group of few numbers.
    """
    groups = layered(seen.network, before)
    found = [
        group
        for group, names in groups.items()
        if 2 * sum(_apart(before[name], after[name]) for name in names) > len(names)
        and not any(same(before[name], after[name]) for name in names)
    ]
    if found and seen.fresh is not None:
        drawn = {name: float(one.detach().norm()) for name, one in seen.fresh().named_parameters()}
        names = {name for group in found for name in groups[group]}
        grown = {name for name in names if after[name].norm() > GROWN * max(float(before[name].norm()), drawn[name])}
        found = [group for group in found if 2 * len(grown.intersection(groups[group])) < len(groups[group])]
    large = [group for group in found if sum(before[name].numel() for name in groups[group]) > MANY]
    return found if len(found) == len(groups) else large


def _apart(one: Tensor, other: Tensor) -> bool:
    """Whether the correlation of two tensors is that of independent ones; one that is constant or not finite says nothing."""
    pair = torch.stack([one.flatten().double(), other.flatten().double()])
    correlation = abs(float(torch.corrcoef(pair)[0, 1]))
    return correlation < min(ALIKE, CHANCE / sqrt(one.numel()))


def untouched_head(seen: Seen) -> set[str]:
    """The head's weights where they look as they are drawn, in size and reach, and answer no better than always one class."""
    assert seen.fresh is not None, "whoever compares heads can build one"
    head = seen.network.anatomy.head
    name = f"{head}.weight"
    drawn, own = dict(seen.fresh().named_parameters())[name].detach(), seen.after[name].cpu()
    like = 0.95 < float(own.std() / drawn.std().clamp_min(1e-12)) < 1.05 and float(own.abs().max() / drawn.abs().max()) < 1.05
    zero = not bool(drawn.any()) and not bool(own.any())
    if not (like or zero):
        return set()
    with features.inference(seen.network.module, seen.network.device):
        images = preprocess.tensor(seen.served.to(seen.network.device), seen.ready)
        answers = functional_call(seen.network.module, seen.after, (images,)).argmax(1).cpu()
    labels = seen.served_labels
    share = float(labels.bincount().max()) / len(labels)
    bound = share + 2 * (share * (1 - share) / len(labels)) ** 0.5
    untaught = float((answers == labels).double().mean()) <= bound
    return {one for one in seen.after if untaught and backbones.within(one, [head])}


def sure(seen: Seen, must: frozenset[str], still: set[str]) -> tuple[set[str], set[str]]:
    """What stood still and what was to move, both as far as a gradient reaches; nothing stood still where all are faint.

    What nothing depends on can move under no optimizer, and what next to nothing does is lost in rounding.
    """
    sizes = gradients(seen, must) if still else {}
    movable = {name for name, size in sizes.items() if size}
    return (still & movable if any(sizes[name] > FAINT for name in still) else set()), movable


def gradients(seen: Seen, names: Iterable[str]) -> dict[str, float]:
    """The largest entry of each tensor's gradient, as a share of the largest of all; 0 where nothing depends on the tensor."""
    module, device = seen.network.module, seen.network.device
    own = {name: seen.after[name].detach().clone().requires_grad_() for name in sorted(names)}
    if not own:
        return {}
    with features.inference(module, device), torch.enable_grad():
        images = preprocess.tensor(seen.served[:PROBED].to(device), seen.ready)
        logits = functional_call(module, {**seen.after, **own}, (images,)).float()
        total = (logits * torch.linspace(-1.0, 1.0, logits.numel(), device=device).view_as(logits).cos()).sum()
        found = torch.autograd.grad(total, list(own.values()), allow_unused=True)
    sizes = {name: 0.0 if one is None else float(one.abs().max()) for name, one in zip(own, found, strict=True)}
    return {name: size / (max(sizes.values()) or 1.0) for name, size in sizes.items()}


def of_statistics(network: Network, strayed: set[str]) -> list[str]:
    """Words for buffers that strayed: BatchNorm's, or others."""
    statistics, buffers = batchnorm.buffers(network.module), {name for name, _ in network.module.named_buffers()}
    return ["statistics"] * bool(strayed & statistics) + ["buffers"] * bool(strayed & buffers - statistics)


def of_strayed(seen: Seen, believed: Belief, before: Tensors, after: Tensors, strayed: set[str]) -> list[str]:
    """Words for the pattern of parameters that were to be frozen and moved."""
    if not strayed:
        return []
    network = seen.network
    if shrunk(before, after, strayed):
        return ["decay"]
    frozen = {name for name, _ in network.module.named_parameters() if name in before} - believed.may
    if strayed >= {name for name, size in gradients(seen, frozen).items() if size > FAINT}:
        return ["nothing-frozen"]
    norms = [name for name, layer in network.module.named_modules() if isinstance(layer, backbones.NORMS)]
    if all(backbones.within(name, norms) for name in strayed):
        return ["norm"]
    held = [one.name for one in network.anatomy.groups if any(backbones.within(name, one.prefixes) for name in strayed)]
    return [f"group/{name}" for name in held]


def of_still(network: Network, must: set[str], still: set[str]) -> list[str]:
    """Words for the pattern of parameters that were to train and did not."""
    if not still:
        return []
    head = {name for name in must if backbones.within(name, [network.anatomy.head])}
    if still == must:
        return ["nothing-trained"]
    if still == must - head:
        return ["only-head"]
    return ["head"] if still & head else ["left-out"]


def shrunk(before: Tensors, after: Tensors, names: Iterable[str]) -> bool:
    """Whether tensors are what they were times a number below 1 each, to a tenth of what they moved: weight decay alone."""
    left = total = 0.0
    for name in names:
        old, new = before[name].double().flatten(), after[name].double().flatten()
        scale = min(1.0, float(old @ new / (old @ old).clamp_min(1e-30)))
        left += float((new - scale * old).square().sum())
        total += float((new - old).square().sum())
    return total > 0 and left < 0.01 * total


def odd(before: Tensors, after: Tensors, moved: set[str]) -> dict[str, float]:
    """What came to notice: tensors a hundred times as large or as small, all zeros now, half precision; steps in train mode."""
    found = {}
    for name in sorted(moved):
        old, new = float(before[name].double().norm()), float(after[name].double().norm())
        if old and new == 0:
            found[f"odd/zeros/{name}"] = 1.0
        elif old and not 1 / LARGE < new / old < LARGE:
            found[f"odd/scale/{name}"] = new / old if new == new else float("inf")  # noqa: PLR0124 - a NaN
    floats = [name for name in before if before[name].is_floating_point() and after[name].is_floating_point()]
    halved = [half for half in HALVES if floats and _only(after, floats, half) and not _only(before, floats, half)]
    found |= {f"odd/{str(halved[0]).removeprefix('torch.')}": 1.0} if halved else {}
    counters = [name for name in before if name.endswith(checkpoints.COUNTER)]
    steps = max((float(after[name] - before[name]) for name in counters), default=0.0)
    return found | ({"odd/steps in train mode": steps} if steps > 0 else {})


def _only(tensors: Tensors, names: Iterable[str], half: torch.dtype) -> bool:
    return all(torch.equal(tensors[name].to(half).to(tensors[name].dtype), tensors[name]) for name in names)
