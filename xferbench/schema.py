"""The suite file as a JSON Schema, made of the very rules that check it: ``python -m xferbench.schema > suites/schema.json``.

An editor that knows TOML completes and checks a suite whose first line is ``#:schema PATH`` (taplo, Even Better TOML).
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from xferbench import keys, rules
from xferbench.core.interventions import Intervention
from xferbench.design import Phase, Recipe, Suite

DRAFT = "https://json-schema.org/draft/2020-12/schema"
NOUNS = {"recipe": (Phase, Recipe)}  # tables whose keys become fields of more than one noun
ABOUT = {
    "schema": "version of the suite file",
    "name": "of the suite; its report goes to reports/NAME",
    "plugins": "the failures that are asked about; `xferbench ls` lists them",
    "metric": "in which harm is measured, on the target's test images",
    "margin": "the harm that matters, in the metric's unit: 0.02 is two points of accuracy",
    "alpha": "the rate of wrong verdicts, one-sided",
    "looks": "numbers of seeds at which a verdict may be taken",
    "budget": "after this many recorded seconds no more seeds are added",
    "seed": "the first judged seed",
    "tuning_seeds": "seeds on which choices are made, apart from the judged ones",
    "backbone": "the pretrained network",
    "backbone.arch": "torchvision:NAME, cifar-resnet20/32/44/56 or tiny-resnet, say; `xferbench ls` lists them",
    "backbone.weights": "a state dict saved by torch.save, or safetensors, relative to the suite file",
    "preprocessing": "what the weights were trained with; left out, it is what is recorded for them",
    "train_preprocessing": "how images are prepared in training, in the place of the backbone's",
    "serve_preprocessing": "how images are prepared at test time, where it differs from training",
    "kind": "image, or spectrogram (one channel of any size, with its own mean and std)",
    "resize": "the shorter side in pixels",
    "crop": "a centre square in pixels",
    "interpolation": "with which images are resized",
    "antialias": "whether shrinking is smoothed",
    "channels": "their order, or the mean of three; of a spectrogram how many it is repeated to",
    "scale": "factor on the 8-bit values, before mean and std",
    "mean": "subtracted from each channel",
    "std": "by which each channel is divided",
    "detail": "share of its pixels along a side that an image keeps, before it is as large as it was again",
    "target": "the images on which the backbone is to work",
    "data": "a dataset; paths are relative to the suite file",
    "train_size": "training images, all where it is left out",
    "interventions": "changes of the training images and their labels, never of validation or test images",
    "test_size": "test images, all where it is left out",
    "source": "what the backbone was pretrained on, for plugins that ask",
    "source.classes": "places of the source's classes in the pretrained head",
    "shifted": "the target under another condition, for plugins that ask",
    "recipe": "what you do today; left out, the healthy default is examined",
    "strategy": "a named way to adapt; the other keys fill it in",
    "phases": "several stretches of training in a row; keys of [recipe] are their defaults",
    "trainable": "what is trained",
    "batchnorm": "how BatchNorm layers run while training",
    "lr": "learning rate at its peak",
    "head_lr": "that of the head, where it differs",
    "layer_decay": "factor on the rate for each layer group below the head",
    "optimizer": "AdamW, or SGD with momentum",
    "weight_decay": "decoupled in adamw",
    "warmup": "steps of linear warm-up",
    "schedule": "of the learning rate",
    "steps": "of the optimizer",
    "batch_size": "images a step",
    "order": "of the training images",
    "init": "the weights to begin with",
    "transferred": "how many of the lowest layer groups begin with them",
    "head": "its weights to begin with, or a head of two layers",
    "regularizer": "what holds the network to what the source, or a teacher, taught, or makes domains alike",
    "finish": "what is done to the trained network, at no training of its own",
    "augment": "what is done to training images anew at each step",
    "serve_mode": "how the model is served: train is what one gets without .eval()",
    "stop": "the last step, or the one best on validation",
    "checkpoint": "a finished network to be audited, in the place of a recipe",
    "after": "its weights, with their head",
    "before": "the weights that it was made from",
    "believed": "what was to be trained",
    "checkpoint.scratch": "how long a from-scratch baseline may be trained; left out, there is none",
    "manifest": "fingerprints of a pretraining set, as `xferbench manifest` writes them",
    "max_duplicates": "share of the test images that may have a copy in training",
    "scratch": "the grid of the from-scratch baseline, beside the subject's own steps and rate",
    "scratch.lr": "learning rates",
    "scratch.weight_decay": "weight decays",
    "matrix": "tasks (targets × sizes × backbones) on which recipes are compared",
    "targets": "each with a name, and keys of [target]",
    "train_sizes": "training images; every target at each",
    "backbones": "each with a name, and keys of [backbone]",
    "recipes": "what is compared",
    "rates": "each recipe is tuned over these, on validation",
    "against": "the recipe that the others are held against; the first, if none is named",
    "effects": "claims about one number each, held against what is measured",
    "effects.name": "what the claim is called",
    "effects.against": "the recipe that it is compared with",
    "claim": "in words",
    "effects.source": "where the claim stands",
    "task": "on which it is measured; needed where there are several",
    "contrast": "plugin/contrast, or plugin/contrast/variant for what a variant costs",
    "effects.recipe": "one of those that are compared",
    "view": "how both recipes are looked at",
    "measure": "a cost of the recipe",
    "published": "the size that was published, in the unit of the number",
    "at_least": "what the number is claimed to be, or more",
    "at_most": "what the number is claimed to be, or less",
    "similar": "whether it is like the source, for the two by two",
    "targets.shifted": "another dataset of the same classes",
    "targets.source": "what the backbone was pretrained on",
}


def schema() -> dict[str, Any]:
    """The schema of a suite file, in draft 2020-12; whatever the rules take, it takes."""
    made = rules.schema(rules.table(keys.top_rules(Path()), Suite, keys.REQUIRED))
    budget = made["properties"]["budget"]
    budget["default"] = f"{budget['default'] / 60:g}m"  # the noun has seconds
    made["required"] = [key for key in made["required"] if key != "target"]  # a matrix may have targets of its own
    single = {"required": ["target"], "properties": {"plugins": {"minItems": 1}}}
    made["anyOf"] = [single, {"required": ["matrix"]}]
    return {"$schema": DRAFT, "title": "xferbench suite", **_described(made, "")}


def text() -> str:
    """The content of ``suites/schema.json``."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _described(table: dict[str, Any], name: str) -> dict[str, Any]:
    """A table's schema, each key of it with what it is for in front of what it may hold."""
    keys = {key: _key(one, key, name) for key, one in table["properties"].items()}
    known = {f.name: f.default for noun in NOUNS.get(name, ()) for f in fields(noun)}
    for key, one in keys.items():
        default = known.get(key)
        default = str(default) if isinstance(default, Intervention) else default
        if default != "" and isinstance(default, bool | int | float | str):
            one.setdefault("default", default)
    return table | {"properties": keys}


def _key(one: dict[str, Any], key: str, table: str) -> dict[str, Any]:
    about = (ABOUT.get(f"{table}.{key}", ABOUT.get(key, "")), one.get("description", ""))
    told = one | ({"description": "; ".join(filter(None, about))} if any(about) else {})
    if "items" in one and "properties" in one["items"]:
        told["items"] = _described(one["items"], key)
    return _described(told, key) if "properties" in one else told


if __name__ == "__main__":
    sys.stdout.write(text())
