"""The only loop with side effects: ask the replay what is missing, compute it, record it, until nothing is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from xferbench.core import files
from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.core.pipeline import AuxiliaryDataset, InputTransform, Pipeline, Recipe
from xferbench.core.progress import Progress
from xferbench.core.record import MAX_CLASSES_WITH_PROBABILITIES, Record
from xferbench.core.trial import ComputeContext, Trial
from xferbench.core.version import LAB_VERSION
from xferbench.data import inputs
from xferbench.runner import discovery, sample_images, store
from xferbench.runner.engines import local
from xferbench.runner.environment import torch_version
from xferbench.study import batching, feasibility, followup, schedule
from xferbench.study.forecast import Forecast
from xferbench.study.forecast import forecast_study as predicted
from xferbench.study.study import Study, subject_arm
from xferbench.study.trials import training_cost

if TYPE_CHECKING:
    import sqlite3

    from xferbench.core.plugin import Profile
    from xferbench.core.run import SampleImages
    from xferbench.core.suite import Suite

LOCKSTEP_FITS = {"cuda": 32}  # fits of a group; elsewhere a group costs as much as its members, so that one is best
MIN_AUDIT_IMAGES = 8  # test images of an audit
PROFILE_VERSION = 5  # raised whenever more is probed
ACCELERATOR_DEVICES = ("/dev/nvidia0", "/dev/dxg", "/dev/kfd")  # where none of these is there, Linux has no accelerator
Call = Callable[..., "Future[Any]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """A study brought to its end, its answers, what had to be computed for them, sample images and remarks about those.

    ``mended`` is what is left of a finished network's failures once the largest is mended.
    """

    study: Study
    step: schedule.Schedule
    answers: Mapping[str, Record]
    trials_run: int
    fits_run: int
    workers: int
    seconds: float
    samples: tuple[SampleImages, ...] = ()
    remarks: tuple[str, ...] = ()
    mended: followup.Followup | None = None


def execute(
    suite: Suite,
    *,
    path: Path,
    device: str = "auto",
    workers: int | None = None,
    show: Callable[[Progress], None] = lambda _: None,
) -> StudyResult:
    """Carry a suite out, as far as the store at ``path`` does not hold it already.

    Raises:
        UserError: for input that cannot be worked with, a store that cannot be written, a full disk.
    """
    begun, workers = monotonic(), workers or default_workers(device)
    answers: dict[str, Record] = {}
    with open_study(suite, path, device, workers, show) as (study, db, engine):
        ran = WorkCounter()
        ask = partial(submit_group, engine, store.cache_folder(path))
        step = run_to_completion(study, answers, db, ask, ran, show)
        left = followup.followup_study(study, step)
        found = left and followup.Followup(
            by=left[0], study=left[1], step=run_to_completion(left[1], answers, db, ask, ran, show)
        )
        shown, remarks = sample_images.collect_sample_images(study, step, engine, store.cache_folder(path))
        store.trim_cache(store.cache_folder(path))
    return StudyResult(
        study=study,
        step=step,
        answers=answers,
        trials_run=len(ran.trials),
        fits_run=ran.fits,
        workers=workers,
        seconds=monotonic() - begun,
        samples=shown,
        remarks=remarks,
        mended=found or None,
    )


@contextmanager
def open_study(
    suite: Suite, path: Path, device: str, workers: int | None, show: Callable[[Progress], None] = lambda _: None
) -> Iterator[tuple[Study, sqlite3.Connection, Callable[[], Call]]]:
    """The study of a suite with the store and the workers that it needs; data and backbone are probed where not known."""
    plugins = discovery.suite_plugins(suite)
    torch = torch_version()
    with store.open_store(path) as db, _engine(workers or default_workers(device)) as engine:
        show(Progress(stage="reading the data and the backbone", done=0, running=1, total=1, reused=0, left=None))
        place = ComputeContext(device=_device(device, engine), torch=torch, lab=LAB_VERSION)
        pipeline, facts = profile_pipeline(suite, db, store.cache_folder(path), engine)
        subject = subject_arm(suite, pipeline)
        yield Study(suite=suite, facts=facts, plugins=plugins, subject=subject, place=place), db, engine


def run_to_completion(
    study: Study,
    answers: dict[str, Record],
    db: sqlite3.Connection,
    ask: Callable[[tuple[Trial, ...], frozenset[str]], Future[Any]],
    ran: WorkCounter,
    show: Callable[[Progress], None],
    mine: Callable[[tuple[Trial, ...]], bool] = lambda _: True,
) -> schedule.Schedule:
    """Carry a study to its end: what the replay asks is recalled or computed, until it asks nothing more.

    Where only some groups are ``mine``, it may end in a step that still wants what others have to compute.
    """
    while True:
        step = schedule.next_step(study, answers)
        missing = [key for key in step.wanted if key not in answers]
        if not missing:
            return step
        found = store.get_records(db, missing)
        answers |= found
        _compute(step, answers, db, ask, len(found), ran, study, show, mine)
        if any(key not in answers for key in missing):
            return step


@dataclass(slots=True)
class WorkCounter:
    """What this run had to compute itself: the keys of trials, and how many fits."""

    trials: set[str] = field(default_factory=set)
    fits: int = 0


@contextmanager
def _engine(workers: int) -> Iterator[Callable[[], Call]]:
    """A function that starts the workers when it is first called."""
    with ExitStack() as stack:
        started: list[Call] = []

        def call() -> Call:
            if not started:
                started.append(stack.enter_context(local.start_workers(workers)))
            return started[0]

        yield call


def is_cpu(word: str) -> bool:
    """Whether a device's word can be settled without torch."""
    accelerated = sys.platform != "linux" or any(Path(one).exists() for one in ACCELERATOR_DEVICES)
    return word == "cpu" or (word == "auto" and not accelerated)


def default_workers(word: str) -> int:
    """Workers where nobody says how many: one a core, or one for an accelerator, whose groups of fits fill it."""
    return local.available_cores() if is_cpu(word) else 1


def _device(word: str, engine: Callable[[], Call]) -> str:
    if is_cpu(word):
        return "cpu"
    return str(engine()("xferbench.lab.worker.profile:resolve_device", word).result())


def profile_pipeline(
    suite: Suite, db: sqlite3.Connection, cache: Path, engine: Callable[[], Call] | None
) -> tuple[Pipeline, Profile]:
    """The user's pipeline with the contents of its files, and the facts about it, from the store or by a probe.

    Raises:
        UserError: if something is wrong with either.
        LookupError: if the store has no profile and there is no engine to compute one.
    """
    inputs.check_inputs(suite)
    digester = store.cached_digester(db, files.sha256)
    finished = inputs.digest_checkpoints(suite, digester)
    weights = (finished.before or finished.after) if finished else inputs.digest_weights(suite, digester)
    target = inputs.digest_data(suite.target, digester)
    source, shifted = (inputs.digest_data(spec, digester) if spec else None for spec in (suite.source, suite.shifted))
    beside = (source, suite.source_classes, shifted)
    sizes = (suite.train_size, suite.test_size)
    code, training = inputs.digest_code(suite, digester)
    own = (code, training, finished) if finished else (code, training) if code or training else ()
    key = digest((LAB_VERSION, PROFILE_VERSION, suite.arch, weights, target, suite.preprocessing, *sizes, *beside, *own))
    facts = store.get_profile(db, key)
    if facts is None:
        if engine is None:
            raise LookupError("nothing is known of this suite yet")
        asked = (suite.arch, weights, target, suite.preprocessing, sizes, beside, cache, *own)
        try:
            facts = engine()("xferbench.lab.worker.profile:profile", *asked).result()
        except UserError as problem:
            raise problem.at(f"{suite.path}: {problem.what}") from problem
        if not facts.crash:
            store.put_profile(db, key, facts)
    if suite.metric == "auroc" and len(facts.classes) > MAX_CLASSES_WITH_PROBABILITIES:
        expected = f"at most {MAX_CLASSES_WITH_PROBABILITIES} classes, for which all probabilities are kept"
        raise UserError(f"{suite.path}: metric: auroc", found=f"{len(facts.classes)} classes", expected=expected)
    _fits(suite, facts)
    ready: InputTransform = facts.preprocessing
    pipeline = Pipeline(
        arch=suite.arch,
        weights=weights,
        target=target,
        train_size=suite.train_size,
        test_size=min(suite.test_size, facts.test) if finished and suite.test_size else suite.test_size,
        recipe=suite.recipe or Recipe(),
        train_preprocessing=suite.train_preprocessing or ready,
        serve_preprocessing=suite.serve_preprocessing or suite.train_preprocessing or ready,
        mode=suite.serve_mode,
        source=AuxiliaryDataset(data=source, classes=facts.source, preprocessing=ready) if source else None,
        shifted=AuxiliaryDataset(data=shifted, classes=facts.shifted) if shifted else None,
        baseline=suite.scratch,
        code=code,
        training=training,
        finished=finished,
        expected_training=suite.believed,
        evaluation_split="confirm" if finished else "test",
        manifest=inputs.digest_manifest(suite, digester),
        interventions=suite.interventions,
    )
    return pipeline, facts


def _fits(suite: Suite, facts: Profile) -> None:
    """Refuse what could not be carried out, before anything is trained or looked at."""
    if suite.after and facts.test < MIN_AUDIT_IMAGES:
        raise UserError(
            f"{suite.path}: too few test images",
            found=f"{facts.test}",
            expected=f"{MIN_AUDIT_IMAGES} or more, far more to decide",
        )
    for key, recipe in {"[recipe] trainable": suite.recipe, "[checkpoint] believed": suite.believed}.items():
        if recipe is not None and not facts.crash and (reason := feasibility.why_missing_layers(recipe, facts)):
            raise UserError(f"{suite.path}: {key}", found=reason, expected=feasibility.describe_trainable(facts))
    if suite.recipe is not None and not facts.crash and (reason := feasibility.why_missing_inputs(suite.recipe, facts)):
        expected = "regularizer and finish of which all that they need is there"
        raise UserError(f"{suite.path}: [recipe]", found=reason, expected=expected, do="leave it out, or give what is missing")


def submit_group(engine: Callable[[], Call], cache: Path, group: tuple[Trial, ...], missing: frozenset[str]) -> Future[Any]:
    """Ask a worker for what is missing of a group."""
    return engine()("xferbench.lab.worker.run_trials:run_trials", group, missing, cache)


def trial_groups(step: schedule.Schedule, study: Study) -> list[tuple[Trial, ...]]:
    """All that a step asks, in the groups that are computed together, whatever of them is known."""
    # Not every network of a user's own can be mapped over members, and their training code takes one at a time.
    alone = study.suite.training or study.suite.arch.startswith("python:")
    return list(batching.group_trials(step.wanted, 1 if alone else LOCKSTEP_FITS.get(study.place.device, 1), study.suite))


def _compute(
    step: schedule.Schedule,
    answers: dict[str, Record],
    db: sqlite3.Connection,
    ask: Callable[[tuple[Trial, ...], frozenset[str]], Future[Any]],
    reused: int,
    ran: WorkCounter,
    study: Study,
    show: Callable[[Progress], None],
    mine: Callable[[tuple[Trial, ...]], bool],
) -> None:
    """Compute what a step lacks of the groups that are ``mine``, each record put in the store as it comes.

    A worker's death is a crash of its group alone.
    """
    running: dict[Future[Any], tuple[Trial, ...]] = {}
    for group in filter(mine, trial_groups(step, study)):
        lacking = frozenset(trial.key for trial in group if trial.key not in answers)
        if lacking:
            running[ask(group, lacking)] = group
    total, begun, weight = len(running), monotonic(), sum(_weight(group) for group in running.values())
    left, finished = None, 0.0
    while running:
        show(
            Progress(
                stage=step.stage,
                done=total - len(running),
                running=sum(one.running() for one in running),
                total=total,
                reused=reused,
                left=left,
            )
        )
        done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
        for future in done:
            group = running.pop(future)
            finished += _weight(group)
            try:
                records, fits = future.result()
            except local.WorkerDied as death:
                records, fits = [Record(key=trial.key, error=str(death)) for trial in group if trial.key not in answers], 0
            except OSError as error:
                raise UserError(
                    "a file could not be read or written", found=str(error), do="free some space, check permissions"
                ) from error
            ran.fits += fits
            for record in records:
                answers[record.key] = record
                ran.trials.add(record.key)
                if not record.error:
                    store.put_record(db, record)
        if finished:
            left = (monotonic() - begun) / finished * (weight - finished)


def _weight(group: tuple[Trial, ...]) -> float:
    return sum(training_cost(fit) for fit in {trial.model.base for trial in group}) + 100.0


def store_path(path: Path | None) -> Path:
    """A store's place: as given, or the one in the user's cache directory."""
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
    more: Callable[[Study], Study] = lambda study: study,
) -> Forecast:
    """What a suite would ask, and what the store has of it; the data and the backbone are probed where they are not known.

    ``more`` adds to its study.
    """
    workers = workers or default_workers(device)
    with open_study(suite, path, device, workers) as (plain, db, _):
        study = more(plain)
        if study.facts.crash:
            raise UserError(f"{suite.path}: {study.facts.crash}", do="correct it; nothing can be foretold without it")
        answers: dict[str, Record] = {}
        while True:
            step = schedule.next_step(study, answers)
            found = store.get_records(db, [key for key in step.wanted if key not in answers])
            answers |= found
            if not found:
                return predicted(study, answers, workers)


def cached_profile(suite: Suite, path: Path) -> Profile | None:
    """Check what a suite names, without torch, and return the facts about it if a store has them."""
    discovery.suite_plugins(suite)
    if not path.is_file():
        inputs.check_inputs(suite)
        return None
    with store.open_store(path) as db:
        try:
            return profile_pipeline(suite, db, store.cache_folder(path), None)[1]
        except LookupError:
            return None
