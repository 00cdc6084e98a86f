"""Strategies as data: each is a :class:`~xferbench.design.Recipe`, and all of them go through the one training loop."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from xferbench.core.interventions import (
    ALL_LAYERS,
    DANN,
    HEAD_ONLY,
    AdaptBatchNorm,
    Adapters,
    Biases,
    Distillation,
    FlipAndCrop,
    Head,
    InterpolatePhase,
    LoRA,
    MLPHead,
    NormLayers,
    TopGroups,
    Trainable,
)
from xferbench.design import Choice, Phase, Pipeline, Recipe, Scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HEAD_LR = 1e-2
HIGH = 1e-2  # a rate for all layers at which they are seen to suffer
DEFAULT = Phase()
# Few numbers bear, and need, a higher rate than all of them: on two small targets at n = 200, 1e-3 lost .05 to .59 to 1e-2.
FEW = replace(DEFAULT, lr=1e-2)


def moving(recipe: Recipe) -> Phase:
    """The last phase that moves the backbone, for all of a recipe's steps; where none does, all layers at a usual rate."""
    phases = recipe.phases
    found = [phase for phase in phases if phase.trainable != HEAD_ONLY]
    last = found[-1] if found else replace(phases[-1], trainable=ALL_LAYERS, lr=DEFAULT.lr, head_lr=None)
    steps = sum(phase.steps for phase in phases)
    return replace(last, steps=steps, warmup=min(last.warmup, steps - 1))


def each(pipeline: Pipeline, change: Callable[[Phase], Phase], name: str = "") -> Pipeline:
    """A pipeline with every phase of its recipe changed, and perhaps the recipe's name."""
    recipe = pipeline.recipe
    changed = replace(recipe, phases=tuple(change(phase) for phase in recipe.phases), name=name or recipe.name)
    return replace(pipeline, recipe=changed)


def rephased(recipe: Recipe, *phases: Phase) -> Recipe:
    """A recipe with other phases, which interpolates no more where none before the last has trained the head.

    Else its head would be half a drawn one.
    """
    drawn = isinstance(recipe.finish, InterpolatePhase) and not any(phase.steps for phase in phases[:-1])
    return replace(recipe, phases=phases, finish=None if drawn else recipe.finish)


def reach(trainable: Trainable, groups: int) -> int:
    """How many of the uppermost layer groups a phase moves: none with its head alone, N with ``top:N``, else all of them."""
    if trainable == HEAD_ONLY:
        return 0
    return trainable.groups if isinstance(trainable, TopGroups) else groups


def whole(recipe: Recipe) -> Phase:
    """All layers at the one rate at which a recipe moves its backbone, for all of its steps, without warm-up."""
    return replace(moving(recipe), trainable=ALL_LAYERS, warmup=0, head_lr=None, layer_decay=1.0)


def begins_with_probe(recipe: Recipe) -> bool:
    """Whether the head is trained before the backbone moves, at a rate and for a time in which it can find its place."""
    first, *rest = recipe.phases
    alone = first.trainable == HEAD_ONLY and first.lr >= HEAD_LR / 10
    return alone and (not rest or 4 * first.steps >= rest[0].steps)


def probed_first(recipe: Recipe) -> Recipe:
    """Half of the steps up to the end of the first phase that moves the backbone, for the head alone."""
    at = next((at for at, phase in enumerate(recipe.phases) if phase.trainable != HEAD_ONLY), None)
    if at is None or begins_with_probe(recipe):
        return recipe
    first, steps = recipe.phases[at], sum(phase.steps for phase in recipe.phases[: at + 1])
    if steps < 2:
        return recipe
    probe = replace(first, trainable=HEAD_ONLY, batchnorm="eval", lr=HEAD_LR, head_lr=None, warmup=0, steps=steps // 2)
    left = steps - probe.steps
    after = replace(first, steps=left, warmup=min(first.warmup, left - 1))
    return replace(recipe, phases=(probe, after, *recipe.phases[at + 1 :]))


def overtrained(recipe: Recipe) -> Recipe:
    """The head alone for a fifth of twice the steps, then all layers at a high constant rate and without weight decay."""
    usual = moving(recipe)
    steps = 2 * usual.steps
    hot = replace(
        usual, trainable=ALL_LAYERS, batchnorm="train", lr=max(HIGH, 3 * usual.lr), schedule="constant", weight_decay=0.0
    )
    hot = replace(hot, head_lr=None, layer_decay=1.0, warmup=0, order="shuffled")
    probe = replace(hot, trainable=HEAD_ONLY, batchnorm="eval", lr=HEAD_LR, steps=max(1, round(steps / 5)))
    return beside(Recipe(name="overtrained", phases=(probe, replace(hot, steps=steps - probe.steps))), recipe)


def linear_probe(phase: Phase = DEFAULT) -> Recipe:
    """Only the head is trained, on the frozen backbone's features."""
    return Recipe(name="linear probe", phases=(replace(phase, trainable=HEAD_ONLY, batchnorm="eval", head_lr=None),))


def full(phase: Phase = DEFAULT) -> Recipe:
    """Everything is trained from the first step."""
    return Recipe(name=f"full fine-tuning {phase.lr:g}", phases=(replace(phase, trainable=ALL_LAYERS),))


def partial(phase: Phase = DEFAULT, groups: int = 1) -> Recipe:
    """The head and the uppermost layer groups are trained."""
    return Recipe(name=f"partial top:{groups} {phase.lr:g}", phases=(replace(phase, trainable=TopGroups(groups=groups)),))


def discriminative(phase: Phase = DEFAULT, decay: float = 0.5) -> Recipe:
    """Everything is trained, each layer group at a lower rate than the one above it (Howard & Ruder 2018, ULMFiT)."""
    step = replace(phase, trainable=ALL_LAYERS, head_lr=max(HEAD_LR, phase.lr), layer_decay=decay)
    return Recipe(name=f"discriminative rates {phase.lr:g}", phases=(step,))


def lp_ft(phase: Phase = DEFAULT) -> Recipe:
    """Half of the steps as a linear probe, then everything (Kumar et al. 2022, arXiv:2202.10054)."""
    probing = phase.steps // 2
    probe = replace(phase, trainable=HEAD_ONLY, batchnorm="eval", lr=HEAD_LR, head_lr=None, steps=probing)
    return Recipe(
        name=f"LP-FT {phase.lr:g}", phases=_taken(probe, replace(phase, trainable=ALL_LAYERS, steps=phase.steps - probing))
    )


def gradual_unfreezing(phase: Phase = DEFAULT, groups: int = 4) -> Recipe:
    """The head first, then one more layer group at a time (Howard & Ruder 2018); equal steps for each stage."""
    share = phase.steps // (groups + 1)
    words = [HEAD_ONLY, *(TopGroups(groups=n) for n in range(1, groups)), ALL_LAYERS]
    lengths = [share] * groups + [phase.steps - share * groups]
    stages = (replace(phase, trainable=word, steps=length) for word, length in zip(words, lengths, strict=True))
    return Recipe(name=f"gradual unfreezing {phase.lr:g}", phases=_taken(*stages))


def _taken(*phases: Phase) -> tuple[Phase, ...]:
    """The phases that have steps: where there are few, the budget is kept and the early ones go."""
    return tuple(phase for phase in phases if phase.steps)


def norm_only(phase: Phase = FEW) -> Recipe:
    """The head and the normalisation layers' scale and shift are trained (Frankle et al. 2021, arXiv:2003.00152)."""
    return Recipe(name=f"norm only {phase.lr:g}", phases=(replace(phase, trainable=NormLayers()),))


def bitfit(phase: Phase = FEW) -> Recipe:
    """The head and every bias are trained (Ben Zaken et al. 2022, BitFit, arXiv:2106.10199)."""
    return Recipe(name=f"BitFit {phase.lr:g}", phases=(replace(phase, trainable=Biases(), batchnorm="eval"),))


def lora(phase: Phase = FEW, rank: int = 8) -> Recipe:
    """The head and an update of low rank of every weight matrix are trained (Hu et al. 2021, LoRA, arXiv:2106.09685)."""
    return Recipe(name=f"LoRA {rank} {phase.lr:g}", phases=(replace(phase, trainable=LoRA(rank=rank), batchnorm="eval"),))


def adapter(phase: Phase = FEW, rank: int = 8) -> Recipe:
    """The head and a bottleneck after each layer group are trained (Houlsby et al. 2019, arXiv:1902.00751)."""
    step = replace(phase, trainable=Adapters(channels=rank), batchnorm="eval")
    return Recipe(name=f"adapters {rank} {phase.lr:g}", phases=(step,))


def warm_up(phase: Phase = DEFAULT) -> Recipe:
    """Full fine-tuning whose rate rises linearly over the first tenth of the steps."""
    return Recipe(
        name=f"warm-up {phase.lr:g}", phases=(replace(phase, trainable=ALL_LAYERS, warmup=max(1, phase.steps // 10)),)
    )


def from_scratch(phase: Phase = DEFAULT) -> Recipe:
    """The same architecture from random weights, everything trainable."""
    name = f"scratch {phase.lr:g}, weight decay {phase.weight_decay:g}, {phase.steps} × {phase.batch_size}"
    step = replace(phase, trainable=ALL_LAYERS, batchnorm="train", head_lr=None, layer_decay=1.0)
    return Recipe(name=name, init="random", phases=(step,))


def augmented(phase: Phase = DEFAULT) -> Recipe:
    """Everything is trained, on images that are flipped and cropped anew at each step."""
    return replace(full(phase), name=f"augmented {phase.lr:g}", augment=FlipAndCrop())


def mlp_head(phase: Phase = DEFAULT) -> Recipe:
    """Only the head is trained, one of two layers with dropout between them."""
    return replace(linear_probe(phase), name="MLP head", head=MLPHead(units=256))


def distillation(phase: Phase = DEFAULT) -> Recipe:
    """Random weights learn the labels and what the adapted pretrained backbone says (Hinton et al. 2015, arXiv:1503.02531)."""
    return replace(from_scratch(phase), name=f"distillation {phase.lr:g}", regularizer=Distillation(weight=0.5))


def dann(phase: Phase = DEFAULT) -> Recipe:
    """LP-FT to features that do not tell unlabelled images of [shifted] apart (Ganin et al. 2016, arXiv:1505.07818)."""
    # Of .03, .1, .3 and 1, on two small shifts at n = 200, .3 gained most under them (.17 on average), and cost the target .01.
    return replace(lp_ft(phase), name=f"DANN {phase.lr:g}", regularizer=DANN(strength=0.3))


def adabn(phase: Phase = DEFAULT) -> Recipe:
    """LP-FT, then BatchNorm statistics of each domain's own images (Li et al. 2016, AdaBN, arXiv:1603.04779)."""
    return replace(lp_ft(phase), name=f"AdaBN {phase.lr:g}", finish=AdaptBatchNorm())


def interpolated(phase: Phase = DEFAULT) -> Recipe:
    """LP-FT, then halfway back to its linear probe (Wortsman et al. 2022, WiSE-FT, arXiv:2109.01903)."""
    return replace(lp_ft(phase), name=f"interpolated {phase.lr:g}", finish=InterpolatePhase(share=0.5))


def teacher(recipe: Recipe) -> Recipe:
    """What teaches a distilled recipe: LP-FT in as many steps; of the usual ones a candidate of the healthy default."""
    steps = sum(phase.steps for phase in recipe.phases)
    return lp_ft(replace(DEFAULT, steps=steps, batch_size=recipe.phases[-1].batch_size))


STRATEGIES: Mapping[str, Callable[[Phase], Recipe]] = {
    "linear-probe": linear_probe,
    "partial": partial,
    "full": full,
    "discriminative": discriminative,
    "lp-ft": lp_ft,
    "gradual-unfreezing": gradual_unfreezing,
    "warm-up": warm_up,
    "norm-only": norm_only,
    "bitfit": bitfit,
    "lora": lora,
    "adapter": adapter,
    "scratch": from_scratch,
    "augmented": augmented,
    "mlp-head": mlp_head,
    "distillation": distillation,
    "dann": dann,
    "adabn": adabn,
    "interpolated": interpolated,
}

DEFAULT_NAME = "default"  # of a matrix: the recipe of a suite without [recipe]
SCRATCH_NAME = "scratch"  # of a matrix: tuned over the suite's own grid, because an untuned baseline is no baseline
RATES: Mapping[str, float] = dict.fromkeys(("norm-only", "bitfit", "lora", "adapter"), FEW.lr)  # where a suite gives none
USUAL: Mapping[str, float] = {"linear-probe": HEAD_LR, "mlp-head": HEAD_LR, **RATES}  # what its rates are multiples of


def deep(head: Head) -> bool:
    """Whether a head has more than one layer."""
    return isinstance(head, MLPHead)


def beside(recipe: Recipe, own: Recipe) -> Recipe:
    """A recipe with the augmentation and the MLP head of another, where it has none itself: what no comparison may change."""
    head = own.head if deep(own.head) and not deep(recipe.head) else recipe.head
    return replace(recipe, augment=recipe.augment or own.augment, head=head)


def choice(pipeline: Pipeline, recipes: Sequence[Recipe]) -> Choice:
    """The best of some recipes on validation, all else as in the pipeline, its stopping rule too; equal ones count once."""
    same = [replace(beside(recipe, pipeline.recipe), stop=pipeline.recipe.stop) for recipe in recipes]
    return Choice(candidates=tuple(dict.fromkeys(replace(pipeline, recipe=recipe) for recipe in same)))


def healthy(pipeline: Pipeline) -> Choice:
    """The default recipe: a linear probe or LP-FT at two rates, whichever is best on validation.

    On four small targets at n = 50, 200 and 1000 this choice had a mean regret of .009 and a greatest one of .046.
    """
    probe = replace(DEFAULT, lr=HEAD_LR)
    return choice(pipeline, [linear_probe(probe), lp_ft(replace(DEFAULT, lr=1e-3)), lp_ft(replace(DEFAULT, lr=3e-3))])


def scratch(pipeline: Pipeline, grid: Scratch) -> Choice:
    """The tuned baseline: S1 is the subject's own steps and rate, S2 a small grid of rate × weight decay with more steps.

    An untuned baseline is no baseline (Brigato & Iocchi 2020). S1 has one phase: the subject's last one for all its steps. Of a
    finished network nobody knows them, so that there is S2 alone.
    """
    phases = pipeline.recipe.phases
    own = replace(phases[-1], steps=sum(phase.steps for phase in phases), order="shuffled")
    longer = replace(own, optimizer="adamw", schedule="one-cycle", warmup=0, steps=grid.steps, batch_size=grid.batch_size)
    tried = [replace(longer, lr=lr, weight_decay=decay) for lr, decay in product(grid.lr, grid.weight_decay)]
    plain = replace(pipeline, mode="eval", finished=None, edits=(), believed=None)
    return choice(plain, [from_scratch(phase) for phase in ([] if pipeline.finished else [own]) + tried])
