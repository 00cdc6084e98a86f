"""Training logs are input: whatever they hold, the command gives a report or one clear error."""

from __future__ import annotations

import json
import math

import pytest
from limits import memory_limit, time_limit
from mutation import mutate_bytes, mutate_value
from trainer_state import make_curve, make_state, write_state

from xferbench.analysis import log_rules
from xferbench.core.errors import UserError
from xferbench.data import training_log
from xferbench.report.training_log import format_report, report_to_json

CASES = 150
EVALUATIONS = [{"loss": loss, "accuracy": 0.5, "runtime": 0.5, "samples_per_second": 100.0} for loss in (1.0, 0.8, 0.9, 1.2)]
SPEEDS = {"step": 300, "train_samples_per_second": 320.0, "train_steps_per_second": 10.0}
CSV = b"step,loss,lr,grad_norm,val_loss\n" + b"".join(b"%d,%.3f,0.001,1.5,\n" % (step, 2 / step) for step in range(1, 30))


def report_on(path):
    """Return what the command prints, or None for a clear error."""
    with time_limit():
        try:
            log = training_log.read_log(path)
        except UserError:
            return None
        report = log_rules.examine(log, 0.5)
        json.dumps(report_to_json(report), allow_nan=False)
        return format_report(report)


@pytest.mark.parametrize("losses", [make_curve(30), [*make_curve(20), *[math.nan] * 10]], ids=["sound", "broken"])
def test_a_changed_state_gives_a_report_or_an_error(tmp_path, fuzz_rng, fuzz_factor, losses, record_property):
    state = make_state(losses, evaluations=EVALUATIONS, more=[SPEEDS], best_model_checkpoint="out/checkpoint-100")
    reports = 0
    with memory_limit():
        for _ in range(CASES * fuzz_factor):
            file = write_state(tmp_path, mutate_value(state, fuzz_rng))
            if fuzz_rng.random() < 0.3:
                file.write_bytes(mutate_bytes(file.read_bytes(), fuzz_rng))
            reports += report_on(tmp_path) is not None
    record_property("inputs", CASES * fuzz_factor)
    record_property("refused", CASES * fuzz_factor - reports)
    assert 0 < reports < CASES * fuzz_factor


def test_a_changed_csv_file_gives_a_report_or_an_error(tmp_path, fuzz_rng, fuzz_factor, record_property):
    file = tmp_path / "metrics.csv"
    reports = 0
    with memory_limit():
        for _ in range(CASES * fuzz_factor):
            file.write_bytes(mutate_bytes(CSV, fuzz_rng))
            reports += report_on(file) is not None
    record_property("inputs", CASES * fuzz_factor)
    record_property("refused", CASES * fuzz_factor - reports)
    assert 0 < reports < CASES * fuzz_factor


def test_a_changed_configuration_gives_a_report(tmp_path, fuzz_rng, fuzz_factor, record_property):
    write_state(tmp_path, make_state(evaluations=EVALUATIONS))
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}, "problem_type": None}
    count = CASES * fuzz_factor // 3
    with memory_limit():
        for _ in range(count):
            (tmp_path / "config.json").write_text(json.dumps(mutate_value(config, fuzz_rng)))
            assert report_on(tmp_path)
    record_property("inputs", count)
    record_property("refused", 0)
