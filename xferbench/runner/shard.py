"""Compute one machine's share of a plan, as far as its store allows, and decide nothing. Writes to the store.

Each stage of the plan (selection, then one look after another) depends on the records of the previous stage. The machines
therefore synchronize between stages: their stores are merged, and each machine continues from the merged store.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.core.interventions import OWN_HEAD
from xferbench.runner import input_digests, store
from xferbench.runner.execute import WorkCounter, open_study, run_to_completion, submit_group, trial_groups
from xferbench.study import followup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from xferbench.core.progress import Progress
    from xferbench.core.record import Record
    from xferbench.core.suite import Suite
    from xferbench.core.trial import Trial
    from xferbench.study.schedule import Schedule
    from xferbench.study.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One of ``count`` shares, numbered from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        """Return the spelling of the command line."""
        return f"{self.number}/{self.count}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """The state in which a share stopped.

    Attributes:
        shard: the share.
        stage: the stage that it stopped in, or "" at the end of the plan.
        computed: trials of the stage and this share that were computed now.
        stored: trials of the stage and this share that were in the store.
        others: trials of the stage that belong to other shards.
        missing: those of ``others`` that are not in the store.
        earlier: trials that were computed now in earlier stages.
        crashed: one error for each crashed trial, or the error of the profile.
    """

    shard: Shard
    stage: str = ""
    computed: int = 0
    stored: int = 0
    others: int = 0
    missing: int = 0
    earlier: int = 0
    crashed: tuple[str, ...] = ()


def owner_number(group: tuple[Trial, ...], count: int) -> int:
    """Return the number of the shard that owns a group, from 1.

    The number depends on the group's first model. All evaluations of a model, and models that learn from it, therefore stay
    on the machine that has its weights, over all looks. A given checkpoint is one model for all trials and nothing is
    trained, so its number depends on the trial.
    """
    first = group[0]
    spec = first.model.base
    key = first.key if spec.network.head == OWN_HEAD else digest(spec.procedure.teacher or spec)
    return int(key, 16) % count + 1


def is_owner(shard: Shard, group: tuple[Trial, ...]) -> bool:
    """Return whether a shard computes a group: one that it owns, or a network that others start from.

    Weights are not merged, so every shard must pretrain that network itself; waiting for it would take another round.
    """
    return group[0].model.base.data.labels == "shuffled" or owner_number(group, shard.count) == shard.number


def run_shard(
    suite: Suite,
    shard: Shard,
    *,
    path: Path,
    device: str = "auto",
    workers: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    plan: Path | None = None,
) -> ShardResult:
    """Compute a share of a suite, as far as the store at ``path`` contains the records that it depends on.

    Raises:
        UserError: as for :func:`xferbench.runner.execute.execute`; if ``plan`` is the file of another frozen plan; or if the
            search of the from-scratch baseline depends on the time that each machine measures.
    """
    if shard.count > 1 and suite.checkpoint.scratch_budget is not None:
        do = "leave out the baseline (scratch), or run the whole audit on one machine"
        raise UserError(
            "--shard cannot be combined with a baseline that is trained for a time",
            found="a number of steps that depends on the machine",
            do=do,
        )
    inputs, frozen = input_digests.verify_inputs(suite, path, plan)
    records: dict[str, Record] = {}
    counter, is_mine = WorkCounter(), partial(is_owner, shard)
    with open_study(suite, path, device, workers, on_progress) as (study, db, call):
        if shard.count > 1 and (study.lacking_seconds is not None or study.search != suite.scratch):
            raise UserError(
                "--shard needs a budget that pays for the whole search of scratch",
                found=f"budget = {suite.rules.budget:g} s, and a search that would be cut by the time measured on each machine",
                do="raise budget, or state a smaller search in [scratch]",
            )
        submit = partial(submit_group, call, store.cache_folder(path))
        step = run_to_completion(study, records, db, submit, counter, on_progress, is_mine)
        if not step.pending and (planned := followup.followup_study(study, step, records)):
            step = run_to_completion(planned[1], records, db, submit, counter, on_progress, is_mine)
        store.trim_cache(store.cache_folder(path))
    if frozen:
        input_digests.assert_unchanged(suite, path, inputs)
    return _shard_result(shard, study, step, records, counter.trials)


def _shard_result(shard: Shard, study: Study, step: Schedule, records: Mapping[str, Record], computed: set[str]) -> ShardResult:
    """Count the trials of the stage in which a share stopped, by owner."""
    own_keys = {trial.key for group in trial_groups(step, study) if is_owner(shard, group) for trial in group}
    other_keys = step.pending.keys() - own_keys
    crashed = [record.error for record in records.values() if record.error]
    return ShardResult(
        shard=shard,
        stage=step.stage,
        computed=len(own_keys & computed),
        stored=len(own_keys - computed),
        others=len(other_keys),
        missing=len(other_keys - records.keys()),
        earlier=len(computed - own_keys),
        crashed=tuple([study.profile.user_code.crash] if study.profile.user_code.crash else crashed),
    )


def describe_shard(result: ShardResult) -> str:
    """Return a summary of a share and the next command."""
    earlier = f", {result.earlier} in earlier stages" if result.earlier and result.stage else ""
    if result.stage:
        counts = f"{result.computed} trials of this share were computed{earlier}, {result.stored} were in the store already"
        others = f"{result.others} belong to other shards, {result.missing} of them not in this store"
        lines = [f"shard {result.shard}: {result.stage}: {counts}; {others}"]
    else:
        lines = [f"shard {result.shard}: {result.earlier} trials were computed, and no other shard is needed"]
    if result.crashed:
        note = "not stored; the next run repeats it, and a run without --shard reports it as ERROR"
        lines.append(f"crashed: {len(result.crashed)}, {note}: {result.crashed[0]}")
    return "\n".join([*lines, f"next: {_next_command(result)}"])


def _next_command(result: ShardResult) -> str:
    if not result.stage:
        return "xferbench run SUITE on this store without --shard, which writes the report"
    return (
        f"once all {result.shard.count} shards have ended, xferbench merge -o ALL.sqlite and the store of each; then either\n"
        "      the next round: for each shard xferbench merge -o STORE ALL.sqlite, and the same command again; or\n"
        "      the end: xferbench run SUITE --store ALL.sqlite, which computes the remaining trials and writes the report"
    )
