"""Logs of trainings are found and read; what is no log gives one clear error."""

from __future__ import annotations

import json
import math
import os

import pytest
from trainer_state import make_state, write_state

from xferbench.core.errors import UserError
from xferbench.core.training_log import LogEnd, Series
from xferbench.data import training_log

CLASSIFIER = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}}


def test_every_quantity_of_a_state_is_read(tmp_path):
    summary = {"step": 40, "train_samples_per_second": 320.0, "train_steps_per_second": 10.0, "train_loss": 1.0}
    speeds = {"runtime": 0.5, "samples_per_second": 1000.0, "steps_per_second": 9.0}
    evaluations = [{"loss": 1.5, "accuracy": 0.5, "report": "x", **speeds}, {"loss": 1.2, "accuracy": 0.6, **speeds}]
    state = make_state([1.8, 1.5, 1.4, 1.2], rates=[1e-3] * 4, evaluations=evaluations, max_steps=80, more=[summary])
    log = training_log.read_log(write_state(tmp_path, state))
    assert log.path == str(tmp_path / "trainer_state.json")
    assert log.end == LogEnd(step=40, max_steps=80, epoch=6.0)
    assert log.end.is_cut
    assert log.losses == Series(steps=(10, 20, 30, 40), values=(1.8, 1.5, 1.4, 1.2))
    assert log.gradient_norms.values == (1.5,) * 4
    assert log.learning_rates.values == (1e-3,) * 4
    assert log.evaluations.series == {
        "loss": Series(steps=(20, 40), values=(1.5, 1.2)),
        "accuracy": Series(steps=(20, 40), values=(0.5, 0.6)),
    }
    assert (log.evaluations.examples, log.batches_per_step, log.classes, log.choice) == (500, 4, None, "")


def test_values_that_are_not_finite_are_read(tmp_path):
    log = training_log.read_log(write_state(tmp_path, make_state([1.0, math.nan, math.inf])))
    assert math.isnan(log.losses.values[1]) and log.losses.values[2] == math.inf
    assert log.losses.first_non_finite() == 20


def test_a_state_may_lack_what_older_versions_did_not_write(tmp_path):
    state = {"global_step": 20, "log_history": [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.9, "learning_rate": None}]}
    log = training_log.read_log(write_state(tmp_path, state))
    assert (log.end, len(log.losses), len(log.learning_rates)) == (LogEnd(step=20), 2, 0)


@pytest.mark.parametrize(("counter", "stopped"), [(3, True), (2, False)])
def test_early_stopping_is_recognized(tmp_path, counter, stopped):
    callback = {
        "args": {"early_stopping_patience": 3, "early_stopping_threshold": 0.0},
        "attributes": {"early_stopping_patience_counter": counter},
    }
    state = make_state(max_steps=9000, stateful_callbacks={"EarlyStoppingCallback": callback})
    log = training_log.read_log(write_state(tmp_path, state))
    assert (log.end.stopped_early, log.end.is_cut) == (stopped, not stopped)


def test_the_last_checkpoint_of_a_folder_is_read_and_named(tmp_path):
    for count in (90, 100, 20):  # by name, checkpoint-900 would be last
        write_state(tmp_path / f"checkpoint-{10 * count}", make_state([1.0] * count))
    log = training_log.read_log(tmp_path)
    assert (log.end.step, log.choice) == (1000, "the last of 3 by global_step")
    write_state(tmp_path, make_state([1.0] * 100))
    log = training_log.read_log(tmp_path)
    assert (log.path, log.choice) == (str(tmp_path / "trainer_state.json"), "the last of 4 by global_step")
    assert training_log.read_log(tmp_path / "checkpoint-200").choice == ""


@pytest.mark.parametrize(
    ("config", "classes"),
    [
        (CLASSIFIER, 3),
        (CLASSIFIER | {"problem_type": "single_label_classification"}, 3),
        (CLASSIFIER | {"problem_type": "regression"}, None),
        (CLASSIFIER | {"problem_type": []}, None),
        (CLASSIFIER | {"architectures": ["BertForMaskedLM"]}, None),
        (CLASSIFIER | {"id2label": {"0": "a"}}, None),
        (CLASSIFIER | {"id2label": 3}, None),
        ({"architectures": ["BertForSequenceClassification"]}, 2),
        ([], None),
    ],
)
def test_the_classes_are_those_of_the_configuration(tmp_path, config, classes):
    write_state(tmp_path / "checkpoint-600", make_state())
    (tmp_path / "checkpoint-600" / "config.json").write_text(json.dumps(config))
    assert training_log.read_log(tmp_path / "checkpoint-600").classes == classes
    write_state(tmp_path, make_state())  # the Trainer writes this one without a configuration
    assert training_log.read_log(tmp_path).classes == classes


LIGHTNING = """epoch,lr-AdamW,step,train_loss_step,val_acc,val_loss
0,0.001,9,1.8,,
0,,19,,0.5,1.6
1,0.0005,29,1.2,,

1,,39,,0.6,nan
"""


def test_a_csv_file_of_lightning_is_read(tmp_path):
    (tmp_path / "metrics.csv").write_text(LIGHTNING)
    for path in (tmp_path, tmp_path / "metrics.csv"):
        log = training_log.read_log(path)
        assert log.losses == Series(steps=(9, 29), values=(1.8, 1.2))
        assert log.learning_rates.values == (0.001, 0.0005)
        assert log.evaluations.series["accuracy"].values == (0.5, 0.6)
        assert log.evaluations.series["loss"].first_non_finite() == 39
        assert log.end == LogEnd(step=39, epoch=1.0)


def test_a_generic_csv_file_is_read(tmp_path):
    file = tmp_path / "log.csv"
    file.write_bytes(b"\xef\xbb\xbfstep,loss,learning_rate\r\n1,2.0,1e-3\r\n2,1.5\r\n")
    log = training_log.read_log(file)
    assert (log.losses.values, log.learning_rates.values) == ((2.0, 1.5), (1e-3,))


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "the columns of an empty file"),
        ("a,b\n1,2\n", "the columns a, b; expected step"),
        ("step,accuracy\n1,2\n", "expected step, and loss"),
        ("step,loss\n1.5,2\n", "expected a whole number"),
        ("step,loss\n,2\n", "expected a whole number"),
        ("step,loss\n1e300,2\n", "expected a whole number"),
        ("step,loss\nnan,2\n", "expected a whole number"),
        ("step,loss\n1,many\n", "loss: 'many', expected a number"),
        ("step,loss\n2,1\n1,1\n", "step 1 after step 2"),
        ('step,loss\n1,"2\n', "unexpected end of data"),
        ("step,loss\n" + "1," + "9" * 200_000 + "\n", "field larger than field limit"),
    ],
)
def test_a_csv_file_that_is_no_log_gives_an_error(tmp_path, text, fragment):
    file = tmp_path / "metrics.csv"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        training_log.read_log(file)
    assert fragment in error.value.found


NESTED = b'{"global_step": 1, "log_history": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
ENTRY = {"step": 1, "loss": 1.0}


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe\x00", "can't decode"),
        (b"[]", "expected dict"),
        (b"{}", "global_step is missing"),
        (NESTED, "nested too deeply"),
        ({"global_step": 1}, "log_history is missing"),
        ({"global_step": "1", "log_history": []}, "global_step: '1', expected int"),
        ({"global_step": 2**64, "log_history": []}, "expected int"),
        ({"global_step": 1, "log_history": {}}, "log_history: {}, expected list"),
        ({"global_step": 1, "log_history": [[]]}, r"log_history[0]: [], expected dict"),
        ({"global_step": 1, "log_history": [{"loss": 1.0}]}, "log_history[0].step is missing"),
        ({"global_step": 1, "log_history": [ENTRY | {"step": 1.5}]}, "log_history[0].step: 1.5, expected int"),
        ({"global_step": 1, "log_history": [ENTRY | {"step": math.nan}]}, "log_history[0].step: nan, expected int"),
        ({"global_step": 1, "log_history": [ENTRY | {"loss": "1"}]}, "loss: '1', expected a number"),
        ({"global_step": 1, "log_history": [ENTRY | {"loss": True}]}, "loss: True, expected a number"),
        ({"global_step": 1, "log_history": [ENTRY | {"grad_norm": [1]}]}, "grad_norm: [1], expected a number"),
        ({"global_step": 1, "log_history": [ENTRY | {"loss": 10**400}]}, "beyond the range of floats"),
        ({"global_step": 1, "log_history": [ENTRY | {"step": 2}, ENTRY]}, "step 1 after step 2"),
        ({"global_step": 1, "log_history": [], "max_steps": "all"}, "max_steps: 'all'"),
        ({"global_step": 1, "log_history": [], "best_model_checkpoint": 3}, "best_model_checkpoint: 3"),
        ({"global_step": 1, "log_history": [], "stateful_callbacks": []}, "stateful_callbacks"),
    ],
)
def test_a_state_that_is_no_log_gives_an_error(tmp_path, content, fragment):
    file = tmp_path / "trainer_state.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UserError) as error:
        training_log.read_log(file)
    assert fragment in error.value.found and "trainer_state.json" in error.value.what


def test_a_path_without_a_log_gives_an_error(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        training_log.read_log(tmp_path / "none")
    with pytest.raises(UserError, match="no log of a training"):
        training_log.read_log(tmp_path)
    (tmp_path / "trainer_state.json").mkdir()
    with pytest.raises(UserError, match="no log of a training"):
        training_log.read_log(tmp_path)


def test_pipes_and_huge_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError) as error:
        training_log.read_log(tmp_path / "pipe.json")  # opening it would wait for a writer
    assert error.value.found == "not a regular file"
    huge = tmp_path / "trainer_state.json"
    with huge.open("wb") as file:
        file.truncate(2_000_000_000)
    with pytest.raises(UserError) as error:
        training_log.read_log(huge)
    assert error.value.found == f"more than {training_log.MAX_LOG_BYTES} bytes"


def test_too_many_entries_and_checkpoints_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(training_log, "MAX_ENTRIES", 50)
    with pytest.raises(UserError) as error:
        training_log.read_log(write_state(tmp_path / "checkpoint-600", make_state()))
    assert error.value.found == "more than 50 entries"
    monkeypatch.setattr(training_log, "MAX_CHECKPOINTS", 1)
    write_state(tmp_path / "checkpoint-10", make_state([1.0]))
    with pytest.raises(UserError, match="too many checkpoints"):
        training_log.read_log(tmp_path)
