"""How many random and hostile inputs were tried, and what became of them; the table is committed.

    python tests/benchmarks/hostile.py [--factor 100] [--seed 1] [--out reports/benchmarks]

Runs the tests in ``tests/fuzz`` with many inputs, which takes about an hour with the factor 100.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree as ET

import torch

from xferbench.runner.environment import processor_name

TESTS = Path(__file__).parents[1] / "fuzz"
KINDS = {  # the name of a test: what it tries
    "test_changed_suite_files": "suite files",
    "test_changed_result_files": "result folders and accepted runs",
    "test_hostile_files_are_read": "weights, made to execute, exhaust or mislead",
    "test_flipped_bytes_of_good_files": "weights with changed bytes",
    "test_every_construction": "images, made to exhaust or mislead",
    "test_flipped_bytes_never_end": "images with changed bytes",
    "test_a_changed_state": "logs of transformers",
    "test_a_changed_csv": "logs in CSV files",
    "test_a_changed_configuration": "configurations next to a log",
    "test_a_damaged_store": "stores and caches with damage, each read by a run",
    "test_a_killed_run": "runs that are killed at a random moment",
}


def main():
    parser = argparse.ArgumentParser(description="Count random and hostile inputs, and failures.")
    parser.add_argument("--factor", type=int, default=100, help="how many times as many inputs as in the default tests")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random inputs")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "junit.xml"
        options = [
            "--fuzz",
            str(arguments.factor),
            "--fuzz-seed",
            str(arguments.seed),
            f"--junitxml={file}",
            "-o",
            "junit_family=xunit1",
        ]
        command = [sys.executable, "-m", "pytest", "-q", str(TESTS), "-p", "no:cacheprovider", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        code = subprocess.run(command, env=environment, check=False).returncode
        page = describe(ET.parse(file), arguments.factor, arguments.seed)
    (arguments.out / "hostile.md").write_text(page, encoding="utf-8")
    return code


def describe(tree, factor, seed):
    """Return the page of the results of pytest as JUnit XML."""
    cases = list(tree.iter("testcase"))
    others = len(cases)
    lines = []
    for prefix, kind in KINDS.items():
        chosen = [case for case in cases if case.get("name").startswith(prefix)]
        others -= len(chosen)
        counts = {name: sum(map(int, properties(chosen, name))) for name in ("inputs", "refused", "resumed")}
        failed = sum(map(has_failed, chosen))
        seconds = sum(float(case.get("time")) for case in chosen)
        outcome = f"{counts['resumed']:,} resumed" if counts["resumed"] else f"{counts['refused']:,} refused"
        lines.append(f"| {kind} | {counts['inputs']:,} | {outcome} | {failed} of {len(chosen)} | {seconds:.0f} |")
    return f"""# Random and hostile input

Every input must give a result or one clear error: no traceback, no input that takes more than 10 s, no process that grows by
1 GB, and nothing in a file that is executed. A run on a damaged store must reach the findings of the undamaged one, bit for
bit, or state that the file is damaged. A killed run leaves no process and no traceback. After one or more kills, the resumed
run must reach the findings and predictions of the undisturbed run, bit for bit. A test that finds anything else fails.

Seed {seed}, {factor} times the inputs of the default tests; {os.cpu_count()} cores ({processor_name()}), Python
{platform.python_version()}, PyTorch {torch.__version__.partition("+")[0]}.
Again: `python tests/benchmarks/hostile.py --seed {seed}`.

| inputs | tried | outcome | failed tests | seconds |
|---|---:|---:|---:|---:|
{chr(10).join(lines)}

{others} more tests of chosen inputs, {sum(map(has_failed, cases))} failures in all tests.
"""


def has_failed(case):
    """Return whether a test failed, or ended with an error of its fixtures."""
    return case.find("failure") is not None or case.find("error") is not None


def properties(cases, name):
    """Return the values of a property that tests recorded."""
    return [item.get("value") for case in cases for item in case.iter("property") if item.get("name") == name]


if __name__ == "__main__":
    sys.exit(main())
