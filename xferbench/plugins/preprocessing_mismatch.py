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

from xferbench import asking
from xferbench.design import Facts, Pipeline, Plugin, Ready, Spectrogram

ZOOM = 1.5


def cure(pipeline: Pipeline, facts: Facts) -> Pipeline:
    return replace(pipeline, train_preprocessing=facts.preprocessing, serve_preprocessing=facts.preprocessing)


def twice(ready: Ready) -> Ready:
    """Normalised, and then once more with the same mean and standard deviation, as one normalisation."""
    if isinstance(ready, Spectrogram):
        return replace(ready, mean=ready.mean * (1 + ready.std), std=ready.std**2)
    width = max(len(ready.mean), len(ready.std))
    pairs = [(ready.mean[i % len(ready.mean)], ready.std[i % len(ready.std)]) for i in range(width)]
    return replace(ready, mean=tuple(m + m * s for m, s in pairs), std=tuple(s * s for _, s in pairs))


def mistakes(ready: Ready, facts: Facts) -> dict[str, Ready]:
    """What people get wrong about a preprocessing, one field each; those that change nothing are left out."""
    found = {"twice-normalised": twice(ready)}
    if isinstance(ready, Spectrogram):
        found["unnormalised"] = replace(ready, mean=0.0, std=1.0)
    else:
        plain = replace(ready, mean=(0.0,) * len(ready.mean), std=(1.0,) * len(ready.std))
        shorter = ready.resize or min(facts.size)
        found["unnormalised"] = plain
        if ready.scale != 1:
            found["raw"] = replace(plain, scale=1.0)
        found["bgr"] = replace(ready, channels="rgb" if ready.channels == "bgr" else "bgr")
        found["zoom"] = replace(ready, resize=round(ZOOM * shorter), crop=ready.crop or min(facts.size))
        if ready.resize:
            found["nearest"] = replace(ready, interpolation="nearest", antialias=False)
            found["no-antialias"] = replace(ready, antialias=False)
    return {name: wrong for name, wrong in found.items() if wrong != ready}


def induce(pipeline: Pipeline, facts: Facts) -> dict[str, Pipeline]:
    ready = pipeline.serve_preprocessing
    arms = {name: replace(pipeline, serve_preprocessing=wrong) for name, wrong in mistakes(ready, facts).items()}
    if "twice-normalised" in arms:
        both = twice(ready)
        arms["twice-trained"] = replace(pipeline, train_preprocessing=both)
        arms["twice-both"] = replace(pipeline, train_preprocessing=both, serve_preprocessing=both)
    return arms


plugin = Plugin(
    id="preprocessing-mismatch",
    version=1,
    question="Does the network get its images in the form it was pretrained for?",
    page=__doc__,
    applies=asking.adapted,
    cure=cure,
    induce=induce,
    trust=asking.recorded,
    remedy="prepare images as the weights' record says, in training and in serving",
)
