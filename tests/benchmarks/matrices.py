"""The results of the shipped matrices: what tutorials claim, what publications report, and every strategy.

python tests/benchmarks/matrices.py [claims published strategies] [--store FILE] [--out reports/benchmarks]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from xferbench.report import files, markdown
from xferbench.runner.environment import processor_name
from xferbench.runner.run import run

NAMES = ("claims", "published", "strategies")


def page(result):
    """Return the page of a result: where it was measured, then the result itself."""
    seconds = result.cost["seconds"]["total"]
    name = result.suite["name"]
    fits, minutes = result.cost["fits"]["unique"], seconds / 60
    place = (
        f"Measured on a CPU ({processor_name()}), one thread a worker: {fits} unique fits, {minutes:.0f} minutes of computing."
    )
    again = (
        f"Again: `python tests/benchmarks/matrices.py {name}`. A row for each task, recipe and seed: [{name}.csv]({name}.csv)."
    )
    return f"# xferbench run {name}\n\n{place} {again}\n\n" + markdown.render(result).partition("\n\n")[2]


def main():
    parser = argparse.ArgumentParser(description="Run the shipped matrices, and write their results.")
    parser.add_argument("suites", nargs="*", default=list(NAMES), help="names of shipped suites, or suite files")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for suite in arguments.suites:
            result = run(suite, store=arguments.store or Path(folder) / "store.sqlite")
            name = result.suite["name"]
            (arguments.out / f"{name}.md").write_text(page(result), encoding="utf-8")
            (arguments.out / f"{name}.csv").write_text(files.matrix_csv(result.matrix), encoding="utf-8")
            print(name, "done", flush=True)


if __name__ == "__main__":
    main()
