"""What textbooks advise: which strategy for how many images, and how like the source. Rules to be measured, not to be trusted.

References:
    Stanford CS231n, notes on transfer learning: the two by two of data size and similarity.
    Chu et al. 2016, Best practices for fine-tuning visual classifiers to new domains (ECCV workshops).
    Plested & Gedeon 2022, Deep transfer learning for image classification: a survey (arXiv:2205.09904).
"""

from __future__ import annotations

FEW = 1000  # images below which a dataset is small; the notes name no number


def textbook(size: int, *, similar: bool, few: int = FEW) -> str:
    """The strategy that the two by two advises.

    Few and similar: a linear classifier on the features. Few and different: one on an earlier layer, here the upper layers
    trained. Many: all of it fine-tuned, similar or not.

    Args:
        size: training images. similar: to what the backbone was pretrained on. few: below which there are few.
    """
    if size >= few:
        return "full"
    return "linear-probe" if similar else "partial"


def by_size(size: int) -> str:
    """The gradual rule: below 100 training images a frozen backbone, up to 10 000 the upper layers, above that all of it."""
    if size < 100:
        return "linear-probe"
    return "partial" if size <= 10_000 else "full"
