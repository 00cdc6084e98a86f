"""``xferbench watch-log``: text, JSON and exit codes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
from invoke import invoke, invoke_process
from trainer_state import make_curve, make_state, write_state

from xferbench.analysis import exit_code, log_rules
from xferbench.cli import main
from xferbench.core.training_log import Series
from xferbench.report import training_log

pytestmark = pytest.mark.usefixtures("isolated")

BROKEN = {"losses": [*make_curve(30), *[0.0] * 30], "norms": [*[1.5] * 30, *[math.nan] * 30]}
EVALUATIONS = [{"loss": loss, "accuracy": score} for loss, score in ((1.2, 0.5), (0.8, 0.7), (0.6, 0.8))]


def test_a_sound_log(capsys, tmp_path):
    file = write_state(tmp_path / "out", make_state(evaluations=EVALUATIONS))
    code, out, err = invoke(capsys, "watch-log", file, "--classes", 6, "--majority", 0.4)
    assert (code, err) == (exit_code.PASSED, "")
    assert out.splitlines() == [
        f"{file}: 600 of 600 steps, 6 epochs, 6 classes",
        "  loss 1.828 → 0.2746, 60 values",
        "  eval_loss 1.2 → 0.6, 3 evaluations",
        "  eval_accuracy 0.5 → 0.8, 3 evaluations",
        "  learning_rate 0.000983 (step 10) → 0",
        "  grad_norm 1.5 in the median, above 1, the default of max_grad_norm, at 100 % of the logged steps",
        "",
        "nothing to report",
        "",
        "checked, and not seen: non-finite, zero-gradient, skipped-steps, gradient-rise, zero-rate,",
        "  cut-short, loss-flat, at-chance, loss-rise, still-falling, overfitting, constant-prediction",
        "",
        "not checked:",
        "  added-losses         no batches of a step (the Trainer logs the speed at the end of a training)",
        "",
        "not checked, because no log shows it:",
        *(f"  {what}: {command}" for what, command in training_log.BLIND_SPOTS),
    ]


def test_a_fault_has_its_steps_cause_and_advice(capsys, tmp_path):
    write_state(tmp_path / "out" / "checkpoint-600", make_state(**BROKEN))
    write_state(tmp_path / "out" / "checkpoint-100", make_state(make_curve(10)))
    code, out, err = invoke(capsys, "watch-log", "out")
    assert (code, err) == (exit_code.FAILED, "")
    head, *_ = out.splitlines()
    assert head == "out/checkpoint-600/trainer_state.json (the last of 2 by global_step): 600 of 600 steps, 6 epochs"
    assert "\n1 fault\n\nnon-finite at steps 301 to 310: loss: it is not finite; it is logged as 0.0, because" in out
    assert "\n  do: take a checkpoint from before; lower the learning rate" in out
    assert "grad_norm 1.5 in the median" in out, "of the finite ones"


def test_a_note_is_no_failure(capsys, tmp_path):
    write_state(tmp_path, make_state(max_steps=800))
    code, out, _ = invoke(capsys, "watch-log", ".")
    assert code == exit_code.PASSED
    assert (
        "\n1 note\n\nnote: cut-short at step 600: learning_rate: the log ends at step 600 of 800, with the rate at 25 %" in out
    )


def test_a_log_without_losses_has_no_verdict(capsys, tmp_path):
    write_state(tmp_path, make_state([]))
    code, out, _ = invoke(capsys, "watch-log", ".")
    assert code == exit_code.NO_VERDICT
    assert "nothing to report" in out and "checked, and not seen" not in out
    assert "  non-finite           no losses (a smaller logging_steps gives more)" in out


def test_json_is_all_of_standard_output(capsys, tmp_path):
    write_state(tmp_path, make_state(**BROKEN, evaluations=[{"loss": math.nan}]))
    code, out, err = invoke(capsys, "watch-log", ".", "--format", "json")
    assert (code, err) == (exit_code.FAILED, "")
    report = json.loads(out, parse_constant=pytest.fail)
    assert (report["schema"], report["log"]["step"], report["log"]["evaluations"]["loss"]["last"]) == (1, 600, None)
    (event,) = report["events"]
    assert (event["kind"], event["level"], event["quantity"], event["step"], event["since"]) == (
        "non-finite",
        "fault",
        "loss",
        310,
        300,
    )
    assert event["cause"] and event["do"]
    assert "zero-rate" in report["not_seen"]
    assert report["unchecked"]["at-chance"] == "the number of classes is not known (give --classes N)"
    assert {entry["command"] for entry in report["not_in_a_log"]} == {command for _, command in training_log.BLIND_SPOTS}


def test_every_rule_is_explained():
    rules = {"non-finite", *log_rules.RULES, "constant-prediction"}
    assert set(training_log.EXPLANATIONS) == rules | {"overconfidence", "same-score"}


def test_the_commands_for_blind_spots_exist():
    parsers = main.build_parser()._subparsers._group_actions[0].choices
    for _, text in training_log.BLIND_SPOTS:
        for command in text.split(", "):
            program, *words = command.split()
            if program != "xferbench":
                assert command == "xferbench.watch"
                continue
            assert {word for word in words if word.startswith("--")} <= set(parsers[words[0]]._option_string_actions)


@pytest.mark.parametrize(
    ("rates", "text"),
    [
        ([1e-3, 1e-3], "0.001 at every logged step"),
        ([0.0, 5e-4, 1e-3], "0 → 0.001 (step 3)"),
        ([5e-4, 1e-3, 1e-3], "0.0005 → 0.001 (step 2), constant at the end"),
        ([1e-3, 5e-4, 0.0], "0.001 (step 1) → 0"),
        ([5e-4, 1e-3, 2e-4], "0.0005 → 0.001 (step 2) → 0.0002"),
        ([1e-3], "0.001 at every logged step"),
    ],
)
def test_a_schedule_is_described_by_its_ends(rates, text):
    assert training_log.describe_schedule(Series(steps=(1, 2, 3)[: len(rates)], values=tuple(rates))) == text


@pytest.mark.parametrize("option", [("--classes", "1"), ("--classes", "two"), ("--majority", "0"), ("--majority", "60%")])
def test_wrong_options_are_refused(capsys, option):
    with pytest.raises(SystemExit) as error:
        main.main(["watch-log", "out", *option])
    assert error.value.code == exit_code.USAGE_ERROR
    assert f"argument {option[0]}: found" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["none", "empty", "state.json", "folder.csv"])
def test_what_is_no_log_gives_one_message(capsys, tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "state.json").write_text("{}")
    code, out, err = invoke(capsys, "watch-log", name)
    assert (code, out) == (exit_code.USAGE_ERROR, "")
    assert err.startswith(f"xferbench: {name}: no") and err.count("xferbench:") == 1
    assert "expected: trainer_state.json of transformers" in err


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "trainer_state.json")
    done = invoke_process("watch-log", tmp_path / "trainer_state.json")
    assert (done.returncode, done.stdout) == (exit_code.USAGE_ERROR, "")
    assert "found: not a regular file" in done.stderr


def test_names_in_a_log_cannot_control_the_output(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    hostile = "\x1b[2J\n::error::x\u202eloss"
    losses = [{"accuracy": 0.5, hostile: loss, "loss": loss} for loss in (1.0, 0.5, 0.8, 1.2)]
    state = make_state(evaluations=losses, best_model_checkpoint=f"out\n::error::{hostile}")
    write_state(tmp_path, state | {"epoch": 1e308})
    for form in ("text", "json"):
        _, out, err = invoke(capsys, "watch-log", ".", "--format", form)
        assert not err and "overconfidence" in out
        assert not any(line.lstrip().startswith("::") for line in out.splitlines())
        assert not {"\x1b", "\u202e"} & set(out)


def test_the_command_needs_no_torch(tmp_path):
    write_state(tmp_path, make_state(evaluations=EVALUATIONS))
    program = (
        "import sys; sys.modules['torch'] = sys.modules['pandas'] = None\n"
        "from xferbench.cli.main import main\n"
        f"code = main(['watch-log', {str(tmp_path)!r}]); assert 'scipy.stats' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.filterwarnings("ignore")
def test_the_log_of_a_real_training_is_read(capsys, tmp_path):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("transformers", reason="needs the extra transformers")
    pytest.importorskip("accelerate", reason="needs transformers[torch]")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = library.BertForSequenceClassification(library.BertConfig(vocab_size=20, max_position_embeddings=16, **sizes))
    rows = [{"input_ids": torch.full((5,), 2 + index % 2), "labels": index % 2} for index in range(32)]
    arguments = library.TrainingArguments(
        output_dir="out",
        max_steps=30,
        learning_rate=1e-2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=10,
        save_steps=10,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    library.Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows).train()
    capsys.readouterr()
    code, out, err = invoke(capsys, "watch-log", "out")
    assert (code, err) == (exit_code.PASSED, "")
    assert out.startswith(
        "out/checkpoint-30/trainer_state.json (the last of 3 by global_step): 30 of 30 steps, 7.5 epochs, 2 classes\n"
    )
    assert "\n  loss " in out and "\n  eval_loss " in out and "\nnothing to report\n" in out
