"""How long the page of a large run takes to render, at first and again, and how large it is.

    python tests/benchmarks/report.py [--plugins 8] [--seeds 20] [--examples 500] [--rounds 3]

The run is synthetic: the installed plugins, and further generated ones, with one to eight variants each. The first rendering
starts with an empty folder of figures; the second one reuses the figures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from factory import make_cells, make_findings, make_plugin, make_run

from xferbench.core.run import SampleImages
from xferbench.report import html
from xferbench.runner import discovery

VERDICTS = ("FAIL", "FAIL", "INCONCLUSIVE", "PASS")
LIMIT = 3_000_000  # bytes


def main():
    """Measure and print."""
    arguments = parse_arguments()
    run, plugins = make_large_run(arguments.plugins, arguments.seeds, arguments.examples)
    html.render(make_run(seeds=2, examples=20), {})  # imports
    times = [render_seconds(run, plugins) for _ in range(arguments.rounds)]
    size = len(html.render(run, plugins).encode())
    print(f"| {arguments.plugins} plugins × {arguments.seeds} seeds | median of {arguments.rounds} |\n|---|---:|")
    print(f"| first rendering | {median(first for first, _ in times):.2f} s |")
    print(f"| rendering of the same again | {median(again for _, again in times):.2f} s |")
    print(f"| size of the page | {size / 1e6:.2f} MB |")
    return int(size > LIMIT)


def parse_arguments():
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser()
    for name, default in (("plugins", 8), ("seeds", 20), ("examples", 500), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def render_seconds(run, plugins):
    """Return the seconds of a first rendering and of a second one."""
    with tempfile.TemporaryDirectory() as folder:
        return tuple(one_render_seconds(run, plugins, Path(folder)) for _ in range(2))


def one_render_seconds(run, plugins, folder):
    """Return the seconds of one rendering."""
    start = perf_counter()
    html.render(run, plugins, folder)
    return perf_counter() - start


def make_large_run(plugin_count, seeds, examples):
    """Return a run of that many plugins with sample images of noise, which compress badly, and the plugins by id."""
    plugins = {plugin.id: plugin for plugin in discovery.load_plugins(["all"])}
    plugins |= {f"made-{number}": make_plugin(f"made-{number}") for number in range(plugin_count - len(plugins))}
    cells, findings = [], []
    for number, name in enumerate(list(plugins)[:plugin_count]):
        arms = {"subject": 0.70, "cured": 0.76, "scratch": 0.40}
        arms |= {f"induced:variant-{variant}": 0.66 - 0.03 * variant for variant in range(number + 1)}
        plugin_cells = make_cells(name, arms, seeds=seeds, examples=examples)
        cells += plugin_cells
        findings += make_findings(name, VERDICTS[number % len(VERDICTS)], plugin_cells)
    rng = np.random.default_rng(0)
    samples = tuple(
        SampleImages(
            role="target",
            title=f"noise {number}",
            arms=("all others",),
            images=rng.integers(256, size=(6, 96, 96, 3), dtype=np.uint8),
            labels=tuple("abcdef"),
        )
        for number in range(8)
    )
    return replace(make_run(seeds=2), findings=tuple(findings), cells=tuple(cells), samples=samples), plugins


if __name__ == "__main__":
    sys.exit(main())
