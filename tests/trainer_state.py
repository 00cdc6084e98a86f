"""The content of ``trainer_state.json``, as the Trainer of transformers writes it."""

from __future__ import annotations

import json
import math
import random

STEPS = 10  # between two logged losses


def make_curve(count=60, *, start=1.8, end=0.3, decay=12.0, noise=0.03, seed=0):
    """Return losses that fall exponentially, with noise."""
    rng = random.Random(seed)
    return [end + (start - end) * math.exp(-index / decay) + rng.gauss(0, noise) for index in range(count)]


def make_state(losses=None, *, norms=1.5, rates=None, evaluations=(), max_steps=None, more=(), **changes):
    """Return the state of a training.

    Args:
        losses: the logged losses, one at every ``STEPS`` steps; None for a sound curve.
        norms: the gradient norms, or one number for all of them; None to log none.
        rates: the learning rates; by default a linear decay from 1e-3.
        evaluations: metrics without their prefix, as dictionaries; they are spread over the training.
        max_steps: the planned steps; by default those of the losses.
        more: further entries.
        changes: keys of the state that differ.
    """
    losses = make_curve() if losses is None else list(losses)
    last = STEPS * len(losses)
    planned = last if max_steps is None else max_steps
    norms = norms if isinstance(norms, (list, tuple)) else [norms] * len(losses)
    rates = [1e-3 * (1 - STEPS * (index + 1) / (planned or 1)) for index in range(len(losses))] if rates is None else rates
    history = [
        {"step": STEPS * (index + 1), "epoch": 0.1 * (index + 1), "loss": loss, "learning_rate": rate}
        | ({} if norm is None else {"grad_norm": norm})
        for index, (loss, norm, rate) in enumerate(zip(losses, norms, rates, strict=True))
    ]
    for index, metrics in enumerate(evaluations):
        step = last * (index + 1) // len(evaluations)
        history.append({"step": step, "epoch": 1.0} | {f"eval_{name}": value for name, value in metrics.items()})
    history = sorted(history, key=lambda entry: entry["step"]) + list(more)
    state = {
        "best_metric": None,
        "best_model_checkpoint": None,
        "epoch": 6.0,
        "global_step": last,
        "log_history": history,
        "logging_steps": STEPS,
        "max_steps": planned,
        "num_train_epochs": 6,
        "stateful_callbacks": {},
        "train_batch_size": 8,
    }
    return state | changes


def write_state(folder, state):
    """Write a state into a folder as the Trainer does, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "trainer_state.json"
    file.write_text(json.dumps(state, indent=2), encoding="utf-8")
    return file
