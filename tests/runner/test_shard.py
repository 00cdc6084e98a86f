"""A plan in several shares: who computes what, where each stops, and that together they find what one run finds."""

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


def drift(trial):
    measures = {measure: dict.fromkeys(plugin.measures, 1.0) for plugin in PLUGINS for measure in plugin.measures.values()}
    return fake_lab.fake_lab(measures=measures, examples=60)(trial)


@pytest.fixture
def lab(monkeypatch):
    """Workers that answer from a table, at once; what they were asked is in the list, ``answer`` may be another."""
    asked = []

    @contextmanager
    def workers(_):
        def call(function, *arguments):
            future = Future()
            if function.endswith(":run_trials"):
                group, missing, _ = arguments
                asked.append(group)
                future.set_result(([workers.answer(one) for one in group if one.key in missing], 1))
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

    workers.answer, workers.asked = drift, asked
    monkeypatch.setattr(execute.local, "start_workers", workers)
    return workers


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(discovery, "load_plugins", lambda *_: PLUGINS)
    (tmp_path / "suite.toml").write_text(SUITE)
    return suites.load_suite(tmp_path / "suite.toml")


def one_share(suite, number, of, path):
    return shard.run_shard(suite, Shard(number=number, count=of), path=path, device="cpu", workers=1)


def whole(suite, path):
    return runner.run(suite, store=path, device="cpu", workers=1)


def verdicts(run):
    return run_to_json(run)["findings"]


def stored_records(path):
    """A store's records by key, without the time that the engine took."""
    with closing(sqlite3.connect(path)) as db:
        return {row[0]: row[1:] for row in db.execute("select key, fit, seconds, about, arrays from records")}


def joined(output, *sources):
    return [one for _, one in store.merge_stores(output, sources)]


@cache
def stages(size):
    """The groups of all stages of a study."""
    asked, answers, found = fake_lab.make_study(*PLUGINS), {}, []
    while (step := schedule.next_schedule(asked, answers)).pending:
        found.append(list(batching.group_trials(step.pending, size, asked.suite)))
        answers |= {key: drift(one) for key, one in step.pending.items()}
    return found


# Whose is what


@pytest.mark.parametrize("size", [1, 32])
@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_every_group_belongs_to_exactly_one_shard(size, of):
    for groups in stages(size):
        for group in groups:
            assert [number for number in range(1, of + 1) if shard.owner_number(group, of) == number] == [
                shard.owner_number(group, of)
            ]
            assert 1 <= shard.owner_number(group, of) <= of


def test_shares_are_drawn_evenly():
    homes = {group[0].model.base: shard.owner_number(group, 4) for groups in stages(1) for group in groups}
    counts = Counter(homes.values())
    mean, spread = len(homes) / 4, (len(homes) * 3 / 16) ** 0.5  # of a fair draw
    assert len(homes) > 50
    assert all(abs(counts[number] - mean) < 4 * spread for number in range(1, 5)), "no further off than chance would take it"


@pytest.mark.parametrize("size", [1, 32])
def test_all_views_of_a_fit_stay_on_one_shard_look_after_look(size):
    homes = {}
    for groups in stages(size):
        for group in groups:
            for one in group:
                homes.setdefault(one.model.base, set()).add(shard.owner_number(group, 5))
    assert {len(one) for one in homes.values()} == {1}


def test_a_finished_network_is_split_by_what_is_asked_of_it():
    groups = [group for stage in stages(1) for group in stage]
    own = [
        (replace(one, model=replace(one.model, base=replace(one.model.base, head=OWN_HEAD, phases=(), seed=0))),)
        for group in groups
        for one in group
    ]
    assert {shard.owner_number(group, 3) for group in own} == {1, 2, 3}


def test_a_network_that_others_start_from_is_pretrained_on_every_shard():
    (start,) = {
        one.model.base.start
        for groups in stages(1)
        for group in groups
        for one in group
        if isinstance(one.model.base.start, TrainingSpec)
    }
    (group,) = {group for groups in stages(1) for group in groups if group[0].model.base == start}
    assert all(shard.is_owner(Shard(number=number, count=4), group) for number in range(1, 5))


# Shares, merged


def rounds(suite, of, folder, most=9):
    """Shards and merges in turn until no shard waits for another; what each shard said of each round."""
    results = []
    for _ in range(most):
        results.append([one_share(suite, number, of, folder / f"{number}.sqlite") for number in range(1, of + 1)])
        joined(folder / "all.sqlite", *(folder / f"{number}.sqlite" for number in range(1, of + 1)))
        for number in range(1, of + 1):
            joined(folder / f"{number}.sqlite", folder / "all.sqlite")
        if not any(one.stage for one in results[-1]):
            return results
    raise AssertionError(results)


def test_shares_and_merges_find_what_one_run_finds_and_compute_nothing_twice(suite, lab, tmp_path):
    one = whole(suite, tmp_path / "whole.sqlite")
    once = len(lab.asked)
    lab.asked.clear()
    results = rounds(suite, 3, tmp_path)
    assert len(lab.asked) == once == len(set(lab.asked))
    lab.asked.clear()
    again = whole(suite, tmp_path / "all.sqlite")
    assert verdicts(again) == verdicts(one)
    assert again.cost["trials"] == one.cost["trials"] | {"run": 0, "reused": one.cost["trials"]["unique"]}
    assert again.plan == one.plan
    assert lab.asked == []
    assert stored_records(tmp_path / "all.sqlite") == stored_records(tmp_path / "whole.sqlite")
    ends = [{share.stage for share in shares} for shares in results]
    assert all(len(one) == 1 for one in ends), "they stop where the others do"
    assert (ends[0], ends[-1]) == ({"tuning cures and scratch"}, {""})


def test_a_run_of_the_whole_computes_only_what_is_left(suite, lab, tmp_path):
    one = whole(suite, tmp_path / "whole.sqlite")
    shares = [one_share(suite, number, 2, tmp_path / f"{number}.sqlite") for number in (1, 2)]
    joined(tmp_path / "all.sqlite", tmp_path / "1.sqlite", tmp_path / "2.sqlite")
    rest = whole(suite, tmp_path / "all.sqlite")
    assert verdicts(rest) == verdicts(one)
    assert rest.cost["trials"]["reused"] == sum(share.computed for share in shares) > 0


def test_the_shares_of_a_stage_are_the_stage(suite, lab, tmp_path):
    shares = [one_share(suite, number, 3, tmp_path / f"{number}.sqlite") for number in (1, 2, 3)]
    total = {share.computed + share.others for share in shares}
    assert total == {sum(share.computed for share in shares)}
    assert all(share.missing == share.others and share.stored == 0 for share in shares)


def test_a_share_that_was_broken_off_goes_on_with_the_same_groups(suite, lab, tmp_path):
    path, first = tmp_path / "1.sqlite", one_share(suite, 1, 3, tmp_path / "1.sqlite")
    with closing(sqlite3.connect(path)) as db:
        gone = {key for (key,) in db.execute("select key from records order by key limit 3")}
        db.executemany("delete from records where key = ?", [(key,) for key in gone])
        db.commit()
    again = one_share(suite, 1, 3, path)
    assert (again.computed, again.stored, again.others) == (3, first.computed - 3, first.others)
    assert stored_records(path).keys() >= gone
    assert one_share(suite, 1, 3, path).computed == 0


def test_one_share_of_one_is_the_whole_plan(suite, lab, tmp_path):
    found = one_share(suite, 1, 1, tmp_path / "1.sqlite")
    assert (found.stage, found.others, found.missing) == ("", 0, 0)
    assert whole(suite, tmp_path / "1.sqlite").cost["trials"]["run"] == 0
    assert found.earlier == len(stored_records(tmp_path / "1.sqlite"))


def test_a_crash_is_told_not_kept_and_asked_for_again(suite, lab, tmp_path):
    path = tmp_path / "1.sqlite"
    lab.answer = lambda one: Record(key=one.key, error="Boom: on purpose")
    found = one_share(suite, 1, 2, path)
    assert set(found.crashed) == {"Boom: on purpose"}
    assert stored_records(path) == {}
    assert f"crashed: {len(found.crashed)}, not stored" in shard.describe_shard(found)
    lab.answer = drift
    assert one_share(suite, 1, 2, path).computed == found.computed


def test_a_baseline_that_is_as_long_as_a_machine_is_fast_is_not_split(suite, tmp_path):
    timed = replace(suite, checkpoint=replace(suite.checkpoint, scratch_budget=60.0))
    with pytest.raises(UserError, match="--shard cannot be combined with a baseline that is trained for a time"):
        one_share(timed, 1, 2, tmp_path / "1.sqlite")
    assert not (tmp_path / "1.sqlite").exists()


def test_the_same_numbers_come_of_real_networks(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from invoke import make_suite
    from test_resume import _in_this_process

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(execute.local, "start_workers", _in_this_process)
    noise = suites.load_suite(make_suite(tmp_path))
    one = whole(noise, tmp_path / "whole.sqlite")
    rounds(noise, 2, tmp_path)
    again = whole(noise, tmp_path / "all.sqlite")
    assert verdicts(again) == verdicts(one)
    assert again.cost["trials"]["run"] == 0
    assert {key: row[3] for key, row in stored_records(tmp_path / "all.sqlite").items()} == {
        key: row[3] for key, row in stored_records(tmp_path / "whole.sqlite").items()
    }, "every prediction is the same to the last bit"


# The command


def command(capsys, *words):
    code = main.main(list(map(str, words)))
    return code, *capsys.readouterr()


def sharded(number, *more):
    store_ = [] if "--store" in more else ["--store", f"{number[0]}.sqlite"]
    return ["run", "suite.toml", "--shard", number, "--device", "cpu", "-j", 1, *store_, *more]


def test_a_share_says_what_it_did_and_what_is_next_and_writes_no_report(suite, lab, tmp_path, capsys):
    code, out, _ = command(capsys, *sharded("1/2"))
    first, *then = out.splitlines()
    assert code == exit_code.PASSED
    assert first.startswith("shard 1/2: tuning cures and scratch: ")
    assert "trials of this share were computed, 0 were in the store already" in first
    assert "belong to other shards" in first
    assert [line.partition("xferbench ")[2].split()[0] for line in then] == ["merge", "merge", "run"]
    assert not (tmp_path / "reports").exists()
    assert command(capsys, *sharded("2/2"))[0] == exit_code.PASSED
    assert command(capsys, "merge", "-o", "all.sqlite", "1.sqlite", "2.sqlite")[0] == exit_code.PASSED
    code, out, _ = command(capsys, *sharded("1/1", "--store", "all.sqlite"))
    assert code == exit_code.PASSED
    assert "no other shard is needed\nnext: xferbench run SUITE on this store without --shard" in out


def test_a_share_that_crashed_ends_with_3(suite, lab, capsys):
    lab.answer = lambda one: Record(key=one.key, error="Boom: on purpose")
    code, out, _ = command(capsys, *sharded("1/2"))
    assert code == exit_code.CRASHED
    assert "Boom: on purpose" in out


@pytest.mark.parametrize("word", ["0/4", "5/4", "a/b", "4", "1/0", "/", "-1/4", "1/2/3", "1.0/2", ""])
def test_what_is_no_share_is_refused(word, capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(["run", "quick", f"--shard={word}", "--store", "s.sqlite"])
    assert ended.value.code == exit_code.USAGE_ERROR
    assert f"found {word!r}, expected I/N with I from 1 to N" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["-o", "out"], ["--format", "json"], ["--dry-run"], ["--fail-on", "inconclusive"]])
def test_a_share_has_no_report_forecast_or_verdict(suite, tmp_path, capsys, more):
    code, out, err = command(capsys, *sharded("1/2", *more))
    assert (code, out) == (exit_code.USAGE_ERROR, "")
    assert "--shard cannot be combined with options for the whole run\n  found: --" in err
    assert not (tmp_path / "1.sqlite").exists()


def test_a_share_needs_a_store_of_its_own(suite, capsys):
    code, _, err = command(capsys, "run", "suite.toml", "--shard", "1/2")
    assert code == exit_code.USAGE_ERROR
    assert "--shard needs --store" in err


def test_a_share_of_another_plan_than_was_frozen_is_refused(suite, lab, tmp_path, capsys):
    assert command(capsys, "validate", "suite.toml", "--freeze", "plan.json")[0] == exit_code.PASSED
    assert command(capsys, *sharded("1/2", "--plan", "plan.json"))[0] == exit_code.PASSED
    code, _, err = command(capsys, *sharded("2/2", "--plan", "plan.json", "--set", "margin=0.2"))
    assert code == exit_code.USAGE_ERROR
    assert "differs from the frozen plan" in err
    assert not (tmp_path / "2.sqlite").exists()
