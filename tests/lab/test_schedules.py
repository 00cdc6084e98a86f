"""Learning rates over steps and over depth."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from xferbench.core.pipeline import Phase
from xferbench.lab.training.schedules import lr_factor, parameter_groups


def lr_factors(**changes):
    phase = Phase(**{"steps": 100, **changes})
    return [lr_factor(phase, step) for step in range(phase.steps)]


def test_a_constant_schedule_has_the_peak_rate_at_every_step():
    assert set(lr_factors(schedule="constant")) == {1.0}


def test_a_cosine_schedule_decays_from_the_peak_to_almost_0():
    factors = lr_factors(schedule="cosine")
    assert factors[0] == 1.0
    assert factors[50] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.001
    assert factors == sorted(factors, reverse=True)


def test_a_linear_schedule_falls_by_equal_steps():
    factors = lr_factors(schedule="linear", steps=4)
    assert factors == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_one_cycle_starts_at_a_25th_and_peaks_at_30_percent():
    factors = lr_factors(schedule="one-cycle")
    assert factors[0] == pytest.approx(1 / 25)
    assert factors[30] == 1.0 == max(factors)
    assert factors[:31] == sorted(factors[:31])
    assert factors[30:] == sorted(factors[30:], reverse=True)
    assert 0 < factors[-1] < 0.001


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_warmup_rises_linearly_to_the_peak(schedule):
    factors = lr_factors(schedule=schedule, warmup=4)
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] <= 1.0


def test_a_warmup_longer_than_the_phase_never_reaches_the_peak():
    assert max(lr_factors(steps=10, warmup=20)) == pytest.approx(10 / 21)


def test_a_single_step_has_the_peak_rate():
    assert lr_factors(steps=1) == [1.0]


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(ValueError, match="square"):
        lr_factor(Phase(schedule="square"), 0)


DEPTH = {"head.weight": 0, "head.bias": 0, "b.weight": 1, "a.weight": 3}
PARAMETERS = {name: torch.zeros(1) for name in DEPTH}


def rates_by_name(**changes):
    groups = parameter_groups(Phase(lr=0.1, **changes), PARAMETERS, DEPTH)
    return {
        name: group["lr"]
        for name, parameter in PARAMETERS.items()
        for group in groups
        if any(parameter is member for member in group["params"])
    }


def test_every_parameter_is_in_exactly_one_group():
    groups = parameter_groups(Phase(layer_decay=0.5), PARAMETERS, DEPTH)
    assert sorted(id(parameter) for group in groups for parameter in group["params"]) == sorted(map(id, PARAMETERS.values()))


def test_rates_decay_with_depth_below_the_head():
    assert rates_by_name() == dict.fromkeys(DEPTH, 0.1)
    assert rates_by_name(layer_decay=0.5) == pytest.approx(
        {"head.weight": 0.1, "head.bias": 0.1, "b.weight": 0.1, "a.weight": 0.025}
    )
    assert rates_by_name(layer_decay=0.5, head_lr=1.0)["head.bias"] == 1.0
    assert rates_by_name(head_lr=0.0)["head.weight"] == 0.0


def test_parameters_of_one_axis_can_be_left_out_of_the_decay():
    parameters = {"head.weight": torch.zeros(2, 3, 4), "head.bias": torch.zeros(2, 3), "norm.weight": torch.zeros(2, 4)}
    depth = {"head.weight": 0, "head.bias": 0, "norm.weight": 1}

    def decays(*, decay_norms):
        groups = parameter_groups(Phase(weight_decay=0.1, decay_norms=decay_norms), parameters, depth)
        return {
            name: [group["weight_decay"] for group in groups if any(tensor is member for member in group["params"])]
            for name, tensor in parameters.items()
        }

    assert decays(decay_norms=True) == {"head.weight": [0.1], "head.bias": [0.1], "norm.weight": [0.1]}
    assert decays(decay_norms=False) == {"head.weight": [0.1], "head.bias": [0.0], "norm.weight": [0.0]}
