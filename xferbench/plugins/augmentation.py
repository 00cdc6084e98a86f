"""An augmentation that the recipe lacks, or one that destroys the class.

Symptom
    A network trained on a few hundred images fits them perfectly and is far worse on new ones. Or classes that are mirror
    images of each other (b and d, left and right) are confused.

Cause
    Without augmentation, the network learns the position and the side of an object from the few images that it sees. An
    augmentation that changes the class, such as the flip of a letter, gives one image two labels.

Remedy
    The augmentation that validation selects: none, flips, crops, or both. A crop shifts an image by at most an eighth of its
    side. The remedy holds for the steps of the recipe; with augmentation, more steps can be better.

How it is judged
    Harm is metric(cured) − metric(subject) on test images. Cured is the best on validation of the recipe as it is, without
    augmentation, with flips, with crops and with both. All else, also the number of steps, is that of the recipe.

How it is induced
    ``none``: the cured recipe without augmentation. ``worst``: with the augmentation among the three that is worst on
    validation. A variant that equals the cured recipe is left out.

References
    Shorten & Khoshgoftaar 2019, A survey on image data augmentation for deep learning (Journal of Big Data 6): safe and unsafe
    augmentations of digits; He et al. 2016 (arXiv:1512.03385): flips and shifts on CIFAR-10.
"""

from __future__ import annotations

from dataclasses import replace

from xferbench.plugin import Pipeline, Plugin, Preprocessing, Profile, Selection, interventions, records

AUGMENTATIONS = (interventions.Flip(), interventions.Crop(), interventions.FlipAndCrop())


def applies(pipeline: Pipeline, _: Profile) -> str:
    return "" if isinstance(pipeline.data.train_preprocessing, Preprocessing) else "only images can be flipped or cropped"


def _augment(pipeline: Pipeline, augmentation: interventions.Augmentation | None) -> Pipeline:
    name = f"augmentation {augmentation}" if augmentation else "no augmentation"
    return replace(pipeline, recipe=replace(pipeline.recipe, augment=augmentation, name=name))


def cure(pipeline: Pipeline, _: Profile) -> Selection:
    return Selection(candidates=tuple(_augment(pipeline, augmentation) for augmentation in (None, *AUGMENTATIONS)))


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline | Selection]:
    others = [augmentation for augmentation in AUGMENTATIONS if augmentation != pipeline.recipe.augment]
    worst = Selection(candidates=tuple(_augment(pipeline, augmentation) for augmentation in others), worst=True)
    without: dict[str, Pipeline | Selection] = {"none": _augment(pipeline, None)} if pipeline.recipe.augment else {}
    return {**without, "worst": worst}


plugin = Plugin(
    id="augmentation",
    version=1,
    question="Does the recipe lack an augmentation, or have one that destroys the class?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    remedy="augment the training images as was best on validation",
    plot=records.accuracy_plot("augmentation"),
)
