from __future__ import annotations

import pytest

from xferbench.analysis import rules_of_thumb
from xferbench.core.errors import UserError
from xferbench.core.strategies import STRATEGIES


@pytest.mark.parametrize(
    ("size", "similar", "strategy"),
    [
        (999, True, "linear-probe"),
        (999, False, "partial"),
        (1000, True, "full"),
        (1000, False, "full"),
    ],
)
def test_the_textbook_rule_has_four_scenarios(size, similar, strategy):
    assert rules_of_thumb.textbook_strategy(size, similar=similar) == strategy


def test_the_threshold_of_a_small_training_set_is_an_argument():
    assert rules_of_thumb.textbook_strategy(999, similar=True, few=500) == "full"
    assert rules_of_thumb.textbook_strategy(499, similar=True, few=500) == "linear-probe"


@pytest.mark.parametrize(
    ("size", "strategy"),
    [(1, "linear-probe"), (99, "linear-probe"), (100, "partial"), (10_000, "partial"), (10_001, "full")],
)
def test_the_size_rule_has_two_thresholds(size, strategy):
    assert rules_of_thumb.size_rule_strategy(size) == strategy


def test_the_advice_names_a_strategy():
    assert {rules_of_thumb.FROZEN, rules_of_thumb.UPPER, rules_of_thumb.WHOLE} <= set(STRATEGIES)


@pytest.mark.parametrize(
    "rule", [rules_of_thumb.size_rule_strategy, lambda size: rules_of_thumb.textbook_strategy(size, similar=True)]
)
def test_an_empty_training_set_has_no_advice(rule):
    with pytest.raises(UserError, match="no advice for an empty training set"):
        rule(0)
