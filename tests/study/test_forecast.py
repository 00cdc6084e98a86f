from __future__ import annotations

from dataclasses import replace

from test_schedule import ACCURACIES, PROFILE, SUITE, make_lab, make_study, replay

from xferbench.plugins import batchnorm_drift, data_leakage, layer_transfer, negative_transfer
from xferbench.report.messages import write_sentence
from xferbench.study.forecast import forecast_study

STUDY = make_study(
    batchnorm_drift.plugin,
    negative_transfer.plugin,
    suite=replace(SUITE, recipe=None),
    profile=replace(PROFILE, timing=replace(PROFILE.timing, seconds_step=0.001)),
)


def test_a_forecast_counts_trials_before_any_record_exists():
    forecast = forecast_study(STUDY, {}, workers=2)
    assert forecast.first["trials in the store"] == 0
    assert forecast.first["trials unique"] < forecast.first["trials asked"], "plugins share their arms"
    assert forecast.first["fits unique"] < forecast.last["fits unique"]
    assert 0 < forecast.seconds[0] < forecast.seconds[1]
    assert forecast.arms["batchnorm-drift"]["subject"].startswith("best on validation of linear probe | LP-FT")


def test_more_workers_take_less_time():
    assert forecast_study(STUDY, {}, workers=4).seconds[0] == forecast_study(STUDY, {}, workers=1).seconds[0] / 4


def test_a_finished_study_finds_every_trial_in_the_store_up_to_its_last_look():
    _, records, _ = replay(STUDY, make_lab(ACCURACIES))
    forecast = forecast_study(STUDY, records, workers=2)
    assert forecast.first["trials in the store"] == forecast.first["trials unique"] == len(records)
    assert forecast.seconds[0] == 0.0
    assert forecast.arms["batchnorm-drift"]["subject"].startswith("linear probe: head")


def test_a_plugin_that_does_not_apply_is_skipped_with_the_reason():
    forecast = forecast_study(
        make_study(batchnorm_drift.plugin, profile=replace(PROFILE, model=replace(PROFILE.model, batchnorm=()))), {}, workers=1
    )
    assert write_sentence(forecast.skipped["batchnorm-drift"]) == "the backbone has no BatchNorm layer" and not forecast.arms


def test_the_smallest_margin_grows_as_the_test_set_shrinks():
    large, small = (
        forecast_study(
            make_study(batchnorm_drift.plugin, profile=replace(PROFILE, data=replace(PROFILE.data, test=test_size))),
            {},
            workers=1,
        )
        for test_size in (4000, 150)
    )
    assert large.power.smallest_margin < small.power.smallest_margin
    grouped = forecast_study(
        make_study(batchnorm_drift.plugin, profile=replace(PROFILE, data=replace(PROFILE.data, test=4000, test_groups=150))),
        {},
        workers=1,
    )
    assert grouped.power == small.power, "groups are the examples"


def test_unique_images_and_extra_arms_are_counted():
    assert forecast_study(make_study(data_leakage.plugin), {}, workers=1).seconds[0] == 0.0, "the speed is unknown"
    forecast = forecast_study(make_study(layer_transfer.plugin), {}, workers=1)
    assert sum(name.startswith("beside:") for name in forecast.arms["layer-transfer"]) == 16
    assert forecast.last["fits unique"] < 2 * forecast.first["fits unique"], "only arms with a verdict are requested again"
