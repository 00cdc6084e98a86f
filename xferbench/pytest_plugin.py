"""pytest plugin: one test for each contrast of a suite, and the finished run as a fixture.

::

    pytest --xferbench suites/gate.toml --xferbench-baseline suites/gate.accepted.json

    def test_pretraining_is_kept(xferbench_run):
        retained = [finding.benefit_retained for finding in xferbench_run.findings]
        assert all(share > 0.8 for share in retained if share is not None)

The suite is read at the start and runs once, when the first test needs it. pytest loads this module in every session of an
environment with xferbench. Everything except pytest itself is therefore imported only if a suite is named.
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

    from xferbench.core.run import Run
    from xferbench.core.suite import Suite

PLUGIN_NAME = "xferbench"  # of the option, the marker, and the group that pytest-xdist runs on one worker
FILE_OPTIONS = ("baseline", "candidate", "store", "output")
TURN_TIMEOUT_SECONDS = 86_400.0  # a worker waits this long for another worker's run


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a session: the suite, its file as pytest names it, and the plugin of each test."""

    option: str
    suite: Suite
    file: Path
    tests: Mapping[str, str]
    baseline: Path | None
    candidate: Path | None
    store: Path | None
    output: Path | None
    fail_on: str


SETTINGS_KEY = pytest.StashKey[Settings]()
RUN_KEY = pytest.StashKey["Run | str"]()  # the finished run, or the message of its failure


class VerdictFailure(Exception):  # noqa: N818 - the verdict of a test, not an error of the program
    """A failed test, shown with its own message and without a traceback."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this plugin."""
    group = parser.getgroup(PLUGIN_NAME, "failures of transfer learning, by experiment (xferbench)")
    group.addoption(
        "--xferbench",
        metavar="SUITE",
        help="a suite file or the name of a shipped suite; there is one test for each of its contrasts",
    )
    help_texts = {
        "baseline": "an accepted run (xferbench gate --accept FILE, or results.json); only worse results fail",
        "candidate": "results.json of a run from another machine, judged instead of a new run (needs no torch)",
        "store": "store of trial records (default: in the user's cache folder)",
        "output": "folder for the report (default: no report)",
    }
    for name, text in help_texts.items():
        group.addoption(f"--xferbench-{name}", metavar="DIR" if name == "output" else "FILE", help=text)
    choices = ("fail", "inconclusive")
    group.addoption("--xferbench-fail-on", choices=choices, default="fail", help="inconclusive: undecided results fail too")
    group.addoption(
        "--xferbench-allow-code", action="store_true", help="allow the suite to run user code (python:module:callable)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the suite, so that an invalid one ends the session before collection."""
    config.addinivalue_line("markers", f"{PLUGIN_NAME}: a contrast of the suite that --xferbench names")
    option = config.getoption("--xferbench")
    if option is None:
        options = [f"--xferbench-{name}" for name in FILE_OPTIONS if config.getoption(f"--xferbench-{name}")]
        if options:
            raise pytest.UsageError(f"{options[0]}: no suite is named; add --xferbench SUITE")
        return
    from xferbench.core.errors import UserError

    try:
        settings = config.stash[SETTINGS_KEY] = _read_settings(config, option)
    except UserError as error:
        raise pytest.UsageError(f"--xferbench {option}: {error}") from None
    arguments = [argument.partition("::") for argument in config.args]
    config.args = [
        (str(settings.file) if path == settings.option else path) + separator + test for path, separator, test in arguments
    ]
    if not any(_absolute_path(config, argument.partition("::")[0]) == settings.file for argument in config.args):
        config.args.append(str(settings.file))


def _absolute_path(config: pytest.Config, path: str) -> Path:
    """Return an absolute path of the command line with its symbolic links, as pytest has them."""
    return Path(os.path.abspath(config.invocation_params.dir / Path(path).expanduser()))  # noqa: PTH100 - resolve follows links


def _read_settings(config: pytest.Config, option: str) -> Settings:
    """Return the settings with the suite's tests; nothing is run, and torch is not needed."""
    from xferbench.config import loader
    from xferbench.core.errors import UserError
    from xferbench.core.suite import replace_invocation
    from xferbench.report import test_results
    from xferbench.runner import discovery

    file = _absolute_path(config, str(loader.find_suite(option)))
    loaded = replace_invocation(loader.load_suite(file), allow_code=config.getoption("--xferbench-allow-code"))
    options = {name: config.getoption(f"--xferbench-{name}") for name in FILE_OPTIONS}
    paths = {name: _absolute_path(config, option) if option else None for name, option in options.items()}
    for name in ("baseline", "candidate"):
        if (path := paths[name]) is not None and not path.exists():
            raise UserError(
                f"--xferbench-{name} {options[name]}", found="no such file", expected="the results.json of a finished run"
            )
    return Settings(
        option=option.replace(os.sep, "/"),
        suite=loaded,
        file=file,
        tests=test_results.test_names(discovery.suite_plugins(loaded), has_baseline=paths["baseline"] is not None),
        fail_on=config.getoption("--xferbench-fail-on"),
        **paths,
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    """Return one line about the suite."""
    if SETTINGS_KEY not in config.stash:
        return None
    settings = config.stash[SETTINGS_KEY]
    baseline = f", compared with {settings.baseline.name}" if settings.baseline else ""
    rules = settings.suite.rules
    return f"xferbench: suite {settings.suite.name}, {rules.metric}, margin {rules.margin:g}{baseline}"


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> SuiteFile | None:
    """Collect the suite's file and no other."""
    settings = parent.config.stash.get(SETTINGS_KEY, None)
    if settings is None or file_path != settings.file:
        return None
    inside = file_path.is_relative_to(parent.config.rootpath)  # a file elsewhere would be called ..::
    return SuiteFile.from_parent(parent, path=file_path, nodeid=None if inside else settings.option)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Put all tests that need the run on one worker, under ``--dist loadgroup`` of pytest-xdist."""
    needs_run = isinstance(item, ContrastTest) or "xferbench_run" in getattr(item, "fixturenames", ())
    if needs_run and item.config.pluginmanager.hasplugin("xdist"):
        item.add_marker(pytest.mark.xdist_group(PLUGIN_NAME))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a skip at the suite's file instead of a line of this module."""
    report = yield
    if isinstance(item, ContrastTest) and report.skipped and isinstance(report.longrepr, tuple):
        report.longrepr = (str(item.path), 1, report.longrepr[2])
    return report


class SuiteFile(pytest.File):
    """A suite's file; its tests are known without running anything."""

    def collect(self) -> Iterator[ContrastTest]:
        """Yield one test for each judged contrast, and one for the subject if there is an accepted run."""
        for name, plugin in self.config.stash[SETTINGS_KEY].tests.items():
            yield ContrastTest.from_parent(self, name=name, plugin=plugin)


class ContrastTest(pytest.Item):
    """One contrast of one plugin."""

    def __init__(self, *, plugin: str, **options: Any) -> None:
        super().__init__(**options)
        self.plugin = plugin
        self.add_marker(PLUGIN_NAME)

    def setup(self) -> None:
        """Run the suite if no test has done so; an exception here is an error, not a failure."""
        session_run(self.config)

    def runtest(self) -> None:
        """Turn the verdict into the result of the test."""
        from xferbench.report import test_results

        settings = self.config.stash[SETTINGS_KEY]
        outcome = test_results.test_outcome(session_run(self.config), self.name, self.plugin, fail_on=settings.fail_on)
        self.user_properties += outcome.properties.items()
        if outcome.state == test_results.FAILED:
            raise VerdictFailure(f"{outcome.message}\n{outcome.details}".rstrip())
        if outcome.state == test_results.SKIPPED:
            pytest.skip(f"{self.name}: {outcome.message}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the message of a verdict, or pytest's text for any other exception."""
        return str(excinfo.value) if isinstance(excinfo.value, VerdictFailure) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Return file, line and name."""
        return self.path, None, self.name


@pytest.fixture(scope="session")
def xferbench_run(request: pytest.FixtureRequest) -> Run:
    """The finished run (:class:`xferbench.Run`) of the suite that ``--xferbench`` names; the test is skipped without one."""
    if SETTINGS_KEY not in request.config.stash:
        pytest.skip("xferbench_run: no suite is named; run pytest with --xferbench SUITE")
    return session_run(request.config)


def session_run(config: pytest.Config) -> Run:
    """Return the run of a session, which starts at the first call; a failure is shown in full at the first call only."""
    if RUN_KEY in config.stash:
        result, prefix = config.stash[RUN_KEY], "the run did not finish: "
    else:
        result, prefix = _run_or_message(config), ""
        config.stash[RUN_KEY] = result
    if isinstance(result, str):
        pytest.fail(prefix + (result.partition("\n")[0] if prefix else result), pytrace=False)
    return result


def _run_or_message(config: pytest.Config) -> Run | str:
    from xferbench.core.errors import UserError

    settings = config.stash[SETTINGS_KEY]
    try:
        return _run(config, settings)
    except UserError as error:
        return str(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - reported as an error of each test, never as a pass
        last_line = (str(error).strip().splitlines() or [""])[-1]
        do = f"`xferbench run {settings.file} --debug` shows the full traceback; finished trials are kept"
        return str(UserError(f"crashed: {type(error).__name__}: {last_line}", do=do))


def _run(config: pytest.Config, settings: Settings) -> Run:
    from xferbench.core.errors import UserError
    from xferbench.runner import gate
    from xferbench.runner import run as runner

    if settings.suite.matrix is not None:
        do = "run it with xferbench.run"
        raise UserError(
            f"{settings.suite.invocation.path}: [matrix]", found="a suite of many tasks", expected="a suite of one task", do=do
        )
    paths: dict[str, Any] = {"output": settings.output, "store": settings.store}
    with _exclusive(config, settings):
        if settings.baseline is None and settings.candidate is None:
            return runner.run(settings.suite, **paths)
        return gate.run_gate(settings.suite, baseline=settings.baseline, candidate=settings.candidate, **paths)


@contextmanager
def _exclusive(config: pytest.Config, settings: Settings) -> Iterator[None]:
    """Let the workers of pytest-xdist take turns; the later ones find the first one's results in the store.

    SQLite holds the lock; the operating system releases it when a worker dies.
    """
    if not hasattr(config, "workerinput"):
        yield
        return
    import sqlite3

    from xferbench.runner import execute

    store = execute.store_path(settings.store)
    store.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(store.with_name(f"{store.name}.lock"), timeout=TURN_TIMEOUT_SECONDS)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        yield
