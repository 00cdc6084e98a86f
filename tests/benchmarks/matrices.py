"""The shipped matrices carried out, and their tables: what tutorials claim, what was published, every strategy.

python tests/benchmarks/matrices.py [claims published strategies] [--store FILE] [--out reports/benchmarks]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from xferbench import matrix, suite
from xferbench.environment import processor
from xferbench.report import crossed, crossed_files

NAMES = ("claims", "published", "strategies")


def page(table):
    """The committed table: where it was measured, then what the suite itself says."""
    seconds = table.cost["seconds"]["total"]
    name = table.suite["name"]
    fits, minutes = table.cost["fits"]["unique"], seconds / 60
    where = f"Measured on a CPU ({processor()}), one thread a worker: {fits} unique fits, {minutes:.0f} minutes of computing."
    again = (
        f"Again: `python tests/benchmarks/matrices.py {name}`. A row for each task, recipe and seed: [{name}.csv]({name}.csv)."
    )
    return f"# xferbench run {name}\n\n{where} {again}\n\n" + crossed.summary(table).partition("\n\n")[2]


def main():
    parser = argparse.ArgumentParser(description="Carry the shipped matrices out, and write their tables.")
    parser.add_argument("suites", nargs="*", default=list(NAMES))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.suites:
            table = matrix.run(suite.load(suite.find(name)), path=arguments.store or Path(folder) / "store.sqlite")
            (arguments.out / f"{name}.md").write_text(page(table), encoding="utf-8")
            (arguments.out / f"{name}.csv").write_text(crossed_files.records(table), encoding="utf-8")
            print(name, "done", flush=True)


if __name__ == "__main__":
    main()
