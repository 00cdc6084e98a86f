"""A share of a plan, for one of several machines: computed as far as its store reaches, and judged by nobody yet.

A stage of the plan (choices, then look after look) is asked for by the answers to the one before, so that the machines meet
between stages: their stores are merged, and each goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from xferbench import given, store, symptoms
from xferbench.core.interventions import OWN_HEAD
from xferbench.design import digest
from xferbench.execute import Counted, answered, asked, groups, laid_out
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from xferbench.design import Suite, Trial
    from xferbench.execute import Progress
    from xferbench.looks import Step
    from xferbench.plan import Study
    from xferbench.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One of so many shares, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        """As the command line takes it."""
        return f"{self.number}/{self.of}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Where a share ended: in which stage, "" at the end of the plan, and whose the stage's trials are.

    ``computed`` and ``known`` are those of the share that were computed now or there before, ``others`` belong to other
    shards, and of these ``lacking`` are not in the store. ``earlier`` were computed now, in stages before. ``crashed`` has an
    error for each trial that crashed, or that of the probe.
    """

    shard: Shard
    stage: str = ""
    computed: int = 0
    known: int = 0
    others: int = 0
    lacking: int = 0
    earlier: int = 0
    crashed: tuple[str, ...] = ()


def owner(group: tuple[Trial, ...], of: int) -> int:
    """The number of the only shard that a group belongs to, from 1.

    It goes by the group's first fit, so that all views of a fit stay where its weights are, look after look, and so does what
    learns from it. A finished network is one fit for all trials, and nothing is trained: there it goes by the trial.
    """
    first = group[0]
    one = first.model.base
    key = first.key if one.head == OWN_HEAD else digest(one.teacher or one)
    return int(key, 16) % of + 1


def owns(shard: Shard, group: tuple[Trial, ...]) -> bool:
    """Whether a shard computes a group: one that belongs to it, or a network that others start from.

    Weights are not merged, so that each shard has to pretrain that network anyway; to wait for one would be a round more.
    """
    return group[0].model.base.labels == "shuffled" or owner(group, shard.of) == shard.number


def run(
    suite: Suite,
    shard: Shard,
    *,
    path: Path,
    device: str = "auto",
    workers: int | None = None,
    show: Callable[[Progress], None] = lambda _: None,
    plan: Path | None = None,
) -> Shared:
    """Compute a share of a suite, as far as the store at ``path`` holds what it depends on.

    Raises:
        Problem: as :func:`xferbench.execute.execute`, or where ``plan`` is the file of another frozen plan; for an audit whose
            baseline is trained for so many seconds, which are not the same steps on every machine.
    """
    if shard.of > 1 and suite.scratch_budget is not None:
        do = "leave the baseline out (scratch), or run the audit whole; without one it takes a minute or two"
        raise Problem("--shard with a baseline that is trained for a time", found="other steps on every machine", do=do)
    inputs, then = given.checked(suite, path, plan)
    answers: dict[str, Record] = {}
    ran, mine = Counted(), partial(owns, shard)
    with laid_out(suite, path, device, workers, show) as (study, db, engine):
        ask = partial(asked, engine, store.cache(path))
        step = answered(study, answers, db, ask, ran, show, mine)
        if not step.wanted and (left := symptoms.mended(study, step)):
            step = answered(left[1], answers, db, ask, ran, show, mine)
        store.trim(store.cache(path))
    if then:
        given.unchanged(suite, path, inputs)
    return _shared(shard, study, step, answers, ran.trials)


def _shared(shard: Shard, study: Study, step: Step, answers: Mapping[str, Record], computed: set[str]) -> Shared:
    """Count whose the trials of the step are at which a share ended."""
    own = {one.key for group in groups(step, study) if owns(shard, group) for one in group}
    others = step.wanted.keys() - own
    crashed = [record.error for record in answers.values() if record.error]
    return Shared(
        shard=shard,
        stage=step.stage,
        computed=len(own & computed),
        known=len(own - computed),
        others=len(others),
        lacking=len(others - answers.keys()),
        earlier=len(computed - own),
        crashed=tuple([study.facts.crash] if study.facts.crash else crashed),
    )


def told(one: Shared) -> str:
    """What a share did, and what to do next."""
    before = f", {one.earlier} in stages before" if one.earlier and one.stage else ""
    if one.stage:
        done = f"{one.stage}: {one.computed} trials of this share computed now{before}, {one.known} there already"
        lines = [f"shard {one.shard}: {done}; {one.others} belong to other shards, {one.lacking} of them not in this store"]
    else:
        lines = [f"shard {one.shard}: {one.earlier} trials computed now, and no other shard has to be waited for"]
    if one.crashed:
        again = "not kept, and asked for again by the next run; one without --shard reports it as ERROR"
        lines.append(f"crashed: {len(one.crashed)}, {again}: {one.crashed[0]}")
    return "\n".join([*lines, f"next: {_next(one)}"])


def _next(one: Shared) -> str:
    if not one.stage:
        return "xferbench run SUITE on this store without --shard, which writes the report"
    return (
        f"once all {one.shard.of} shards have ended, xferbench merge -o ALL.sqlite and the store of each; then either\n"
        "      the next round: for each shard xferbench merge -o STORE ALL.sqlite, and the same command again; or\n"
        "      the end: xferbench run SUITE --store ALL.sqlite, which computes whatever is left and writes the report"
    )
