"""Common forms in which networks expect images, as values. Pure.

The values of pixels and the order of channels are crossed, because the libraries that serve a network differ in both: ncnn and
OpenCV give BGR, in 0–255 or in 0–1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.plugin import Preprocessing
from xferbench.plugins.preprocessing_variants import normalized_twice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xferbench.core.plugin import DataProfile, ModelProfile

IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CIFAR = Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
SYMMETRIC = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
UNIT, RAW = Preprocessing(), Preprocessing(scale=1.0)
CAFFE = Preprocessing(scale=1.0, mean=(123.68, 116.779, 103.939))  # Simonyan & Zisserman 2014, VGG
IN_ANY_ORDER = (IMAGENET, CIFAR, SYMMETRIC, UNIT, RAW)
PUBLISHED = (IMAGENET, SYMMETRIC, UNIT)  # the values that most published weights were trained with
BY_CHANNELS = {"rgb": (*IN_ANY_ORDER, CAFFE), "bgr": (*IN_ANY_ORDER, replace(CAFFE, mean=CAFFE.mean[::-1]))}
MAX_REDUCTION, LARGER_SIZES = 4, 2  # the smallest size is a quarter of the form's; two larger ones are tried at a time
USED_BITS = (8, 10, 12, 14, 16)  # of 16-bit files; Pillow converts them as if it were 8, and scanners use 10 to 16
RESIZE_FACTORS = (1.0, 256 / 224)  # shorter side before the crop, relative to the crop


def value_forms(form: Preprocessing) -> Iterator[Preprocessing]:
    """Yield a form in both orders of channels, each with its own values, normalized twice, and with all common values."""
    twice = normalized_twice(form)
    assert isinstance(twice, Preprocessing)
    for channels, common in BY_CHANNELS.items():
        yield from (replace(own, channels=channels) for own in (form, twice))
        yield from (replace(with_values(form, values), channels=channels) for values in common)


def with_values(form: Preprocessing, values: Preprocessing) -> Preprocessing:
    """Return a form with the range, mean and standard deviation of another one."""
    return replace(form, scale=values.scale, mean=values.mean, std=values.std)


def decoded_forms(form: Preprocessing, data: DataProfile) -> Iterator[Preprocessing]:
    """Yield a form of files that are decoded otherwise, if the test images have an EXIF orientation or 16 bits."""
    if data.rotated:
        yield replace(form, orientation="stored" if form.orientation == "upright" else "upright")
    if data.sixteen_bit:
        yield from (replace(form, bits=bits) for bits in USED_BITS if bits != form.bits)


def geometry_forms(form: Preprocessing, model: ModelProfile) -> Iterator[Preprocessing]:
    """Yield a form with another margin around the crop, with other interpolations, and in other sizes.

    Of the common sizes that the network accepts, those down to a quarter of the form's are tried, which cost little, and the
    next two above it.
    """
    if form.resize and form.crop:
        yield from (replace(form, resize=round(factor * form.crop)) for factor in RESIZE_FACTORS)
    if form.resize:
        yield from (replace(form, interpolation=interpolation) for interpolation in ("bilinear", "bicubic"))
        yield replace(form, antialias=not form.antialias)
    current = form.crop or form.resize or min(model.size)
    smaller = [size for size in model.accepted_sizes if current / MAX_REDUCTION <= size < current]
    larger = [size for size in model.accepted_sizes if size > current]
    yield from (scale_to(form, size / current, size) for size in (*smaller, *larger[:LARGER_SIZES]))


def scale_to(form: Preprocessing, factor: float, size: int) -> Preprocessing:
    """Return a form whose images show the same, scaled by a factor to a shorter side of ``size`` pixels."""
    resize = size if form.resize is None else round(factor * form.resize)
    return replace(form, resize=resize, crop=None if form.crop is None else size)
