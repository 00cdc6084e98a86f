"""What the embedded language shows: accuracies of ways to fine-tune a small BERT, and of ways to serve it wrongly.

A network is pretrained on ``source`` with labels. For each target, it then learns 200 texts in several ways, and 2000 test
texts measure it:

- a linear probe on the vector of [CLS], on the pretrained network and on random weights;
- full fine-tuning at a good rate and at 10 and 20 times that rate, and from the head of the probe (LP-FT);
- training from scratch at several rates, and for four times as many steps at the best for ``near``.

``letters after`` is the accuracy on ``letters`` of a network that learned ``near``; ``source after`` is that on ``source``,
with the head of the pretraining. The last tables serve the linear probe with one error each. All is plain PyTorch; the loop of
the lab has no part in it. Seeds are 0, 1, …; the rates were chosen with seeds 0 and 1.

Usage: python tests/benchmarks/language.py [--seeds 2] [--networks 1]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from xferbench.data import language, wordpiece
from xferbench.lab.models import tiny_bert

VOCABULARY = wordpiece.build_vocabulary(language.vocabulary_lines())
SOURCE_TEXTS, TRAINING_TEXTS, TEST_TEXTS = 12_000, 200, 2000
SOURCE_STEPS, SOURCE_BATCH, SOURCE_RATE = 400, 64, 2e-3
STEPS, BATCH, RATE, HEAD_RATE = 100, 32, 1e-3, 1e-2
SCRATCH_RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
LONG_SCRATCH_RATE = 4e-3
PROBE_STEPS, PROBE_RATE, PROBE_PENALTY = 300, 3e-2, 1e-3
WARM_UP = 0.1  # share of the steps
SERVINGS = {
    "right": {},
    "padded to 64 with the mask": {"length": tiny_bert.MAX_TOKENS},
    "padded to 64 without a mask": {"length": tiny_bert.MAX_TOKENS, "has_mask": False},
    "padded to the longest, no mask": {"has_mask": False},
    "padded on the left": {"is_left": True},
    "no [CLS] and [SEP]": {"has_special": False},
    "lowered": {"lowercase": True},
    "order of another vocabulary": {"is_permuted": True},
    "cut to 6 tokens": {"max_tokens": 6},
    "dropout on": {"dropout": True},
}
EVALUATION_BATCH = 250


def tokenize(
    texts, *, length=0, has_mask=True, is_left=False, has_special=True, lowercase=False, is_permuted=False, max_tokens=None
):
    """Return the batch of some texts, padded to the longest, or to ``length`` if that is more."""
    rows = [wordpiece.encode(VOCABULARY, text, lowercase=lowercase)[: max_tokens or tiny_bert.MAX_TOKENS - 2] for text in texts]
    if has_special:
        rows = [[VOCABULARY.start, *row, VOCABULARY.separator] for row in rows]
    length = max(length, *map(len, rows))
    ids, mask = np.full((len(rows), length), VOCABULARY.pad), np.zeros((len(rows), length), np.int64)
    for index, row in enumerate(rows):
        place = slice(length - len(row), length) if is_left else slice(len(row))
        ids[index, place], mask[index, place] = row, 1
    if is_permuted:
        special = len(wordpiece.SPECIAL_TOKENS)
        order = np.random.default_rng(0).permutation(len(VOCABULARY.ids) - special) + special
        ids = np.concatenate([np.arange(special), order])[ids]
    tensors = {
        "input_ids": ids,
        "attention_mask": mask if has_mask else np.ones_like(mask),
        "token_type_ids": np.zeros_like(ids),
    }
    return {name: torch.from_numpy(array) for name, array in tensors.items()}


def load(name, split, count):
    """Return the texts and labels of a split."""
    texts, labels = language.generate(name, split, count)
    return texts, torch.from_numpy(labels)


def predict(net, batch, *, dropout=False):
    """Return the outputs for a batch of any size."""
    net.train(dropout)
    count = len(batch["input_ids"])
    with torch.no_grad():
        parts = [
            net({name: tensor[start : start + EVALUATION_BATCH] for name, tensor in batch.items()})
            for start in range(0, count, EVALUATION_BATCH)
        ]
    return torch.cat(parts)


def accuracy(net, texts, labels, *, dropout=False, **serving):
    """Return the accuracy on some texts that are served in some way."""
    return float((predict(net, tokenize(texts, **serving), dropout=dropout).argmax(1) == labels).float().mean())


def train(net, texts, labels, *, steps, size, rate, head_rate, seed):
    """Train all weights with AdamW, warm-up and a linear decay of the rate."""
    batch, rng = tokenize(texts), torch.Generator().manual_seed(seed)
    head = list(net.classifier.parameters())
    body = [*net.embeddings.parameters(), *net.encoder.parameters()]
    optimizer = torch.optim.AdamW([{"params": body, "lr": rate}, {"params": head, "lr": head_rate}], weight_decay=0.01)
    warm_up = WARM_UP * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (warm_up + 1), (steps - step) / (steps - warm_up))
    )
    torch.manual_seed(seed)
    net.train()
    order = torch.cat([torch.randperm(len(labels), generator=rng) for _ in range(1 + steps * size // len(labels))])
    for index in order[: steps * size].split(size):
        length = int(batch["attention_mask"][index].sum(1).max())  # the longest text of the step
        loss = F.cross_entropy(net({name: tensor[index, :length] for name, tensor in batch.items()}), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def probe(net, texts, labels):
    """Train a new head on the frozen network."""
    head, net.classifier = nn.Linear(tiny_bert.WIDTH, int(labels.max()) + 1), nn.Identity()
    features = predict(net, tokenize(texts))
    optimizer = torch.optim.Adam(head.parameters(), lr=PROBE_RATE)
    for _ in range(PROBE_STEPS):
        loss = F.cross_entropy(head(features), labels) + PROBE_PENALTY * head.weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.classifier = head
    return net


def build(classes, seed, body=None):
    """Return a network with the body of a pretrained one, or with random weights."""
    torch.manual_seed(seed)
    net = tiny_bert.tiny_bert(classes, len(VOCABULARY.ids))
    if body is not None:
        net.load_state_dict(body | {f"classifier.{name}": tensor for name, tensor in net.classifier.state_dict().items()})
    return net


def pretrain(seed):
    """Return the state dict of the body and the head, and print what it took."""
    start = time.process_time()
    net = train(
        build(language.TOPICS, seed),
        *load("source", "train", SOURCE_TEXTS),
        steps=SOURCE_STEPS,
        size=SOURCE_BATCH,
        rate=SOURCE_RATE,
        head_rate=SOURCE_RATE,
        seed=seed,
    )
    seconds = time.process_time() - start
    print(f"pretraining {seed}: source {accuracy(net, *load('source', 'test', TEST_TEXTS)):.3f}, {seconds:.0f} CPU seconds")
    head = net.classifier
    return {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("classifier")}, head


def measure_arms(name, body, head, seeds):
    """Return the accuracies of each arm, and print those of each row."""
    data, test = load(name, "train", TRAINING_TEXTS), load(name, "test", TEST_TEXTS)
    letters, source = load("letters", "test", TEST_TEXTS), load("source", "test", TEST_TEXTS)
    classes = len(language.CLASSES[name])

    def full(seed, rate, body=body, head_rate=HEAD_RATE, steps=STEPS):
        net = build(classes, seed, body)
        return train(net, *data, steps=steps, size=BATCH, rate=rate, head_rate=head_rate, seed=seed)

    def lp_ft(seed):
        net = probe(build(classes, seed, body), *data)
        return train(net, *data, steps=STEPS, size=BATCH, rate=RATE, head_rate=RATE, seed=seed)

    arms = {
        "linear probe": lambda seed: probe(build(classes, seed, body), *data),
        "linear probe on random weights": lambda seed: probe(build(classes, seed), *data),
        f"full {RATE:g}": lambda seed: full(seed, RATE),
        f"LP-FT {RATE:g}": lp_ft,
        f"full {10 * RATE:g}": lambda seed: full(seed, 10 * RATE),
        f"full {20 * RATE:g}": lambda seed: full(seed, 20 * RATE),
        **{f"scratch {rate:g}": lambda seed, rate=rate: full(seed, rate, None, rate) for rate in SCRATCH_RATES},
        f"scratch {LONG_SCRATCH_RATE:g}, 4 × the steps": lambda seed: full(
            seed, LONG_SCRATCH_RATE, None, LONG_SCRATCH_RATE, 4 * STEPS
        ),
    }
    for arm, fit in arms.items():
        nets = [fit(seed) for seed in range(seeds)]
        row = {name: [accuracy(net, *test) for net in nets]}
        if name == "near":
            row["letters after"] = [accuracy(net, *letters) for net in nets]
        if arm.startswith(("full", "LP-FT")):
            for net in nets:
                net.classifier = head
            row["source after"] = [accuracy(net, *source) for net in nets]
        print(f"  {arm:32}", "   ".join(f"{column} {format_accuracies(values)}" for column, values in row.items()), flush=True)


def measure_servings(name, body):
    """Print the accuracy of the linear probe under each serving."""
    net = probe(build(len(language.CLASSES[name]), 0, body), *load(name, "train", TRAINING_TEXTS))
    test = load(name, "test", TEST_TEXTS)
    for serving, changes in SERVINGS.items():
        print(f"  {serving:32} {accuracy(net, *test, **changes):.3f}", flush=True)


def format_accuracies(values):
    """Return the mean, and the range if there are several."""
    span = f" ({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{span}"


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=2, help="fits of each arm")
    parser.add_argument("--networks", type=int, default=1, help="pretrained networks")
    arguments = parser.parse_args()
    for seed in range(arguments.networks):
        body, head = pretrain(seed)
        for name in ("near", "letters", "number"):
            print(f"{name}: {TRAINING_TEXTS} texts")
            measure_arms(name, body, head, arguments.seeds)
        for name in ("near", "letters"):
            print(f"{name}: the linear probe, served")
            measure_servings(name, body)


if __name__ == "__main__":
    main()
