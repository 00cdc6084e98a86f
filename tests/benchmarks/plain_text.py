"""Plain scripts that fine-tune a sentence encoder with transformers and peft, carelessly and well.

The scripts are what tutorials write: a tokenizer, a padded batch, AdamW with a linear schedule and clipping, and
``save_pretrained``. They use nothing of this package. Rates, seeds and steps were written down before the first audit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

EPOCHS, BATCH = 2, 16
RATE, HEAD_RATE = 1e-4, 1e-3


def load(encoder, classes, seed):
    """Return the pretrained network with a new head, and its tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=classes)
    return model, AutoTokenizer.from_pretrained(encoder)


def train(model, tokenizer, texts, labels, seed, *, rate=RATE, optimizer=None, epochs=EPOCHS, **tokens):
    """Train a network on texts, as tutorials do."""
    head = [tensor for name, tensor in model.named_parameters() if "classifier" in name and tensor.requires_grad]
    body = [tensor for name, tensor in model.named_parameters() if "classifier" not in name and tensor.requires_grad]
    groups = [{"params": body, "lr": rate}, {"params": head, "lr": max(rate, HEAD_RATE)}]
    optimizer = optimizer or torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.01)
    batches = -(-len(texts) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / (epochs * batches)))
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for index in np.array_split(rng.permutation(len(texts)), batches):
            batch = tokenizer([texts[row] for row in index], padding=True, truncation=True, return_tensors="pt", **tokens)
            loss = F.cross_entropy(model(**batch).logits, torch.tensor([labels[row] for row in index]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def full(encoder, classes, texts, labels, *, seed=1, rate=RATE, tokens=None, tokenizer_options=None, **more):
    """Train all layers."""
    model, tokenizer = load(encoder, classes, seed)
    for name, value in (tokenizer_options or {}).items():
        setattr(tokenizer, name, value)
    return train(model, tokenizer, texts, labels, seed, rate=rate, **(tokens or {}), **more), tokenizer


def linear_probe(encoder, classes, texts, labels, *, seed=2):
    """Train the head, with the encoder frozen and in evaluation mode."""
    model, tokenizer = load(encoder, classes, seed)
    model.bert.requires_grad_(False)
    model.bert.eval()
    features = []
    with torch.no_grad():
        for start in range(0, len(texts), 64):
            batch = tokenizer(texts[start : start + 64], padding=True, truncation=True, return_tensors="pt")
            features.append(model.bert(**batch).pooler_output)
    x, y = torch.cat(features), torch.tensor(labels)
    optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(model.classifier(x), y).backward()
        optimizer.step()
    return model.eval(), tokenizer


def probe_then_tune(encoder, classes, texts, labels, *, seed=3):
    """Train the head first, then all layers (LP-FT)."""
    model, tokenizer = linear_probe(encoder, classes, texts, labels, seed=seed)
    model.bert.requires_grad_(True)
    return train(model, tokenizer, texts, labels, seed), tokenizer


def low_rank(encoder, classes, texts, labels, *, seed=4, keeps_head=True):
    """Train LoRA of peft and the head, and save the merged network; without its head, a reload draws another one."""
    import peft

    model, tokenizer = load(encoder, classes, seed)
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    trained = train(peft.get_peft_model(model, settings), tokenizer, texts, labels, seed, rate=1e-3, epochs=2 * EPOCHS)
    merged = trained.merge_and_unload()
    if not keeps_head:
        torch.manual_seed(seed + 1)
        torch.nn.init.normal_(merged.classifier.weight, std=0.02)
        torch.nn.init.zeros_(merged.classifier.bias)
    return merged, tokenizer


def frozen_in_name_only(encoder, classes, texts, labels, *, seed=5):
    """Freeze an attribute that the network does not have; everything trains."""
    model, tokenizer = load(encoder, classes, seed)
    model.requires_grad = False
    return train(model, tokenizer, texts, labels, seed), tokenizer


def early_optimizer(encoder, classes, texts, labels, *, seed=6):
    """Build the optimizer while the encoder is frozen, then unfreeze it: only the head trains."""
    model, tokenizer = load(encoder, classes, seed)
    model.bert.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=HEAD_RATE)
    model.bert.requires_grad_(True)
    return train(model, tokenizer, texts, labels, seed, optimizer=optimizer), tokenizer


def never_loaded(encoder, classes, texts, labels, *, seed=7):
    """Build the network from its configuration, so that it has random weights."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(encoder, num_labels=classes))
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    return train(model, tokenizer, texts, labels, seed), tokenizer


def shuffled_labels(encoder, classes, texts, labels, *, seed=8):
    """Train on labels in another order than the texts."""
    mixed = np.random.default_rng(seed).permutation(labels).tolist()
    return full(encoder, classes, texts, mixed, seed=seed)


def swapped_labels(encoder, classes, texts, labels, *, seed=9):
    """Number the classes in the order of their first appearance, and not in alphabetical order."""
    order = list(dict.fromkeys(labels))
    assert order != sorted(order)
    return full(encoder, classes, texts, [order.index(label) for label in labels], seed=seed)


def without_special_tokens(encoder, classes, texts, labels, *, seed=10):
    """Tokenize the training texts without [CLS] and [SEP], and save a tokenizer that adds them."""
    return full(encoder, classes, texts, labels, seed=seed, tokens={"add_special_tokens": False})


def left_padded(encoder, classes, texts, labels, *, seed=11):
    """Pad the training texts on the left, and save a tokenizer that pads on the right."""
    model, tokenizer = full(encoder, classes, texts, labels, seed=seed, tokenizer_options={"padding_side": "left"})
    tokenizer.padding_side = "right"
    return model, tokenizer


def high_rate(encoder, classes, texts, labels, *, seed=12):
    """Train all layers at 2e-3."""
    return full(encoder, classes, texts, labels, seed=seed, rate=2e-3)


def low_rate(encoder, classes, texts, labels, *, seed=13):
    """Train all layers and the head at the tutorials' 2e-5, for a fraction of the tutorials' steps."""
    model, tokenizer = load(encoder, classes, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01)
    return train(model, tokenizer, texts, labels, seed, optimizer=optimizer), tokenizer


SCRIPTS = {
    "full": full,
    "linear probe": linear_probe,
    "LP-FT": probe_then_tune,
    "LoRA": low_rank,
    "LoRA without head": lambda *data: low_rank(*data, keeps_head=False),
    "frozen in name only": frozen_in_name_only,
    "early optimizer": early_optimizer,
    "never loaded": never_loaded,
    "shuffled labels": shuffled_labels,
    "swapped labels": swapped_labels,
    "without special tokens": without_special_tokens,
    "left-padded": left_padded,
    "high rate": high_rate,
    "low rate": low_rate,
}


def train_network(script, encoder, folder, classes, texts, labels):
    """Run a script and save its network and tokenizer in a folder, unless an earlier run did."""
    if (folder / "model.safetensors").exists():
        return
    model, tokenizer = SCRIPTS[script](encoder, classes, texts, labels)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
