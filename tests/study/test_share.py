"""The looks at a share of failed runs: how many seeds, of which arms, within which budget."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from xferbench.analysis import multiplicity
from xferbench.config import loader
from xferbench.core.contrasts import failed_share
from xferbench.core.errors import UserError
from xferbench.core.pipeline import Phase, Recipe
from xferbench.core.plugin import HARM
from xferbench.core.suite import Rules
from xferbench.plugins import seed_instability
from xferbench.study import forecast, share
from xferbench.testing import fake_lab

SHARE = failed_share("failed-runs", "share of runs that fail")
SUBJECT = replace(fake_lab.PIPELINE, recipe=Recipe(phases=(Phase(lr=1e-2, steps=40),)))
PAIRED = replace(seed_instability.plugin, id="paired", contrasts=(HARM,))


def arm_of(trial):
    phase = trial.model.base.procedure.phases[-1]
    if phase.lr >= 1:
        return "induced"
    return "cured" if phase.clip else "subject"


def make_study(*plugins, looks=(5,), budget=1e9, **rules):
    changed = replace(fake_lab.SUITE.rules, looks=looks, budget=budget, tuning_seeds=1, **rules)
    suite = replace(fake_lab.SUITE, recipe=SUBJECT.recipe, rules=changed)
    return fake_lab.make_study(*(plugins or (seed_instability.plugin,)), suite=suite, pipeline=SUBJECT)


def make_lab(failed=(), accuracies=None):
    """A lab in which the subject fails at some seeds and the induced arm at all."""
    by_arm = {"subject": 0.8, "cured": 0.82, "induced": 0.5, **(accuracies or {})}

    def accuracy(trial):
        arm, seed = arm_of(trial), trial.model.base.seed
        return 0.5 if arm == "subject" and seed in failed else by_arm[arm]

    return fake_lab.fake_lab(accuracy)


def replay(study, lab):
    step, records = fake_lab.replay_study(study, lab)
    counts = Counter((request.plugin, request.arm) for request in step.requests if request.view == "test")
    (decision,) = (decision for name, decision in step.decisions.items() if name.startswith("seed-instability"))
    return step, records, counts, decision


@pytest.mark.parametrize(
    ("looks", "allowed", "expected"),
    [
        ((5,), 0.2, (5, 14)),
        ((5, 10), 0.2, (5, 10, 15)),
        ((3, 6), 0.2, (3, 6, 14)),
        ((5, 10, 20), 0.2, (5, 10, 20)),
        ((30,), 0.1, (30,)),
        ((5,), 0.1, (5, 29)),
        ((5,), 0.5, (5,)),
    ],
)
def test_the_looks_of_a_share_end_where_a_pass_is_possible(looks, allowed, expected):
    found = share.share_looks(SHARE, Rules(looks=looks, max_failed_runs=allowed))
    assert found == expected
    assert (1 - allowed) ** found[-1] < multiplicity.look_levels(found, 0.05)[-1], "no failed run then leads to a PASS"


def test_no_look_of_a_share_reaches_the_seeds_of_selections():
    assert share.share_looks(SHARE, Rules(looks=(5,), seed=999_990)) == (5,)


def test_a_healthy_subject_alone_gets_more_seeds_and_passes():
    _, _, counts, decision = replay(make_study(), make_lab())
    assert decision.verdict == "PASS" and decision.seeds == tuple(range(14))
    plugin = "seed-instability"
    assert (counts[plugin, "subject"], counts[plugin, "cured"], counts[plugin, "induced:rate-x1000"]) == (14, 5, 5)
    assert not any(arm == "scratch" for _, arm in counts), "no run is compared with one from scratch"


def test_a_subject_that_always_fails_gets_no_more_seeds_but_its_cure_does():
    _, _, counts, decision = replay(make_study(), make_lab(failed=range(99)))
    assert decision.verdict == "FAIL" and decision.seeds == tuple(range(5))
    assert counts["seed-instability", "subject"] == 5
    assert counts["seed-instability", "cured"] == 14, "so many runs without a failure verify the cure"


def test_a_single_failed_run_leaves_the_share_open():
    _, _, _, decision = replay(make_study(), make_lab(failed=(2,)))
    assert decision.verdict == "INCONCLUSIVE" and len(decision.seeds) == 14


def test_the_additional_look_leaves_other_contrasts_as_they_are():
    alone = make_study(PAIRED)
    step, _ = fake_lab.replay_study(alone, make_lab())
    both, _, counts, _ = replay(make_study(PAIRED, seed_instability.plugin), make_lab())
    (name,) = step.decisions
    assert both.decisions[name].p_pass == step.decisions[name].p_pass
    assert both.decisions[name].adjusted[1] == step.decisions[name].adjusted[1], "PASS is not corrected for contrasts"
    assert both.decisions[name].seeds == tuple(range(5))
    assert counts["paired", "subject"] == 5


def test_a_budget_without_the_additional_look_leaves_the_share_open_and_says_so():
    dear = replace(fake_lab.PROFILE, timing=replace(fake_lab.PROFILE.timing, seconds_step=1.0))
    first = make_study()
    study = replace(first, profile=dear)
    forecasted = forecast.forecast_study(study, {}, 1)
    budget = (forecasted.seconds[0] + forecasted.seconds[1]) / 2
    study = replace(study, suite=replace(study.suite, rules=replace(study.suite.rules, budget=budget)))
    step, _, counts, decision = replay(study, make_lab())
    assert counts["seed-instability", "subject"] == 5
    assert decision.verdict == "INCONCLUSIVE"
    assert step.stop_reason is None and step.extra_stop_reason.values["planned"] == 14


def test_the_forecast_has_the_additional_seeds_of_the_subject_only_up_to_the_last_look():
    counted = forecast.forecast_study(make_study(), {}, 1)
    assert counted.last["trials unique"] - counted.first["trials unique"] == 9


def test_a_skipped_look_keeps_the_level_of_the_next_one():
    """A budget may pay for the additional look, although it does not pay for a look at all arms."""
    dear = replace(fake_lab.PROFILE, timing=replace(fake_lab.PROFILE.timing, seconds_step=1.0))
    study = replace(make_study(looks=(5, 10)), profile=dear)
    ample = replay(study, make_lab())[3]
    assert ample.verdict == "PASS" and len(ample.seeds) == 15 and len(ample.p_pass) == 3
    budget = forecast.forecast_study(replace(make_study(looks=(5,)), profile=dear), {}, 1).seconds[0] + 11 * 40 * 32
    short = replace(study, suite=replace(study.suite, rules=replace(study.suite.rules, budget=budget)))
    step, _, counts, decision = replay(short, make_lab())
    assert step.stop_reason.values["seeds"] == 5, "ten seeds of all arms cost more than ten more seeds of the subject"
    assert counts["seed-instability", "cured"] == 5 and counts["seed-instability", "subject"] == 15
    assert decision.p_pass[1] == 1.0 and len(decision.p_pass) == 3
    assert decision.verdict == "PASS"


def test_an_invalid_share_is_no_rule_of_a_suite(tmp_path):
    path = tmp_path / "suite.toml"
    for value in ("0", "1", '"some"'):
        path.write_text(
            f'schema = 1\nname = "s"\nplugins = ["seed-instability"]\nmax_failed_runs = {value}\n'
            '[backbone]\narch = "tiny-resnet"\n[target]\ndata = "digits"\n'
        )
        with pytest.raises(UserError, match="max_failed_runs"):
            loader.load_suite(path)
