"""Run a study: find the missing trials, compute them in workers, store the records, and repeat. Writes to the store.

This is the only loop with side effects.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from xferbench.core.errors import Interrupted, UserError
from xferbench.core.progress import Progress
from xferbench.core.reason import Code, because
from xferbench.core.record import Record
from xferbench.core.trial import ComputeContext, Trial
from xferbench.core.version import LAB_VERSION
from xferbench.report.messages import write_sentence
from xferbench.runner import discovery, duplicate_files, sample_images, store
from xferbench.runner.engines import choice, local
from xferbench.runner.engines.named_call import CallError
from xferbench.runner.environment import torch_version
from xferbench.runner.profile import adapt_search, profile_pipeline
from xferbench.study import batching, followup, schedule
from xferbench.study.affordable import afford
from xferbench.study.cost import training_cost
from xferbench.study.forecast import Forecast, decision_power, forecast_study
from xferbench.study.study import Study, subject_arm

if TYPE_CHECKING:
    import sqlite3
    from concurrent.futures import Executor

    from xferbench.core.plugin import Plugin, Profile
    from xferbench.core.run import Duplicate, SampleImages
    from xferbench.core.suite import Suite

LOCKSTEP_FITS = {"cuda": 32}  # fits of a group by device; on a CPU a group is no faster than its members, so groups have 1 fit
ACCELERATOR_DEVICES = ("/dev/nvidia0", "/dev/dxg", "/dev/kfd")  # without any of these, a Linux machine has no accelerator
LEAST_CHANCE = 0.2  # of a PASS without harm, or of a FAIL at twice the margin; below it, a run warns before it trains
Call = Callable[..., "Future[Any]"]
Submit = Callable[[tuple[Trial, ...], frozenset[str]], "Future[Any]"]  # a group of trials, and the keys to compute


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """A completed study and its cost.

    Attributes:
        study: the study.
        step: its last step, which needs no more records.
        records: records by the key of their trial.
        trials_run: trials that this run computed.
        fits_run: networks that this run trained.
        workers: number of worker processes.
        seconds: wall time.
        samples: sample images of the datasets.
        duplicates: the test examples with a copy, if ``data-leakage`` was tested.
        notes: sentences about missing sample images.
        followup: the failures of a finished network that remain after the largest one is cured.
    """

    study: Study
    step: schedule.Schedule
    records: Mapping[str, Record]
    trials_run: int
    fits_run: int
    workers: int
    seconds: float
    samples: tuple[SampleImages, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()
    notes: tuple[str, ...] = ()
    followup: followup.Followup | None = None


@dataclass(slots=True)
class WorkCounter:
    """The work of this run: the keys of the trials that it computed, and the number of networks that it trained."""

    trials: set[str] = field(default_factory=set)
    fits: int = 0


def execute(
    suite: Suite,
    *,
    path: Path,
    device: str = "auto",
    workers: int | None = None,
    engine: str | Executor = choice.LOCAL,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> StudyResult:
    """Run a suite of one task; trials that the store at ``path`` contains are not computed again.

    Args:
        suite: a suite without a matrix.
        path: the file of the store.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        workers: number of worker processes; None means :func:`default_workers`.
        engine: where the work is computed, as in :func:`xferbench.runner.engines.choice.open_engine`.
        on_progress: called with the progress.

    Raises:
        UserError: if the input cannot be used, if the store cannot be written, or if the disk is full.
    """
    start, workers = monotonic(), workers or default_workers(device)
    records: dict[str, Record] = {}
    counter, cache = WorkCounter(), store.cache_folder(path)
    with open_study(suite, path, device, workers, on_progress, engine) as (study, db, call):
        submit = partial(submit_group, call, cache)
        step = run_to_completion(study, records, db, submit, counter, on_progress)
        remaining = None
        if planned := followup.followup_study(study, step, records):
            plugin, followup_study = planned
            followup_step = run_to_completion(followup_study, records, db, submit, counter, on_progress)
            remaining = followup.Followup(by=plugin, study=followup_study, step=followup_step)
        samples, notes = sample_images.collect_sample_images(study, step, call, cache)
        duplicates = duplicate_files.list_duplicates(step, records, cache)
        store.trim_cache(cache)
    return StudyResult(
        study=study,
        step=step,
        records=records,
        trials_run=len(counter.trials),
        fits_run=counter.fits,
        workers=workers,
        seconds=monotonic() - start,
        samples=samples,
        duplicates=duplicates,
        notes=notes,
        followup=remaining,
    )


@contextmanager
def open_study(
    suite: Suite,
    path: Path,
    device: str,
    workers: int | None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    engine: str | Executor = choice.LOCAL,
) -> Iterator[tuple[Study, sqlite3.Connection, Callable[[], Call]]]:
    """Yield the study of a suite, its open store, and a function that starts the engine when it is first called.

    The data and the backbone are profiled if the store does not contain their profile.

    Raises:
        UserError: if the input cannot be used, or if torch is not installed.
    """
    plugins = discovery.suite_plugins(suite)
    torch = torch_version()
    with store.open_store(path) as db, _lazy_engine(engine, workers or default_workers(device)) as call:
        on_progress(Progress(stage="reading the data and the backbone", done=0, running=1, total=1, reused=0, left=None))
        context = ComputeContext(device=_resolve_device(device, call), torch=torch, lab=LAB_VERSION)
        pipeline, profile = profile_pipeline(suite, db, store.cache_folder(path), call, context.device)
        warn_of_low_power(suite, profile, plugins, on_progress)
        subject = subject_arm(suite, pipeline)
        study = Study(
            suite=adapt_search(suite, profile.preprocessing), profile=profile, plugins=plugins, subject=subject, context=context
        )
        yield afford(study), db, call


def warn_of_low_power(
    suite: Suite, profile: Profile, plugins: Sequence[Plugin], on_progress: Callable[[Progress], None]
) -> None:
    """Report, before anything is trained, that the test set can decide hardly anything."""
    power = decision_power(suite, profile.data.test_groups or profile.data.test, plugins)
    if power is not None and max(power.pass_chance, power.fail_chance) < LEAST_CHANCE:
        sentence = write_sentence(because(Code.DECIDES_LITTLE, power=power))
        on_progress(Progress(stage=sentence, done=0, running=1, total=1, reused=0, left=None))


def run_to_completion(
    study: Study,
    records: dict[str, Record],
    db: sqlite3.Connection,
    submit: Submit,
    counter: WorkCounter,
    on_progress: Callable[[Progress], None],
    is_mine: Callable[[tuple[Trial, ...]], bool] = lambda _: True,
) -> schedule.Schedule:
    """Read or compute the trials of a study, step by step, until it needs no more, and return the last step.

    If ``is_mine`` excludes groups, the last step may need records that other machines compute.

    Args:
        study: the study.
        records: records by key; new ones are added.
        db: the open store.
        submit: starts the computation of a group.
        counter: counts what is computed.
        on_progress: called with the progress.
        is_mine: returns whether this machine computes a group.

    Raises:
        Interrupted: if the user interrupts it; the store keeps what was finished.
    """
    try:
        while True:
            step = schedule.next_schedule(study, records)
            missing = [key for key in step.pending if key not in records]
            if not missing:
                return step
            damaged: list[str] = []
            stored = store.get_records(db, missing, damaged.append)
            records |= stored
            if damaged:
                sentence = f"{len(damaged)} stored records are damaged and are computed again"
                on_progress(Progress(stage=sentence, done=0, running=1, total=1, reused=0, left=None))
            report = partial(_report_progress, on_progress, step, len(stored))
            _compute(step, study, records, db, submit, counter, report, is_mine)
            if any(key not in records for key in missing):
                return step
    except KeyboardInterrupt as interrupt:
        raise Interrupted(sum(not record.error for record in records.values()), *interrupt.args) from interrupt


def _report_progress(
    on_progress: Callable[[Progress], None],
    step: schedule.Schedule,
    reused: int,
    running: Mapping[Future[Any], tuple[Trial, ...]],
    total: int,
    seconds_left: float | None,
) -> None:
    """Report the groups of a step that are done, running and reused."""
    on_progress(
        Progress(
            stage=step.stage,
            done=total - len(running),
            running=sum(future.running() for future in running),
            total=total,
            reused=reused,
            left=seconds_left,
        )
    )


def _compute(
    step: schedule.Schedule,
    study: Study,
    records: dict[str, Record],
    db: sqlite3.Connection,
    submit: Submit,
    counter: WorkCounter,
    report: Callable[[Mapping[Future[Any], tuple[Trial, ...]], int, float | None], None],
    is_mine: Callable[[tuple[Trial, ...]], bool],
) -> None:
    """Compute the missing trials of a step in the groups that ``is_mine`` selects; each record is stored as it arrives.

    A group whose worker dies is submitted once more. If that one dies too, the trials of the group crash.
    """
    running: dict[Future[Any], tuple[Trial, ...]] = {}
    repeated: set[str] = set()  # the keys of the first trials of the groups that were submitted twice

    def start_group(group: tuple[Trial, ...]) -> None:
        if missing := frozenset(trial.key for trial in group if trial.key not in records):
            running[submit(group, missing)] = group

    try:
        for group in filter(is_mine, trial_groups(step, study)):
            start_group(group)
        total, start, total_cost = len(running), monotonic(), sum(map(_group_cost, running.values()))
        seconds_left, finished_cost = None, 0.0
        while running:
            report(running, total, seconds_left)
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            # A failed group, such as one on a full disk, ends the run. It comes last: the other results are stored first.
            for future in sorted(done, key=lambda finished: _failure(finished) is not None):
                group = running.pop(future)
                if _is_lost(future) and group[0].key not in repeated:
                    repeated.add(group[0].key)
                    start_group(group)
                    continue
                finished_cost += _group_cost(group)
                results, fits = _group_results(future, group, records)
                counter.fits += fits
                counter.trials |= _keep_results(results, records, db)
            if finished_cost:
                seconds_left = (monotonic() - start) / finished_cost * (total_cost - finished_cost)
    finally:
        for future in running:  # after an interrupt or an error, an executor of the user would go on with the rest
            future.cancel()


def _keep_results(results: Sequence[Record], records: dict[str, Record], db: sqlite3.Connection) -> set[str]:
    """Store the records of a group, add them to ``records``, and return their keys. Crashes are not stored."""
    for record in results:
        if not record.error:
            store.put_record(db, record)  # first, so that no result is counted as kept before it is
        records[record.key] = record
    return {record.key for record in results}


def _group_results(
    future: Future[Any], group: tuple[Trial, ...], records: Mapping[str, Record]
) -> tuple[Sequence[Record], int]:
    """Return the records of a finished group and the number of trained networks; if the worker died, records with its error."""
    if _is_lost(future):
        failure = _failure(future)
        message = str(failure) if isinstance(failure, local.WorkerDied) else f"{type(failure).__name__}: {failure}"
        return [Record(key=trial.key, error=message) for trial in group if trial.key not in records], 0
    try:
        results, fits = future.result()
    except OSError as error:
        do = "free some space, check permissions"
        raise UserError("a file could not be read or written", found=str(error), do=do) from error
    return results, fits


def _failure(future: Future[Any]) -> BaseException | None:
    return CancelledError("cancelled") if future.cancelled() else future.exception()


def _is_lost(future: Future[Any]) -> bool:
    """Return whether a call ended without an answer: its worker or its machine died, or its executor gave it up.

    A call itself raises no subclass of OSError, so a connection that broke belongs to the executor.
    """
    failure = _failure(future)
    is_answer = isinstance(failure, UserError | CallError) or type(failure) is OSError
    return isinstance(failure, Exception) and not is_answer


def _group_cost(group: tuple[Trial, ...]) -> float:
    return sum(training_cost(spec) for spec in {trial.model.base for trial in group}) + 100.0


def submit_group(call: Callable[[], Call], cache: Path, group: tuple[Trial, ...], missing: frozenset[str]) -> Future[Any]:
    """Submit the trials of a group whose keys are in ``missing`` to the engine.

    Raises:
        UserError: if the engine accepts no more work.
    """
    try:
        return call()("xferbench.lab.worker.run_trials:run_trials", group, missing, cache)
    except BrokenExecutor as error:
        do = "start the engine again, and repeat the command: it continues with the finished results"
        raise UserError("the engine accepts no more work", found=f"{type(error).__name__}: {error}", do=do) from error


def trial_groups(step: schedule.Schedule, study: Study) -> list[tuple[Trial, ...]]:
    """Return all trials of a step, in the groups that are computed together; known trials are included."""
    # torch.vmap may fail for user networks and fails in transformers, and user training code trains one network at a time.
    is_single = study.suite.training or study.suite.backbone.arch.startswith(("python:", "transformers:"))
    group_size = 1 if is_single else LOCKSTEP_FITS.get(study.context.device, 1)
    return list(batching.group_trials(step.pending, group_size, study.suite))


@contextmanager
def _lazy_engine(engine: str | Executor, workers: int) -> Iterator[Callable[[], Call]]:
    """Yield a function that starts the engine when it is first called."""
    with ExitStack() as stack:
        started: list[Call] = []

        def start() -> Call:
            if not started:
                started.append(stack.enter_context(choice.open_engine(engine, workers)))
            return started[0]

        yield start


def is_cpu(device: str) -> bool:
    """Return whether a device is certainly the CPU; this check needs no torch."""
    may_have_accelerator = sys.platform != "linux" or any(Path(file).exists() for file in ACCELERATOR_DEVICES)
    return device == "cpu" or (device == "auto" and not may_have_accelerator)


def default_workers(device: str) -> int:
    """Return the default number of workers: one for each core, or one for an accelerator, which a single group fills."""
    return local.available_cores() if is_cpu(device) else 1


def _resolve_device(device: str, call: Callable[[], Call]) -> str:
    if is_cpu(device):
        return "cpu"
    return str(call()("xferbench.lab.worker.profile:resolve_device", device).result())


def store_path(path: Path | None) -> Path:
    """Return the path of a store; None means the store in the user's cache folder."""
    if path is not None:
        return path
    import platformdirs

    return Path(platformdirs.user_cache_dir("xferbench")) / "store.sqlite"


def forecast(
    suite: Suite,
    *,
    path: Path,
    device: str = "auto",
    workers: int | None = None,
    extend: Callable[[Study], Study] = lambda study: study,
) -> Forecast:
    """Return the work that a suite needs, and how much of it the store contains; nothing is trained.

    Args:
        suite: a suite of one task.
        path, device, workers: as in :func:`execute`.
        extend: adds plugins to the study.

    Raises:
        UserError: if the input cannot be used, or if its profile crashed.
    """
    workers = workers or default_workers(device)
    with open_study(suite, path, device, workers) as (plain_study, db, _):
        study = extend(plain_study)
        if study.profile.user_code.crash:
            raise UserError(
                f"{suite.invocation.path}: {study.profile.user_code.crash}", do="correct it; a forecast needs the profile"
            )
        records: dict[str, Record] = {}
        while True:
            step = schedule.next_schedule(study, records)
            stored = store.get_records(db, [key for key in step.pending if key not in records])
            records |= stored
            if not stored:
                return forecast_study(study, records, workers)
