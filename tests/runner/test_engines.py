"""The executors of a user compute what the workers of xferbench compute."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial

import pytest

torch = pytest.importorskip("torch")

import test_resume
from test_resume import findings_json

from xferbench.core.errors import UserError
from xferbench.runner import run as runner
from xferbench.runner.engines import choice, named_call

suite, uninterrupted, one_thread = test_resume.suite, test_resume.uninterrupted, test_resume.one_thread
POOLS = {
    "threads": partial(ThreadPoolExecutor, 3),
    "processes": partial(ProcessPoolExecutor, 2, multiprocessing.get_context("spawn")),
}


def run(suite, path, engine):
    return runner.run(suite, store=path, device="cpu", workers=1, engine=engine)


@pytest.mark.parametrize("name", POOLS)
def test_an_executor_gives_the_findings_of_the_local_engine(name, suite, uninterrupted, tmp_path):
    with POOLS[name]() as pool:
        finished = run(suite, tmp_path / "store.sqlite", pool)
        assert findings_json(finished) == findings_json(uninterrupted[0])
        assert pool.submit(os.getpid).result(), "the executor of the caller stays open"


class NodeDied(Exception):  # noqa: N818 - stands for an exception of the library of a cluster
    pass


class Lossy(ThreadPoolExecutor):
    """A thread that loses the answer to each group as often as ``losses`` says."""

    def __init__(self, losses, failure=NodeDied):
        super().__init__(1)
        self.losses, self.failure, self.submitted = losses, failure, Counter()

    def submit(self, function, /, name, *arguments):
        self.submitted[repr(arguments)] += 1
        if name.endswith("run_trials") and self.submitted[repr(arguments)] <= self.losses:
            future = Future()
            future.set_exception(self.failure("node 7"))
            return future
        return super().submit(function, name, *arguments)


@pytest.mark.parametrize("failure", [NodeDied, ConnectionResetError])
def test_a_group_that_was_lost_once_is_computed_again(failure, suite, uninterrupted, tmp_path):
    with Lossy(1, failure) as pool:
        assert findings_json(run(suite, tmp_path / "store.sqlite", pool)) == findings_json(uninterrupted[0])


def test_a_group_that_was_lost_twice_is_an_error(suite, tmp_path):
    with Lossy(2) as pool:
        finished = run(suite, tmp_path / "store.sqlite", pool)
    assert {finding.verdict for finding in finished.findings} == {"ERROR"}
    assert "NodeDied: node 7" in finished.findings[0].reason


def test_the_factory_of_an_engine_is_called_and_its_executor_is_shut_down(suite, uninterrupted, tmp_path, monkeypatch):
    (tmp_path / "my_cluster.py").write_text(
        "from concurrent.futures import ThreadPoolExecutor\n\npools = []\n\n"
        "def connect():\n    pools.append(ThreadPoolExecutor(1))\n    return pools[-1]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    finished = run(suite, tmp_path / "store.sqlite", "python:my_cluster:connect")
    assert findings_json(finished) == findings_json(uninterrupted[0])
    import my_cluster

    with pytest.raises(RuntimeError, match="shutdown"):
        my_cluster.pools[0].submit(os.getpid)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("loca", "local, or python:module:factory"),
        ("python:os:getpid", "a int"),
        ("python:no_such_module:f", "ModuleNotFoundError"),
        ("python:os:no_such", "AttributeError"),
    ],
)
def test_what_is_no_engine_is_refused(engine, message):
    with pytest.raises(UserError, match="--engine") as error, choice.open_engine(engine, 1):
        pass
    assert message in str(error.value)


class Remembering(ThreadPoolExecutor):
    """A thread that remembers its futures."""

    def submit(self, function, /, *arguments):
        self.futures = [*getattr(self, "futures", ()), super().submit(function, *arguments)]
        return self.futures[-1]


def test_an_interrupt_cancels_the_groups_that_wait_in_the_executor_of_the_caller(suite, tmp_path):
    def interrupt(progress):
        if progress.total > 1:
            raise KeyboardInterrupt

    with Remembering(1) as pool:
        with pytest.raises(KeyboardInterrupt):
            runner.run(suite, store=tmp_path / "store.sqlite", device="cpu", engine=pool, on_progress=interrupt)
        assert sum(future.cancelled() for future in pool.futures) > 0


class Broken(Executor):
    def submit(self, function, /, *arguments):
        raise BrokenProcessPool("a process died")


def test_a_broken_executor_ends_the_run_with_advice(suite, uninterrupted, tmp_path):
    changed = replace(suite, rules=replace(suite.rules, seed=5))  # other seeds, so that something is missing
    with pytest.raises(UserError, match="the engine accepts no more work") as error:
        run(changed, uninterrupted[1], Broken())
    assert "repeat the command" in error.value.do


def test_an_exception_of_a_call_crosses_processes_as_text():
    with pytest.raises(named_call.CallError, match="ValueError"):
        named_call.call_by_name("math:sqrt", -1.0)
    with pytest.raises(UserError, match="unknown kind"):
        named_call.call_by_name("xferbench.data.inputs:split_spec", "cloud:x")
