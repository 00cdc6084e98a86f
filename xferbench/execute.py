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

from xferbench import discover, fitting, looks, plan, samples, store, symptoms
from xferbench.core import files
from xferbench.design import Domain, Facts, Pipeline, Place, Ready, Recipe, Suite, Trial, digest
from xferbench.engines import local
from xferbench.environment import torch_version
from xferbench.forecast import Forecast
from xferbench.forecast import forecast as predicted
from xferbench.lab import VERSION, inputs
from xferbench.problem import Problem
from xferbench.record import FEW_CLASSES, Record, Samples

if TYPE_CHECKING:
    import sqlite3

LOCKSTEP = {"cuda": 32}  # fits of a group; elsewhere a group costs as much as its members, so that one is best
FEWEST = 8  # test images of an audit
FACTS = 4  # raised whenever more is probed
NEEDS_ASKING = ("/dev/nvidia0", "/dev/dxg", "/dev/kfd")  # where none of these is there, Linux has no accelerator
Call = Callable[..., "Future[Any]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a live display shows: groups of the present stage done, running and in all, trials reused, seconds left."""

    stage: str
    done: int
    running: int
    total: int
    reused: int
    left: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """A study brought to its end, its answers, what had to be computed for them, sample images and remarks about those.

    ``mended`` is what is left of a finished network's failures once the largest is mended.
    """

    study: plan.Study
    step: looks.Step
    answers: Mapping[str, Record]
    trials_run: int
    fits_run: int
    workers: int
    seconds: float
    samples: tuple[Samples, ...] = ()
    remarks: tuple[str, ...] = ()
    mended: symptoms.Mended | None = None


def execute(
    suite: Suite,
    *,
    path: Path,
    device: str = "auto",
    workers: int | None = None,
    show: Callable[[Progress], None] = lambda _: None,
) -> Executed:
    """Carry a suite out, as far as the store at ``path`` does not hold it already.

    Raises:
        Problem: for input that cannot be worked with, a store that cannot be written, a full disk.
    """
    begun, workers = monotonic(), workers or side_by_side(device)
    answers: dict[str, Record] = {}
    with laid_out(suite, path, device, workers, show) as (study, db, engine):
        ran = Counted()
        ask = partial(asked, engine, store.cache(path))
        step = answered(study, answers, db, ask, ran, show)
        left = symptoms.mended(study, step)
        found = left and symptoms.Mended(by=left[0], study=left[1], step=answered(left[1], answers, db, ask, ran, show))
        shown, remarks = samples.gathered(study, step, engine, store.cache(path))
        store.trim(store.cache(path))
    return Executed(
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
def laid_out(
    suite: Suite, path: Path, device: str, workers: int | None, show: Callable[[Progress], None] = lambda _: None
) -> Iterator[tuple[plan.Study, sqlite3.Connection, Callable[[], Call]]]:
    """The study of a suite with the store and the workers that it needs; data and backbone are probed where not known."""
    plugins = discover.of(suite)
    torch = torch_version()
    with store.opened(path) as db, _engine(workers or side_by_side(device)) as engine:
        show(Progress(stage="reading the data and the backbone", done=0, running=1, total=1, reused=0, left=None))
        place = Place(device=_device(device, engine), torch=torch, lab=VERSION)
        pipeline, facts = examined(suite, db, store.cache(path), engine)
        subject = plan.subject(suite, pipeline)
        yield plan.Study(suite=suite, facts=facts, plugins=plugins, subject=subject, place=place), db, engine


def answered(
    study: plan.Study,
    answers: dict[str, Record],
    db: sqlite3.Connection,
    ask: Callable[[tuple[Trial, ...], frozenset[str]], Future[Any]],
    ran: Counted,
    show: Callable[[Progress], None],
    mine: Callable[[tuple[Trial, ...]], bool] = lambda _: True,
) -> looks.Step:
    """Carry a study to its end: what the replay asks is recalled or computed, until it asks nothing more.

    Where only some groups are ``mine``, it may end in a step that still wants what others have to compute.
    """
    while True:
        step = looks.step(study, answers)
        missing = [key for key in step.wanted if key not in answers]
        if not missing:
            return step
        found = store.get(db, missing)
        answers |= found
        _compute(step, answers, db, ask, len(found), ran, study, show, mine)
        if any(key not in answers for key in missing):
            return step


@dataclass(slots=True)
class Counted:
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
                started.append(stack.enter_context(local.workers(workers)))
            return started[0]

        yield call


def surely_cpu(word: str) -> bool:
    """Whether a device's word can be settled without torch."""
    accelerated = sys.platform != "linux" or any(Path(one).exists() for one in NEEDS_ASKING)
    return word == "cpu" or (word == "auto" and not accelerated)


def side_by_side(word: str) -> int:
    """Workers where nobody says how many: one a core, or one for an accelerator, whose groups of fits fill it."""
    return local.cores() if surely_cpu(word) else 1


def _device(word: str, engine: Callable[[], Call]) -> str:
    if surely_cpu(word):
        return "cpu"
    return str(engine()("xferbench.lab.probe:device", word).result())


def examined(suite: Suite, db: sqlite3.Connection, cache: Path, engine: Callable[[], Call] | None) -> tuple[Pipeline, Facts]:
    """The user's pipeline with the contents of its files, and the facts about it, from the store or by a probe.

    Raises:
        Problem: where something is wrong with either; LookupError where nothing is known and there is no engine to probe with.
    """
    inputs.check(suite)
    digester = store.remembered(db, files.sha256)
    finished = inputs.finished(suite, digester)
    weights = (finished.before or finished.after) if finished else inputs.weights(suite, digester)
    target = inputs.data(suite.target, digester)
    source, shifted = (inputs.data(spec, digester) if spec else None for spec in (suite.source, suite.shifted))
    beside = (source, suite.source_classes, shifted)
    sizes = (suite.train_size, suite.test_size)
    code, training = inputs.code(suite, digester)
    own = (code, training, finished) if finished else (code, training) if code or training else ()
    key = digest((VERSION, FACTS, suite.arch, weights, target, suite.preprocessing, *sizes, *beside, *own))
    facts = store.facts(db, key)
    if facts is None:
        if engine is None:
            raise LookupError("nothing is known of this suite yet")
        asked = (suite.arch, weights, target, suite.preprocessing, sizes, beside, cache, *own)
        try:
            facts = engine()("xferbench.lab.probe:probe", *asked).result()
        except Problem as problem:
            raise problem.at(f"{suite.path}: {problem.what}") from problem
        if not facts.crash:
            store.put_facts(db, key, facts)
    if suite.metric == "auroc" and len(facts.classes) > FEW_CLASSES:
        expected = f"at most {FEW_CLASSES} classes, for which all probabilities are kept"
        raise Problem(f"{suite.path}: metric: auroc", found=f"{len(facts.classes)} classes", expected=expected)
    _fits(suite, facts)
    ready: Ready = facts.preprocessing
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
        source=Domain(data=source, classes=facts.source, preprocessing=ready) if source else None,
        shifted=Domain(data=shifted, classes=facts.shifted) if shifted else None,
        baseline=suite.scratch,
        code=code,
        training=training,
        finished=finished,
        believed=suite.believed,
        judged="confirm" if finished else "test",
        manifest=inputs.manifest(suite, digester),
        interventions=suite.interventions,
    )
    return pipeline, facts


def _fits(suite: Suite, facts: Facts) -> None:
    """Refuse what could not be carried out, before anything is trained or looked at."""
    if suite.after and facts.test < FEWEST:
        raise Problem(
            f"{suite.path}: too few test images", found=f"{facts.test}", expected=f"{FEWEST} or more, far more to decide"
        )
    for key, recipe in {"[recipe] trainable": suite.recipe, "[checkpoint] believed": suite.believed}.items():
        if recipe is not None and not facts.crash and (reason := fitting.untrainable(recipe, facts)):
            raise Problem(f"{suite.path}: {key}", found=reason, expected=fitting.expected(facts))
    if suite.recipe is not None and not facts.crash and (reason := fitting.lacking(suite.recipe, facts)):
        expected = "regularizer and finish of which all that they need is there"
        raise Problem(f"{suite.path}: [recipe]", found=reason, expected=expected, do="leave it out, or give what is missing")


def asked(engine: Callable[[], Call], cache: Path, group: tuple[Trial, ...], missing: frozenset[str]) -> Future[Any]:
    """Ask a worker for what is missing of a group."""
    return engine()("xferbench.lab.answer:answer", group, missing, cache)


def groups(step: looks.Step, study: plan.Study) -> list[tuple[Trial, ...]]:
    """All that a step asks, in the groups that are computed together, whatever of them is known."""
    # Not every network of a user's own can be mapped over members, and their training code takes one at a time.
    alone = study.suite.training or study.suite.arch.startswith("python:")
    return list(plan.groups(step.wanted, 1 if alone else LOCKSTEP.get(study.place.device, 1), study.suite))


def _compute(
    step: looks.Step,
    answers: dict[str, Record],
    db: sqlite3.Connection,
    ask: Callable[[tuple[Trial, ...], frozenset[str]], Future[Any]],
    reused: int,
    ran: Counted,
    study: plan.Study,
    show: Callable[[Progress], None],
    mine: Callable[[tuple[Trial, ...]], bool],
) -> None:
    """Compute what a step lacks of the groups that are ``mine``, each record put in the store as it comes.

    A worker's death is a crash of its group alone.
    """
    running: dict[Future[Any], tuple[Trial, ...]] = {}
    for group in filter(mine, groups(step, study)):
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
                raise Problem(
                    "a file could not be read or written", found=str(error), do="free some space, check permissions"
                ) from error
            ran.fits += fits
            for record in records:
                answers[record.key] = record
                ran.trials.add(record.key)
                if not record.error:
                    store.put(db, record)
        if finished:
            left = (monotonic() - begun) / finished * (weight - finished)


def _weight(group: tuple[Trial, ...]) -> float:
    return sum(plan.cost(fit) for fit in {trial.model.base for trial in group}) + 100.0


def with_store(path: Path | None) -> Path:
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
    more: Callable[[plan.Study], plan.Study] = lambda study: study,
) -> Forecast:
    """What a suite would ask, and what the store has of it; the data and the backbone are probed where they are not known.

    ``more`` adds to its study.
    """
    workers = workers or side_by_side(device)
    with laid_out(suite, path, device, workers) as (plain, db, _):
        study = more(plain)
        if study.facts.crash:
            raise Problem(f"{suite.path}: {study.facts.crash}", do="correct it; nothing can be foretold without it")
        answers: dict[str, Record] = {}
        while True:
            step = looks.step(study, answers)
            found = store.get(db, [key for key in step.wanted if key not in answers])
            answers |= found
            if not found:
                return predicted(study, answers, workers)


def known(suite: Suite, path: Path) -> Facts | None:
    """Check what a suite names, without torch, and return the facts about it if a store has them."""
    discover.of(suite)
    if not path.is_file():
        inputs.check(suite)
        return None
    with store.opened(path) as db:
        try:
            return examined(suite, db, store.cache(path), None)[1]
        except LookupError:
            return None
