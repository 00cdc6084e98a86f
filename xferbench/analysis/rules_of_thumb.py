"""Textbook advice for a strategy, by the number of images and the similarity of the source. Pure.

References:
    CS231n, Convolutional neural networks for visual recognition, notes on transfer learning (Stanford): four scenarios.
    Chu et al. 2016, Best practices for fine-tuning visual classifiers to new domains (ECCV workshops): how much to fine-tune,
    by the amount of data and the distance from the source, found by experiment.
    Plested & Gedeon 2022, Deep transfer learning for image classification: a survey (arXiv:2205.09904): when such rules fail.
"""

from __future__ import annotations

from xferbench.core.errors import UserError

FROZEN, UPPER, WHOLE = "linear-probe", "partial", "full"  # strategy names, in increasing order of what they train
FEW_EXAMPLES = 1000  # number of images below which a set counts as small; CS231n gives no number
MIN_UPPER_EXAMPLES, MAX_UPPER_EXAMPLES = 100, 10_000  # range of sizes for which the size rule advises to train the upper layers


def textbook_strategy(size: int, similar: bool, few: int = FEW_EXAMPLES) -> str:
    """Return the strategy that CS231n's four scenarios advise.

    For a small and similar target, this is a linear classifier on the frozen network. For a small and different target,
    CS231n advises a classifier on earlier layers; ``partial`` takes its place, because it retrains the layers that are most
    specific to the source. For a large target, it is the whole network from the pretrained weights, even if the source is
    different: the notes prefer this to training from scratch.

    Args:
        size: number of training images.
        similar: whether the target is similar to the source.
        few: number of images below which a set is small.

    Raises:
        UserError: if the size is below 1.
    """
    if _check_size(size) >= few:
        return WHOLE
    return FROZEN if similar else UPPER


def size_rule_strategy(size: int) -> str:
    """Return the strategy by size alone.

    Below 100 images the network is frozen, up to 10 000 its upper layers are trained, and above that the whole network is
    trained.

    Args:
        size: number of training images.

    Raises:
        UserError: if the size is below 1.
    """
    if _check_size(size) < MIN_UPPER_EXAMPLES:
        return FROZEN
    return UPPER if size <= MAX_UPPER_EXAMPLES else WHOLE


def _check_size(size: int) -> int:
    if size < 1:
        raise UserError("no advice for an empty training set", found=f"{size} images", expected="1 or more")
    return size
