"""A model that is served in another way than it was trained.

Symptom
    Good results in the notebook, worse ones in production; the same example gets another prediction in another batch, or on
    another day.

Cause
    Two code paths: the service has its own decoding, resizing or order of channels, or forgets ``model.eval()``, so that
    BatchNorm uses the statistics of the current batch (which flatters if the batch is large and mixed).

Remedy
    Serve with exactly the preprocessing of training, in evaluation mode.

How it is judged
    Harm is metric(served as trained) − metric(served as the suite says), with the same weights. ``batch-dependence`` is an
    exact invariant: a prediction must not depend on the other examples in its batch. Test examples go through the model as it
    is served, in shuffled batches and in batches ordered by class; the invariant is broken if the probabilities of any example
    differ by more than a hundredth.

How it is induced
    ``train-mode`` and ``train-mode-by-class``: the network in training mode (BatchNorm with the statistics of its batches,
    dropout active) on shuffled batches, or on batches that are ordered by class. ``unnormalised``, ``raw`` (0–255), ``bgr``,
    ``zoom``, and if images are resized ``nearest``: serving differs in that alone. Texts have the variants of
    preprocessing-mismatch.

Also measured
    ``flips``: share of the predictions that change between the two ways of serving, for the subject and each induced arm.

References
    LearningToCompare_FSL issue 48: train mode at test lifted 90 to 99.6 %; Breck et al. 2019, Data validation for machine
    learning (training–serving skew); Ioffe & Szegedy 2015 (arXiv:1502.03167).
"""

from __future__ import annotations

from dataclasses import replace

from xferbench.config.render import describe_preprocessing
from xferbench.plugin import (
    HARM,
    MeasureContext,
    Pipeline,
    Plugin,
    Profile,
    always_applies,
    interventions,
    invariant,
    records,
    replace_serving,
    strategies,
)
from xferbench.plugins.preprocessing_variants import SERVING_MISTAKES, preprocessing_mistakes


def induce(pipeline: Pipeline, profile: Profile) -> dict[str, Pipeline]:
    mistakes = preprocessing_mistakes(pipeline.serving.preprocessing, profile, strategies.virtual_tokens(pipeline.recipe))
    modes = {
        "train-mode": replace_serving(pipeline, mode=interventions.TRAIN_MODE),
        "train-mode-by-class": replace_serving(pipeline, mode=interventions.TrainModeByClass()),
    }
    return modes | {
        name: replace_serving(pipeline, preprocessing=mistakes[name]) for name in SERVING_MISTAKES if name in mistakes
    }


def flips(records_by_term: records.RecordsByTerm, seeds: records.Seeds) -> dict[str, float]:
    """Return the share of test examples whose prediction differs from the prediction of the model served as it was trained."""
    predicted = {
        (arm, seed): record.predictions.predicted
        for (arm, view, seed), record in records_by_term.items()
        if record.predictions is not None and view == "test"
    }
    cured = {seed: predicted["cured", seed] for seed in seeds if ("cured", seed) in predicted}
    shares = [(arm, float((classes != cured[seed]).mean())) for (arm, seed), classes in predicted.items() if seed in cured]
    arms = dict.fromkeys(arm for arm, _ in shares if arm not in {"cured", "scratch"})
    return {f"{arm}/flips": records.mean_or_nan([share for other, share in shares if other == arm]) for arm in arms}


def batch_dependence(context: MeasureContext) -> dict[str, float]:
    """Return the share of test examples whose probabilities depend on their batch by more than a hundredth."""
    from xferbench.lab.evaluation import batch_dependence as batch_dependence_module

    return {"batch-dependence": batch_dependence_module.batch_dependent_share(context, tolerance=0.01)}


def explain(_contrast: str, _answers: records.RecordsByTerm, subject: Pipeline, _cured: Pipeline) -> str:
    """Return the fields in which serving differs from training."""
    serve, train = subject.serving.preprocessing, subject.data.train_preprocessing
    preprocessing = f"served on {describe_preprocessing(serve, train)}, trained on {describe_preprocessing(train, serve)}"
    differences = [preprocessing] * (serve != train) + [f"served in {subject.serving.mode} mode"] * (
        subject.serving.mode != interventions.EVAL_MODE
    )
    return "; ".join(differences)


plugin = Plugin(
    id="train-serve-skew",
    version=1,
    question="Is the model served as it was trained?",
    doc=__doc__,
    applies=always_applies,
    cure=lambda pipeline, _: replace_serving(
        pipeline, preprocessing=pipeline.data.train_preprocessing, mode=interventions.EVAL_MODE
    ),
    induce=induce,
    contrasts=(HARM, invariant("batch-dependence", "an answer must not depend on the batch it comes in")),
    measures={"batch-dependence": "xferbench.plugins.train_serve_skew:batch_dependence@2"},
    derived_metrics=flips,
    explain=explain,
    remedy="serve with the preprocessing of training, in evaluation mode",
)


AUDIT_DOC = """A finished network that is served in another way than it was trained.

Symptom
    Good results in the notebook, worse ones in production; the same example gets another prediction in another batch.

Cause
    Two code paths: the service has its own decoding, resizing or order of channels, or forgets ``model.eval()``.

Remedy
    Serve with exactly the preprocessing of training, in evaluation mode.

How it is judged
    Harm is metric(served as trained) − metric(served as configured), with the same weights, on all test examples, since nothing
    is selected. ``batch-dependence`` is an exact invariant: an example has the same probabilities in shuffled batches and in
    batches ordered by class.

How it is induced
    ``train-mode`` and ``train-mode-by-class``: the network in training mode, on shuffled batches or on batches ordered by
    class. ``unnormalised``: serving omits mean and standard deviation.

Also measured
    ``flips``: share of the predictions that change between the two ways of serving.

References
    LearningToCompare_FSL issue 48: train mode at test lifted 90 to 99.6 %; Ioffe & Szegedy 2015 (arXiv:1502.03167).
"""
AUDIT_VARIANTS = ("train-mode", "train-mode-by-class", "unnormalised")  # the audit of preprocessing-mismatch has the others
AUDIT_IMAGES = 64  # each goes through the network in two orders


def audit_induce(pipeline: Pipeline, profile: Profile) -> dict[str, Pipeline]:
    return {name: arm for name, arm in induce(pipeline, profile).items() if name in AUDIT_VARIANTS}


def batch_dependence_of_few(context: MeasureContext) -> dict[str, float]:
    """Return the same as :func:`batch_dependence`, for fewer examples."""
    images, labels = context.test.images[:AUDIT_IMAGES], context.test.labels[:AUDIT_IMAGES]
    few = replace(context, test=replace(context.test, images=images, labels=labels))
    return batch_dependence(few)


audit = replace(
    plugin,
    question="Is the finished network served as it was trained?",
    doc=AUDIT_DOC,
    induce=audit_induce,
    contrasts=(
        replace(HARM, weights={("cured", "whole"): 1.0, ("subject", "whole"): -1.0}),
        *(contrast for contrast in plugin.contrasts if contrast.kind == "exact"),
    ),
    measures={"batch-dependence": "xferbench.plugins.train_serve_skew:batch_dependence_of_few@1"},
)
