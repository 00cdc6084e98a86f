"""The gate as a command: the same commit on other computers, as far as one can play several, and without PyTorch."""

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

# The engine gives each worker one thread whatever it inherits; this is the command line with an engine that does not.
UNBOUND = """
import os, subprocess, sys
from xferbench.cli import main as cli
from xferbench.runner.engines import local
def started():
    command, pipe = [sys.executable, "-m", "xferbench.runner.engines.worker_process"], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=local.MALLOC_VARIABLES | os.environ, start_new_session=True)
local._start_process = started
sys.exit(cli.main(sys.argv[1:]))
"""
ONE = {"OMP_NUM_THREADS": "1"}
TWO = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
OLD = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
COMPUTERS = {  # what is set, the workers, and whether a worker's threads are as set
    "the same": (ONE, 1, False),
    "two workers (`-j 2`)": (ONE, 2, False),
    "OMP_NUM_THREADS=2 (a worker has one by design)": ({"OMP_NUM_THREADS": "2"}, 1, False),
    "two threads in a worker, against the design": (TWO, 1, True),
    "ATEN_CPU_CAPABILITY=default": (ONE | {"ATEN_CPU_CAPABILITY": "default"}, 1, False),
    "ATEN_CPU_CAPABILITY=avx2": (ONE | {"ATEN_CPU_CAPABILITY": "avx2"}, 1, False),
    "ONEDNN_MAX_CPU_ISA=AVX2": (ONE | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, 1, False),
    "an older processor: ATen, oneDNN and MKL held to AVX2": (ONE | OLD, 1, False),
    "a much older one: ATen without vectors, oneDNN held to SSE4.1": (
        ONE | {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        1,
        False,
    ),
}
WHOLE = ("gate",)  # the shipped suite
FEWER = ("--set", 'plugins=["batchnorm-drift", "head-shock"]')
TUNED = (
    "--set",
    "recipe.strategy=full",
    "--set",
    "recipe.lr=3e-3",
    "--set",
    "recipe.steps=30",
    "--set",
    "recipe.batch_size=16",
)


def gate(words, folder, name, *more, env=ONE, unbound=False, python=sys.executable):
    """Run the command in a process of its own: exit code, and the results that it wrote."""
    out = folder / name
    start = [python, "-c", UNBOUND] if unbound else [python, "-m", "xferbench"]
    command = [*start, "gate", *words, "-o", str(out), *more]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | env, cwd=folder)
    if done.returncode not in {0, 1}:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.returncode, json.loads((out / "results.json").read_text(encoding="utf-8"))


def places(_, given):
    """One suite, accepted on the first computer and held against that on the others, each with an empty store."""
    rows = []
    for said, words in (("two plugins, full fine-tuning", (*WHOLE, *FEWER, *TUNED)), ("as it is", WHOLE)):
        with TemporaryDirectory() as made:
            folder = Path(made)
            accepted = folder / "accepted.json"
            gate(words, folder, "first", "--accept", str(accepted), "--store", str(folder / "first.sqlite"), "-j", "1")
            for number, (name, (env, workers, unbound)) in enumerate(COMPUTERS.items()):
                if (given.quick and number > 1) or (unbound and words is WHOLE):  # two threads take several times as long
                    continue
                how = ("--baseline", str(accepted), "--store", str(folder / f"{number}.sqlite"), "-j", str(workers))
                code, told = gate(words, folder, str(number), *how, env=env, unbound=unbound)
                rows.append({"suite gate": said, "computer": name} | beside(code, told["gate"]["outcomes"]))
    return rows


def beside(code, outcomes):
    """What a gate found: its exit code, its decisions, how far the numbers are apart, and whether verdicts stay."""
    words = Counter(one["decision"] for one in outcomes)
    apart = [abs(one["change"]) for one in outcomes if one["change"] is not None and one["unit"] == "accuracy"]
    other = [one["id"] for one in outcomes if one["verdict"] != one["accepted"]]
    return {
        "exit code": code,
        "decisions": ", ".join(f"{count} {word}" for word, count in words.most_common()),
        "answers that differ": f"{100 * next(one['flipped'] for one in outcomes if one['id'] == 'subject'):.3f} %",
        "largest change, in points": f"{100 * max(apart):.3f}",
        "verdicts kept": "yes" if not other else f"no: {', '.join(other)}",
    }


def light(_, given):
    """Wall-clock seconds of a gate over a finished run, by an interpreter without torch."""
    python = given.python
    if python is None:
        raise SystemExit("light needs --python, an interpreter with xferbench and without torch")
    bare = subprocess.run([python, "-c", "import torch"], check=False, capture_output=True)
    if bare.returncode == 0:
        raise SystemExit(f"{python} has torch")
    rounds, words = (1 if given.quick else 5), WHOLE
    with TemporaryDirectory() as made:
        folder = Path(made)
        accepted = folder / "accepted.json"
        gate(words, folder, "run", "--accept", str(accepted), "--store", str(folder / "store.sqlite"))
        finished = str(folder / "run" / "results.json")
        how = {"python": python, "env": ONE | {"PYTHONPATH": ""}}
        gated = [clocked(gate, words, folder, "held", "--baseline", str(accepted), "--candidate", finished, **how)]
        gated += [
            clocked(gate, words, folder, "held", "--baseline", str(accepted), "--candidate", finished, **how)
            for _ in range(rounds)
        ]
        empty = [clocked(subprocess.run, [python, "-c", "pass"], check=True) for _ in range(rounds)]
    return [
        {"what": f"`xferbench gate {words[0]} --baseline FILE --candidate results.json`, report and all"}
        | summary(gated[1:], "at most 3 s"),
        {"what": "the first time, nothing compiled and no figure drawn"} | summary(gated[:1], ""),
        {"what": "`python -c pass`, for comparison"} | summary(empty, ""),
    ]


def clocked(function, *arguments, **more):
    """Seconds of a call."""
    begun = perf_counter()
    function(*arguments, **more)
    return perf_counter() - begun


def summary(times, wanted):
    """Seconds in words."""
    told = {"median s": median(times), "least": min(times), "most": max(times)}
    return {name: f"{value:.2f}" for name, value in told.items()} | {"runs": len(times), "wanted": wanted}
