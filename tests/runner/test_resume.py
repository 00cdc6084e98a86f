"""Runs that are killed, broken off, crashed into and begun again, on a very small study."""

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
from xferbench.core.errors import UserError
from xferbench.core.interventions import BATCHNORM_EVAL
from xferbench.core.pipeline import Phase
from xferbench.core.plugin import Plugin
from xferbench.core.run import run_to_json
from xferbench.plugins import batchnorm_drift
from xferbench.runner import discovery
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
    """An engine without processes; what it computes is the same, and a test has it at once."""

    def call(function, *arguments):
        future = Future()
        good, value = worker_process._run_call(function, arguments)
        (future.set_result if good else future.set_exception)(value)
        return future

    yield call


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(local, "start_workers", _in_this_process)


@pytest.fixture
def with_plugins(monkeypatch):
    """Puts plugins in the place of those that are installed."""
    return lambda *plugins: monkeypatch.setattr(discovery, "load_plugins", lambda *_: plugins)


def run(suite, path):
    return runner.run(suite, store=path, device="cpu", workers=1)


def told(finished):
    return run_to_json(finished)["findings"]


def verdicts(finished):
    return {finding.id: finding.verdict for finding in finished.findings}


def recorded(path):
    """How many records a store has; 0 where there is none yet."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as db:
            return db.execute("select count(*) from records").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def killed(suite, path, count):
    """Start a run in a process of its own and kill it as soon as it has written some records."""
    code = f"""
from pathlib import Path
from xferbench.config import loader
from xferbench.runner import execute
execute.execute(loader.load_suite(Path({suite.invocation.path!r})), path=Path({str(path)!r}), device="cpu", workers=1)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 120
    while recorded(path) < count and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9, "it was killed before it came to an end"
    return recorded(path)


def crash(*_):
    raise ZeroDivisionError("on purpose")


def nothing(*_):
    return ""


def make_plugin(name, **changes):
    """A plugin whose cure is BatchNorm in eval mode, and that has no induced arm."""
    defaults = {
        "applies": nothing,
        "cure": batchnorm_drift.cure,
        "induce": lambda *_: {},
        "question": "?",
        "doc": "",
        "remedy": "",
        "version": 1,
    }
    return Plugin(id=name, **defaults | changes)


@pytest.fixture(scope="module")
def whole(suite, tmp_path_factory):
    """The study in one go, and its store."""
    path = tmp_path_factory.mktemp("whole") / "store.sqlite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "start_workers", _in_this_process)
        torch.set_num_threads(1)
        return run(suite, path), path


def test_a_run_killed_again_and_again_finds_in_the_end_what_one_in_one_go_finds(suite, whole, tmp_path, here):
    path = tmp_path / "store.sqlite"
    first = killed(suite, path, 2)
    second = killed(suite, path, first + 9)
    finished = run(suite, path)
    assert 0 < first < second
    assert told(finished) == told(whole[0])
    assert finished.cost["trials"]["reused"] >= second
    again = run(suite, path)
    assert told(again) == told(finished)
    assert again.cost["fits"]["run"] == again.cost["trials"]["run"] == 0
    assert again.cost["seconds"]["total"] == pytest.approx(finished.cost["seconds"]["total"])


def test_every_number_of_a_run_is_one_that_was_computed(whole):
    finished, _ = whole
    assert set(verdicts(finished)) >= {"batchnorm-drift/harm/ghost-batch", "negative-transfer/harm/permuted"}
    assert "ERROR" not in verdicts(finished).values()
    assert all(not cell.record.error for cell in finished.cells)
    assert finished.cost["trials"]["run"] == finished.cost["trials"]["unique"]
    assert finished.cost["fits"]["run"] == finished.cost["fits"]["unique"]


def test_a_finished_run_needs_no_workers_and_no_weights(suite, whole, monkeypatch):
    finished, path = whole

    def never(_):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(local, "start_workers", never)
    assert told(run(suite, path)) == told(finished)


def test_a_run_has_sample_images_of_its_target(whole):
    (found,) = whole[0].samples
    assert (found.role, found.title) == ("target", "d.npz, the backbone's own preprocessing")
    assert found.arms == ("all arms",)
    assert found.images.shape == (6, 16, 16, 3)
    assert len(found.labels) == 6


def test_samples_that_cannot_be_made_are_a_note_and_the_verdicts_stay(suite, whole, tmp_path, monkeypatch):
    store = tmp_path / "store.sqlite"
    shutil.copy(whole[1], store)

    @contextlib.contextmanager
    def dying(_):
        broken = Future()
        broken.set_exception(local.WorkerDied("a worker process ended"))
        yield lambda *_: broken

    monkeypatch.setattr(local, "start_workers", dying)
    finished = run(suite, store)
    assert told(finished) == told(whole[0])
    assert finished.samples == ()
    assert [note for note in finished.notes if note.startswith("no sample images of target")]


def test_seeds_are_added_only_to_what_is_open(suite, tmp_path, here):
    # Nothing can be decided at this alpha, but a subject that is its own cure needs no deciding.
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
    told_ = {finding.id: (finding.verdict, finding.seeds) for finding in finished.findings}
    assert told_["batchnorm-drift/harm/ghost-batch"] == ("PASS", 2)
    assert told_["negative-transfer/harm/permuted"] == ("INCONCLUSIVE", 3)


def test_a_spent_budget_stops_at_the_same_look_again_and_a_larger_one_goes_on(suite, tmp_path, here, with_plugins):
    with_plugins(make_plugin("even"))
    path = tmp_path / "store.sqlite"
    poor = replace(suite, rules=replace(suite.rules, budget=1e-6, alpha=1e-9))
    first, again = run(poor, path), run(poor, path)
    assert {finding.seeds for finding in first.findings} == {2}
    assert any("budget" in note for note in first.notes)
    assert told(again) == told(first)
    assert again.cost["fits"]["run"] == 0
    richer = run(replace(poor, rules=replace(poor.rules, budget=1e6)), path)
    assert {finding.seeds for finding in richer.findings if finding.verdict == "INCONCLUSIVE"} == {3}
    assert richer.cost["trials"]["reused"] == first.cost["trials"]["unique"]


@pytest.mark.parametrize("function", ["applies", "cure", "induce"])
def test_a_plugin_that_crashes_is_an_error_and_the_others_go_on(function, suite, whole, here, with_plugins):
    with_plugins(make_plugin("broken", **{function: crash}), batchnorm_drift.plugin)
    finished = run(suite, whole[1])
    (broken,) = [finding for finding in finished.findings if finding.plugin == "broken"]
    assert broken.verdict == "ERROR"
    assert "ZeroDivisionError: on purpose" in broken.reason
    others = [one for one in told(finished) if one["plugin"] != "broken"]
    assert len(others) == 6
    assert all(one["verdict"] != "ERROR" for one in others)


def broken_measure(seen):
    return crash()


def test_a_measure_that_crashes_is_an_error_of_its_plugin_alone_and_is_asked_again(suite, whole, here, with_plugins):
    measured = make_plugin("measured", measures={"broken": f"{__name__}:broken_measure@1"})
    with_plugins(measured, batchnorm_drift.plugin)
    finished = run(suite, whole[1])
    found = verdicts(finished)
    assert found["measured/harm"] == "ERROR"
    assert {verdict for name, verdict in found.items() if name.startswith("batchnorm-drift")} <= {
        "PASS",
        "FAIL",
        "INCONCLUSIVE",
        "INFO",
    }
    (reason,) = {finding.reason for finding in finished.findings if finding.plugin == "measured"}
    assert "ZeroDivisionError: on purpose" in reason
    assert run(suite, whole[1]).cost["trials"]["run"] == finished.cost["trials"]["run"] > 0, "a crash is no answer"


def test_a_fit_that_crashes_is_an_error_of_the_plugins_that_ask_for_it(suite, tmp_path, here, with_plugins):
    def odd(pipeline, _):
        phases = tuple(replace(phase, optimizer="none such") for phase in pipeline.recipe.phases)
        return replace(pipeline, recipe=replace(pipeline.recipe, phases=phases))

    with_plugins(make_plugin("odd", cure=odd), make_plugin("even"))
    finished = run(replace(suite, rules=replace(suite.rules, looks=(2,))), tmp_path / "store.sqlite")
    assert verdicts(finished)["odd/harm"] == "ERROR"
    assert verdicts(finished)["even/harm"] != "ERROR"
    assert "none such" in next(finding.reason for finding in finished.findings if finding.plugin == "odd")


def deadly(seen):
    """End the worker, once."""
    flag = Path(os.environ["XFERBENCH_TEST_FLAG"])
    if flag.exists():
        flag.unlink()
        os._exit(9)
    return {"deadly": 1.0}


def test_a_worker_that_dies_is_an_error_of_its_group_and_the_next_run_completes(
    suite, whole, tmp_path, with_plugins, monkeypatch
):
    flag, path = tmp_path / "flag", tmp_path / "store.sqlite"
    flag.touch()
    monkeypatch.setenv("XFERBENCH_TEST_FLAG", str(flag))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    changed = replace(suite, rules=replace(suite.rules, looks=(2,)))
    with_plugins(make_plugin("deadly", measures={"deadly": "test_resume:deadly@1"}))
    finished = run(changed, path)
    assert not flag.exists()
    assert verdicts(finished) == {"deadly/harm": "ERROR"}
    assert "a worker process ended with exit status 9" in finished.findings[0].reason
    assert {cell.seed for cell in finished.cells if cell.record.error} == {0}, "the other seeds are answered"
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    assert recorded(path) == finished.cost["trials"]["unique"] - 2, "its two views are to be asked again"
    monkeypatch.setattr(local, "start_workers", _in_this_process)
    again = run(changed, path)
    assert verdicts(again)["deadly/harm"] != "ERROR"
    assert again.cost["trials"]["run"] == 2
    (mine,), (usual,) = (
        [finding for finding in one.findings if finding.id == name]
        for one, name in ((again, "deadly/harm"), (run(changed, whole[1]), "deadly/harm"))
    )
    assert mine == usual


def test_a_full_disk_ends_the_run_and_what_was_recorded_is_kept(suite, tmp_path, here, with_plugins, monkeypatch):
    with_plugins(make_plugin("even"))
    path, real, left = tmp_path / "store.sqlite", worker_process._run_call, [3]

    def full(function, arguments):
        if function.endswith(":run_trials"):
            left[0] -= 1
            if left[0] < 0:
                return False, OSError(28, "No space left on device")
        return real(function, arguments)

    monkeypatch.setattr(worker_process, "_run_call", full)
    with pytest.raises(UserError, match="No space left"):
        run(suite, path)
    monkeypatch.setattr(worker_process, "_run_call", real)
    stored, finished = recorded(path), run(suite, path)
    assert stored == finished.cost["trials"]["reused"] >= 2
    assert "ERROR" not in verdicts(finished).values()


def test_weights_that_were_evicted_are_made_again_only_where_a_new_question_needs_them(
    suite, whole, tmp_path, here, with_plugins
):
    finished, path = whole[0], tmp_path / "store.sqlite"
    shutil.copy(whole[1], path)  # without the cache beside it
    assert run(suite, path).cost["fits"]["run"] == 0
    with_plugins(make_plugin("measured", measures={"drift": batchnorm_drift.plugin.measures["drift"].replace("@1", "@2")}))
    more = run(suite, path)
    assert more.cost["fits"]["run"] == len({cell.seed for cell in more.cells})
    drift = {
        cell.seed: cell.record.scalars["drift"] for cell in finished.cells if (cell.arm, cell.view) == ("subject", "drift")
    }
    assert {cell.seed: cell.record.scalars["drift"] for cell in more.cells if cell.view == "drift"} == drift
