"""Which faults `xferbench watch-log` names in the logs of real trainings, and how often it is wrong on sound ones.

    python tests/benchmarks/logs.py --texts FOLDER [--logs FOLDER] [--seeds 2] [--out reports/benchmarks]

``--texts`` has TREC's questions and Pang and Lee's movie reviews as in text.py. The Trainer of transformers trains a network of
two layers of width 64 from random weights, with each setting below. ``--logs`` keeps the logs; those that exist are not trained
again.
"""

from __future__ import annotations

import argparse
import math
import platform
import shutil
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from xferbench.analysis.log_rules import examine
from xferbench.data.training_log import STATE_FILE, read_log

FIRST_SEED = 10  # the thresholds of the rules were chosen on logs of seeds 0 to 2
WORDS, LONGEST, PAD, UNKNOWN = 3000, 32, 0, 1
CLASSES = {"questions": 6, "reviews": 2}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A training.

    Attributes:
        expected: the kinds of events that name the fault; empty for a sound training.
        task: ``questions`` or ``reviews``.
        count, tested: the numbers of training and of evaluation texts.
        kind: ``bert``, ``distilbert`` or ``gpt2``.
        change: changes the Trainer before the training.
        at: a step, and what happens to the Trainer at it.
        options: arguments of the Trainer that differ from ``DEFAULTS``.
    """

    expected: tuple[str, ...] = ()
    task: str = "questions"
    count: int = 2000
    tested: int = 500
    kind: str = "bert"
    change: object = None
    at: tuple = ()
    options: dict = field(default_factory=dict)


DEFAULTS = {
    "max_steps": 200,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 32,
    "logging_steps": 5,
    "eval_strategy": "steps",
    "eval_steps": 40,
    "save_strategy": "no",
}


def setting(expected="", *, task="questions", count=2000, tested=500, kind="bert", change=None, at=(), **options):
    return Setting(
        expected=tuple(expected.split()),
        task=task,
        count=count,
        tested=tested,
        kind=kind,
        change=change,
        at=at,
        options=options,
    )


def break_weights(trainer):
    next(trainer.model.parameters()).data[5:50] = math.nan


def overflow(trainer):
    trainer.model.classifier.weight.data.fill_(1e38)


def raise_rate(trainer):
    trainer.lr_scheduler.base_lrs = [300 * rate for rate in trainer.lr_scheduler.base_lrs]


def stop(trainer):
    trainer.control.should_training_stop = True


def shorten_schedule(trainer):
    from transformers import get_linear_schedule_with_warmup

    trainer.create_optimizer()
    trainer.lr_scheduler = get_linear_schedule_with_warmup(trainer.optimizer, 0, trainer.args.max_steps // 4)


def stop_early(trainer):
    from transformers import EarlyStoppingCallback

    trainer.add_callback(EarlyStoppingCallback(3))


def relabel(labels):
    """Return a change of the training labels."""

    def change(trainer):
        old = [row["labels"] for row in trainer.train_dataset]
        rows = zip(trainer.train_dataset, labels(np.random.default_rng(3), old), strict=True)
        trainer.train_dataset = [{**row, "labels": int(label)} for row, label in rows]

    return change


def shuffle(rng, labels):
    return rng.permutation(labels)


def make_noisy(rng, labels):
    return np.where(rng.random(len(labels)) < 0.4, rng.integers(6, size=len(labels)), labels)


def make_imbalanced(trainer):
    """Keep a ninth of the negative texts."""
    for name in ("train_dataset", "eval_dataset"):
        parts = [[row for row in getattr(trainer, name) if row["labels"] == label] for label in (1, 0)]
        rows = [*parts[0], *parts[1][: len(parts[0]) // 9]]
        np.random.default_rng(0).shuffle(rows)
        setattr(trainer, name, rows)


def freeze(trainer):
    for name, tensor in trainer.model.named_parameters():
        tensor.requires_grad_(name.endswith("classifier.bias"))


def detach_head(trainer):
    trainer.model.classifier.register_forward_pre_hook(lambda _, args: (args[0].detach() * 0,))


EARLY_STOPPING = {"save_strategy": "steps", "save_steps": 20, "load_best_model_at_end": True, "eval_steps": 20}
STEEP = {"max_steps": 200, "learning_rate": 5e-5}
SOUND = {
    "linear decay": setting(max_steps=300),
    "constant rate": setting(max_steps=300, lr_scheduler_type="constant", learning_rate=3e-4),
    "cosine decay, warm-up": setting(max_steps=300, lr_scheduler_type="cosine", warmup_steps=30),
    "two accumulated batches": setting(
        max_steps=150, gradient_accumulation_steps=2, per_device_train_batch_size=16, warmup_steps=15
    ),
    "reviews": setting(task="reviews", count=8000, max_steps=250, learning_rate=5e-4, warmup_steps=20),
    "DistilBERT": setting(
        kind="distilbert", max_steps=250, lr_scheduler_type="constant_with_warmup", warmup_steps=20, learning_rate=5e-4
    ),
    "GPT-2": setting(kind="gpt2", lr_scheduler_type="cosine", max_steps=250),
    "early stopping": setting(count=500, max_steps=800, learning_rate=5e-4, change=stop_early, **EARLY_STOPPING),
    "batches of 8, each loss logged": setting(logging_steps=1, per_device_train_batch_size=8, learning_rate=3e-4),
    "eight losses logged": setting(max_steps=400, logging_steps=50, eval_steps=100),
    "epochs, polynomial decay": setting(
        max_steps=-1, num_train_epochs=4, eval_strategy="epoch", lr_scheduler_type="polynomial", logging_steps=10
    ),
    "label smoothing, weight decay": setting(max_steps=250, label_smoothing_factor=0.1, weight_decay=0.1, warmup_steps=25),
    "no evaluation": setting(eval_strategy="no"),
    "first step logged": setting(logging_first_step=True, logging_steps=20, warmup_steps=20),
    "all questions, 600 steps": setting(
        count=5400, max_steps=600, logging_steps=10, eval_steps=100, lr_scheduler_type="cosine", learning_rate=5e-4
    ),
    "SGD": setting(max_steps=300, optim="sgd", learning_rate=0.1, warmup_steps=30),
}
FAULTY = {
    "weights become NaN": setting("non-finite", at=(100, break_weights)),
    "weights become NaN, no filter": setting("non-finite", at=(100, break_weights), logging_nan_inf_filter=False),
    "the head overflows": setting("non-finite", at=(62, overflow), max_steps=150),
    "rate of 0.1": setting("at-chance loss-flat", max_steps=250, learning_rate=0.1),
    "rate of 0.03, reviews": setting(
        "at-chance loss-flat", task="reviews", count=8000, max_steps=250, learning_rate=0.03, lr_scheduler_type="constant"
    ),
    "rate × 300 at step 150": setting(
        "loss-rise", max_steps=300, lr_scheduler_type="constant", learning_rate=5e-4, at=(150, raise_rate)
    ),
    "200 questions, 500 steps": setting(
        "overfitting overconfidence", count=200, max_steps=500, lr_scheduler_type="constant", learning_rate=5e-4
    ),
    "1500 reviews, 500 steps": setting("overfitting overconfidence", task="reviews", count=1500, max_steps=500),
    "40 % random labels, 700 steps": setting(
        "overfitting",
        count=1500,
        max_steps=700,
        logging_steps=10,
        eval_steps=50,
        lr_scheduler_type="constant",
        change=relabel(make_noisy),
    ),
    "rate of 0": setting("zero-rate", learning_rate=0.0, max_steps=150),
    "schedule of a quarter of the steps": setting("zero-rate", max_steps=300, change=shorten_schedule),
    "shuffled labels": setting("at-chance loss-flat", change=relabel(shuffle), learning_rate=3e-4),
    "labels of -100": setting(
        "zero-gradient non-finite", max_steps=100, change=relabel(lambda _, labels: [-100] * len(labels))
    ),
    "all frozen but a bias": setting("at-chance loss-flat", change=freeze),
    "head without inputs": setting("at-chance loss-flat", change=detach_head),
    "rate of 5e-5, linear decay": setting("at-chance still-falling", count=5400, **STEEP),
    "rate of 5e-5, constant": setting("at-chance still-falling", count=5400, lr_scheduler_type="constant", **STEEP),
    "stopped at step 120 of 400": setting("cut-short", max_steps=400, at=(120, stop), save_strategy="steps", save_steps=40),
    "90 % of one class, rate of 1e-5": setting(
        "constant-prediction same-score at-chance",
        task="reviews",
        count=8000,
        tested=1600,
        learning_rate=1e-5,
        change=make_imbalanced,
    ),
    "90 % of one class, rate of 0.05": setting(
        "constant-prediction same-score at-chance",
        task="reviews",
        count=8000,
        tested=1600,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        change=make_imbalanced,
    ),
}


def read_rows(texts, task):
    """Return the training and the test rows of a task: words and label."""

    def rows(name):
        lines = (texts / name).read_text(encoding="latin-1").split("\n")
        pairs = [line.split(" ", 1) for line in lines if line.strip()]
        return [(text.lower().split(), int(label)) for label, text in pairs]

    if task == "questions":
        return rows("TREC.train.all"), rows("TREC.test.all")
    reviews = rows("rt-polarity.all")
    np.random.default_rng(0).shuffle(reviews)
    return reviews[:9000], reviews[9000:]


def encode(texts, chosen):
    """Return the datasets of a setting, with the words that are frequent in its task as tokens."""
    train, test = read_rows(texts, chosen.task)
    counts = Counter(word for words, _ in train for word in words)
    ids = {word: number + 2 for number, (word, _) in enumerate(counts.most_common(WORDS))}
    picked = np.random.default_rng(1).permutation(len(train))[: chosen.count]

    def rows(pairs):
        return [{"input_ids": [ids.get(word, UNKNOWN) for word in words][:LONGEST], "labels": label} for words, label in pairs]

    return rows([train[index] for index in picked]), rows(test[: chosen.tested])


def collate(rows):
    import torch

    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": torch.tensor([row["labels"] for row in rows])}


def make_model(kind, classes):
    import transformers

    sizes = {"vocab_size": WORDS + 2, "num_labels": classes, "pad_token_id": PAD}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_embd=64, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1, **sizes
        )
        return transformers.GPT2ForSequenceClassification(config)
    if kind == "distilbert":
        shape = {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128, "max_position_embeddings": 64}
        return transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**shape, **sizes))
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    return transformers.BertForSequenceClassification(transformers.BertConfig(max_position_embeddings=64, **shape, **sizes))


def accuracy(prediction):
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float((logits.argmax(-1) == prediction.label_ids).mean())}


def train(chosen, texts, seed, folder):
    """Train with a setting, and keep only its log."""
    import torch
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    training, test = encode(texts, chosen)
    with tempfile.TemporaryDirectory() as temporary:
        arguments = transformers.TrainingArguments(
            output_dir=temporary, report_to=[], use_cpu=True, disable_tqdm=True, seed=seed, **DEFAULTS | chosen.options
        )
        trainer = transformers.Trainer(
            model=make_model(chosen.kind, CLASSES[chosen.task]),
            args=arguments,
            train_dataset=training,
            eval_dataset=test,
            data_collator=collate,
            compute_metrics=accuracy,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        if chosen.change is not None:
            chosen.change(trainer)
        if chosen.at:
            trainer.add_callback(make_event(transformers, trainer, *chosen.at))
        trainer.train()
        trainer.save_state()
        folder.mkdir(parents=True)
        shutil.copy(Path(temporary) / STATE_FILE, folder)


def make_event(transformers, trainer, step, change):
    """Return a callback that changes a Trainer at a step."""

    class Event(transformers.TrainerCallback):
        def on_step_end(self, _args, state, _control, **_):
            if state.global_step == step:
                change(trainer)

    return Event()


def describe(reports):
    """Return the kinds of the events of several logs with their counts; a fault in bold."""
    kinds = Counter((event.kind, event.level) for report in reports for event in report.events)
    return ", ".join(f"{f'**{kind}**' if level == 'fault' else kind} {count}" for (kind, level), count in kinds.items()) or "–"


def page(rows, seeds):
    """Return the page of the table."""
    sound = [report for name in SOUND for report in rows[name]["known"]]
    unknown = [report for name in SOUND for report in rows[name]["unknown"]]
    counts = {
        key: sum(is_named(FAULTY[name], report) for name in FAULTY for report in rows[name][key])
        for key in ("known", "unknown")
    }
    faults = {key: sum(bool(report.faults) for report in reports) for key, reports in (("known", sound), ("unknown", unknown))}
    notes = sum(bool(report.events) for report in sound)
    head = f"""# Faults in the logs of trainings

`xferbench watch-log` on logs of the Trainer of transformers: BERT, DistilBERT and GPT-2 of two layers of width 64 from random
weights, on TREC's questions (six classes) and Pang and Lee's reviews (two), {seeds} seeds each. The thresholds of the rules
were chosen on logs of other seeds. A fault is printed in bold; the other events are notes. A faulty training counts as named if
an event of an expected kind, in the second column, is reported. Python {platform.python_version()}.
Again: `python tests/benchmarks/logs.py --texts FOLDER`.

| | number of classes given | not given |
|---|---|---|
| faulty trainings that are named | {counts["known"]} of {len(FAULTY) * seeds} | {counts["unknown"]} of {len(FAULTY) * seeds} |
| sound trainings with a fault | {faults["known"]} of {len(sound)} | {faults["unknown"]} of {len(sound)} |

{notes} of the {len(sound)} sound trainings have a note.

| training | expected | events, classes given | events, not given |
|---|---|---|---|
"""
    settings = SOUND | FAULTY
    lines = [
        f"| {name} | {', '.join(settings[name].expected) or 'sound'} | {describe(row['known'])} | {describe(row['unknown'])} |"
        for name, row in rows.items()
    ]
    return head + "\n".join(lines) + "\n"


def is_named(chosen, report):
    return any(event.kind in chosen.expected for event in report.events)


def main():
    parser = argparse.ArgumentParser(description="Measure which faults watch-log names.")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--logs", type=Path, help="folder of the logs; those that exist are not trained again")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, chosen in (SOUND | FAULTY).items():
            reports = {"known": [], "unknown": []}
            for seed in range(FIRST_SEED, FIRST_SEED + arguments.seeds):
                folder = (arguments.logs or Path(temporary)) / f"{name}, seed {seed}"
                if not (folder / STATE_FILE).is_file():
                    train(chosen, arguments.texts, seed, folder)
                log = read_log(folder)
                reports["known"].append(examine(replace(log, classes=CLASSES[chosen.task])))
                reports["unknown"].append(examine(replace(log, classes=None)))
            rows[name] = reports
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "logs.md").write_text(page(rows, arguments.seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
