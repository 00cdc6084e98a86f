"""Images with other channels, or another resolution, than the network's first layers expect.

Symptom
    Gray images (X-ray, infrared) or small ones (32 pixels, thumbnails) transfer worse than their content suggests; or
    accuracy falls if the camera in production is not the camera of the training images.

Cause
    Filters detect edges and textures at the scale of their pretraining, and the first layer sums over three channels. If a
    one-channel layer averages these weights and does not sum them, it responds with a third of the strength. Gray images lose
    what color would show; fewer pixels lose detail.

Remedy
    Repeat one channel three times, which equals summing the first layer's weights over their input channels; keep color if
    the images have it; resize images to the pretraining size, and train near the resolution that is served.

How it is judged
    Harm is metric(cured) − metric(subject). Cured is the best on validation of the pipeline as it is, one with the channels
    and size that are recorded for the weights, and one trained at the size it serves. A pipeline that has this form already is
    not exposed, and the induced variants show what the mistake would cost. The plugin preprocessing-mismatch differs: it trusts
    the record in all its fields without a trial, and breaks values (mean, order of channels, interpolation). This plugin
    changes channels and size alone, and tests whether another form does better.

How it is induced
    ``mean-not-sum``: a third of the input in training and in serving, which is a third of the first layer's response: what a
    one-channel layer of averaged weights gives (a frozen BatchNorm does not compensate for it; one in training mode may).
    ``half-resolution``: in serving alone, images are scaled to half their resolution and back.

References
    Touvron et al. 2019, Fixing the train-test resolution discrepancy (arXiv:1906.06423), as published: ResNet-50 on ImageNet
    77.0 % at the size of training, 79.0 % with the test resolution adapted. The effect comes from random crops in training;
    there are none here.
"""

from __future__ import annotations

from dataclasses import replace

from xferbench.plugin import (
    InputTransform,
    Pipeline,
    Plugin,
    Preprocessing,
    Profile,
    Selection,
    Spectrogram,
    records,
    replace_data,
    replace_serving,
    requires_pretrained,
    unrecorded_preprocessing,
)

RGB_CHANNELS = 3
HALF_RESOLUTION = 0.5
SIZE_FIELDS = ("resize", "crop", "interpolation", "antialias")


def with_size_of(transform: InputTransform, other: InputTransform, *, channels: bool) -> InputTransform:
    """Return a transform with the size of another one, and with its channels if ``channels`` is true."""
    if isinstance(transform, Preprocessing) and isinstance(other, Preprocessing):
        size = {name: getattr(other, name) for name in SIZE_FIELDS}
        return replace(transform, **size, channels=other.channels if channels else transform.channels)
    if isinstance(transform, Spectrogram) and isinstance(other, Spectrogram) and channels:
        return replace(transform, channels=other.channels)
    return transform


def cure(pipeline: Pipeline, profile: Profile) -> Pipeline | Selection:
    train, serve = pipeline.data.train_preprocessing, pipeline.serving.preprocessing
    recorded_train, recorded_serve = (
        with_size_of(transform, profile.preprocessing, channels=True) for transform in (train, serve)
    )
    as_recorded = replace(
        pipeline,
        data=replace(pipeline.data, train_preprocessing=recorded_train),
        serving=replace(pipeline.serving, preprocessing=recorded_serve),
    )
    as_served = replace_data(pipeline, train_preprocessing=with_size_of(train, serve, channels=False))
    others = dict.fromkeys(candidate for candidate in (as_recorded, as_served) if candidate != pipeline)
    return Selection(candidates=(pipeline, *others)) if others else pipeline


def divide_by_three(transform: InputTransform) -> InputTransform:
    """Return a transform whose output is a third of the original output."""
    if isinstance(transform, Preprocessing):
        return replace(transform, std=tuple(RGB_CHANNELS * std for std in transform.std))
    return replace(transform, std=RGB_CHANNELS * transform.std)


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    train, serve = pipeline.data.train_preprocessing, pipeline.serving.preprocessing
    averaged_train, averaged_serve = divide_by_three(train), divide_by_three(serve)
    arms = {
        "mean-not-sum": replace(
            pipeline,
            data=replace(pipeline.data, train_preprocessing=averaged_train),
            serving=replace(pipeline.serving, preprocessing=averaged_serve),
        )
    }
    if isinstance(serve, Preprocessing):
        half = replace(serve, detail=HALF_RESOLUTION * serve.detail)
        arms["half-resolution"] = replace_serving(pipeline, preprocessing=half)
    return arms


plugin = Plugin(
    id="input-mismatch",
    version=1,
    question="Do the images have the channels and the resolution that the network needs?",
    doc=__doc__,
    applies=requires_pretrained,
    cure=cure,
    induce=induce,
    trust=unrecorded_preprocessing,
    remedy="use the channels and the size that belong to the weights, and train at the size that is served",
    plot=records.accuracy_plot("input-mismatch"),
)
