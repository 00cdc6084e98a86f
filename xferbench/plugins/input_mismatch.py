"""Images of other channels, or of another resolution, than the network's first layers were made for.

Symptom
    Grey images (X-ray, infrared) or small ones (32 pixels, thumbnails) transfer worse than their content lets one expect; or
    accuracy falls where the camera that serves is not the one that training images came from.

Cause
    Filters know edges and textures at the scale of their pretraining, and the first layer sums over three channels. One
    channel where its weights are averaged rather than summed answers with a third of the strength; grey where colour was to be
    had loses that; fewer pixels leave detail out.

Remedy
    Repeat one channel three times, which is the same as to sum the first layer's weights over their input channels; keep
    colour where there is any; bring images to the size of pretraining, and train near the resolution that is served.

How it is judged
    Harm is metric(cured) − metric(subject). Cured is the best on validation of the pipeline as it is, of one with the channels
    and size that are recorded for the weights, and of one trained at the size it serves. Where the pipeline has that form
    already there is nothing to choose: it is not exposed, and the induced variants say what the mistake would cost. How
    preprocessing-mismatch differs: that takes the record for right, in all its fields and without a trial, and breaks values
    (mean, order of channels, interpolation); this asks for channels and size alone, and whether another form does better.

How it is induced
    ``mean-not-sum``: a third of the input in training and in serving, which is a third of the first layer's response: what a
    one-channel layer of averaged weights gives (a frozen BatchNorm does not make up for it; one in training mode may).
    ``half-resolution``: in serving alone, images at half their resolution and back.

References
    Touvron et al. 2019, Fixing the train-test resolution discrepancy (arXiv:1906.06423), as published: ResNet-50 on ImageNet
    77.0 % at the size of training, 79.0 % with the test resolution adapted; it comes of random crops in training, of which
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
    requires_pretrained,
    unrecorded_preprocessing,
)

CHANNELS, HALF = 3, 0.5
SIZE = ("resize", "crop", "interpolation", "antialias")


def formed(ready: InputTransform, other: InputTransform, *, channels: bool) -> InputTransform:
    """A preprocessing with the size of another, and perhaps its channels; values stay its own."""
    if isinstance(ready, Preprocessing) and isinstance(other, Preprocessing):
        named = {name: getattr(other, name) for name in SIZE}
        return replace(ready, **named, channels=other.channels if channels else ready.channels)
    if isinstance(ready, Spectrogram) and isinstance(other, Spectrogram) and channels:
        return replace(ready, channels=other.channels)
    return ready


def cure(pipeline: Pipeline, facts: Profile) -> Pipeline | Selection:
    train, serve = pipeline.train_preprocessing, pipeline.serve_preprocessing
    own, to_serve = (formed(one, facts.preprocessing, channels=True) for one in (train, serve))
    as_recorded = replace(pipeline, train_preprocessing=own, serve_preprocessing=to_serve)
    as_served = replace(pipeline, train_preprocessing=formed(train, serve, channels=False))
    others = dict.fromkeys(one for one in (as_recorded, as_served) if one != pipeline)
    return Selection(candidates=(pipeline, *others)) if others else pipeline


def third(ready: InputTransform) -> InputTransform:
    """A third of what a network is given."""
    if isinstance(ready, Preprocessing):
        return replace(ready, std=tuple(CHANNELS * one for one in ready.std))
    return replace(ready, std=CHANNELS * ready.std)


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    train, serve = pipeline.train_preprocessing, pipeline.serve_preprocessing
    found = {"mean-not-sum": replace(pipeline, train_preprocessing=third(train), serve_preprocessing=third(serve))}
    if isinstance(serve, Preprocessing):
        found["half-resolution"] = replace(pipeline, serve_preprocessing=replace(serve, detail=HALF * serve.detail))
    return found


plugin = Plugin(
    id="input-mismatch",
    version=1,
    question="Do images have the channels and the resolution that suit the network?",
    doc=__doc__,
    applies=requires_pretrained,
    cure=cure,
    induce=induce,
    trust=unrecorded_preprocessing,
    remedy="give images the channels and the size that go with the weights, and train at the size that is served",
    plot=records.accuracy_plot("input-mismatch"),
)
