"""Images or texts that reach the network in another form than in its pretraining.

Symptom
    Usually none: everything runs, and the accuracy is merely lower than it could be.

Cause
    Normalized twice, or not at all; 0–255 for 0–1; BGR for RGB; another interpolation, no antialias, another crop. Texts: no
    attention mask, another side of padding, special tokens that are missing or doubled, another case, the vocabulary of another
    model, a text that is cut. A network that is trained on such inputs adapts in part; one that meets them only in serving
    does not.

Remedy
    The preprocessing that belongs to the weights, in training and in serving: torchvision's transforms, timm's data config, the
    tokenizer that is saved with the weights, or the suite's [backbone].

How it is judged
    Harm is metric(cured) − metric(subject). Cured has the recorded preprocessing in training and in serving. If only serving
    differs, both arms share the weights. If no preprocessing is recorded, cured is the best on validation of the one that the
    suite states or that is assumed, of common other values and orders of channels in serving alone, and of the values of most
    published weights in training and in serving. Each of them gets a bias of each class that is fitted on validation, so that
    a form is not selected because it moves the decision threshold. The result is then taken on trust and is never PASS. A
    statement that contradicts the record is an error. Effects below a point need thousands of images.

How it is induced
    One variant for each mistake, in serving alone: ``raw`` (0–255), ``unnormalised``, ``twice-normalised``, ``bgr``, ``zoom``
    (shorter side resized to 1.5 times its correct length, the same crop), and if images are resized ``nearest`` and
    ``no-antialias``. Twice-normalized also in the other two regimes: ``twice-trained`` (in training alone) and ``twice-both``.
    For texts: ``unmasked`` (16 more padding tokens, and no attention mask), ``padded-left`` (or right), ``no-special-tokens``,
    ``special-tokens-twice``, ``other-case`` (lower case where the tokenizer has none, or the reverse), ``other-vocabulary``
    (permuted ids) and ``truncated`` (to a quarter of the length).

References
    CIFAR-10, ResNet-50, normalised twice: 95.25 to 68.51 % (open_clip issue 204); BGR for RGB, VGG-16: 65 to 49 % (KotlinDL);
    Parmar et al. 2022, On aliased resizing (arXiv:2104.11222); torchvision issues 2950 and 6506: antialias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.config.render import describe_preprocessing
from xferbench.plugin import (
    Contrast,
    InputTransform,
    Pipeline,
    Plugin,
    Preprocessing,
    Profile,
    Record,
    Selection,
    Tokens,
    records,
    replace_data,
    replace_serving,
    requires_pretrained,
    strategies,
    unrecorded_preprocessing,
)
from xferbench.plugins.preprocessing_forms import PUBLISHED, decoded_forms, geometry_forms, value_forms, with_values
from xferbench.plugins.preprocessing_variants import SERVING_MISTAKES, preprocessing_mistakes
from xferbench.plugins.text_forms import text_forms

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FITTED_VIEW = "bias-fitted"
UNFITTED_GAIN = 0.02  # accuracy; below it, what fitted biases change is not worth a sentence


def in_forms(pipeline: Pipeline, train: InputTransform, serve: InputTransform) -> Pipeline:
    """Return a pipeline with one preprocessing in training and another one, or the same, in serving."""
    return replace_serving(replace_data(pipeline, train_preprocessing=train), preprocessing=serve)


def cure(pipeline: Pipeline, profile: Profile) -> Pipeline | Selection:
    form = profile.preprocessing
    as_recorded = in_forms(pipeline, form, form)
    if profile.recorded or not isinstance(form, Preprocessing):
        return as_recorded
    served = [in_forms(pipeline, form, other) for other in (*value_forms(form), *decoded_forms(form, profile.data))]
    trained = [in_forms(pipeline, other, other) for other in (with_values(form, values) for values in PUBLISHED)]
    return Selection(candidates=tuple(dict.fromkeys((as_recorded, *served, *trained))), by=f"validation-{FITTED_VIEW}")


def induce(pipeline: Pipeline, profile: Profile) -> dict[str, Pipeline]:
    transform = pipeline.serving.preprocessing
    mistakes = preprocessing_mistakes(transform, profile, strategies.virtual_tokens(pipeline.recipe))
    arms = {name: replace_serving(pipeline, preprocessing=mistake) for name, mistake in mistakes.items()}
    if "twice-normalised" in arms:
        twice = mistakes["twice-normalised"]
        arms["twice-trained"] = replace_data(pipeline, train_preprocessing=twice)
        arms["twice-both"] = in_forms(pipeline, twice, twice)
    return arms


plugin = Plugin(
    id="preprocessing-mismatch",
    version=2,
    question="Does the network get its inputs in the form of its pretraining?",
    doc=__doc__,
    applies=requires_pretrained,
    cure=cure,
    induce=induce,
    trust=unrecorded_preprocessing,
    remedy="use the preprocessing that is recorded for the weights, or was best on validation, in training and in serving",
)


AUDIT_DOC = """An autopsy of the form in which a network expects its images or texts.

Symptom
    Everything runs, and the accuracy is merely lower than it could be.

Cause
    A mean and standard deviation that differ from training, none, or twice; 0–255 for 0–1; BGR for RGB; another size, crop or
    interpolation; photographs that lie on their side, because one library applies the EXIF orientation and another does not;
    16-bit files that one library clips and another scales. Texts: another case, missing or doubled special tokens, no attention
    mask, another side of padding or truncation.

Remedy
    Serve the images or texts in the form that this audit confirmed.

How it is judged
    The plugin screens common forms on one half of the test images: eight normalizations and ranges, each in both orders of
    channels. Other geometries are then tried with the best of them: other margins around the crop and interpolations, common
    smaller sizes, and the next two larger ones; again with the new best form, until none is better. A size that the network
    does not accept is left out. Files with an EXIF orientation are also turned upright, and 16-bit files are read as if they
    used 8 to 14 of their bits; all values are tried again with the best of these. Each form gets a bias of each class that is
    fitted on that half, because a wrong form can also repair a decision threshold. Harm is metric(the best of them, or the
    served form) − metric(served) on the other half, with those biases. Balanced accuracy replaces sensitivity and specificity,
    which the bias decides. The confidence is the share of resamples of the screened images in which the selected form is the
    best.

    Texts: another case, missing or doubled special tokens, no mask, other sides of padding and truncation: each is tried alone.

How it is induced
    ``unnormalised``, ``raw`` (0–255), ``bgr``, ``zoom``, and if images are resized ``nearest``. For texts, the variants of the
    experiment.

References
    CIFAR-10, ResNet-50, normalised twice: 95.25 to 68.51 % (open_clip issue 204); BGR for RGB, VGG-16: 65 to 49 % (KotlinDL);
    Touvron et al. 2019, Fixing the train-test resolution discrepancy (arXiv:1906.06423).
"""

AS_STORED = (Preprocessing().orientation, Preprocessing().bits)


def audit_applies(pipeline: Pipeline, _: Profile) -> str:
    is_known = isinstance(pipeline.serving.preprocessing, Preprocessing | Tokens)
    return "" if is_known else "the autopsy only knows the forms of images and of texts"


def audit_cure(pipeline: Pipeline, profile: Profile) -> Selection:
    served = pipeline.serving.preprocessing
    if isinstance(served, Tokens):
        common: Iterable[InputTransform] = text_forms(served)
    else:
        assert isinstance(served, Preprocessing)
        common = (*value_forms(served), *decoded_forms(served, profile.data))
    forms = dict.fromkeys((pipeline.data.train_preprocessing, *common))
    candidates = tuple(replace_serving(pipeline, preprocessing=form) for form in forms if form != served)
    return Selection(candidates=candidates, by=f"validation-{FITTED_VIEW}", refine=refine_form)


def refine_form(pipeline: Pipeline, profile: Profile) -> tuple[Pipeline, ...]:
    """Return the pipeline with other geometries of its served images, and with other values if they are decoded otherwise."""
    served = pipeline.serving.preprocessing
    if isinstance(served, Tokens):
        return ()  # many settings of texts change so few answers that a second round would only follow chance
    assert isinstance(served, Preprocessing)
    forms = [*geometry_forms(served, profile.model), *decoded_forms(served, profile.data)]
    forms += value_forms(served) if (served.orientation, served.bits) != AS_STORED else ()
    return tuple(replace_serving(pipeline, preprocessing=form) for form in forms)


def audit_induce(pipeline: Pipeline, profile: Profile) -> dict[str, Pipeline]:
    mistakes = preprocessing_mistakes(pipeline.serving.preprocessing, profile)
    return {name: replace_serving(pipeline, preprocessing=mistakes[name]) for name in SERVING_MISTAKES if name in mistakes}


def explain(_contrast: str, records_by_term: Mapping[tuple[str, str, int], Record], subject: Pipeline, cured: Pipeline) -> str:
    """Return the form that the screened half prefers, whether the other half agrees, and what it gains without biases."""
    if subject == cured:
        return ""
    (before, after), (unfitted_before, unfitted_after) = (
        [records.accuracy(records_by_term[arm, view, 0]) for arm in ("subject", "cured")] for view in (FITTED_VIEW, "test")
    )
    preference = "the screened half prefers" if after > before else "the screened half prefers, and the other half does not,"
    inputs = "texts" if isinstance(subject.serving.preprocessing, Tokens) else "images"
    form = describe_preprocessing(cured.serving.preprocessing, subject.serving.preprocessing)
    if unfitted_after - unfitted_before > max(after - before, 0) + UNFITTED_GAIN:
        gain = f"{unfitted_after:.1%} instead of {unfitted_before:.1%}"
        form += f"; without fitted biases it has {gain}, so this form or other biases would gain that much"
    return f"{preference} {inputs} with {form}"


audit = Plugin(
    id="preprocessing-mismatch",
    version=3,
    question="Does the network get its inputs in the form that it expects?",
    doc=AUDIT_DOC,
    applies=audit_applies,
    cure=audit_cure,
    induce=audit_induce,
    contrasts=(
        Contrast(
            name="harm",
            weights={("cured", FITTED_VIEW): 1.0, ("subject", FITTED_VIEW): -1.0},
            meaning="the best form − the served form, each with a fitted bias of each class",
        ),
    ),
    explain=explain,
    remedy="serve images or texts in the form that this audit confirmed",
)
