"""pytest: one test for each question of a suite, and the finished run as a fixture.

::

    pytest --xferbench suites/gate.toml --xferbench-baseline suites/gate.accepted.json

    def test_pretraining_is_kept(xferbench_run):
        assert all(one.benefit_retained > 0.8 for one in xferbench_run.findings if one.benefit_retained is not None)

The suite is read at the start, and carried out once, when the first test asks for it. pytest loads this in every session of an
environment that has xferbench, so that all but pytest itself is imported only where a suite is named.
"""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from typing import Any

    from xferbench.design import Suite
    from xferbench.record import Run

NAME = "xferbench"  # of the option, the marker, and the group that pytest-xdist keeps on one worker
FILES = ("baseline", "candidate", "store", "output")
A_DAY = 86_400.0  # seconds that a worker waits for another one's run


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a session was told: the suite, its file as pytest names it, its tests with the id of each one's plugin."""

    word: str
    suite: Suite
    file: Path
    tests: Mapping[str, str]
    baseline: Path | None
    candidate: Path | None
    store: Path | None
    output: Path | None
    fail_on: str


ASKED = pytest.StashKey[Asked]()
RUN = pytest.StashKey["Run | str"]()  # the finished run, or what ended it


class Failed(Exception):  # noqa: N818 - the verdict of a test, and no error of this program
    """A test's failure, told in its own words and without a traceback."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of a group of their own."""
    group = parser.getgroup(NAME, "failures of transfer learning, by experiment (xferbench)")
    group.addoption(
        "--xferbench", metavar="SUITE", help="a suite file or a shipped suite's name: one test for each question of it"
    )
    words = {
        "baseline": "an accepted run (xferbench gate --accept FILE, or results.json): only what is worse than that fails",
        "candidate": "results.json of a run made elsewhere, which is judged in the place of a run of its own (no torch)",
        "store": "file of records (default: in the user's cache directory)",
        "output": "folder of the report (default: none is written)",
    }
    for name, text in words.items():
        group.addoption(f"--xferbench-{name}", metavar="DIR" if name == "output" else "FILE", help=text)
    choices = ("fail", "inconclusive")
    group.addoption("--xferbench-fail-on", choices=choices, default="fail", help="inconclusive: what is left open fails too")
    group.addoption(
        "--xferbench-allow-code", action="store_true", help="let the suite run code of its own (python:module:callable)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the suite, so that a bad one ends the session before anything is collected."""
    config.addinivalue_line("markers", f"{NAME}: a question of the suite that --xferbench names")
    word = config.getoption("--xferbench")
    if word is None:
        alone = [f"--xferbench-{name}" for name in FILES if config.getoption(f"--xferbench-{name}")]
        if alone:
            raise pytest.UsageError(f"{alone[0]}: no suite is named; add --xferbench SUITE")
        return
    from xferbench.problem import Problem

    try:
        asked = config.stash[ASKED] = _asked(config, word)
    except Problem as problem:
        raise pytest.UsageError(f"--xferbench {word}: {problem}") from None
    heads = [argument.partition("::") for argument in config.args]
    config.args = [str(asked.file) + "".join(rest) if head == asked.word else "".join((head, *rest)) for head, *rest in heads]
    if not any(_path(config, argument.partition("::")[0]) == asked.file for argument in config.args):
        config.args.append(str(asked.file))


def _path(config: pytest.Config, word: str) -> Path:
    """A path of the command line, whole but with its links, as pytest has them."""
    return Path(os.path.abspath(config.invocation_params.dir / Path(word).expanduser()))  # noqa: PTH100 - resolve follows links


def _asked(config: pytest.Config, word: str) -> Asked:
    """The suite with its tests; nothing is run, and torch is not needed."""
    from dataclasses import replace

    from xferbench import discover, suite
    from xferbench.problem import Problem
    from xferbench.report import tested

    file = _path(config, str(suite.find(word)))
    asked = replace(suite.load(file), allow_code=config.getoption("--xferbench-allow-code"))
    given = {name: config.getoption(f"--xferbench-{name}") for name in FILES}
    paths = {name: _path(config, one) if one else None for name, one in given.items()}
    for name in ("baseline", "candidate"):
        if (one := paths[name]) is not None and not one.exists():
            raise Problem(
                f"--xferbench-{name} {given[name]}", found="no such file", expected="the results.json of a finished run"
            )
    return Asked(
        word=word.replace(os.sep, "/"),
        suite=asked,
        file=file,
        tests=tested.names(discover.of(asked), compared_too=paths["baseline"] is not None),
        fail_on=config.getoption("--xferbench-fail-on"),
        **paths,
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    """What is asked, in a line."""
    if ASKED not in config.stash:
        return None
    asked = config.stash[ASKED]
    against = f", held against {asked.baseline.name}" if asked.baseline else ""
    return f"xferbench: suite {asked.suite.name}, {asked.suite.metric}, margin {asked.suite.margin:g}{against}"


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Questions | None:
    """The suite's file, and no other."""
    asked = parent.config.stash.get(ASKED, None)
    if asked is None or file_path != asked.file:
        return None
    inside = file_path.is_relative_to(parent.config.rootpath)  # what lies elsewhere would be called ..::
    return Questions.from_parent(parent, path=file_path, nodeid=None if inside else asked.word)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let one worker have all that needs the run, under ``--dist loadgroup`` of pytest-xdist."""
    needed = isinstance(item, Question) or "xferbench_run" in getattr(item, "fixturenames", ())
    if needed and item.config.pluginmanager.hasplugin("xdist"):
        item.add_marker(pytest.mark.xdist_group(NAME))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip is told with the suite's file, not with the place in this module that said it."""
    report = yield
    if isinstance(item, Question) and report.skipped and isinstance(report.longrepr, tuple):
        report.longrepr = (str(item.path), 1, report.longrepr[2])
    return report


class Questions(pytest.File):
    """A suite's file; its tests are known without running anything."""

    def collect(self) -> Iterator[Question]:
        """One test for each contrast that is judged, and one for the subject where there is an accepted run."""
        for name, plugin in self.config.stash[ASKED].tests.items():
            yield Question.from_parent(self, name=name, plugin=plugin)


class Question(pytest.Item):
    """One contrast of one plugin."""

    def __init__(self, *, plugin: str, **more: Any) -> None:
        super().__init__(**more)
        self.plugin = plugin
        self.add_marker(NAME)

    def setup(self) -> None:
        """Carry the suite out, if no test has yet: what ends it is an error here and no failure."""
        carried_out(self.config)

    def runtest(self) -> None:
        """Turn the verdict into the test's."""
        from xferbench.report import tested

        asked = self.config.stash[ASKED]
        found = tested.told(carried_out(self.config), self.name, self.plugin, fail_on=asked.fail_on)
        self.user_properties += found.figures.items()
        if found.state == tested.FAILED:
            raise Failed(f"{found.said}\n{found.more}".rstrip())
        if found.state == tested.SKIPPED:
            pytest.skip(f"{self.name}: {found.said}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """A verdict in its own words; anything else as pytest shows it."""
        return str(excinfo.value) if isinstance(excinfo.value, Failed) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """File and name."""
        return self.path, None, self.name


@pytest.fixture(scope="session")
def xferbench_run(request: pytest.FixtureRequest) -> Run:
    """The finished run (:class:`xferbench.Run`) of the suite that ``--xferbench`` names; skips where it names none."""
    if ASKED not in request.config.stash:
        pytest.skip("xferbench_run: no suite is named; run pytest with --xferbench SUITE")
    return carried_out(request.config)


def carried_out(config: pytest.Config) -> Run:
    """The run of a session, carried out when it is first asked for; what ended it is told in full that one time."""
    if RUN in config.stash:
        found, start = config.stash[RUN], "the run did not end: "
    else:
        found, start = _carried_out(config), ""
        config.stash[RUN] = found
    if isinstance(found, str):
        pytest.fail(start + (found.partition("\n")[0] if start else found), pytrace=False)
    return found


def _carried_out(config: pytest.Config) -> Run | str:
    from xferbench.problem import Problem

    asked = config.stash[ASKED]
    try:
        return _run(config, asked)
    except Problem as problem:
        return str(problem)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - told as an error of each test, never as a pass
        last = (str(error).strip().splitlines() or [""])[-1]
        do = f"`xferbench run {asked.file} --debug` shows the whole traceback; what was finished is kept"
        return str(Problem(f"crashed: {type(error).__name__}: {last}", do=do))


def _run(config: pytest.Config, asked: Asked) -> Run:
    from xferbench.problem import Problem
    from xferbench.runner import gate
    from xferbench.runner import run as runner

    if asked.suite.matrix is not None:
        do = "carry it out by xferbench.run"
        raise Problem(f"{asked.suite.path}: [matrix]", found="a suite of many tasks", expected="a suite of one task", do=do)
    how: dict[str, Any] = {"output": asked.output, "store": asked.store}
    with _alone(config, asked):
        if asked.baseline is None and asked.candidate is None:
            return runner.run(asked.suite, **how)
        return gate.gate(asked.suite, baseline=asked.baseline, candidate=asked.candidate, **how)


@contextmanager
def _alone(config: pytest.Config, asked: Asked) -> Iterator[None]:
    """Let the workers of pytest-xdist take turns: what the first has computed, the others find in the store.

    The lock is SQLite's, which the system lets go of when a worker dies.
    """
    if not hasattr(config, "workerinput"):
        yield
        return
    import sqlite3

    from xferbench import execute

    store = execute.with_store(asked.store)
    store.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(store.with_name(f"{store.name}.lock"), timeout=A_DAY)) as turn:
        turn.execute("BEGIN EXCLUSIVE")
        yield
