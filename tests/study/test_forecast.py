from __future__ import annotations

from dataclasses import replace

from test_schedule import FACTS, SUITE, USUAL, carried_out, lab, study

from xferbench.plugins import batchnorm_drift, data_leakage, layer_transfer, negative_transfer
from xferbench.study.forecast import forecast_study

ASKED = study(
    batchnorm_drift.plugin,
    negative_transfer.plugin,
    suite=replace(SUITE, recipe=None),
    facts=replace(FACTS, timing=replace(FACTS.timing, seconds_step=0.001)),
)


def test_what_is_asked_is_counted_before_anything_is_known():
    told = forecast_study(ASKED, {}, workers=2)
    assert told.first["trials in the store"] == 0
    assert told.first["trials unique"] < told.first["trials asked"], "plugins share their arms"
    assert told.first["fits unique"] < told.last["fits unique"]
    assert 0 < told.seconds[0] < told.seconds[1]
    assert told.arms["batchnorm-drift"]["subject"].startswith("best on validation of linear probe | LP-FT")


def test_more_workers_take_less_time():
    assert forecast_study(ASKED, {}, workers=4).seconds[0] == forecast_study(ASKED, {}, workers=1).seconds[0] / 4


def test_a_finished_study_has_everything_in_the_store_up_to_its_last_look():
    _, answers, _ = carried_out(ASKED, lab(USUAL))
    told = forecast_study(ASKED, answers, workers=2)
    assert told.first["trials in the store"] == told.first["trials unique"] == len(answers)
    assert told.seconds[0] == 0.0
    assert told.arms["batchnorm-drift"]["subject"].startswith("linear probe: head")


def test_what_does_not_apply_is_said_with_its_reason():
    told = forecast_study(
        study(batchnorm_drift.plugin, facts=replace(FACTS, model=replace(FACTS.model, batchnorm=()))), {}, workers=1
    )
    assert told.skipped == {"batchnorm-drift": "the backbone has no BatchNorm layer"} and not told.arms


def test_the_smallest_margin_grows_as_the_test_set_shrinks():
    many, few = (
        forecast_study(study(batchnorm_drift.plugin, facts=replace(FACTS, data=replace(FACTS.data, test=n))), {}, workers=1)
        for n in (4000, 150)
    )
    assert many.smallest_margin < few.smallest_margin
    grouped = forecast_study(
        study(batchnorm_drift.plugin, facts=replace(FACTS, data=replace(FACTS.data, test=4000, test_groups=150))), {}, workers=1
    )
    assert grouped.smallest_margin == few.smallest_margin, "groups are the examples"


def test_images_without_copies_and_what_is_measured_beside_are_counted_too():
    assert forecast_study(study(data_leakage.plugin), {}, workers=1).seconds[0] == 0.0, "nothing is known of its speed"
    told = forecast_study(study(layer_transfer.plugin), {}, workers=1)
    assert sum(name.startswith("beside:") for name in told.arms["layer-transfer"]) == 16
    assert told.last["fits unique"] < 2 * told.first["fits unique"], "only what is judged is asked again"
