"""Artificial records, findings, runs and comparisons for tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xferbench.analysis import metrics
from xferbench.core.comparison import SUBJECT, Comparison, Outcome
from xferbench.core.plugin import HARM, Contrast, Plugin
from xferbench.core.record import Predictions, Record
from xferbench.core.run import Finding, HarmEstimate, PositiveControl, Provenance, Run, TrialRow
from xferbench.core.sections import from_flat, replace_flat

SCRATCH = Contrast(name="harm", weights={("scratch", "test"): 1.0, ("subject", "test"): -1.0}, meaning="scratch − subject")
RECIPES = {
    "subject": "full fine-tuning 0.01: all, lr 0.01, BatchNorm train, 150 × 4",
    "cured": "all, lr 0.01, BatchNorm eval, 150 × 4",
    "scratch": "random weights: scratch 0.01, weight decay 0.1, 500 × 64: all, lr 0.01, BatchNorm train, 500 × 64",
}


def make_predictions(accuracy, *, seed=0, examples=200, classes=10):
    """Return predictions with approximately an accuracy; the same examples are hard for every seed and arm."""
    data_rng, seed_rng = np.random.default_rng(1), np.random.default_rng([seed, int(1e4 * accuracy)])
    label, difficulty = data_rng.integers(classes, size=examples), data_rng.random(examples)
    correct = 0.8 * difficulty + 0.2 * seed_rng.random(examples) < accuracy
    p_true = np.where(correct, 0.6 + 0.4 * seed_rng.random(examples), 0.3 * seed_rng.random(examples)).astype(np.float32)
    rest = (1 - p_true) / (classes - 1)
    probabilities = np.repeat(rest[:, None], classes, axis=1)
    probabilities[np.arange(examples), label] = p_true
    return Predictions(
        example=data_rng.integers(2**63, size=examples, dtype=np.uint64),
        label=label,
        predicted=np.where(correct, label, (label + 1) % classes),
        group=np.empty(0, dtype=np.int64),
        p_true=p_true,
        p_max=probabilities.max(1).astype(np.float32),
        sum_p2=np.square(probabilities).sum(1).astype(np.float32),
        probabilities=probabilities.astype(np.float16) if classes <= 20 else np.empty((examples, 0), dtype=np.float16),
    )


def make_binary_predictions(correct, example=None):
    """Return predictions of two classes for tests of accuracy; ``correct`` [N] marks the correct ones."""
    N = len(correct)
    ones = np.ones(N, np.float32)
    return Predictions(
        example=np.arange(N, dtype=np.uint64) if example is None else example,
        label=np.arange(N) % 2,
        predicted=np.where(correct, np.arange(N) % 2, 1 - np.arange(N) % 2),
        group=np.empty(0, np.int64),
        p_true=np.asarray(correct, np.float32),
        p_max=ones,
        sum_p2=ones,
        probabilities=np.empty((N, 0), np.float16),
    )


def make_record(key, accuracy, *, seed=0, examples=200, classes=10, **fields):
    """Return a record with a learning curve; ``fields`` replace its fields."""
    curve = tuple((step, 2.3 * (1 - accuracy * step / 150), accuracy * step / 150) for step in range(0, 151, 10))
    predictions = make_predictions(accuracy, seed=seed, examples=examples, classes=classes)
    return Record(
        key=key,
        fit=key,
        predictions=predictions,
        curve=curve,
        seconds=0.4,
        fit_seconds=4.2,
        place="host",
        **{"scalars": {"diverged": 0.0}} | fields,
    )


def make_cells(plugin, accuracies, *, seeds=5, examples=200, classes=10, share=""):
    """Return a cell for each arm (``induced:VARIANT`` for variants) and seed.

    Plugins with the same ``share`` have the same records.
    """
    return [
        TrialRow(
            plugin=plugin,
            arm=name.partition(":")[0],
            variant=name.partition(":")[2],
            view="test",
            seed=seed,
            recipe=RECIPES.get(name, f"all, lr 0.01, BatchNorm {name}, 150 × 4"),
            record=make_record(
                f"{share or plugin}/{name}/{seed}",
                accuracy + 0.01 * np.sin(seed),
                seed=seed,
                examples=examples,
                classes=classes,
            ),
        )
        for name, accuracy in accuracies.items()
        for seed in range(seeds)
    ]


def make_findings(
    plugin, verdict, cells, *, contrast=HARM, margin=0.02, reason="harm is above the margin of 2.0 points", **fields
):
    """Return a finding for each induced variant among the cells, with the harm of the cells; ``fields`` replace its fields."""
    predictions = {}
    for cell in cells:
        predictions.setdefault(f"{cell.arm}:{cell.variant}" if cell.variant else cell.arm, []).append(cell.record.predictions)
    rules = {"metric": "accuracy", "margin": margin, "alpha": 0.05}

    def estimate(subject):
        weights = {(subject if arm == "subject" else arm): weight for (arm, _), weight in contrast.weights.items()}
        return metrics.estimate_metric_contrast({arm: predictions[arm] for arm in weights}, weights, **rules)[0]

    accuracies = {arm: [metrics.metric_value(seed, "accuracy") for seed in seeds] for arm, seeds in predictions.items()}
    mean = {arm: float(np.mean(values)) for arm, values in accuracies.items()}
    subject = estimate("subject")
    base = Finding(
        id=f"{plugin}/{contrast.name}",
        plugin=plugin,
        contrast=contrast.name,
        verdict=verdict,
        estimate=HarmEstimate(
            harm=subject.harm,
            low=subject.low,
            high=subject.high,
            p_fail=subject.p_fail,
            p_pass=subject.p_pass,
            margin=margin,
            seeds=subject.seeds,
            examples=subject.examples,
        ),
        benefit_retained=(mean["subject"] - mean["scratch"]) / (mean["cured"] - mean["scratch"]),
        accuracy={arm: mean[arm] for arm in ("subject", "cured", "scratch")},
        reason=reason,
        **fields,
    )
    findings = []
    for name in (arm for arm in predictions if arm.startswith("induced:")):
        variant, induced = name.partition(":")[2], estimate(name)
        outcome = "detected" if induced.low > margin else "harmless" if induced.high < margin else "missed"
        control = PositiveControl(variant=variant, outcome=outcome, harm=induced.harm, low=induced.low, high=induced.high)
        accuracy = {**base.accuracy, "induced": mean[name]}
        finding = replace(base, id=f"{base.id}/{variant}", control=control, accuracy=accuracy)
        findings.append(finding)
    return tuple(findings)


def make_plugin(plugin, *, question="Does it hurt?", contrasts=(HARM,), picture=None):
    """Return a plugin without effect; ``picture`` is its plot."""

    def nothing(*_):
        return ""

    return Plugin(
        id=plugin,
        version=1,
        question=question,
        doc="",
        applies=nothing,
        cure=nothing,
        induce=nothing,
        remedy="",
        contrasts=contrasts,
        plot=picture,
    )


def make_run(*, seeds=5, examples=200, classes=10, extra=(), **fields):
    """Return a run of two plugins: one with harm and two variants, and one without harm.

    ``extra`` findings are added, and ``fields`` replace fields of the run.
    """
    sizes = {"seeds": seeds, "examples": examples, "classes": classes}
    drift = make_cells(
        "batchnorm-drift",
        {"subject": 0.70, "cured": 0.76, "induced:ghost-batch": 0.58, "induced:class-order": 0.63, "scratch": 0.40},
        **sizes,
    )
    transfer = make_cells(
        "negative-transfer", {"subject": 0.70, "cured": 0.79, "induced:permuted": 0.34, "scratch": 0.40}, **sizes
    )
    remedy = {
        "text": "keep the BatchNorm layers of the pretrained backbone in eval mode while it is adapted",
        "patch": ["[recipe]", 'batchnorm = "eval"    # was train'],
        "verified": True,
    }
    pass_reason = "harm is below the margin of 2.0 points; permuted would cost +6.0 points"
    run = Run(
        suite={
            "name": "careless",
            "path": "suites/careless.toml",
            "arch": "tiny-resnet",
            "target": "synthetic:near",
            "train_size": 200,
            "metric": "accuracy",
            "margin": 0.02,
            "alpha": 0.05,
            "looks": [5, 10, 20],
        },
        findings=(
            *make_findings("batchnorm-drift", "FAIL", drift, remedy=remedy),
            *make_findings("negative-transfer", "PASS", transfer, contrast=SCRATCH, reason=pass_reason),
            *extra,
        ),
        cells=(*drift, *transfer),
        cost={
            "fits": {"asked": 45, "unique": 30, "run": 20, "reused": 10},
            "trials": {"asked": 50, "unique": 40, "run": 25, "reused": 15},
            "seconds": {"total": 300.0, "fit": 280.0, "view": 20.0},
        },
        arms={
            "batchnorm-drift": {"subject": {"recipe": RECIPES["subject"], "patch": []}},
            "negative-transfer": {
                "scratch": {
                    "weighed": [
                        {"recipe": "lr 0.003", "validation": 0.35, "chosen": False},
                        {"recipe": "lr 0.01", "validation": 0.4, "chosen": True},
                    ]
                }
            },
        },
        notes=("verdicts are conditional on this one pretrained checkpoint",),
        expected_false_alarms=0.1,
        provenance=Provenance(
            environment={"python": "3.11", "device": "cpu", "packages": {"torch": "2.6", "numpy": "1.26"}, "git": None},
            plan="0" * 64,
        ),
    )
    return replace_flat(run, **fields)


ACCEPTED = {
    "name": "careless",
    "file": "accepted.json",
    "xferbench": "0.1.0",
    "git": "0123456789abcdef0123456789abcdef01234567",
    "ended": "2026-01-02T03:05:05Z",
}


def make_outcome(outcome_id, decision, reason="", **fields):
    """Return an outcome of the plugin that its id names; numbers that are not in ``fields`` are missing."""
    plugin = "" if outcome_id == SUBJECT else outcome_id.rpartition("/")[0]
    names = {"id": outcome_id, "plugin": plugin, "decision": decision, "reason": reason}
    return from_flat(Outcome, names | fields)


def outcome_numbers(before, change, *, half=0.012, **fields):
    """Return the numbers of an outcome that became worse by ``change``, with bounds at a distance of ``half``."""
    bounds = {"change": change, "low": change - half, "high": change + half}
    size = {"margin": 0.02, "seeds": 5, "examples": 200, "compared": True}
    return {"before": before, **bounds, **size, "p_worse": 0.5, "p_not_worse": 0.5} | fields


def make_comparison(*outcomes, **fields):
    """Return a comparison with these outcomes, or with one outcome of each kind.

    Among the default outcomes, the subject and a plugin of :func:`make_run` are worse.
    """
    fails = {"verdict": "FAIL", "accepted": "FAIL"}
    subject = outcome_numbers(0.812, 0.102, half=0.013, now=0.71, flipped=0.14, p_worse=1e-6, p_not_worse=1.0)
    default_outcomes = (
        make_outcome(SUBJECT, "worse", "worse by more than the margin of 2.0 points", **subject),
        make_outcome(
            "batchnorm-drift/harm",
            "worse",
            "new: it passed when accepted",
            verdict="FAIL",
            accepted="PASS",
            **outcome_numbers(0.003, 0.057, now=0.06),
        ),
        make_outcome(
            "learning-rate/harm", "not worse", "its harm has not grown", **fails, **outcome_numbers(0.05, 0.001, now=0.051)
        ),
        make_outcome(
            "negative-transfer/harm", "not worse", verdict="PASS", accepted="PASS", **outcome_numbers(-0.3, -0.004, now=-0.304)
        ),
        make_outcome(
            "head-shock/harm",
            "cannot tell",
            "the margin lies within the interval",
            verdict="INCONCLUSIVE",
            accepted="INCONCLUSIVE",
            **outcome_numbers(0.01, 0.015, now=0.025),
        ),
        make_outcome("audit/reload/harm", "crashed", "OSError: no such file", verdict="ERROR", accepted="PASS"),
        make_outcome(
            "data-leakage/harm", "skipped", "nothing to compare the images with", verdict="SKIPPED", accepted="SKIPPED"
        ),
        make_outcome("train-serve-skew/harm", "not worse", "it has no accepted result", verdict="PASS", now=0.001),
    )
    notes = ("processors differ: A then, B now",)
    return Comparison(**{"accepted": ACCEPTED, "outcomes": outcomes or default_outcomes, "notes": notes} | fields)
