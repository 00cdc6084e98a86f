"""Killed, interrupted, crashed and resumed runs of a very small study."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz

from xferbench.config import loader as suites
from xferbench.core.errors import Interrupted, UserError
from xferbench.core.interventions import BATCHNORM_EVAL
from xferbench.core.pipeline import Phase
from xferbench.core.plugin import Plugin
from xferbench.core.run import run_to_json
from xferbench.plugins import batchnorm_drift
from xferbench.runner import discovery, execute
from xferbench.runner import run as runner
from xferbench.runner.engines import local, worker_process

SUITE = """
schema = 1
name = "resumed"
plugins = ["batchnorm-drift", "negative-transfer"]
looks = [2, 3]
tuning_seeds = 1

[backbone]
arch = "tiny-resnet"

[target]
data = "npz:d.npz"
train_size = 40

[recipe]
lr = 1e-2
steps = 3
batch_size = 8

[scratch]
lr = [1e-2]
weight_decay = [0.01]
steps = 4
batch_size = 8
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    make_npz(folder / "d.npz", train=80, test=40)
    (folder / "suite.toml").write_text(SUITE)
    return suites.load_suite(folder / "suite.toml")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def _in_this_process(count):
    """Run calls in this process: the same results, without the start of a worker."""

    def call(function, *arguments):
        future = Future()
        succeeded, value = worker_process._run_call(function, arguments)
        (future.set_result if succeeded else future.set_exception)(value)
        return future

    yield call


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(local, "start_workers", _in_this_process)


@pytest.fixture
def use_plugins(monkeypatch):
    """Return a function that replaces the installed plugins."""
    return lambda *plugins: monkeypatch.setattr(discovery, "load_plugins", lambda *_: plugins)


def run(suite, path):
    return runner.run(suite, store=path, device="cpu", workers=1)


def findings_json(finished):
    return run_to_json(finished)["findings"]


def verdicts_by_finding(finished):
    return {finding.id: finding.verdict for finding in finished.findings}


def count_records(path):
    """Return the number of records in a store; 0 without a store."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as db:
            return db.execute("select count(*) from records").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def kill_run(suite, path, count):
    """Start a run in a new process, kill it after some records, and return their number."""
    code = f"""
from pathlib import Path
from xferbench.config import loader
from xferbench.runner import execute
execute.execute(loader.load_suite(Path({suite.invocation.path!r})), path=Path({str(path)!r}), device="cpu", workers=1)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 120
    while count_records(path) < count and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9, "the process was killed before its end"
    return count_records(path)


def crash(*_):
    raise ZeroDivisionError("on purpose")


def return_nothing(*_):
    return ""


def make_plugin(name, **changes):
    """Return a plugin without induced arms whose cure is BatchNorm in eval mode."""
    defaults = {
        "applies": return_nothing,
        "cure": batchnorm_drift.cure,
        "induce": lambda *_: {},
        "question": "?",
        "doc": "",
        "remedy": "",
        "version": 1,
    }
    return Plugin(id=name, **defaults | changes)


@pytest.fixture(scope="module")
def uninterrupted(suite, tmp_path_factory):
    """Return an uninterrupted run of the study and its store."""
    path = tmp_path_factory.mktemp("whole") / "store.sqlite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "start_workers", _in_this_process)
        torch.set_num_threads(1)
        return run(suite, path), path


def test_a_run_killed_twice_has_the_findings_of_an_uninterrupted_run(suite, uninterrupted, tmp_path, in_this_process):
    path = tmp_path / "store.sqlite"
    first = kill_run(suite, path, 2)
    second = kill_run(suite, path, first + 9)
    finished = run(suite, path)
    assert 0 < first < second
    assert findings_json(finished) == findings_json(uninterrupted[0])
    assert finished.cost["trials"]["reused"] >= second
    repeated = run(suite, path)
    assert findings_json(repeated) == findings_json(finished)
    assert repeated.cost["fits"]["run"] == repeated.cost["trials"]["run"] == 0
    assert repeated.cost["seconds"]["total"] == pytest.approx(finished.cost["seconds"]["total"])


def test_every_record_of_a_run_was_computed(uninterrupted):
    finished, _ = uninterrupted
    assert set(verdicts_by_finding(finished)) >= {"batchnorm-drift/harm/ghost-batch", "negative-transfer/pipeline/permuted"}
    assert "ERROR" not in verdicts_by_finding(finished).values()
    assert all(not cell.record.error for cell in finished.cells)
    assert finished.cost["trials"]["run"] == finished.cost["trials"]["unique"]
    assert finished.cost["fits"]["run"] == finished.cost["fits"]["unique"]


def test_a_finished_run_needs_no_workers(suite, uninterrupted, monkeypatch):
    finished, path = uninterrupted

    def refuse_workers(_):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(local, "start_workers", refuse_workers)
    assert findings_json(run(suite, path)) == findings_json(finished)


def test_a_run_has_sample_images_of_its_target(uninterrupted):
    (samples,) = uninterrupted[0].samples
    assert (samples.role, samples.title) == ("target", "d.npz, the backbone's own preprocessing")
    assert samples.arms == ("all arms",)
    assert samples.images.shape == (6, 16, 16, 3)
    assert len(samples.labels) == 6


def test_failed_sample_images_are_a_note_and_keep_the_verdicts(suite, uninterrupted, tmp_path, monkeypatch):
    store = tmp_path / "store.sqlite"
    shutil.copy(uninterrupted[1], store)

    @contextlib.contextmanager
    def start_dying_workers(_):
        failed_call = Future()
        failed_call.set_exception(local.WorkerDied("a worker process ended"))
        yield lambda *_: failed_call

    monkeypatch.setattr(local, "start_workers", start_dying_workers)
    finished = run(suite, store)
    assert findings_json(finished) == findings_json(uninterrupted[0])
    assert finished.samples == ()
    assert [note for note in finished.notes if note.startswith("no sample images of target")]


def test_seeds_are_added_only_to_open_contrasts(suite, tmp_path, in_this_process):
    # This alpha leaves every contrast open, except one whose subject equals its cure.
    changed = replace(
        suite,
        rules=replace(suite.rules, alpha=1e-9),
        recipe=replace(suite.recipe, phases=(Phase(batchnorm=BATCHNORM_EVAL, steps=3, batch_size=8),)),
    )
    finished = run(changed, tmp_path / "store.sqlite")
    seeds = {}
    for cell in finished.cells:
        seeds.setdefault(cell.plugin, set()).add(cell.seed)
    assert seeds == {"batchnorm-drift": {0, 1}, "negative-transfer": {0, 1, 2}}
    verdict_and_seeds = {finding.id: (finding.verdict, finding.estimate.seeds) for finding in finished.findings}
    assert verdict_and_seeds["batchnorm-drift/harm/ghost-batch"] == ("PASS", 2)
    assert verdict_and_seeds["negative-transfer/pipeline/permuted"] == ("INCONCLUSIVE", 3)


def test_a_spent_budget_stops_at_the_same_look_and_a_larger_one_continues(suite, tmp_path, in_this_process, use_plugins):
    use_plugins(make_plugin("even"))
    path = tmp_path / "store.sqlite"
    open_suite = replace(suite, rules=replace(suite.rules, budget=1e6, alpha=1e-9))
    first_look, _ = execute.forecast(open_suite, path=path, device="cpu", workers=1).seconds
    limited = replace(open_suite, rules=replace(open_suite.rules, budget=first_look * 1.001))
    first, repeated = run(limited, path), run(limited, path)
    assert {finding.estimate.seeds for finding in first.findings} == {2}
    assert any("budget" in note for note in first.notes)
    assert findings_json(repeated) == findings_json(first)
    assert repeated.cost["fits"]["run"] == 0
    extended = run(replace(limited, rules=replace(limited.rules, budget=1e6)), path)
    assert {finding.estimate.seeds for finding in extended.findings if finding.verdict == "INCONCLUSIVE"} == {3}
    assert extended.cost["trials"]["reused"] == first.cost["trials"]["unique"]


@pytest.mark.parametrize("function", ["applies", "cure", "induce"])
def test_a_plugin_that_crashes_is_an_error_and_the_others_continue(
    function, suite, uninterrupted, in_this_process, use_plugins
):
    use_plugins(make_plugin("broken", **{function: crash}), batchnorm_drift.plugin)
    finished = run(suite, uninterrupted[1])
    (broken,) = [finding for finding in finished.findings if finding.plugin == "broken"]
    assert broken.verdict == "ERROR"
    assert "ZeroDivisionError: on purpose" in broken.reason
    others = [finding for finding in findings_json(finished) if finding["plugin"] != "broken"]
    assert len(others) == 6
    assert all(finding["verdict"] != "ERROR" for finding in others)


def broken_measure(context):
    return crash()


def test_a_measure_that_crashes_is_an_error_of_its_plugin_and_runs_again(suite, uninterrupted, in_this_process, use_plugins):
    plugin = make_plugin("measured", measures={"broken": f"{__name__}:broken_measure@1"})
    use_plugins(plugin, batchnorm_drift.plugin)
    finished = run(suite, uninterrupted[1])
    verdicts_by_id = verdicts_by_finding(finished)
    assert verdicts_by_id["measured/harm"] == "ERROR"
    assert {verdict for name, verdict in verdicts_by_id.items() if name.startswith("batchnorm-drift")} <= {
        "PASS",
        "FAIL",
        "INCONCLUSIVE",
        "INFO",
    }
    (reason,) = {finding.reason for finding in finished.findings if finding.plugin == "measured"}
    assert "ZeroDivisionError: on purpose" in reason
    assert run(suite, uninterrupted[1]).cost["trials"]["run"] == finished.cost["trials"]["run"] > 0, "a crash is not stored"


def test_a_training_that_crashes_is_an_error_of_the_plugins_that_use_it(suite, tmp_path, in_this_process, use_plugins):
    def use_unknown_optimizer(pipeline, _):
        phases = tuple(replace(phase, optimizer="none such") for phase in pipeline.recipe.phases)
        return replace(pipeline, recipe=replace(pipeline.recipe, phases=phases))

    use_plugins(make_plugin("odd", cure=use_unknown_optimizer), make_plugin("even"))
    finished = run(replace(suite, rules=replace(suite.rules, looks=(2,))), tmp_path / "store.sqlite")
    assert verdicts_by_finding(finished)["odd/harm"] == "ERROR"
    assert verdicts_by_finding(finished)["even/harm"] != "ERROR"
    assert "none such" in next(finding.reason for finding in finished.findings if finding.plugin == "odd")


def deadly(context):
    """End the worker process as often as there are flags of the seed."""
    for flag in Path(os.environ["XFERBENCH_TEST_FLAGS"]).glob(f"{context.trial.spec.seed}-*"):
        flag.unlink()
        os._exit(9)
    return {"deadly": 1.0}


@pytest.fixture
def deadly_suite(suite, tmp_path, use_plugins, monkeypatch):
    """Return a suite with the measure that ends workers, and the folder of its flags."""
    flags = tmp_path / "flags"
    flags.mkdir()
    monkeypatch.setenv("XFERBENCH_TEST_FLAGS", str(flags))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    use_plugins(make_plugin("deadly", measures={"deadly": "test_resume:deadly@1"}))
    return replace(suite, rules=replace(suite.rules, looks=(2,))), flags


def test_the_group_of_a_worker_that_dies_once_is_computed_again(deadly_suite, tmp_path):
    changed, flags = deadly_suite
    (flags / "0-1").touch()
    finished = run(changed, tmp_path / "store.sqlite")
    assert not any(flags.iterdir())
    assert verdicts_by_finding(finished)["deadly/harm"] != "ERROR"
    assert not any(cell.record.error for cell in finished.cells)


def test_a_worker_that_dies_twice_is_an_error_of_its_group_and_the_next_run_completes(
    deadly_suite, uninterrupted, tmp_path, monkeypatch
):
    changed, flags = deadly_suite
    path = tmp_path / "store.sqlite"
    for name in ("0-1", "0-2"):
        (flags / name).touch()
    finished = run(changed, path)
    assert not any(flags.iterdir())
    assert verdicts_by_finding(finished) == {"deadly/harm": "ERROR"}
    assert "a worker process ended with exit status 9" in finished.findings[0].reason
    assert {cell.seed for cell in finished.cells if cell.record.error} == {0}, "the other seeds have records"
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    assert count_records(path) == finished.cost["trials"]["unique"] - 2, "its two views are missing"
    monkeypatch.setattr(local, "start_workers", _in_this_process)
    repeated = run(changed, path)
    assert verdicts_by_finding(repeated)["deadly/harm"] != "ERROR"
    assert repeated.cost["trials"]["run"] == 2
    (resumed,), (expected,) = (
        [finding for finding in result.findings if finding.id == name]
        for result, name in ((repeated, "deadly/harm"), (run(changed, uninterrupted[1]), "deadly/harm"))
    )
    assert resumed == expected


def test_a_full_disk_ends_the_run_and_keeps_the_records(suite, tmp_path, in_this_process, use_plugins, monkeypatch):
    use_plugins(make_plugin("even"))
    path, run_call, remaining = tmp_path / "store.sqlite", worker_process._run_call, [3]

    def full(function, arguments):
        if function.endswith(":run_trials"):
            remaining[0] -= 1
            if remaining[0] < 0:
                return False, OSError(28, "No space left on device")
        return run_call(function, arguments)

    monkeypatch.setattr(worker_process, "_run_call", full)
    with pytest.raises(UserError, match="No space left"):
        run(suite, path)
    monkeypatch.setattr(worker_process, "_run_call", run_call)
    stored, finished = count_records(path), run(suite, path)
    assert stored == finished.cost["trials"]["reused"] >= 2
    assert "ERROR" not in verdicts_by_finding(finished).values()


def test_an_interrupt_counts_the_results_that_are_kept(suite, tmp_path, in_this_process, use_plugins, monkeypatch):
    use_plugins(make_plugin("even"))
    path, run_call, remaining = tmp_path / "store.sqlite", worker_process._run_call, [3]

    def interrupt(function, arguments):
        if function.endswith(":run_trials"):
            remaining[0] -= 1
            if remaining[0] < 0:
                return False, KeyboardInterrupt()
        return run_call(function, arguments)

    monkeypatch.setattr(worker_process, "_run_call", interrupt)
    with pytest.raises(Interrupted) as first:
        run(suite, path)
    assert first.value.kept == count_records(path) >= 2
    with pytest.raises(Interrupted) as second:
        run(suite, path)
    assert second.value.kept == first.value.kept, "results of an earlier run count too"


def test_evicted_weights_are_trained_again_only_for_a_new_measure(suite, uninterrupted, tmp_path, in_this_process, use_plugins):
    finished, path = uninterrupted[0], tmp_path / "store.sqlite"
    shutil.copy(uninterrupted[1], path)  # without its cache
    assert run(suite, path).cost["fits"]["run"] == 0
    use_plugins(make_plugin("measured", measures={"drift": batchnorm_drift.plugin.measures["drift"].replace("@1", "@2")}))
    extended = run(suite, path)
    assert extended.cost["fits"]["run"] == len({cell.seed for cell in extended.cells})
    drift = {
        cell.seed: cell.record.scalars["drift"] for cell in finished.cells if (cell.arm, cell.view) == ("subject", "drift")
    }
    assert {cell.seed: cell.record.scalars["drift"] for cell in extended.cells if cell.view == "drift"} == drift
