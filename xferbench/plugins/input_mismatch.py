"""Images with other channels, or another resolution, than the network's first layers expect.

Symptom
    Gray images (X-ray, infrared) or small ones (32 pixels, thumbnails) transfer worse than their content suggests; or
    accuracy falls if the camera in production is not the camera of the training images.

Cause
    Filters detect edges and textures at the scale of their pretraining. Gray images lose what color would show; fewer pixels
    lose detail. A network that is trained at one size and served at another sees its objects at the wrong scale.

Remedy
    Repeat one channel three times, which equals summing the first layer's weights over their input channels; keep color if
    the images have it; resize images to the pretraining size, and train near the resolution that is served.

How it is judged
    Harm is metric(cured) − metric(subject). Cured is the best on validation of the pipeline as it is, one with the channels
    and size that are recorded for the weights, and, if it serves another size than it trains at, one trained at the size it
    serves and one trained at seven eighths of it (FixRes: a little below the size of serving can be best). A pipeline that
    has the recorded form in training and serving is not exposed, and the induced variants show what the mistake would cost.
    Forms that nobody states are not searched; the audit of preprocessing-mismatch searches them. The plugin
    preprocessing-mismatch differs: it trusts the record in all its fields without a trial, and breaks values (mean, order of
    channels, interpolation). This plugin changes channels and size alone, and tests whether another form does better.

How it is induced
    ``grey``: images lose their color in training and in serving. ``half-resolution``: in serving alone, images are scaled to
    half their resolution and back. There is no variant of spectrograms.

References
    Touvron et al. 2019, Fixing the train-test resolution discrepancy (arXiv:1906.06423), as published: ResNet-50 on ImageNet
    77.0 % at the size of training, 79.0 % with the test resolution adapted. Much of the effect comes from random crops that
    enlarge objects in training; crops here keep the scale.
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
    Tokens,
    records,
    replace_data,
    replace_serving,
    requires_pretrained,
    unrecorded_preprocessing,
)

HALF_RESOLUTION = 0.5
NEAR_SIZE = 7 / 8  # of the size of serving
SIZE_FIELDS = ("resize", "crop", "interpolation", "antialias")


def with_size_of(transform: InputTransform, other: InputTransform, *, channels: bool) -> InputTransform:
    """Return a transform with the size of another one, and with its channels if ``channels`` is true."""
    if isinstance(transform, Preprocessing) and isinstance(other, Preprocessing):
        size = {name: getattr(other, name) for name in SIZE_FIELDS}
        return replace(transform, **size, channels=other.channels if channels else transform.channels)
    if isinstance(transform, Spectrogram) and isinstance(other, Spectrogram) and channels:
        return replace(transform, channels=other.channels)
    return transform


def applies(pipeline: Pipeline, profile: Profile) -> str:
    if isinstance(pipeline.data.train_preprocessing, Tokens):
        return "texts have neither channels nor a resolution"
    return requires_pretrained(pipeline, profile)


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
    as_served = with_size_of(train, serve, channels=False)
    forms = [] if as_served == train else [as_served, scale_size(as_served, NEAR_SIZE)]
    candidates = (as_recorded, *(replace_data(pipeline, train_preprocessing=form) for form in forms))
    others = dict.fromkeys(candidate for candidate in candidates if candidate != pipeline)
    return Selection(candidates=(pipeline, *others)) if others else pipeline


def scale_size(transform: InputTransform, factor: float) -> InputTransform:
    """Return a transform whose images are smaller or larger by a factor and show the same."""
    if not isinstance(transform, Preprocessing):
        return transform
    resize, crop = (None if size is None else round(factor * size) for size in (transform.resize, transform.crop))
    return replace(transform, resize=resize, crop=crop)


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    train, serve = pipeline.data.train_preprocessing, pipeline.serving.preprocessing
    if not isinstance(train, Preprocessing) or not isinstance(serve, Preprocessing):
        return {}
    without_color = replace_data(pipeline, train_preprocessing=replace(train, channels="grey"))
    arms = {
        "grey": replace_serving(without_color, preprocessing=replace(serve, channels="grey")),
        "half-resolution": replace_serving(pipeline, preprocessing=replace(serve, detail=HALF_RESOLUTION * serve.detail)),
    }
    return {name: arm for name, arm in arms.items() if arm != pipeline}


plugin = Plugin(
    id="input-mismatch",
    version=2,
    question="Do the images have the channels and the resolution that the network needs?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    trust=unrecorded_preprocessing,
    remedy="use the channels and the size that belong to the weights, and train at the size that is served",
    plot=records.accuracy_plot("input-mismatch"),
)
