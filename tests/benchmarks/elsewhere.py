"""The gate as a command: the same commit on other computers, which one computer imitates, and without PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

# The engine sets one thread for each worker, whatever the environment says. In this command line it does not.
UNBOUND = """
import os
import subprocess
import sys

from xferbench.cli import main
from xferbench.runner.engines import local


def start_process():
    command = [sys.executable, "-m", "xferbench.runner.engines.worker_process"]
    env = local.MALLOC_VARIABLES | os.environ
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, start_new_session=True)


local._start_process = start_process
sys.exit(main.main(sys.argv[1:]))
"""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
TWO_THREADS = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
OLD_INSTRUCTIONS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
COMPUTERS = {  # environment, workers, and whether a worker takes its number of threads from the environment
    "the same": (ONE_THREAD, 1, False),
    "two workers (`-j 2`)": (ONE_THREAD, 2, False),
    "OMP_NUM_THREADS=2 (a worker has one by design)": ({"OMP_NUM_THREADS": "2"}, 1, False),
    "two threads in a worker, against the design": (TWO_THREADS, 1, True),
    "ATEN_CPU_CAPABILITY=default": (ONE_THREAD | {"ATEN_CPU_CAPABILITY": "default"}, 1, False),
    "ATEN_CPU_CAPABILITY=avx2": (ONE_THREAD | {"ATEN_CPU_CAPABILITY": "avx2"}, 1, False),
    "ONEDNN_MAX_CPU_ISA=AVX2": (ONE_THREAD | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, 1, False),
    "an older processor: ATen, oneDNN and MKL held to AVX2": (ONE_THREAD | OLD_INSTRUCTIONS, 1, False),
    "a much older one: ATen without vectors, oneDNN held to SSE4.1": (
        ONE_THREAD | {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        1,
        False,
    ),
}
SHIPPED_SUITE = ("gate",)
TWO_PLUGINS = ("--set", 'plugins=["batchnorm-drift", "head-shock"]')
FULL_TUNING = (
    "--set",
    "recipe.strategy=full",
    "--set",
    "recipe.lr=3e-3",
    "--set",
    "recipe.steps=30",
    "--set",
    "recipe.batch_size=16",
)


def gate(arguments, folder, name, *options, env=ONE_THREAD, unbound=False, python=sys.executable):
    """Run the command in a process of its own, and return its exit code and its results."""
    out = folder / name
    start = [python, "-c", UNBOUND] if unbound else [python, "-m", "xferbench"]
    command = [*start, "gate", *arguments, "-o", str(out), *options]
    process = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | env, cwd=folder)
    if process.returncode not in {0, 1}:
        raise RuntimeError(f"{' '.join(map(str, command))}: {process.returncode}\n{process.stdout}\n{process.stderr}")
    return process.returncode, json.loads((out / "results.json").read_text(encoding="utf-8"))


def places(_, arguments):
    """Accept a suite on the first computer, and compare it with the same suite on the others, each with an empty store."""
    suites = {
        "two plugins, full fine-tuning": (*SHIPPED_SUITE, *TWO_PLUGINS, *FULL_TUNING),
        "as it is": SHIPPED_SUITE,
    }
    rows = []
    for suite, suite_arguments in suites.items():
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            accepted = folder / "accepted.json"
            options = ("--accept", str(accepted), "--store", str(folder / "first.sqlite"), "-j", "1")
            gate(suite_arguments, folder, "first", *options)
            for number, (computer, (env, workers, unbound)) in enumerate(COMPUTERS.items()):
                # Two threads take several times as long.
                if (arguments.quick and number > 1) or (unbound and suite_arguments is SHIPPED_SUITE):
                    continue
                options = ("--baseline", str(accepted), "--store", str(folder / f"{number}.sqlite"), "-j", str(workers))
                code, results = gate(suite_arguments, folder, str(number), *options, env=env, unbound=unbound)
                rows.append({"suite gate": suite, "computer": computer} | outcome_columns(code, results["gate"]["outcomes"]))
    return rows


def outcome_columns(code, outcomes):
    """Return the exit code of a gate, its decisions, the largest differences, and whether the verdicts are the same."""
    decisions = Counter(outcome["decision"] for outcome in outcomes)
    changes = [
        abs(outcome["change"]) for outcome in outcomes if outcome["change"] is not None and outcome["unit"] == "accuracy"
    ]
    changed_verdicts = [outcome["id"] for outcome in outcomes if outcome["verdict"] != outcome["accepted"]]
    flipped = next(outcome["flipped"] for outcome in outcomes if outcome["id"] == "subject")
    return {
        "exit code": code,
        "decisions": ", ".join(f"{count} {decision}" for decision, count in decisions.most_common()),
        "answers that differ": f"{100 * flipped:.3f} %",
        "largest change, in points": f"{100 * max(changes):.3f}",
        "verdicts kept": "yes" if not changed_verdicts else f"no: {', '.join(changed_verdicts)}",
    }


def light(_, arguments):
    """Measure the seconds of a gate over a finished run with an interpreter without torch."""
    python = arguments.python
    if python is None:
        raise SystemExit("light needs --python, an interpreter with xferbench and without torch")
    process = subprocess.run([python, "-c", "import torch"], check=False, capture_output=True)
    if process.returncode == 0:
        raise SystemExit(f"{python} has torch")
    rounds = 1 if arguments.quick else 5
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        accepted = folder / "accepted.json"
        gate(SHIPPED_SUITE, folder, "run", "--accept", str(accepted), "--store", str(folder / "store.sqlite"))
        options = ("--baseline", str(accepted), "--candidate", str(folder / "run" / "results.json"))
        light_process = {"python": python, "env": ONE_THREAD | {"PYTHONPATH": ""}}
        first, *later = [
            call_seconds(gate, SHIPPED_SUITE, folder, "compared", *options, **light_process) for _ in range(1 + rounds)
        ]
        empty = [call_seconds(subprocess.run, [python, "-c", "pass"], check=True) for _ in range(rounds)]
    command = f"xferbench gate {SHIPPED_SUITE[0]} --baseline FILE --candidate results.json"
    return [
        {"what": f"`{command}`, report and all"} | time_columns(later, "at most 3 s"),
        {"what": "the first time, nothing compiled and no figure drawn"} | time_columns([first], ""),
        {"what": "`python -c pass`, for comparison"} | time_columns(empty, ""),
    ]


def call_seconds(function, *arguments, **options):
    """Return the wall-clock seconds of a call."""
    start = perf_counter()
    function(*arguments, **options)
    return perf_counter() - start


def time_columns(times, target):
    """Return the columns of some times in seconds."""
    seconds = {"median s": median(times), "least": min(times), "most": max(times)}
    return {name: f"{value:.2f}" for name, value in seconds.items()} | {"runs": len(times), "wanted": target}
