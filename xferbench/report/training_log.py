"""What a training log shows, as text and as JSON. Pure."""

from __future__ import annotations

import textwrap
from itertools import islice
from math import isfinite
from statistics import median
from typing import TYPE_CHECKING, Any

from xferbench.core.training_log import FAULT, NOTE
from xferbench.core.version import __version__
from xferbench.report.format import format_percent, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xferbench.core.training_log import LogEvent, LogReport, Missing, Series, TrainingLog

LOG_SCHEMA = 1
CLIPPING_NORM = 1.0  # max_grad_norm of the Trainer by default
MAX_METRICS, MAX_NAME = 12, 60  # metrics that are listed, and characters of the name of one
BLIND_SPOTS = (  # what no log shows, and what does
    ("layers that should be frozen and move, or should train and do not", "xferbench.watch, xferbench audit --before FILE"),
    ("running statistics of BatchNorm, and the modes of layers", "xferbench.watch, xferbench audit --after FILE"),
    ("preprocessing or a tokenizer that differs from that of the pretraining", "xferbench audit --after FILE"),
    ("test examples that are also in the training set", "xferbench audit --after FILE --data DATA"),
    ("what another learning rate, or the network from scratch, would reach", "xferbench run SUITE"),
)
ADVICE = {  # how to provide what a rule lacks
    "losses": "a smaller logging_steps gives more",
    "gradient norms": "transformers from 4.38 on logs them",
    "evaluations": "set eval_strategy and eval_steps",
    "accuracies": "compute_metrics gives them",
    "classes": "give --classes N",
    "planned steps": "a Trainer records max_steps",
    "batches of a step": "the Trainer logs the speed at the end of a training",
}


def format_report(report: LogReport) -> str:
    """Return a report as text: the facts, the events, the rules that found nothing, and what was not checked."""
    counts = {level: sum(event.level == level for event in report.events) for level in (FAULT, NOTE)}
    found = ", ".join(_count(count, level) for level, count in counts.items() if count)
    quiet = ", ".join(report.quiet)
    sections = [
        _facts(report.log),
        [found or "nothing to report"],
        *[[format_event(event, report.log)] for event in report.events],
        textwrap.wrap(f"checked, and not seen: {quiet}", 100, subsequent_indent="  ", break_on_hyphens=False) if quiet else [],
        ["not checked:", *(f"  {rule:<20} {format_missing(missing)}" for rule, missing in report.unchecked.items())]
        if report.unchecked
        else [],
        ["not checked, because no log shows it:", *(f"  {what}: {command}" for what, command in BLIND_SPOTS)],
    ]
    return "\n\n".join("\n".join(section) for section in sections if section)


def _facts(log: TrainingLog) -> list[str]:
    """Return what a log has, in a few lines."""
    end = log.end
    steps = f"{end.step} of {end.max_steps} steps" if end.max_steps is not None else f"{end.step} steps"
    epochs = f", {end.epoch:.3g} epochs" if end.epoch is not None else ""
    choice = f" ({log.choice})" if log.choice else ""
    classes = f", {log.classes} classes" if log.classes else ""
    lines = [f"{one_line(log.path)}{choice}: {steps}{epochs}{', stopped early' if end.stopped_early else ''}{classes}"]
    if log.losses:
        lines.append(f"  loss {_ends(log.losses)}, {_count(len(log.losses), 'value')}")
    lines += [
        f"  {_quantity(f'eval_{name}')} {_ends(series)}, {_count(len(series), 'evaluation')}{_best(name, series)}"
        for name, series in islice(log.evaluations.series.items(), MAX_METRICS)
    ]
    if log.learning_rates:
        lines.append(f"  learning_rate {describe_schedule(log.learning_rates)}")
    if norms := [norm for norm in log.gradient_norms.values if isfinite(norm)]:
        share = format_percent(sum(norm > CLIPPING_NORM for norm in norms) / len(norms), 0)
        clipped = f"above {CLIPPING_NORM:g}, the default of max_grad_norm, at {share} of the logged steps"
        lines.append(f"  grad_norm {median(norms):.3g} in the median, {clipped}")
    return lines


def _quantity(name: str) -> str:
    return one_line(name)[:MAX_NAME]


def _ends(series: Series) -> str:
    return f"{series.values[0]:.4g} → {series.values[-1]:.4g}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _best(name: str, series: Series) -> str:
    """Return the lowest evaluation loss with its step, if it is not the last one."""
    if not name.endswith("loss") or not all(map(isfinite, series.values)):
        return ""
    value, step = min(zip(series.values, series.steps, strict=True))
    return "" if step == series.steps[-1] else f", lowest {value:.4g} at step {step}"


def describe_schedule(rates: Series) -> str:
    """Return a learning rate as a phrase: constant, or its way from its first to its highest and last value."""
    highest = max(rates.values)
    if min(rates.values) == highest:
        return f"{highest:.3g} at every logged step"
    peak = rates.steps[rates.values.index(highest)]
    warm_up = f"{rates.values[0]:.3g} → " if rates.values[0] < highest else ""
    is_constant = min(rates.values[-2:]) == highest
    decay = f" → {rates.values[-1]:.3g}" if rates.values[-1] < highest else ", constant at the end" if is_constant else ""
    return f"{warm_up}{highest:.3g} (step {peak}){decay}"


def format_event(event: LogEvent, log: TrainingLog) -> str:
    """Return two lines: kind, steps, quantity and cause; then what to do. A note says that it is one."""
    cause, do = explain_event(event, log)
    when = f"step {event.step}" if event.since + 1 >= event.step else f"steps {event.since + 1} to {event.step}"
    prefix = "note: " if event.level == NOTE else ""
    return f"{prefix}{event.kind} at {when}: {_quantity(event.quantity)}: {cause}\n  do: {do}"


def format_missing(missing: Missing) -> str:
    """Return what a rule lacks, and how to provide it."""
    found = f"{missing.found} {missing.what}, {missing.needed} are needed" if missing.found else f"no {missing.what}"
    if missing.what == "classes":
        found = "the number of classes is not known"
    advice = ADVICE.get(missing.what)
    return f"{found} ({advice})" if advice else found


def explain_event(event: LogEvent, log: TrainingLog) -> tuple[str, str]:
    """Return the cause of an event, and what to do."""
    return EXPLANATIONS[event.kind](event.numbers, log)


def _explain_non_finite(numbers: Mapping[str, float], _log: TrainingLog) -> tuple[str, str]:
    cause = "it is not finite"
    if numbers["filtered"]:
        cause += "; it is logged as 0.0, because the Trainer replaces such losses (logging_nan_inf_filter)"
    if not numbers["logged_before"]:
        cause += "; it is so from the first logged step on"
        return cause, "check the inputs and the labels (-100 everywhere?), and train in float32 or bfloat16 in place of float16"
    do = "take a checkpoint from before; lower the learning rate, warm it up, or train in bfloat16 in place of float16"
    return cause, f"{do}. The rest of the log was not examined"


def _explain_zero_gradient(numbers: Mapping[str, float], _log: TrainingLog) -> tuple[str, str]:
    cause = f"it is exactly 0 at all {numbers['logged']:.0f} logged steps"
    if not numbers["has_loss"]:
        return f"{cause}, and so is the loss", "check the labels: a loss ignores those of -100"
    return cause, "check that the loss depends on a tensor that trains: xferbench.watch names the tensors"


def _explain_skipped(numbers: Mapping[str, float], _log: TrainingLog) -> tuple[str, str]:
    cause = (
        f"it is not finite at {numbers['skipped']:.0f} of {numbers['logged']:.0f} logged steps; a loss scaler skips such steps"
    )
    return cause, "train in bfloat16 or float32, or clip the gradients"


def _explain_gradient_rise(numbers: Mapping[str, float], _log: TrainingLog) -> tuple[str, str]:
    cause = f"it rose from {numbers['before']:.3g} to {numbers['after']:.3g} and stayed there"
    return cause, "lower the learning rate, or clip the gradients (max_grad_norm)"


def _explain_zero_rate(numbers: Mapping[str, float], _log: TrainingLog) -> tuple[str, str]:
    if numbers["steps"] == numbers["of"]:
        return "it is 0 at every logged step, so nothing is trained", "set learning_rate, and check the schedule"
    share = format_percent(numbers["steps"] / numbers["of"], 0) if numbers["of"] else "all"
    cause = f"it stays 0 until the end, so the last {numbers['steps']:.0f} steps ({share}) train nothing"
    return cause, "give the schedule the number of optimizer steps of the whole training"


def _explain_cut(numbers: Mapping[str, float], log: TrainingLog) -> tuple[str, str]:
    share = format_percent(numbers["rate"] / numbers["highest_rate"], 0)
    cause = f"the log ends at step {log.end.step} of {numbers['of']:.0f}, with the rate at {share} of its maximum"
    return cause, "continue it if it was stopped; a network that is trained with a decaying rate is worse before its end"


def _explain_flat(numbers: Mapping[str, float], _log: TrainingLog) -> tuple[str, str]:
    cause = f"it does not fall: {numbers['first_third']:.4g} in the first third, {numbers['last_third']:.4g} in the last"
    return (
        cause,
        "check the labels, raise or lower the learning rate, and watch the loop: xferbench.watch names tensors that stay",
    )


def _explain_chance(numbers: Mapping[str, float], _log: TrainingLog) -> tuple[str, str]:
    guess = f"a guess among {numbers['classes']:.0f} classes has {numbers['chance']:.4g}"
    cause = f"it ends at {numbers['loss']:.4g}, and {guess}: the network has learned almost nothing"
    return cause, "try a rate ten times higher and one ten times lower, check the labels, and that the new head is trained"


def _explain_rise(numbers: Mapping[str, float], _log: TrainingLog) -> tuple[str, str]:
    cause = f"it rose from {numbers['before']:.4g} to {numbers['after']:.4g} and did not recover"
    return cause, "take a checkpoint from before; lower the learning rate, warm it up, and clip the gradients"


def _explain_steep(numbers: Mapping[str, float], _log: TrainingLog) -> tuple[str, str]:
    slope = f"slope {numbers['slope']:.2g} ± {numbers['slope_error']:.1g} a step over {numbers['losses']:.0f} losses"
    share = format_percent(numbers["share"], 0)
    cause = f"it was still falling: {share} of its whole fall is in the last third ({slope})"
    return cause, "train longer, or at a higher rate"


def _explain_added(numbers: Mapping[str, float], _log: TrainingLog) -> tuple[str, str]:
    count = f"{numbers['batches']:.0f}"
    cause = (
        f"it is {numbers['ratio']:.2g} times the evaluation loss, and a step has {count} batches: their losses seem to be added"
    )
    do = f"divide by {count} to compare it; if the gradients are added too, max_grad_norm clips {count} times as early"
    return cause, do


def _explain_overfitting(numbers: Mapping[str, float], log: TrainingLog) -> tuple[str, str]:
    best = f"step {numbers['best_step']:.0f}"
    cause = f"it rose from {numbers['best_loss']:.4g} at {best} to {numbers['last_loss']:.4g}, while the training loss fell"
    if "best_score" in numbers:
        cause += f"; the score was {numbers['best_score']:.4g}, and is {numbers['last_score']:.4g}"
    if log.evaluations.best_checkpoint:
        return cause, f"use the best checkpoint: {one_line(log.evaluations.best_checkpoint)[:200]}"
    do = f"use the weights of {best}, if they were saved; set load_best_model_at_end, or stop early"
    return f"{cause}; no best checkpoint was tracked", do


def _explain_overconfidence(numbers: Mapping[str, float], _log: TrainingLog) -> tuple[str, str]:
    cause = f"it rose from {numbers['best_loss']:.4g} at step {numbers['best_step']:.0f} to {numbers['last_loss']:.4g}, "
    scores = f"{numbers['best_score']:.4g} then, {numbers['last_score']:.4g} at the end"
    return (
        f"{cause}while the training loss fell; the score is not shown to be lower ({scores})",
        "the probabilities become overconfident: calibrate them, or stop earlier if you use them",
    )


def _explain_constant(numbers: Mapping[str, float], _log: TrainingLog) -> tuple[str, str]:
    cause = f"it is {numbers['score']:.4g} at the last {numbers['evaluations']:.0f} evaluations: the network predicts one class"
    return cause, "check the labels, the class balance and the learning rate"


def _explain_same(numbers: Mapping[str, float], _log: TrainingLog) -> tuple[str, str]:
    cause = f"it is {numbers['score']:.4g} at all {numbers['evaluations']:.0f} evaluations"
    do = "if this is the share of the most frequent class, the network predicts one class; give it as --majority SHARE"
    return f"{cause}, and the loss is not below that of a constant prediction", do


EXPLANATIONS: Mapping[str, Callable[[Mapping[str, float], TrainingLog], tuple[str, str]]] = {
    "non-finite": _explain_non_finite,
    "zero-gradient": _explain_zero_gradient,
    "skipped-steps": _explain_skipped,
    "gradient-rise": _explain_gradient_rise,
    "zero-rate": _explain_zero_rate,
    "cut-short": _explain_cut,
    "loss-flat": _explain_flat,
    "at-chance": _explain_chance,
    "loss-rise": _explain_rise,
    "still-falling": _explain_steep,
    "added-losses": _explain_added,
    "overfitting": _explain_overfitting,
    "overconfidence": _explain_overconfidence,
    "constant-prediction": _explain_constant,
    "same-score": _explain_same,
}


def report_to_json(report: LogReport) -> dict[str, Any]:
    """Return a report as plain values; a number that is not finite is null."""
    log = report.log
    return {
        "schema": LOG_SCHEMA,
        "xferbench": __version__,
        "log": {
            "path": log.path,
            "choice": log.choice,
            "step": log.end.step,
            "max_steps": log.end.max_steps,
            "stopped_early": log.end.stopped_early,
            "classes": log.classes,
            "losses": _series_to_json(log.losses),
            "gradient_norms": _series_to_json(log.gradient_norms),
            "learning_rates": _series_to_json(log.learning_rates),
            "evaluations": {name: _series_to_json(series) for name, series in log.evaluations.series.items()},
        },
        "events": [_event_to_json(event, log) for event in report.events],
        "not_seen": [*report.quiet],
        "unchecked": {kind: format_missing(missing) for kind, missing in report.unchecked.items()},
        "not_in_a_log": [{"what": what, "command": command} for what, command in BLIND_SPOTS],
    }


def _series_to_json(series: Series) -> dict[str, Any]:
    """Return the size and the ends of a series."""
    first, last = (_number(value) for value in (series.values[0], series.values[-1])) if series else (None, None)
    return {"count": len(series), "first": first, "last": last}


def _event_to_json(event: LogEvent, log: TrainingLog) -> dict[str, Any]:
    cause, do = explain_event(event, log)
    return {
        "kind": event.kind,
        "level": event.level,
        "quantity": event.quantity,
        "step": event.step,
        "since": event.since,
        "cause": cause,
        "do": do,
        "numbers": {name: _number(value) for name, value in event.numbers.items()},
    }


def _number(value: float) -> float | None:
    return value if isfinite(value) else None
