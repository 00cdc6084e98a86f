"""Files that other repositories copy or use: a workflow, and a hook for pre-commit."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from xferbench.cli import main
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


def parse_command(command):
    program, *argv = shlex.split(command)
    assert program == "xferbench"
    return main.parse_arguments(argv)


def actions(job):
    return [step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step]


def test_the_workflow_has_read_permission_only():
    assert set(WORKFLOW[True]) == {"pull_request", "workflow_dispatch"}  # in YAML 1.1 the key "on" means true
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in JOBS.values())
    assert not re.search(r"\bsecrets\b|github\.token|GITHUB_TOKEN|github\.event", TEXT)
    assert "pull_request_target:" not in TEXT


def test_the_workflow_keeps_no_cache_and_no_credentials():
    assert not any("cache" in str(step) for step in STEPS)
    assert all(step["with"]["persist-credentials"] is False for step in STEPS if "checkout" in step.get("uses", ""))
    assert not any("${{" in line for line in RUNS)  # a command never includes text of other people


def test_jobs_have_a_timeout_and_a_new_push_cancels_the_old_run():
    assert all(0 < job["timeout-minutes"] <= 30 for job in JOBS.values())
    assert WORKFLOW["concurrency"]["cancel-in-progress"] is True
    assert "github.ref" in WORKFLOW["concurrency"]["group"]


def test_only_actions_of_github_are_used_and_in_one_version():
    used_actions = {step["uses"] for step in STEPS if "uses" in step}
    assert {action.partition("@")[0] for action in used_actions} == FIRST_PARTY
    assert len(used_actions) == len(FIRST_PARTY)
    assert all(re.fullmatch(r"[\w/-]+@v\d+", action) for action in used_actions)


def test_one_job_installs_cpu_wheels_of_torch_and_the_other_none():
    commands_by_job = [
        [line for line in map(str, (step.get("run", "") for step in job["steps"])) if "pip" in line] for job in JOBS.values()
    ]
    training_job, other_job = map(" ".join, commands_by_job)
    assert re.search(r'"torch==\d+\.\d+\.\*" torchvision --index-url https://download\.pytorch\.org/whl/cpu', training_job)
    assert "torch" not in other_job


def test_the_version_of_torch_equals_that_of_the_accepted_results():
    accepted = baseline.read_baseline(ROOT / "suites" / "gate.accepted.json").provenance.environment["packages"]["torch"]
    (version,) = re.findall(r"torch==(\d+\.\d+)\.\*", " ".join(RUNS))
    assert accepted.split(".")[:2] == version.split(".")


def test_the_report_is_uploaded_after_a_failure_too():
    uploads = [step for step in JOBS["gate"]["steps"] if "upload-artifact" in step.get("uses", "")]
    (command,) = [line for line in RUNS if line.startswith("xferbench") and "--candidate" not in line]
    assert [(step["if"], step["with"]["path"]) for step in uploads] == [("always()", str(parse_command(command).output))]


@pytest.mark.parametrize("command", [line for line in RUNS if line.startswith("xferbench")])
def test_commands_of_the_workflow_are_valid_and_their_files_exist(command):
    arguments = parse_command(command)
    suite = loader.load_suite(loader.find_suite(str(ROOT / arguments.suite)))
    assert suite.recipe is not None
    assert len(suite.rules.looks) == 1
    assert arguments.fail_on == "inconclusive", "what is not decided is no pass"
    assert (ROOT / arguments.baseline).is_file()
    if arguments.candidate is None:
        assert loader.parse_duration(arguments.budget) < 60 * JOBS["gate"]["timeout-minutes"]
    else:
        assert arguments.candidate.parts[0] == "gate-report"


def test_both_jobs_run_the_gate():
    assert sum(line.startswith("xferbench gate ") for line in RUNS) == len(JOBS) == 2


def test_the_archives_include_the_files():
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["force-include"]["suites"] == "xferbench/suites"
    assert {".github", ".pre-commit-hooks.yaml"} <= set(targets["sdist"]["include"])
    assert "gate" in loader.shipped_suites()


def test_the_hook_validates_suites_only():
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
    paths = ["suites/gate.toml", "suites/a/b.toml", "pyproject.toml", "suites/schema.json", "my/suites/a.toml"]
    assert [name for name in paths if re.search(HOOK["files"], name)] == paths[:2]


def test_the_entry_of_the_hook_accepts_several_files():
    assert parse_command(f"{HOOK['entry']} suites/gate.toml suites/quick.toml").command


def test_the_hook_needs_no_torch(tmp_path):
    hide_torch = "import sys; sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'timm', 'safetensors'))); "
    code = hide_torch + "from xferbench.cli import main; sys.exit(main.main(sys.argv[1:]))"
    arguments = [*shlex.split(HOOK["entry"])[1:], str(ROOT / "suites" / "gate.toml"), "--store", str(tmp_path / "s.sqlite")]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "a valid suite" in result.stdout
