"""Images that reach the network in another form than the one it was pretrained for.

Symptom
    None, as a rule: everything runs, and the accuracy is merely lower than it could be.

Cause
    Normalised twice, or not at all; 0–255 for 0–1; BGR for RGB; another interpolation, no antialias, another crop. A network
    that is trained on such images adapts in part; one that only meets them when it serves does not.

Remedy
    The preprocessing that goes with the weights, in training and in serving: torchvision's transforms, timm's data config, or
    what the suite's [backbone] says.

How it is judged
    Harm is metric(recorded preprocessing in training and serving) − metric(subject). Where nobody recorded any, the answer is
    on trust, never PASS. Where only serving differs, both share the weights. Effects below a point need thousands of images.

How it is induced
    Each its own variant, in serving alone: ``raw`` (0–255), ``unnormalised``, ``twice-normalised``, ``bgr``, ``zoom`` (shorter
    side resized to 1.5 times what it should be, the same crop), and where images are resized at all ``nearest`` and
    ``no-antialias``. Twice-normalised also in the other two regimes: ``twice-trained`` (in training alone) and ``twice-both``.

References
    CIFAR-10, ResNet-50, normalised twice: 95.25 to 68.51 % (open_clip issue 204); BGR for RGB, VGG-16: 65 to 49 % (KotlinDL);
    Parmar et al. 2022, On aliased resizing (arXiv:2104.11222); torchvision issues 2950 and 6506: antialias.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.config.render import describe_preprocessing
from xferbench.plugin import (
    HARM,
    InputTransform,
    Pipeline,
    Plugin,
    Preprocessing,
    Profile,
    Record,
    Selection,
    requires_pretrained,
    unrecorded_preprocessing,
)
from xferbench.plugins.preprocessing_variants import FIELDS, normalized_twice, preprocessing_mistakes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def cure(pipeline: Pipeline, facts: Profile) -> Pipeline:
    return replace(pipeline, train_preprocessing=facts.preprocessing, serve_preprocessing=facts.preprocessing)


def induce(pipeline: Pipeline, facts: Profile) -> dict[str, Pipeline]:
    ready = pipeline.serve_preprocessing
    arms = {name: replace(pipeline, serve_preprocessing=wrong) for name, wrong in preprocessing_mistakes(ready, facts).items()}
    if "twice-normalised" in arms:
        both = normalized_twice(ready)
        arms["twice-trained"] = replace(pipeline, train_preprocessing=both)
        arms["twice-both"] = replace(pipeline, train_preprocessing=both, serve_preprocessing=both)
    return arms


plugin = Plugin(
    id="preprocessing-mismatch",
    version=1,
    question="Does the network get its images in the form it was pretrained for?",
    doc=__doc__,
    applies=requires_pretrained,
    cure=cure,
    induce=induce,
    trust=unrecorded_preprocessing,
    remedy="prepare images as the weights' record says, in training and in serving",
)


AUDIT_PAGE = """An autopsy of the form in which a network expects its images.

Symptom
    Everything runs, and the accuracy is merely lower than it could be.

Cause
    Another mean and standard deviation than in training, none, or twice; 0–255 for 0–1; BGR for RGB; another size, crop or
    interpolation.

Remedy
    Serve the images in the form that was confirmed here.

How it is judged
    Forms that are in use are screened on one half of the test images: eight normalisations and ranges, both orders of channels,
    other sizes before the crop, other interpolations. Harm is metric(the best of them, or the one that is served) −
    metric(served) on the other half. The confidence is the share of resamples of the screened images in which the chosen one
    is the best.

How it is induced
    ``unnormalised``, ``raw`` (0–255), ``bgr``, ``zoom``, and where images are resized at all ``nearest``.

References
    CIFAR-10, ResNet-50, normalised twice: 95.25 to 68.51 % (open_clip issue 204); BGR for RGB, VGG-16: 65 to 49 % (KotlinDL);
    Touvron et al. 2019, Fixing the train-test resolution discrepancy (arXiv:1906.06423).
"""

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
NONE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
CAFFE = {"scale": 1.0, "mean": (123.68, 116.779, 103.939), "std": (1.0, 1.0, 1.0)}  # Simonyan & Zisserman 2014, VGG
LARGER = (1.0, 256 / 224)  # shorter side before the crop, over the crop


def audit_applies(pipeline: Pipeline, _: Profile) -> str:
    return "" if isinstance(pipeline.serve_preprocessing, Preprocessing) else "the autopsy knows the forms of images alone"


def forms(ready: Preprocessing) -> Iterator[Preprocessing]:
    """The forms in use that differ from one in normalisation, range or channels, or in geometry."""
    plain = replace(ready, scale=1 / 255)
    norms = [replace(plain, **values) for values in (IMAGENET, CIFAR, HALF, NONE)]  # type: ignore[arg-type]
    raw = [replace(ready, **NONE | {"scale": 1.0}), replace(ready, **CAFFE)]  # type: ignore[arg-type]
    other = "rgb" if ready.channels == "bgr" else "bgr"
    yield from norms
    yield from raw
    again = normalized_twice(ready)
    assert isinstance(again, Preprocessing)
    yield again
    yield from (replace(one, channels=other) for one in (ready, norms[0], norms[2], raw[1]))
    if ready.resize and ready.crop:
        yield from (replace(ready, resize=round(factor * ready.crop)) for factor in LARGER)
    if ready.resize:
        yield from (replace(ready, interpolation=word) for word in ("bilinear", "bicubic"))
        yield replace(ready, antialias=not ready.antialias)


def audit_cure(pipeline: Pipeline, _: Profile) -> Selection:
    ready = pipeline.serve_preprocessing
    assert isinstance(ready, Preprocessing)
    found: dict[InputTransform, None] = dict.fromkeys((pipeline.train_preprocessing, *forms(ready)))
    return Selection(candidates=tuple(replace(pipeline, serve_preprocessing=one) for one in found if one != ready))


def audit_induce(pipeline: Pipeline, facts: Profile) -> dict[str, Pipeline]:
    wrong = preprocessing_mistakes(pipeline.serve_preprocessing, facts)
    return {name: replace(pipeline, serve_preprocessing=wrong[name]) for name in FIELDS if name in wrong}


def told(_contrast: str, answers: Mapping[tuple[str, str, int], Record], subject: Pipeline, cured: Pipeline) -> str:
    if subject == cured:
        return ""
    was, now = (one.predictions for one in (answers["subject", "test", 0], answers["cured", "test", 0]))
    better = was is not None and now is not None and (now.predicted == now.label).mean() > (was.predicted == was.label).mean()
    whose = "the screened half prefers" if better else "the screened half prefers, and the other does not,"
    return f"{whose} images with {describe_preprocessing(cured.serve_preprocessing, subject.serve_preprocessing)}"


audit = Plugin(
    id="preprocessing-mismatch",
    version=1,
    question="Does the network get its images in the form that it expects?",
    doc=AUDIT_PAGE,
    applies=audit_applies,
    cure=audit_cure,
    induce=audit_induce,
    contrasts=(HARM,),
    explain=told,
    remedy="serve images in the form that was confirmed here",
)
