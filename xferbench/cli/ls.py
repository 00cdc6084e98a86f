"""``xferbench ls``: list plugins, suites, backbones, datasets and strategies. Imports the installed plugins."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from xferbench.analysis import exit_code
from xferbench.cli import options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from xferbench.core.interventions import Intervention
    from xferbench.core.plugin import Plugin

BACKBONES = {
    "torchvision:NAME": "any classifier",
    "timm:NAME": "any classifier (pip install 'xferbench[timm]')",
    "transformers:DIR": "the image classifier or network for text of a folder (pip install 'xferbench[transformers]')",
    "python:MODULE:CALLABLE": "your own, callable(classes) -> network (--allow-code)",
    "cifar-resnet20/32/44/56": "He et al., option A",
    "tiny-resnet": "0.1 M parameters, shipped",
    "tiny-bert": "0.1 M parameters, for texts, shipped",
}
DATASETS = {
    "folder:DIR": "train/ and val/ or test/ of class folders, or metadata.csv (file_name, label, split, group)",
    "npz:FILE": "train_images, train_labels, test_images, test_labels (and train_groups, test_groups)",
    "torchvision:NAME:DIR": "a torchvision dataset in a folder, such as CIFAR10",
    "csv:FILE, jsonl:FILE": "a table of texts: text, label (and text_pair, split, group)",
    "datasets:DIR": "Parquet or Arrow files of Hugging Face's datasets (pip install 'xferbench[datasets]')",
    "synthetic:NAME": "source, near, tinted, sketch, spectra; text-source, text-near, text-letters, text-number",
    "digits": "the handwritten digits of scikit-learn",
}


def add_parser(subparsers: options.Subparsers) -> None:
    """Add the command and its options."""
    text = "list plugins, suites, backbones, datasets and strategies"
    parser = options.add_command(subparsers, "ls", text, run_command)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    text = "name the version, file and distribution of each plugin"
    parser.add_argument("-v", "--verbose", action="store_true", help=text)


def run_command(arguments: argparse.Namespace) -> int:
    """Print the lists as text or JSON."""
    from xferbench.runner import discovery

    plugins = {"plugins": discovery.load_plugins(["all"]), "checks": discovery.load_plugins(["all"], "audit")}
    lists = _lists(plugins)
    origins = (
        {kind: {plugin.id: discovery.describe_origin(plugin) for plugin in members} for kind, members in plugins.items()}
        if arguments.verbose
        else {}
    )
    if arguments.format == "json":
        print(json.dumps(lists | ({"origins": origins} if origins else {}), indent=1))
        return exit_code.PASSED
    for kind, entries in lists.items():
        print(kind)
        for name, text in entries.items():
            print(f"  {name:<26} {text}")
            if name in origins.get(kind, {}):
                print(f"  {'':<26} {_format_origin(origins[kind][name])}")
    return exit_code.PASSED


def _lists(plugins: Mapping[str, Sequence[Plugin]]) -> dict[str, dict[str, str]]:
    """Return a description of each entry, by kind and name."""
    from xferbench.config import loader
    from xferbench.config.interventions import kinds
    from xferbench.core.interventions import Augmentation, DataIntervention, Finish, Regularizer, format_spelling
    from xferbench.core.strategies import STRATEGIES

    groups: dict[str, type[Intervention]] = {
        "interventions": DataIntervention,
        "augmentations": Augmentation,
        "regularizers": Regularizer,
        "finishes": Finish,
    }
    return {
        **{kind: {plugin.id: plugin.question for plugin in members} for kind, members in plugins.items()},
        "suites": {name: str(loader.shipped_folder() / f"{name}.toml") for name in loader.shipped_suites()},
        "backbones": BACKBONES,
        "datasets": DATASETS,
        **{name: {format_spelling(kind): _first_line(kind.__doc__) for kind in kinds(group)} for name, group in groups.items()},
        "strategies": {name: _first_line(function.__doc__) for name, function in STRATEGIES.items()},
    }


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


def _format_origin(origin: Mapping[str, str]) -> str:
    """Return a plugin's version, distribution, file and the digest of a third party's source as one line."""
    from xferbench.report.format import one_line

    version = f"version {origin['version']}" if origin["version"] else ""
    source = f"source {origin['source'][:16]}" if origin["source"] else ""
    return one_line(", ".join(filter(None, (version, origin["distribution"], origin["file"], source))))
