"""The JSON Schema of a suite file, derived from the rules that validate it. Pure.

``python -m xferbench.config.json_schema > suites/schema.json`` writes it. An editor with TOML support (taplo, Even Better
TOML) completes and validates a suite that starts with the line ``#:schema PATH``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from xferbench.config import validation
from xferbench.config.fields import REQUIRED_TABLES, suite_rules
from xferbench.core.interventions import Intervention
from xferbench.core.pipeline import Phase, Recipe
from xferbench.core.suite import Suite

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
DOCUMENTED_CLASSES = {"recipe": (Phase, Recipe)}  # tables whose keys become fields of several classes
KEY_DESCRIPTIONS = {
    "schema": "version of the suite file",
    "name": "name of the suite; the report is written to reports/NAME",
    "plugins": "the failure modes to test; `xferbench ls` lists them",
    "metric": "the metric of harm, on the target's test images",
    "margin": "smallest harm that matters, in the metric's unit: 0.02 is two points of accuracy",
    "alpha": "one-sided rate of wrong verdicts",
    "looks": "numbers of seeds at which a verdict may be taken",
    "budget": "largest planned computing time of one worker; the search of scratch and the number of seeds are cut to it",
    "seed": "the first seed that is evaluated for a verdict",
    "tuning_seeds": "number of seeds for the selection of candidates, separate from those of the verdicts",
    "backbone": "the pretrained network",
    "backbone.arch": "for example torchvision:NAME, cifar-resnet20, tiny-resnet or tiny-bert; `xferbench ls` lists all",
    "backbone.weights": "a state dict saved by torch.save, or safetensors, relative to the suite file",
    "preprocessing": "preprocessing of the pretrained weights (default: the recorded one)",
    "pooling": "what the head sees of a text: the hidden state of the first token, the mean, or the last one (default: "
    "the one that sentence-transformers recorded; else the last of a decoder, and the first of any other network)",
    "train_preprocessing": "preprocessing in training (default: that of the backbone)",
    "serve_preprocessing": "preprocessing at test time, if it differs from training",
    "kind": "image, spectrogram (one channel of any size, with its own mean and std), or text",
    "lowercase": "whether texts are converted to lower case (default: as the tokenizer was trained)",
    "max_length": "largest number of tokens (default: that of the longest text)",
    "special": "special tokens around a text: single, none or twice",
    "truncation": "side on which a longer text is cut",
    "padding": "side on which a shorter text is padded",
    "extra_padding": "padding tokens that every text gets in addition",
    "masked": "whether the attention mask hides padding tokens",
    "shuffled": "whether the ids of ordinary tokens are permuted, as those of another vocabulary",
    "resize": "length of the shorter side in pixels",
    "crop": "side of the center crop in pixels",
    "interpolation": "interpolation for resizing images",
    "antialias": "whether downsampling is smoothed",
    "channels": "order of the channels, or the mean of all three; for a spectrogram, the number of copies of its channel",
    "scale": "factor for the 8-bit values, before mean and std",
    "mean": "mean subtracted from each channel",
    "std": "standard deviation that each channel is divided by",
    "orientation": "whether the EXIF orientation of files is applied: upright (auto, the default, if files have one) or stored",
    "bits": "number of bits that 16-bit files use; the upper 8 of them are kept",
    "detail": "share of the pixels along a side to which an image is reduced before it is enlarged again",
    "target": "the images or texts of the new task",
    "data": "a dataset; paths are relative to the suite file",
    "interventions": "changes of the training images and their labels; validation and test images stay unchanged",
    "train_size": "number of training images (default: all)",
    "test_size": "number of test images (default: all)",
    "source": "the data that the backbone was pretrained on, for plugins that need it",
    "source.classes": "indices of the source's classes in the pretrained head",
    "shifted": "the target's classes under another condition, for plugins that need it",
    "recipe": "the recipe to test (default: the default recipe)",
    "strategy": "a named strategy; the other keys set its parameters",
    "phases": "consecutive phases of training; keys of [recipe] are their defaults",
    "trainable": "the parameters that are trained",
    "batchnorm": "mode of BatchNorm layers in training",
    "lr": "peak learning rate",
    "head_lr": "learning rate of the head, if it differs",
    "layer_decay": "factor of the learning rate for each layer group below the head",
    "optimizer": "AdamW, or SGD with momentum",
    "weight_decay": "weight decay, decoupled in adamw",
    "decay_norms": "whether biases and the parameters of normalization decay too",
    "warmup": "number of steps of linear warm-up",
    "warmup_ratio": "share of the steps that are linear warm-up, instead of their number",
    "schedule": "learning-rate schedule",
    "steps": "number of optimizer steps",
    "epochs": "passes over the training images, instead of steps",
    "label_smoothing": "share of each label that is distributed over all classes",
    "dropout": "probability of the dropout layers below the head (default: that of the network)",
    "clip": "largest norm of the gradient (default: no clipping)",
    "batch_size": "images in a step",
    "order": "order of the training images",
    "init": "initial weights",
    "transferred": "number of the lowest layer groups that start from the initial weights",
    "head": "initial weights of the head, or a head of two layers",
    "regularizer": "a penalty that keeps the network close to the source or to a teacher, or aligns domains",
    "finish": "change of the trained network without further training",
    "augment": "random changes of the training images at each step",
    "serve_mode": "mode of the served model; train is the mode of a model without .eval()",
    "stop": "use the last step, or the one best on validation",
    "checkpoint": "a finished network to audit, instead of a recipe",
    "after": "the finished weights, including the head",
    "before": "the weights that training started from",
    "believed": "what training should have changed",
    "checkpoint.scratch": "training time of a from-scratch baseline (default: no baseline)",
    "keep": "the network must keep its skill on the source, so that forgetting is judged",
    "manifest": "fingerprints of a pretraining set, written by `xferbench manifest`",
    "max_duplicates": "allowed share of test examples with an altered copy in training; an identical copy is never allowed",
    "max_failed_runs": "allowed share of the runs of a recipe that fail, for seed-instability",
    "unsearched_copies": "kinds of copies that data-leakage need not find; its PASS says nothing about them",
    "scratch": "grid of the from-scratch baseline, in addition to the subject's own steps and rate",
    "scratch.lr": "learning rates",
    "scratch.weight_decay": "weight decays",
    "scratch.label_smoothing": "shares of label smoothing",
    "scratch.augment": "augmentations; none keeps that of the recipe",
    "matrix": "tasks (targets × sizes × backbones) on which recipes are compared",
    "targets": "targets, each with a name and keys of [target]",
    "train_sizes": "numbers of training images; each target is used at each size",
    "backbones": "backbones, each with a name and keys of [backbone]",
    "recipes": "the recipes to compare",
    "rates": "learning rates from which each recipe selects on validation",
    "against": "the reference recipe (default: the first)",
    "effects": "claims about one number each, compared with the measurements",
    "effects.name": "name of the claim",
    "effects.against": "the recipe to compare with",
    "claim": "the claim as a sentence",
    "effects.source": "the source of the claim",
    "task": "the task of the measurement; required if there are several",
    "contrast": "plugin/contrast, or plugin/contrast/variant for the cost of a variant",
    "effects.recipe": "one of the compared recipes",
    "view": "the evaluation of both recipes",
    "measure": "a cost of the recipe",
    "published": "the published value, in the unit of the number",
    "at_least": "claimed lower limit of the number",
    "at_most": "claimed upper limit of the number",
    "similar": "whether the target is similar to the source, for the table of size × similarity",
    "targets.shifted": "another dataset of the same classes",
    "targets.source": "the data that the backbone was pretrained on",
}


def suite_schema() -> dict[str, Any]:
    """Return the schema of a suite file, in draft 2020-12; it accepts everything that the rules accept."""
    result = validation.rule_schema(validation.table(suite_rules(Path()), Suite, REQUIRED_TABLES))
    budget = result["properties"]["budget"]
    budget["default"] = f"{budget['default'] / 60:g}m"  # the class stores seconds
    result["required"] = [key for key in result["required"] if key != "target"]  # a matrix may define its own targets
    single = {"required": ["target"], "properties": {"plugins": {"minItems": 1}}}
    result["anyOf"] = [single, {"required": ["matrix"]}]
    return {"$schema": SCHEMA_DIALECT, "title": "xferbench suite", **_add_descriptions(result, "")}


def schema_text() -> str:
    """Return the content of ``suites/schema.json``."""
    return json.dumps(suite_schema(), indent=1, ensure_ascii=False) + "\n"


def _add_descriptions(table: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a table's schema with the purpose of each key in front of its description."""
    properties = {key: _describe_key(value, key, name) for key, value in table["properties"].items()}
    defaults = {field.name: field.default for owner in DOCUMENTED_CLASSES.get(name, ()) for field in fields(owner)}
    for key, value in properties.items():
        default = defaults.get(key)
        default = str(default) if isinstance(default, Intervention) else default
        if default != "" and isinstance(default, bool | int | float | str):
            value.setdefault("default", default)
    return table | {"properties": properties}


def _describe_key(value: dict[str, Any], key: str, table: str) -> dict[str, Any]:
    """Return the schema of a key with its purpose, and those of the keys below it."""
    sentences = (KEY_DESCRIPTIONS.get(f"{table}.{key}", KEY_DESCRIPTIONS.get(key, "")), value.get("description", ""))
    result = value | ({"description": "; ".join(filter(None, sentences))} if any(sentences) else {})
    if "items" in value and "properties" in value["items"]:
        result["items"] = _add_descriptions(value["items"], key)
    return _add_descriptions(result, key) if "properties" in value else result


if __name__ == "__main__":
    sys.stdout.write(schema_text())
