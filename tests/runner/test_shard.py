"""Shards of a plan: which shard owns a trial, where each stops, and that their merge equals one run."""

from __future__ import annotations

import sqlite3
from collections import Counter
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cache

import pytest

from xferbench.analysis import exit_code
from xferbench.cli import main
from xferbench.config import loader as suites
from xferbench.core.errors import UserError
from xferbench.core.interventions import OWN_HEAD
from xferbench.core.record import Record
from xferbench.core.run import run_to_json
from xferbench.core.sections import replace_flat
from xferbench.core.trial import TrainingSpec
from xferbench.plugins import batchnorm_drift, catastrophic_forgetting, learning_rate, negative_transfer
from xferbench.runner import discovery, execute, shard, store
from xferbench.runner import run as runner
from xferbench.runner.shard import Shard
from xferbench.study import batching, schedule
from xferbench.testing import fake_lab

PLUGINS = (batchnorm_drift.plugin, catastrophic_forgetting.plugin, learning_rate.plugin, negative_transfer.plugin)
SUITE = """
schema = 1
name = "shared"
plugins = ["all"]
margin = 0.3
looks = [2, 3]
tuning_seeds = 2
[backbone]
arch = "tiny-resnet"
[target]
data = "synthetic:near"
[recipe]
steps = 10
"""


def answer_trial(trial):
    measures = {measure: dict.fromkeys(plugin.measures, 1.0) for plugin in PLUGINS for measure in plugin.measures.values()}
    return fake_lab.fake_lab(measures=measures, examples=60)(trial)


@pytest.fixture
def lab(monkeypatch):
    """Return fake workers; ``requests`` lists their groups of trials, and ``answer`` computes a record."""
    requests = []

    @contextmanager
    def workers(_):
        def call(function, *arguments):
            future = Future()
            if function.endswith(":run_trials"):
                group, missing, _ = arguments
                requests.append(group)
                future.set_result(([workers.answer(trial) for trial in group if trial.key in missing], 1))
            elif function.endswith(":profile"):
                future.set_result(
                    replace(
                        fake_lab.PROFILE,
                        data=replace(
                            fake_lab.PROFILE.data, source=(), shifted=(), source_error="the suite has no [source]", test=60
                        ),
                    )
                )
            else:
                future.set_exception(UserError(f"{function}: not here"))
            return future

        yield call

    workers.answer, workers.requests = answer_trial, requests
    monkeypatch.setattr(execute.local, "start_workers", workers)
    return workers


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(discovery, "load_plugins", lambda *_: PLUGINS)
    (tmp_path / "suite.toml").write_text(SUITE)
    return suites.load_suite(tmp_path / "suite.toml")


def run_shard(suite, number, count, path):
    return shard.run_shard(suite, Shard(number=number, count=count), path=path, device="cpu", workers=1)


def run_all(suite, path):
    return runner.run(suite, store=path, device="cpu", workers=1)


def findings_json(run):
    return run_to_json(run)["findings"]


def stored_records(path):
    """Return the records of a store by key, without the time of the engine."""
    with closing(sqlite3.connect(path)) as db:
        return {row[0]: row[1:] for row in db.execute("select key, fit, seconds, about, arrays from records")}


def merge_stores(output, *sources):
    return [count for _, count in store.merge_stores(output, sources)]


@cache
def stages(size):
    """Return the groups of all stages of a study."""
    study, records, groups_by_stage = fake_lab.make_study(*PLUGINS), {}, []
    while (step := schedule.next_schedule(study, records)).pending:
        groups_by_stage.append(list(batching.group_trials(step.pending, size, study.suite)))
        records |= {key: answer_trial(trial) for key, trial in step.pending.items()}
    return groups_by_stage


# Owners


@pytest.mark.parametrize("size", [1, 32])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_group_belongs_to_exactly_one_shard(size, count):
    for groups in stages(size):
        for group in groups:
            assert [number for number in range(1, count + 1) if shard.owner_number(group, count) == number] == [
                shard.owner_number(group, count)
            ]
            assert 1 <= shard.owner_number(group, count) <= count


def test_groups_are_assigned_evenly():
    owners = {group[0].model.base: shard.owner_number(group, 4) for groups in stages(1) for group in groups}
    counts = Counter(owners.values())
    mean, spread = len(owners) / 4, (len(owners) * 3 / 16) ** 0.5  # of a uniform assignment
    assert len(owners) > 50
    assert all(abs(counts[number] - mean) < 4 * spread for number in range(1, 5)), "the counts are within chance"


@pytest.mark.parametrize("size", [1, 32])
def test_all_views_of_a_training_stay_on_one_shard(size):
    owners = {}
    for groups in stages(size):
        for group in groups:
            for trial in group:
                owners.setdefault(trial.model.base, set()).add(shard.owner_number(group, 5))
    assert {len(numbers) for numbers in owners.values()} == {1}


def test_trials_of_a_checkpoint_are_split_by_their_view():
    groups = [group for stage in stages(1) for group in stage]
    checkpoint_groups = [
        (replace(trial, model=replace(trial.model, base=replace_flat(trial.model.base, head=OWN_HEAD, phases=(), seed=0))),)
        for group in groups
        for trial in group
    ]
    assert {shard.owner_number(group, 3) for group in checkpoint_groups} == {1, 2, 3}


def test_a_pretraining_runs_on_every_shard():
    (start,) = {
        trial.model.base.network.start
        for groups in stages(1)
        for group in groups
        for trial in group
        if isinstance(trial.model.base.network.start, TrainingSpec)
    }
    (group,) = {group for groups in stages(1) for group in groups if group[0].model.base == start}
    assert all(shard.is_owner(Shard(number=number, count=4), group) for number in range(1, 5))


# Merged shards


def run_rounds(suite, count, folder, max_rounds=9):
    """Run shards and merges in turn until no shard waits for another; return the results of each round."""
    results = []
    for _ in range(max_rounds):
        results.append([run_shard(suite, number, count, folder / f"{number}.sqlite") for number in range(1, count + 1)])
        merge_stores(folder / "all.sqlite", *(folder / f"{number}.sqlite" for number in range(1, count + 1)))
        for number in range(1, count + 1):
            merge_stores(folder / f"{number}.sqlite", folder / "all.sqlite")
        if not any(result.stage for result in results[-1]):
            return results
    raise AssertionError(results)


def test_merged_shards_equal_one_run_and_compute_nothing_twice(suite, lab, tmp_path):
    expected = run_all(suite, tmp_path / "whole.sqlite")
    request_count = len(lab.requests)
    lab.requests.clear()
    results = run_rounds(suite, 3, tmp_path)
    assert len(lab.requests) == request_count == len(set(lab.requests))
    lab.requests.clear()
    merged = run_all(suite, tmp_path / "all.sqlite")
    assert findings_json(merged) == findings_json(expected)
    assert merged.cost["trials"] == expected.cost["trials"] | {"run": 0, "reused": expected.cost["trials"]["unique"]}
    assert merged.provenance.plan == expected.provenance.plan
    assert lab.requests == []
    assert stored_records(tmp_path / "all.sqlite") == stored_records(tmp_path / "whole.sqlite")
    stages_by_round = [{share.stage for share in shares} for shares in results]  # one that owns a whole round goes on
    assert (stages_by_round[0], stages_by_round[-1]) == ({"tuning cures and scratch"}, {""})


def test_a_full_run_computes_only_the_remaining_trials(suite, lab, tmp_path):
    expected = run_all(suite, tmp_path / "whole.sqlite")
    shares = [run_shard(suite, number, 2, tmp_path / f"{number}.sqlite") for number in (1, 2)]
    merge_stores(tmp_path / "all.sqlite", tmp_path / "1.sqlite", tmp_path / "2.sqlite")
    merged = run_all(suite, tmp_path / "all.sqlite")
    assert findings_json(merged) == findings_json(expected)
    assert merged.cost["trials"]["reused"] == sum(share.computed for share in shares) > 0


def test_the_shards_of_a_stage_add_up_to_the_stage(suite, lab, tmp_path):
    shares = [run_shard(suite, number, 3, tmp_path / f"{number}.sqlite") for number in (1, 2, 3)]
    total = {share.computed + share.others for share in shares}
    assert total == {sum(share.computed for share in shares)}
    assert all(share.missing == share.others and share.stored == 0 for share in shares)


def test_an_interrupted_shard_resumes_with_the_same_groups(suite, lab, tmp_path):
    path, first = tmp_path / "1.sqlite", run_shard(suite, 1, 3, tmp_path / "1.sqlite")
    with closing(sqlite3.connect(path)) as db:
        deleted = {key for (key,) in db.execute("select key from records order by key limit 3")}
        db.executemany("delete from records where key = ?", [(key,) for key in deleted])
        db.commit()
    resumed = run_shard(suite, 1, 3, path)
    assert (resumed.computed, resumed.stored, resumed.others) == (3, first.computed - 3, first.others)
    assert stored_records(path).keys() >= deleted
    assert run_shard(suite, 1, 3, path).computed == 0


def test_one_shard_of_one_is_the_full_plan(suite, lab, tmp_path):
    result = run_shard(suite, 1, 1, tmp_path / "1.sqlite")
    assert (result.stage, result.others, result.missing) == ("", 0, 0)
    assert run_all(suite, tmp_path / "1.sqlite").cost["trials"]["run"] == 0
    assert result.earlier == len(stored_records(tmp_path / "1.sqlite"))


def test_a_crash_is_reported_and_not_stored(suite, lab, tmp_path):
    path = tmp_path / "1.sqlite"
    lab.answer = lambda trial: Record(key=trial.key, error="Boom: on purpose")
    result = run_shard(suite, 1, 2, path)
    assert set(result.crashed) == {"Boom: on purpose"}
    assert stored_records(path) == {}
    assert f"crashed: {len(result.crashed)}, not stored" in shard.describe_shard(result)
    lab.answer = answer_trial
    assert run_shard(suite, 1, 2, path).computed == result.computed


def test_a_baseline_with_a_time_budget_is_not_sharded(suite, tmp_path):
    timed_suite = replace(suite, checkpoint=replace(suite.checkpoint, scratch_budget=60.0))
    with pytest.raises(UserError, match="--shard cannot be combined with a baseline that is trained for a time"):
        run_shard(timed_suite, 1, 2, tmp_path / "1.sqlite")
    assert not (tmp_path / "1.sqlite").exists()


def test_shards_of_real_networks_equal_one_run(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from invoke import make_suite
    from test_resume import _in_this_process

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(execute.local, "start_workers", _in_this_process)
    noise_suite = suites.load_suite(make_suite(tmp_path))
    expected = run_all(noise_suite, tmp_path / "whole.sqlite")
    run_rounds(noise_suite, 2, tmp_path)
    merged = run_all(noise_suite, tmp_path / "all.sqlite")
    assert findings_json(merged) == findings_json(expected)
    assert merged.cost["trials"]["run"] == 0
    assert {key: row[3] for key, row in stored_records(tmp_path / "all.sqlite").items()} == {
        key: row[3] for key, row in stored_records(tmp_path / "whole.sqlite").items()
    }, "every prediction is equal to the last bit"


# The command


def run_command(capsys, *arguments):
    code = main.main(list(map(str, arguments)))
    return code, *capsys.readouterr()


def shard_arguments(number, *options):
    store_options = [] if "--store" in options else ["--store", f"{number[0]}.sqlite"]
    return ["run", "suite.toml", "--shard", number, "--device", "cpu", "-j", 1, *store_options, *options]


def test_a_shard_prints_its_progress_and_next_commands_and_writes_no_report(suite, lab, tmp_path, capsys):
    code, out, _ = run_command(capsys, *shard_arguments("1/2"))
    first, *next_commands = out.splitlines()
    assert code == exit_code.PASSED
    assert first.startswith("shard 1/2: tuning cures and scratch: ")
    assert "trials of this share were computed, 0 were in the store already" in first
    assert "belong to other shards" in first
    assert [line.partition("xferbench ")[2].split()[0] for line in next_commands] == ["merge", "merge", "run"]
    assert not (tmp_path / "reports").exists()
    assert run_command(capsys, *shard_arguments("2/2"))[0] == exit_code.PASSED
    assert run_command(capsys, "merge", "-o", "all.sqlite", "1.sqlite", "2.sqlite")[0] == exit_code.PASSED
    code, out, _ = run_command(capsys, *shard_arguments("1/1", "--store", "all.sqlite"))
    assert code == exit_code.PASSED
    assert "no other shard is needed\nnext: xferbench run SUITE on this store without --shard" in out


def test_a_shard_that_crashed_exits_with_3(suite, lab, capsys):
    lab.answer = lambda trial: Record(key=trial.key, error="Boom: on purpose")
    code, out, _ = run_command(capsys, *shard_arguments("1/2"))
    assert code == exit_code.CRASHED
    assert "Boom: on purpose" in out


@pytest.mark.parametrize("value", ["0/4", "5/4", "a/b", "4", "1/0", "/", "-1/4", "1/2/3", "1.0/2", ""])
def test_an_invalid_shard_is_refused(value, capsys):
    with pytest.raises(SystemExit) as error:
        main.main(["run", "quick", f"--shard={value}", "--store", "s.sqlite"])
    assert error.value.code == exit_code.USAGE_ERROR
    assert f"found {value!r}, expected I/N with I from 1 to N" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["-o", "out"], ["--format", "json"], ["--dry-run"], ["--fail-on", "inconclusive"]])
def test_options_for_a_full_run_are_refused(suite, tmp_path, capsys, options):
    code, out, err = run_command(capsys, *shard_arguments("1/2", *options))
    assert (code, out) == (exit_code.USAGE_ERROR, "")
    assert "--shard cannot be combined with options for the whole run\n  found: --" in err
    assert not (tmp_path / "1.sqlite").exists()


def test_a_shard_needs_a_store_option(suite, capsys):
    code, _, err = run_command(capsys, "run", "suite.toml", "--shard", "1/2")
    assert code == exit_code.USAGE_ERROR
    assert "--shard needs --store" in err


def test_a_shard_of_another_plan_is_refused(suite, lab, tmp_path, capsys):
    assert run_command(capsys, "validate", "suite.toml", "--freeze", "plan.json")[0] == exit_code.PASSED
    assert run_command(capsys, *shard_arguments("1/2", "--plan", "plan.json"))[0] == exit_code.PASSED
    code, _, err = run_command(capsys, *shard_arguments("2/2", "--plan", "plan.json", "--set", "margin=0.2"))
    assert code == exit_code.USAGE_ERROR
    assert "differs from the frozen plan" in err
    assert not (tmp_path / "2.sqlite").exists()
