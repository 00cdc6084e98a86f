"""Run commands of the command line in this or another process, and write a small suite of noise images."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

from xferbench.cli import main

SUITE = """
schema = 1
name = "noise"
plugins = {plugins}
margin = 0.3
looks = {looks}
tuning_seeds = 1
[backbone]
arch = "tiny-resnet"
{backbone}
[target]
data = "npz:{data}"
test_size = 40
[recipe]
strategy = "linear-probe"
steps = 4
batch_size = 8
[scratch]
lr = [1e-2]
weight_decay = [0.01]
steps = 4
batch_size = 8
"""


def make_suite(folder, *, plugins='["negative-transfer"]', looks="[2]", backbone=""):
    """Write a suite of noise images that runs in about a second, and return its file."""
    rng = np.random.default_rng(0)
    splits = {"train": 24, "test": 40}
    images = {f"{name}_images": rng.integers(256, size=(count, 16, 16, 3), dtype=np.uint8) for name, count in splits.items()}
    np.savez(folder / "noise.npz", **images, **{f"{name}_labels": np.arange(count) % 2 for name, count in splits.items()})
    file = folder / "noise.toml"
    file.write_text(SUITE.format(data=folder / "noise.npz", plugins=plugins, looks=looks, backbone=backbone))
    return file


def invoke(capsys, *arguments):
    """Run a command in this process; return its exit code, standard output and standard error."""
    code = main.main(list(map(str, arguments)))
    return code, *capsys.readouterr()


def invoke_process(*arguments, **options):
    """Run a command in another process."""
    command = [sys.executable, "-m", "xferbench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


def invoke_without_reader(*arguments):
    """Run a command whose standard output is a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "xferbench", *map(str, arguments)]
    try:
        return subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    finally:
        os.close(writer)
