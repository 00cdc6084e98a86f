"""What the textbooks advise before anything is trained: a strategy by how many images there are and how alike the source is.

References:
    CS231n, Convolutional neural networks for visual recognition, notes on transfer learning (Stanford): four scenarios.
    Chu et al. 2016, Best practices for fine-tuning visual classifiers to new domains (ECCV workshops): how much to fine-tune,
    by the amount of data and the distance from the source, found by experiment.
    Plested & Gedeon 2022, Deep transfer learning for image classification: a survey (arXiv:2205.09904): when such rules fail.
"""

from __future__ import annotations

from xferbench.problem import Problem

FROZEN, UPPER, WHOLE = "linear-probe", "partial", "full"  # names of strategies, from little to much that is trained
FEW = 1000  # images below which a set is taken to be small; CS231n draws no line
LEAST, MOST = 100, 10_000  # images from which the size rule advises upper layers, and up to which


def textbook(size: int, similar: bool, few: int = FEW) -> str:
    """The strategy that CS231n's four scenarios advise.

    Small and similar: a linear classifier on the frozen network. Small and different: one on earlier layers, for which
    ``partial`` stands here, the recipe that lets go of the layers most particular to the source. Large: the whole network, from
    the pretrained weights also where the source is different, which the notes prefer to training from scratch.

    Args:
        size: training images.
        similar: whether the target is like the source.
        few: images below which a set is small.

    Raises:
        Problem: for a size that no training set has.
    """
    if _checked(size) >= few:
        return WHOLE
    return FROZEN if similar else UPPER


def by_size(size: int) -> str:
    """The strategy by size alone: below 100 images the network frozen, up to 10 000 its upper layers trained, above all of it.

    Args:
        size: training images.

    Raises:
        Problem: for a size that no training set has.
    """
    if _checked(size) < LEAST:
        return FROZEN
    return UPPER if size <= MOST else WHOLE


def _checked(size: int) -> int:
    if size < 1:
        raise Problem("no advice for an empty training set", found=f"{size} images", expected="1 or more")
    return size
