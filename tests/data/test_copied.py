"""The files that are meant to be copied or used by other repositories: a workflow, and a hook for pre-commit."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from xferbench.cli import main, options
from xferbench.config import loader
from xferbench.report import baseline

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / ".github" / "workflows" / "gate.yml").read_text(encoding="utf-8")
WORKFLOW = yaml.safe_load(TEXT)
JOBS = WORKFLOW["jobs"]
STEPS = [step for job in JOBS.values() for step in job["steps"]]
RUNS = [line.strip() for step in STEPS for line in step.get("run", "").splitlines()]
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
FIRST_PARTY = {"actions/checkout", "actions/setup-python", "actions/upload-artifact", "actions/download-artifact"}


def parsed(command):
    program, *argv = shlex.split(command)
    assert program == "xferbench"
    return options.parse_arguments(main.parser(), argv)


def actions(job):
    return [step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step]


def test_a_pull_request_is_gated_with_no_right_but_to_read():
    assert set(WORKFLOW[True]) == {"pull_request", "workflow_dispatch"}  # in YAML 1.1 the key "on" is the word for true
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in JOBS.values())
    assert not re.search(r"\bsecrets\b|github\.token|GITHUB_TOKEN|github\.event", TEXT)
    assert "pull_request_target:" not in TEXT


def test_nothing_of_a_pull_request_outlives_it():
    assert not any("cache" in str(step) for step in STEPS)
    assert all(step["with"]["persist-credentials"] is False for step in STEPS if "checkout" in step.get("uses", ""))
    assert not any("${{" in line for line in RUNS)  # what somebody else has named is never part of a command


def test_no_job_runs_on_without_end_and_a_newer_push_ends_the_older_run():
    assert all(0 < job["timeout-minutes"] <= 30 for job in JOBS.values())
    assert WORKFLOW["concurrency"]["cancel-in-progress"] is True
    assert "github.ref" in WORKFLOW["concurrency"]["group"]


def test_only_githubs_own_actions_are_used_each_in_one_version():
    used = {step["uses"] for step in STEPS if "uses" in step}
    assert {one.partition("@")[0] for one in used} == FIRST_PARTY
    assert len(used) == len(FIRST_PARTY)
    assert all(re.fullmatch(r"[\w/-]+@v\d+", one) for one in used)


def test_one_job_trains_on_cpu_wheels_and_the_other_has_no_torch():
    installed = [
        [line for line in map(str, (step.get("run", "") for step in job["steps"])) if "pip" in line] for job in JOBS.values()
    ]
    trained, elsewhere = map(" ".join, installed)
    assert re.search(r'"torch==\d+\.\d+\.\*" torchvision --index-url https://download\.pytorch\.org/whl/cpu', trained)
    assert "torch" not in elsewhere


def test_the_version_of_torch_is_that_of_the_accepted_results():
    made = baseline.read_baseline(ROOT / "suites" / "gate.accepted.json").environment["packages"]["torch"]
    (pinned,) = re.findall(r"torch==(\d+\.\d+)\.\*", " ".join(RUNS))
    assert made.split(".")[:2] == pinned.split(".")


def test_the_report_is_kept_also_of_what_failed():
    kept = [step for step in JOBS["gate"]["steps"] if "upload-artifact" in step.get("uses", "")]
    (command,) = [line for line in RUNS if line.startswith("xferbench") and "--candidate" not in line]
    assert [(step["if"], step["with"]["path"]) for step in kept] == [("always()", str(parsed(command).output))]


@pytest.mark.parametrize("command", [line for line in RUNS if line.startswith("xferbench")])
def test_its_commands_are_commands_and_their_files_are_there(command):
    arguments = parsed(command)
    read = loader.load_suite(loader.find_suite(str(ROOT / arguments.suite)))
    assert read.recipe is not None
    assert len(read.looks) == 1
    assert (ROOT / arguments.baseline).is_file()
    if arguments.candidate is None:
        assert loader.parse_duration(arguments.budget) < 60 * JOBS["gate"]["timeout-minutes"]
    else:
        assert arguments.candidate.parts[0] == "gate-report"


def test_there_are_such_commands_in_both_jobs():
    assert sum(line.startswith("xferbench gate ") for line in RUNS) == len(JOBS) == 2


def test_the_files_go_into_the_archives():
    built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert built["wheel"]["force-include"]["suites"] == "xferbench/suites"
    assert {".github", ".pre-commit-hooks.yaml"} <= set(built["sdist"]["include"])
    assert "gate" in loader.shipped_suites()


def test_the_hook_looks_at_suites_and_nothing_else():
    assert {**HOOK, "name": "", "description": ""} == {
        "id": "xferbench-validate",
        "name": "",
        "description": "",
        "entry": "xferbench validate --no-files",
        "language": "python",
        "types": ["toml"],
        "files": r"^suites/.*\.toml$",
        "pass_filenames": True,
    }
    seen = ["suites/gate.toml", "suites/a/b.toml", "pyproject.toml", "suites/schema.json", "my/suites/a.toml"]
    assert [name for name in seen if re.search(HOOK["files"], name)] == seen[:2]


def test_the_hooks_entry_is_a_command_that_takes_several_files():
    assert parsed(f"{HOOK['entry']} suites/gate.toml suites/quick.toml").command


def test_the_hook_needs_no_torch(tmp_path):
    hidden = "import sys; sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'timm', 'safetensors'))); "
    code = hidden + "from xferbench.cli import main as cli; sys.exit(cli.main(sys.argv[1:]))"
    words = [*shlex.split(HOOK["entry"])[1:], str(ROOT / "suites" / "gate.toml"), "--store", str(tmp_path / "s.sqlite")]
    told = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")
    assert "a valid suite" in told.stdout
