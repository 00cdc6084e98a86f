"""Read the log of a training: ``trainer_state.json`` of transformers, or a CSV file such as Lightning writes. Reads files."""

from __future__ import annotations

import csv
from dataclasses import replace
from io import StringIO
from itertools import islice
from math import isfinite
from typing import TYPE_CHECKING, Any

from xferbench.core.errors import UserError
from xferbench.core.files import read_file
from xferbench.core.json_shape import MAX_INTEGER, read_json
from xferbench.core.training_log import Evaluations, LogEnd, Series, TrainingLog
from xferbench.data import weights_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

STATE_FILE, CSV_FILE = "trainer_state.json", "metrics.csv"
CHECKPOINTS = f"checkpoint-*/{STATE_FILE}"
MAX_LOG_BYTES, MAX_ENTRIES = 32_000_000, 500_000
MAX_CHECKPOINTS = 1000
MAX_LABELS = 100_000
EXPECTED = f"{STATE_FILE} of transformers, a folder with it or with checkpoint-* folders, or a CSV file with a column step"
TRAINING_KEYS = ("loss", "grad_norm", "learning_rate")
EVALUATION_PREFIX = "eval_"
# Reports of the evaluation's speed, which are no metrics.
SPEED_KEYS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")
CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")
STATE = {
    "global_step": int,
    "max_steps?": (None, int),
    "epoch?": (None, float),
    "train_batch_size?": (None, int),
    "best_model_checkpoint?": (None, str),
    "log_history": [{"step": int, str: object}],
    "stateful_callbacks?": (None, {str: object}),
}
DEFAULT_LABELS = {"0": "LABEL_0", "1": "LABEL_1"}
CSV_NAMES = {  # the names that a training script gives to a column, by quantity
    "loss": ("loss", "train_loss", "train_loss_step", "train/loss", "training_loss"),
    "eval_loss": ("eval_loss", "val_loss", "valid_loss", "val/loss", "validation_loss"),
    "eval_accuracy": ("eval_accuracy", "val_acc", "val_accuracy", "valid_acc", "val/acc", "validation_accuracy"),
    "learning_rate": ("learning_rate", "lr"),
    "grad_norm": ("grad_norm", "grad_2.0_norm_total"),
    "epoch": ("epoch",),
}


def read_log(path: Path) -> TrainingLog:
    """Read a log.

    Args:
        path: the file; or a folder with ``trainer_state.json`` or ``metrics.csv``; or an output folder of the Trainer. Of
            several checkpoints, the last one by ``global_step`` is read.

    Raises:
        UserError: if there is no log, or if it cannot be read.
    """
    if not path.is_dir():
        return _read(path)
    candidates = [file for file in (path / STATE_FILE, *sorted(path.glob(CHECKPOINTS))) if file.is_file()]
    if not candidates and (path / CSV_FILE).is_file():
        return _read(path / CSV_FILE)
    if not candidates:
        raise UserError(f"{path}: no log of a training", expected=EXPECTED)
    if len(candidates) > MAX_CHECKPOINTS:
        raise UserError(f"{path}: too many checkpoints", expected=f"at most {MAX_CHECKPOINTS}", do=f"give one {STATE_FILE}")
    logs = [_read(file) for file in candidates]
    last = max(logs, key=lambda log: log.end.step)  # of equal ones, that of the folder itself
    choice = f"the last of {len(logs)} by global_step" if len(logs) > 1 else ""
    classes = last.classes or next((log.classes for log in logs if log.classes), None)
    return replace(last, choice=choice, classes=classes)


def _read(path: Path) -> TrainingLog:
    try:
        data = read_file(path, MAX_LOG_BYTES)
        return _parse_csv(path, data) if path.suffix.lower() == ".csv" else _parse_state(path, data)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file or folder", expected=EXPECTED) from error
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or f"{error}"
        raise UserError(f"{path}: not the log of a training", found=found, expected=EXPECTED) from error


def _parse_state(path: Path, data: bytes) -> TrainingLog:
    """Return the log in ``trainer_state.json``.

    Raises:
        ValueError: if it is none.
    """
    state = read_json(data, STATE, allow_constants=True)
    history: list[dict[str, Any]] = state["log_history"]
    _check_length(history)
    training = {key: _series(history, key) for key in TRAINING_KEYS}
    names = {
        key: None for entry in history for key in entry if key.startswith(EVALUATION_PREFIX) and not key.endswith(SPEED_KEYS)
    }
    evaluations = {key.removeprefix(EVALUATION_PREFIX): _series(history, key, is_metric=True) for key in names}
    end = LogEnd(
        step=state["global_step"],
        max_steps=state.get("max_steps") or None,
        epoch=state.get("epoch"),
        stopped_early=_has_stopped_early(state.get("stateful_callbacks") or {}),
    )
    return TrainingLog(
        path=str(path),
        end=end,
        losses=training["loss"],
        gradient_norms=training["grad_norm"],
        learning_rates=training["learning_rate"],
        evaluations=Evaluations(
            series={name: series for name, series in evaluations.items() if len(series)},
            examples=_product(history, "eval_runtime", "eval_samples_per_second"),
            best_checkpoint=state.get("best_model_checkpoint") or "",
        ),
        batches_per_step=_batches_per_step(history, state.get("train_batch_size")),
        classes=_count_classes(path.with_name(weights_settings.CONFIG_FILE)),
    )


def _series(history: Sequence[Mapping[str, Any]], key: str, *, is_metric: bool = False) -> Series:
    """Return the numbers under a key. A metric may be of any type; what is not a number is left out.

    Raises:
        ValueError: if a quantity of the Trainer itself is not a number.
    """
    steps, values = [], []
    for entry in history:
        value = entry.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            steps.append(entry["step"])
            values.append(_as_float(value, key))
        elif value is not None and not is_metric:
            raise ValueError(f"{key}: {value!r:.40}, expected a number")
    return Series(steps=tuple(steps), values=tuple(values))


def _check_length(history: Sequence[object]) -> None:
    if len(history) > MAX_ENTRIES:
        raise ValueError(f"more than {MAX_ENTRIES} entries")


def _as_float(value: float, key: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{key}: a number beyond the range of floats") from error


def _product(history: Sequence[Mapping[str, Any]], seconds: str, rate: str) -> int | None:
    """Return the number of examples of the last evaluation, from its duration and its speed."""
    for entry in reversed(history):
        pair = [entry.get(seconds), entry.get(rate)]
        if all(_is_positive(number) for number in pair) and isfinite(product := float(pair[0]) * float(pair[1])):
            return round(product) or None
    return None


def _batches_per_step(history: Sequence[Mapping[str, Any]], batch_size: int | None) -> int | None:
    """Return the number of batches of a step, from the speeds in the summary at the end of a training."""
    for entry in reversed(history):
        pair = [entry.get("train_samples_per_second"), entry.get("train_steps_per_second")]
        if batch_size and all(_is_positive(number) for number in pair):
            ratio = float(pair[0]) / float(pair[1]) / batch_size
            return round(ratio) if 1 <= ratio < 10**6 else None
    return None


def _is_positive(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < 1e12


def _has_stopped_early(callbacks: Mapping[str, Any]) -> bool:
    """Return whether the counter of ``EarlyStoppingCallback`` has reached its patience."""
    match callbacks.get("EarlyStoppingCallback"):
        case {
            "args": {"early_stopping_patience": int(patience)},
            "attributes": {"early_stopping_patience_counter": int(counter)},
        }:
            return counter >= patience
    return False


def _count_classes(config_file: Path) -> int | None:
    """Return the number of classes of the classifier whose configuration is next to the log, or None.

    transformers does not write the names of two classes if they are those of its default.
    """
    config = weights_settings.read_json(config_file)
    labels, problem = config.get("id2label", DEFAULT_LABELS), config.get("problem_type")
    is_classifier = weights_settings.architecture_name(config).endswith(CLASSIFIERS)
    is_single = problem is None or problem == "single_label_classification"
    if not (is_classifier and is_single and isinstance(labels, dict)):
        return None
    return len(labels) if 1 < len(labels) <= MAX_LABELS else None


def _parse_csv(path: Path, data: bytes) -> TrainingLog:
    """Return the log in a CSV file. Each row has a step, and the quantities that were logged at it.

    Raises:
        ValueError: if it has no column of steps or of losses, or a cell that is not a number.
    """
    rows = csv.reader(StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    try:
        header = next(rows, [])
        columns = {key: next((name for name in names if name in header), "") for key, names in CSV_NAMES.items()}
        columns["learning_rate"] = columns["learning_rate"] or next((name for name in header if name.startswith("lr-")), "")
        if "step" not in header or not (columns["loss"] or columns["eval_loss"]):
            found = ", ".join(header)[:200] or "of an empty file"
            raise ValueError(f"the columns {found}; expected step, and loss, train_loss or val_loss")
        places = {key: header.index(name) for key, name in columns.items() if name}
        history = [_csv_entry(row, header.index("step"), places) for row in islice(rows, MAX_ENTRIES + 1) if any(row)]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    _check_length(history)
    evaluations = {key: _series(history, key) for key in columns if key.startswith(EVALUATION_PREFIX)}
    epochs = [entry["epoch"] for entry in history if entry.get("epoch") is not None]
    return TrainingLog(
        path=str(path),
        end=LogEnd(step=max((entry["step"] for entry in history), default=0), epoch=epochs[-1] if epochs else None),
        losses=_series(history, "loss"),
        gradient_norms=_series(history, "grad_norm"),
        learning_rates=_series(history, "learning_rate"),
        evaluations=Evaluations(
            series={key.removeprefix(EVALUATION_PREFIX): series for key, series in evaluations.items() if len(series)}
        ),
    )


def _csv_entry(row: Sequence[str], step_place: int, places: Mapping[str, int]) -> dict[str, Any]:
    """Return the numbers of a row by quantity."""
    step = _csv_number(row, step_place, "step")
    if step is None or not step.is_integer() or abs(step) >= MAX_INTEGER:
        raise ValueError(f"step: {row[step_place : step_place + 1]!r:.40}, expected a whole number")
    return {"step": int(step), **{key: _csv_number(row, place, key) for key, place in places.items()}}


def _csv_number(row: Sequence[str], place: int, name: str) -> float | None:
    """Return the number in a cell, or None if it is empty or missing."""
    text = row[place].strip() if place < len(row) else ""
    try:
        return float(text) if text else None
    except ValueError as error:
        raise ValueError(f"{name}: {text!r:.40}, expected a number") from error
