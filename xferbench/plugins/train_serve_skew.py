"""A model that is served in another way than it was trained.

Symptom
    Fine in the notebook, worse in production; the same image gets another answer in another batch, or on another day.

Cause
    Two code paths: the service decodes, resizes or orders channels by itself, or forgets ``model.eval()``, so that BatchNorm
    takes the statistics of whatever happens to be in the batch (which flatters where the batch is large and mixed).

Remedy
    Serve with the very preprocessing of training, in evaluation mode.

How it is judged
    Harm is metric(served as trained) − metric(served as the suite says), with the same weights. ``batch-dependence`` is an
    exact invariant: an answer must not depend on the batch it comes in. Test images go through the model as it is served in
    shuffled batches and in batches ordered by class; it is broken if the probabilities of any differ by more than a hundredth.

How it is induced
    ``train-mode`` and ``train-mode-by-class``: the network in training mode (BatchNorm with the statistics of its batches,
    dropout at work) on shuffled batches, or on such as are ordered by class. ``unnormalised``, ``raw`` (0–255), ``bgr``,
    ``zoom``, and where images are resized at all ``nearest``: serving differs in that alone.

Measured beside it
    ``flips``: share of the answers that change between the two ways of serving, for the subject and each induced arm.

References
    LearningToCompare_FSL issue 48: train mode at test lifted 90 to 99.6 %; Breck et al. 2019, Data validation for machine
    learning (training–serving skew); Ioffe & Szegedy 2015 (arXiv:1502.03167).
"""

from __future__ import annotations

from dataclasses import replace

from xferbench.config.render import describe_preprocessing
from xferbench.plugin import HARM, MeasureContext, Pipeline, Plugin, Profile, always_applies, invariant, records
from xferbench.plugins.preprocessing_variants import FIELDS, preprocessing_mistakes


def induce(pipeline: Pipeline, facts: Profile) -> dict[str, Pipeline]:
    wrong = preprocessing_mistakes(pipeline.serve_preprocessing, facts)
    modes = {"train-mode": replace(pipeline, mode="train"), "train-mode-by-class": replace(pipeline, mode="train:class")}
    return modes | {name: replace(pipeline, serve_preprocessing=wrong[name]) for name in FIELDS if name in wrong}


def flips(answers: records.RecordsByTerm, seeds: records.Seeds) -> dict[str, float]:
    """Share of the test images whose answer is not the one of the model served as it was trained."""
    told = {at: one.predictions.predicted for at, one in answers.items() if one.predictions is not None and at[1] == "test"}
    cured = {seed: told["cured", "test", seed] for seed in seeds if ("cured", "test", seed) in told}
    shares = [(arm, float((said != cured[seed]).mean())) for (arm, _, seed), said in told.items() if seed in cured]
    arms = dict.fromkeys(arm for arm, _ in shares if arm not in {"cured", "scratch"})
    return {f"{arm}/flips": records.mean_or_nan([share for other, share in shares if other == arm]) for arm in arms}


def batch_dependence(seen: MeasureContext) -> dict[str, float]:
    """Share of test images whose probabilities depend on the batch they come in, by more than a hundredth."""
    from xferbench.lab.evaluation import batch_dependence as batch_dependence_module

    return {"batch-dependence": batch_dependence_module.batch_dependent_share(seen, tolerance=0.01)}


def told(_contrast: str, _answers: records.RecordsByTerm, subject: Pipeline, _cured: Pipeline) -> str:
    """In which fields serving is not training."""
    served, trained = subject.serve_preprocessing, subject.train_preprocessing
    said = [f"served on {describe_preprocessing(served, trained)}, trained on {describe_preprocessing(trained, served)}"] * (
        served != trained
    )
    return "; ".join(said + [f"served in {subject.mode} mode"] * (subject.mode != "eval"))


plugin = Plugin(
    id="train-serve-skew",
    version=1,
    question="Is the model served in the way it was trained?",
    doc=__doc__,
    applies=always_applies,
    cure=lambda pipeline, _: replace(pipeline, serve_preprocessing=pipeline.train_preprocessing, mode="eval"),
    induce=induce,
    contrasts=(HARM, invariant("batch-dependence", "an answer must not depend on the batch it comes in")),
    measures={"batch-dependence": "xferbench.plugins.train_serve_skew:batch_dependence@2"},
    derived_metrics=flips,
    explain=told,
    remedy="serve with the preprocessing of training, in evaluation mode",
)


AUDIT_PAGE = """A finished network that is served in another way than it was trained.

Symptom
    Fine in the notebook, worse in production; the same image gets another answer in another batch.

Cause
    Two code paths: the service decodes, resizes or orders channels by itself, or forgets ``model.eval()``.

Remedy
    Serve with the very preprocessing of training, in evaluation mode.

How it is judged
    Harm is metric(served as trained) − metric(served as is said), with the same weights, on all test images, since nothing is
    chosen. ``batch-dependence`` is an exact
    invariant beside it: in shuffled batches and in batches ordered by class an image has the same probabilities.

How it is induced
    ``train-mode`` and ``train-mode-by-class``: the network in training mode, on shuffled batches or on such as are ordered by
    class. ``unnormalised``: serving leaves mean and standard deviation out.

Measured beside it
    ``flips``: share of the answers that change between the two ways of serving.

References
    LearningToCompare_FSL issue 48: train mode at test lifted 90 to 99.6 %; Ioffe & Szegedy 2015 (arXiv:1502.03167).
"""
AUDIT_VARIANTS = ("train-mode", "train-mode-by-class", "unnormalised")  # the audit of preprocessing-mismatch has the others
AUDIT_IMAGES = 64  # that go through the network in two orders


def audit_induce(pipeline: Pipeline, facts: Profile) -> dict[str, Pipeline]:
    return {name: arm for name, arm in induce(pipeline, facts).items() if name in AUDIT_VARIANTS}


def batch_dependence_of_few(seen: MeasureContext) -> dict[str, float]:
    """The same as :func:`batch_dependence`, on fewer images."""
    few = replace(seen, served=seen.served[:AUDIT_IMAGES], served_labels=seen.served_labels[:AUDIT_IMAGES])
    return batch_dependence(few)


audit = replace(
    plugin,
    question="Is the finished network served in the way it was trained?",
    doc=AUDIT_PAGE,
    induce=audit_induce,
    contrasts=(
        replace(HARM, weights={("cured", "whole"): 1.0, ("subject", "whole"): -1.0}),
        *(contrast for contrast in plugin.contrasts if contrast.kind == "exact"),
    ),
    measures={"batch-dependence": "xferbench.plugins.train_serve_skew:batch_dependence_of_few@1"},
)
