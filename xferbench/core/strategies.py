"""Strategies as data: each is a :class:`~xferbench.core.pipeline.Recipe` for the single training loop. Pure."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import ceil
from typing import TYPE_CHECKING, Any

from xferbench.core.errors import UserError
from xferbench.core.interventions import (
    ALL_LAYERS,
    BATCHNORM_EVAL,
    BATCHNORM_TRAIN,
    DANN,
    EVAL_MODE,
    HEAD_ONLY,
    PRETRAINED,
    RANDOM,
    AdaptBatchNorm,
    Adapters,
    BatchNormTrainAbove,
    Biases,
    Distillation,
    FlipAndCrop,
    Head,
    InterpolatePhase,
    LoRA,
    MLPHead,
    NormLayers,
    PrefixTokens,
    PromptTokens,
    TopGroups,
    Trainable,
)
from xferbench.core.pipeline import Phase, Pipeline, Recipe, ScratchGrid, Selection
from xferbench.core.transforms import Preprocessing, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


HEAD_LR = 1e-2
HIGH_LR = 1e-2  # a learning rate at which all layers are known to degrade
FULL_RATES = (1e-3, 3e-3)  # of all layers, in the default recipes
# Of text encoders with millions of parameters. MiniLM with 200 questions and 75 steps: .91 at 1e-4, .59 at 2e-5, .41 at 2e-3.
ENCODER_RATES = (1e-4, 3e-4)
DEFAULT = Phase()
# A few parameters tolerate and need a higher rate than all: on two small targets at n = 200, 1e-3 was .05 to .59 below 1e-2.
PARTIAL_DEFAULT = replace(DEFAULT, lr=1e-2)


def finetune_phase(recipe: Recipe) -> Phase:
    """Return the last phase that trains the backbone, with all steps of the recipe.

    If no phase trains the backbone, all layers are trained at the default rate.
    """
    phases = recipe.phases
    backbone_phases = [phase for phase in phases if phase.trainable != HEAD_ONLY]
    last = backbone_phases[-1] if backbone_phases else replace(phases[-1], trainable=ALL_LAYERS, lr=DEFAULT.lr, head_lr=None)
    steps = sum(phase.steps for phase in phases)
    return replace(last, steps=steps, warmup=min(last.warmup, steps - 1))


def map_phases(pipeline: Pipeline, change: Callable[[Phase], Phase], name: str = "") -> Pipeline:
    """Return a pipeline with a function applied to every phase of its recipe, and optionally a new recipe name."""
    recipe = pipeline.recipe
    changed = replace(recipe, phases=tuple(change(phase) for phase in recipe.phases), name=name or recipe.name)
    return replace(pipeline, recipe=changed)


def resolve_steps(recipe: Recipe, examples: int) -> Recipe:
    """Return a recipe whose phases have ``steps`` and ``warmup`` in place of ``epochs`` and ``warmup_ratio``.

    Args:
        recipe: the recipe.
        examples: the number of training examples.

    Raises:
        UserError: if the warm-up of a phase is as long as the phase.
    """

    def resolve(phase: Phase) -> Phase:
        if phase.epochs is not None:
            steps = max(1, round(phase.epochs * examples / min(phase.batch_size, examples)))
            phase = replace(phase, steps=steps, epochs=None)
        if phase.warmup_ratio is not None:
            phase = replace(phase, warmup=ceil(phase.warmup_ratio * phase.steps), warmup_ratio=None)
        return phase

    resolved = replace(recipe, phases=tuple(map(resolve, recipe.phases)))
    check_warmup(resolved)
    return resolved


def check_warmup(recipe: Recipe) -> None:
    """Check that the warm-up of each phase is shorter than the phase, as far as its steps are known.

    Raises:
        UserError: if it is not.
    """
    for phase in recipe.phases:
        if phase.epochs is None and phase.warmup >= phase.steps:
            raise UserError("recipe.warmup", found=f"{phase.warmup}", expected=f"fewer than the {phase.steps} steps of a phase")


def virtual_tokens(recipe: Recipe) -> int:
    """Return the number of positions that the prompt and the prefix of a recipe take from its texts."""
    kinds = {phase.trainable for phase in recipe.phases if isinstance(phase.trainable, PromptTokens | PrefixTokens)}
    return sum(kind.tokens for kind in kinds)


def replace_phases(recipe: Recipe, *phases: Phase) -> Recipe:
    """Return a recipe with other phases.

    Interpolation is dropped if no phase before the last trains the head, because the head would otherwise be averaged with a
    random one.
    """
    has_random_head = isinstance(recipe.finish, InterpolatePhase) and not any(phase.steps for phase in phases[:-1])
    return replace(recipe, phases=phases, finish=None if has_random_head else recipe.finish)


def unfrozen_groups(trainable: Trainable, groups: int) -> int:
    """Return the number of uppermost layer groups that a phase trains: 0 for the head alone, N for ``top:N``, else all."""
    if trainable == HEAD_ONLY:
        return 0
    return trainable.groups if isinstance(trainable, TopGroups) else groups


def train_top_groups(phase: Phase, count: int, groups: int) -> Phase:
    """Return a phase that trains the head and the uppermost layer groups; frozen groups are in eval mode, others in train mode.

    Args:
        phase: the phase.
        count: the number of uppermost groups.
        groups: the number of all groups.
    """
    if count == 0:
        return replace(phase, trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL)
    if count == groups:
        return replace(phase, trainable=ALL_LAYERS, batchnorm=BATCHNORM_TRAIN)
    return replace(phase, trainable=TopGroups(groups=count), batchnorm=BatchNormTrainAbove())


def full_finetune_phase(recipe: Recipe) -> Phase:
    """Return a phase that trains all layers at the recipe's backbone rate for all its steps, without warm-up."""
    return replace(finetune_phase(recipe), trainable=ALL_LAYERS, warmup=0, head_lr=None, layer_decay=1.0)


def begins_with_probe(recipe: Recipe) -> bool:
    """Return whether the head is trained before the backbone, with a sufficient rate and number of steps."""
    first, *rest = recipe.phases
    is_probe = first.trainable == HEAD_ONLY and first.lr >= HEAD_LR / 10
    return is_probe and (not rest or 4 * first.steps >= rest[0].steps)


def probe_steps(recipe: Recipe) -> Recipe:
    """Return a recipe that first trains the head alone.

    The head gets half of the steps up to the end of the first phase that trains the backbone.
    """
    index = next((index for index, phase in enumerate(recipe.phases) if phase.trainable != HEAD_ONLY), None)
    if index is None or begins_with_probe(recipe):
        return recipe
    first, steps = recipe.phases[index], sum(phase.steps for phase in recipe.phases[: index + 1])
    if steps < 2:
        return recipe
    probe = replace(first, trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, lr=HEAD_LR, head_lr=None, warmup=0, steps=steps // 2)
    remaining = steps - probe.steps
    after = replace(first, steps=remaining, warmup=min(first.warmup, remaining - 1))
    return replace(recipe, phases=(probe, after, *recipe.phases[index + 1 :]))


def overtrained(recipe: Recipe) -> Recipe:
    """Return a recipe that overtrains.

    With twice the steps, it trains the head alone for a fifth of them, and then all layers at a high constant rate without
    weight decay.
    """
    backbone_phase = finetune_phase(recipe)
    steps = 2 * backbone_phase.steps
    high = replace(
        backbone_phase,
        trainable=ALL_LAYERS,
        batchnorm=BATCHNORM_TRAIN,
        lr=max(HIGH_LR, 3 * backbone_phase.lr),
        schedule="constant",
        weight_decay=0.0,
    )
    high = replace(high, head_lr=None, layer_decay=1.0, warmup=0, order="shuffled")
    probe = replace(high, trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, lr=HEAD_LR, steps=max(1, round(steps / 5)))
    return inherit_settings(Recipe(name="overtrained", phases=(probe, replace(high, steps=steps - probe.steps))), recipe)


def linear_probe(phase: Phase = DEFAULT) -> Recipe:
    """Train only the head, on the features of the frozen backbone."""
    return Recipe(name="linear probe", phases=(replace(phase, trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, head_lr=None),))


def full(phase: Phase = DEFAULT) -> Recipe:
    """Train all layers from the first step."""
    return Recipe(name=f"full fine-tuning {phase.lr:g}", phases=(replace(phase, trainable=ALL_LAYERS),))


def partial(phase: Phase = DEFAULT, groups: int = 1) -> Recipe:
    """Train the head and the uppermost layer groups."""
    return Recipe(name=f"partial top:{groups} {phase.lr:g}", phases=(replace(phase, trainable=TopGroups(groups=groups)),))


def discriminative(phase: Phase = DEFAULT, decay: float = 0.5) -> Recipe:
    """Train all layers, each layer group at a lower rate than the one above it (Howard & Ruder 2018, ULMFiT)."""
    step = replace(phase, trainable=ALL_LAYERS, head_lr=max(HEAD_LR, phase.lr), layer_decay=decay)
    return Recipe(name=f"discriminative rates {phase.lr:g}", phases=(step,))


def lp_ft(phase: Phase = DEFAULT) -> Recipe:
    """Train a linear probe for half of the steps, then all layers (Kumar et al. 2022, arXiv:2202.10054)."""
    probe_steps = phase.steps // 2
    probe = replace(phase, trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, lr=HEAD_LR, head_lr=None, steps=probe_steps)
    return Recipe(
        name=f"LP-FT {phase.lr:g}",
        phases=_with_steps(probe, replace(phase, trainable=ALL_LAYERS, steps=phase.steps - probe_steps)),
    )


def gradual_unfreezing(phase: Phase = DEFAULT, groups: int = 4) -> Recipe:
    """Train the head first, then one more layer group in each stage, with equal steps (Howard & Ruder 2018)."""
    share = phase.steps // (groups + 1)
    stages = [HEAD_ONLY, *(TopGroups(groups=count) for count in range(1, groups)), ALL_LAYERS]
    lengths = [share] * groups + [phase.steps - share * groups]
    phases = (replace(phase, trainable=stage, steps=length) for stage, length in zip(stages, lengths, strict=True))
    return Recipe(name=f"gradual unfreezing {phase.lr:g}", phases=_with_steps(*phases))


def _with_steps(*phases: Phase) -> tuple[Phase, ...]:
    """Return the phases that have steps. If the recipe has few steps, the early phases have none."""
    return tuple(phase for phase in phases if phase.steps)


def norm_only(phase: Phase = PARTIAL_DEFAULT) -> Recipe:
    """Train the head and the scale and shift of normalization layers (Frankle et al. 2021, arXiv:2003.00152)."""
    return Recipe(name=f"norm only {phase.lr:g}", phases=(replace(phase, trainable=NormLayers()),))


def bitfit(phase: Phase = PARTIAL_DEFAULT) -> Recipe:
    """Train the head and every bias (Ben Zaken et al. 2022, BitFit, arXiv:2106.10199)."""
    return Recipe(name=f"BitFit {phase.lr:g}", phases=(replace(phase, trainable=Biases(), batchnorm=BATCHNORM_EVAL),))


def lora(phase: Phase = PARTIAL_DEFAULT, rank: int = 8) -> Recipe:
    """Train the head and a low-rank update of every weight matrix (Hu et al. 2021, LoRA, arXiv:2106.09685)."""
    return Recipe(
        name=f"LoRA {rank} {phase.lr:g}", phases=(replace(phase, trainable=LoRA(rank=rank), batchnorm=BATCHNORM_EVAL),)
    )


def adapter(phase: Phase = PARTIAL_DEFAULT, rank: int = 8) -> Recipe:
    """Train the head and a bottleneck after each layer group (Houlsby et al. 2019, arXiv:1902.00751)."""
    step = replace(phase, trainable=Adapters(channels=rank), batchnorm=BATCHNORM_EVAL)
    return Recipe(name=f"adapters {rank} {phase.lr:g}", phases=(step,))


def prompt_tuning(phase: Phase = PARTIAL_DEFAULT, tokens: int = 8) -> Recipe:
    """Train the head and embeddings of virtual tokens before each text (Lester et al. 2021, arXiv:2104.08691)."""
    step = replace(phase, trainable=PromptTokens(tokens=tokens), batchnorm=BATCHNORM_EVAL)
    return Recipe(name=f"prompt tuning {tokens} {phase.lr:g}", phases=(step,))


def prefix_tuning(phase: Phase = PARTIAL_DEFAULT, tokens: int = 8) -> Recipe:
    """Train the head and a prefix of keys and values in each attention layer (Li & Liang 2021, arXiv:2101.00190)."""
    step = replace(phase, trainable=PrefixTokens(tokens=tokens), batchnorm=BATCHNORM_EVAL)
    return Recipe(name=f"prefix tuning {tokens} {phase.lr:g}", phases=(step,))


def warm_up(phase: Phase = DEFAULT) -> Recipe:
    """Fine-tune all layers with a learning rate that increases linearly over the first tenth of the steps."""
    return Recipe(
        name=f"warm-up {phase.lr:g}", phases=(replace(phase, trainable=ALL_LAYERS, warmup=max(1, phase.steps // 10)),)
    )


def from_scratch(phase: Phase = DEFAULT) -> Recipe:
    """Train all layers of the same architecture from random weights."""
    name = f"scratch {phase.lr:g}, weight decay {phase.weight_decay:g}, {phase.steps} × {phase.batch_size}"
    step = replace(phase, trainable=ALL_LAYERS, batchnorm=BATCHNORM_TRAIN, head_lr=None, layer_decay=1.0)
    return Recipe(name=name, init=RANDOM, phases=(step,))


def augmented(phase: Phase = DEFAULT) -> Recipe:
    """Train all layers on images that are randomly flipped and cropped at each step."""
    return replace(full(phase), name=f"augmented {phase.lr:g}", augment=FlipAndCrop())


def mlp_head(phase: Phase = DEFAULT) -> Recipe:
    """Train only the head, which has two layers with dropout between them."""
    return replace(linear_probe(phase), name="MLP head", head=MLPHead(units=256))


def distillation(phase: Phase = DEFAULT) -> Recipe:
    """Train random weights on the labels and on the adapted backbone's outputs (Hinton et al. 2015, arXiv:1503.02531)."""
    return replace(from_scratch(phase), name=f"distillation {phase.lr:g}", regularizer=Distillation(weight=0.5))


def dann(phase: Phase = DEFAULT) -> Recipe:
    """Train LP-FT with features that do not separate unlabeled images of [shifted] (Ganin et al. 2016, arXiv:1505.07818)."""
    # Among .03, .1, .3 and 1, on two small shifts at n = 200, .3 gained most (.17 on average) and cost the target .01.
    return replace(lp_ft(phase), name=f"DANN {phase.lr:g}", regularizer=DANN(strength=0.3))


def adabn(phase: Phase = DEFAULT) -> Recipe:
    """Train LP-FT, then use BatchNorm statistics of each domain's own images (Li et al. 2016, AdaBN, arXiv:1603.04779)."""
    return replace(lp_ft(phase), name=f"AdaBN {phase.lr:g}", finish=AdaptBatchNorm())


def interpolate_to_probe(phase: Phase = DEFAULT) -> Recipe:
    """Train LP-FT, then average it with its linear probe (Wortsman et al. 2022, WiSE-FT, arXiv:2109.01903)."""
    return replace(lp_ft(phase), name=f"interpolated {phase.lr:g}", finish=InterpolatePhase(share=0.5))


def teacher_recipe(recipe: Recipe) -> Recipe:
    """Return the teacher of a distilled recipe: LP-FT with the same number of steps.

    With the default number of steps, the teacher is a candidate of the default selection.
    """
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
    "prompt-tuning": prompt_tuning,
    "prefix-tuning": prefix_tuning,
    "scratch": from_scratch,
    "augmented": augmented,
    "mlp-head": mlp_head,
    "distillation": distillation,
    "dann": dann,
    "adabn": adabn,
    "interpolated": interpolate_to_probe,
}

DEFAULT_NAME = "default"  # name of the default recipe in a matrix
SCRATCH_NAME = "scratch"  # in a matrix, tuned over the suite's own grid: an untuned baseline is not a fair comparison
DEFAULT_RATES: Mapping[str, float] = dict.fromkeys(
    ("norm-only", "bitfit", "lora", "adapter", "prompt-tuning", "prefix-tuning"), PARTIAL_DEFAULT.lr
)  # defaults of a suite
USUAL_LR: Mapping[str, float] = {"linear-probe": HEAD_LR, "mlp-head": HEAD_LR, **DEFAULT_RATES}  # base of a suite's rates


def is_mlp_head(head: Head) -> bool:
    """Return whether a head has more than one layer."""
    return isinstance(head, MLPHead)


def inherit_settings(recipe: Recipe, base: Recipe) -> Recipe:
    """Return a recipe with the augmentation and the MLP head of ``base``, if it has none itself.

    Comparisons must not change these settings.
    """
    head = base.head if is_mlp_head(base.head) and not is_mlp_head(recipe.head) else recipe.head
    return replace(recipe, augment=recipe.augment or base.augment, head=head)


def select_among(pipeline: Pipeline, recipes: Sequence[Recipe]) -> Selection:
    """Return a selection of the best recipe on validation; duplicates count once.

    The candidates keep the other settings of the pipeline, including its stopping rule.
    """
    candidates = [replace(inherit_settings(recipe, pipeline.recipe), stop=pipeline.recipe.stop) for recipe in recipes]
    return Selection(candidates=tuple(dict.fromkeys(replace(pipeline, recipe=recipe) for recipe in candidates)))


def default_selection(pipeline: Pipeline) -> Selection:
    """Return the default selection: a linear probe, or LP-FT at two rates, whichever is best on validation.

    On four small targets at n = 50, 200 and 1000, this selection had a mean regret of .009 and a maximum of .046.
    """
    return select_among(pipeline, default_recipes(pipeline))


def default_recipes(pipeline: Pipeline) -> list[Recipe]:
    """Return the candidates of :func:`default_selection`."""
    is_encoder = isinstance(pipeline.data.train_preprocessing, Tokens) and pipeline.backbone.arch != "tiny-bert"
    rates = ENCODER_RATES if is_encoder else FULL_RATES
    return [linear_probe(replace(DEFAULT, lr=HEAD_LR)), *(lp_ft(replace(DEFAULT, lr=lr)) for lr in rates)]


def scratch_baseline(pipeline: Pipeline, grid: ScratchGrid) -> Selection:
    """Return the search of the from-scratch baseline.

    The first candidate has the subject's steps, rate and augmentation, in one phase: the subject's last one. The others are the
    grid. An untuned baseline is not a fair comparison (Brigato & Iocchi 2020). The settings of a finished network are unknown,
    so its search has only the grid.
    """
    phases = pipeline.recipe.phases
    subject_phase = replace(phases[-1], steps=sum(phase.steps for phase in phases), order="shuffled")
    own = [] if pipeline.checkpoint else [replace(from_scratch(subject_phase), augment=pipeline.recipe.augment)]
    plain = replace(
        pipeline, serving=replace(pipeline.serving, mode=EVAL_MODE), checkpoint=None, edits=(), expected_training=None
    )
    return _search(plain, [*own, *_grid_recipes(pipeline, grid, from_scratch)], grid)


def pretrained_search(pipeline: Pipeline, grid: ScratchGrid) -> Selection:
    """Return the search of the best pretrained recipe: the subject, the default recipes, and the grid of the baseline.

    The network starts from the pretrained weights and trains all layers at a third of the rates. Augmentations, label
    smoothing and budgets are those of the baseline, so that the two searches differ in the initial weights alone.
    """
    own = replace(pipeline.recipe, init=PRETRAINED) if pipeline.recipe.init == RANDOM else pipeline.recipe
    lower = replace(grid, lr=tuple(lr / 3 for lr in grid.lr))
    return _search(pipeline, [own, *default_recipes(pipeline), *_grid_recipes(pipeline, lower, full)], grid)


def _grid_recipes(pipeline: Pipeline, grid: ScratchGrid, strategy: Callable[[Phase], Recipe]) -> list[Recipe]:
    """Return a strategy at every combination of a grid; an image augmentation needs images."""
    longest = replace(
        pipeline.recipe.phases[-1],
        optimizer="adamw",
        schedule="one-cycle",
        warmup=0,
        head_lr=None,
        layer_decay=1.0,
        order="shuffled",
        batchnorm=BATCHNORM_TRAIN,
        steps=grid.steps,
        batch_size=grid.batch_size,
    )
    is_image = isinstance(pipeline.data.train_preprocessing, Preprocessing)
    recipes = []
    for augment, smoothing, lr, decay in product(
        grid.augment if is_image else (None,), grid.label_smoothing, grid.lr, grid.weight_decay
    ):
        recipe = strategy(replace(longest, lr=lr, weight_decay=decay, label_smoothing=smoothing))
        parts = [recipe.name, str(augment) if augment else "", f"smoothing {smoothing:g}" if smoothing else ""]
        recipes.append(replace(recipe, augment=augment, name=", ".join(filter(None, parts))))
    return recipes


def _search(pipeline: Pipeline, recipes: Sequence[Recipe], grid: ScratchGrid) -> Selection:
    """Return a search among recipes, with their own augmentation, by successive halving."""
    head = pipeline.recipe.head
    candidates = [
        replace(recipe, stop=pipeline.recipe.stop, head=head if is_mlp_head(head) else recipe.head) for recipe in recipes
    ]
    pipelines = tuple(dict.fromkeys(replace(pipeline, recipe=recipe) for recipe in candidates))
    return Selection(candidates=pipelines, halvings=grid.halvings, is_cut=grid.is_cut)


def shorten(pipeline: Pipeline, divisor: int) -> Pipeline:
    """Return a pipeline whose phases have a share of their steps, with their whole schedules."""

    def shorter(phase: Phase) -> Phase:
        steps = max(1, phase.steps // divisor)
        return replace(phase, steps=steps, warmup=min(phase.warmup // divisor, steps - 1))

    changed = map_phases(pipeline, shorter)
    return replace(changed, recipe=replace(changed.recipe, name=f"{pipeline.recipe.name}, 1/{divisor} of the steps"))


def candidates_beyond(best: Pipeline, candidates: Sequence[Pipeline]) -> tuple[Pipeline, ...]:
    """Return candidates beyond the edges of a search at which its best candidate lies: another rate, and twice the steps.

    Args:
        best: the best candidate.
        candidates: all candidates of the search.
    """
    phase = best.recipe.phases[-1]
    alike = [candidate.recipe.phases[-1] for candidate in candidates if candidate.recipe.init == best.recipe.init]
    rates = sorted({other.lr for other in alike if other.trainable == phase.trainable})
    changes: list[dict[str, Any]] = []
    if len(rates) > 1 and phase.lr in {rates[0], rates[-1]}:
        changes.append({"lr": phase.lr * 3 if phase.lr == rates[-1] else phase.lr / 3})
    if phase.steps >= max(other.steps for other in alike):
        changes.append({"steps": 2 * phase.steps})
    return tuple(
        map_phases(
            best,
            lambda own, change=change: replace(own, **change) if own == phase else own,  # type: ignore[misc]
            f"{best.recipe.name}, {', '.join(f'{name} {value:g}' for name, value in change.items())}",
        )
        for change in changes
    )
