from __future__ import annotations

from itertools import combinations, permutations

import pytest

from xferbench.analysis import exit_code
from xferbench.core.run import VERDICTS, Finding

ALONE = {"FAIL": 1, "PASS": 0, "INCONCLUSIVE": 0, "ERROR": 3, "SKIPPED": 5, "INFO": 5}
PRECEDENCE = (3, 1, 5, 4, 0)


def findings(*verdicts):
    return [Finding(id=f"p/harm/{at}", plugin="p", contrast="harm", verdict=verdict) for at, verdict in enumerate(verdicts)]


def expected(verdicts, fail_on):
    """The contract, said the long way round: every code whose condition holds, then the first of them."""
    holding = {0}
    if "ERROR" in verdicts:
        holding.add(3)
    if "FAIL" in verdicts:
        holding.add(1)
    if not {"PASS", "FAIL", "INCONCLUSIVE"} & set(verdicts):
        holding.add(5)
    if "INCONCLUSIVE" in verdicts and fail_on == "inconclusive":
        holding.add(4)
    return next(code for code in PRECEDENCE if code in holding)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_verdict_alone(verdict):
    assert exit_code.exit_code(findings(verdict)) == ALONE[verdict]


@pytest.mark.parametrize("fail_on", ["fail", "inconclusive"])
def test_the_contract_orders_the_conditions(fail_on):
    for count in range(len(VERDICTS) + 1):
        for verdicts in combinations(VERDICTS, count):
            assert exit_code.exit_code(findings(*verdicts), fail_on=fail_on) == expected(verdicts, fail_on), verdicts


def test_the_order_of_the_findings_does_not_matter():
    for verdicts in permutations(("FAIL", "PASS", "INCONCLUSIVE", "SKIPPED")):
        assert exit_code.exit_code(findings(*verdicts)) == exit_code.FAILED


def test_no_verdict_is_no_success():
    assert exit_code.exit_code([]) == exit_code.NO_VERDICT
    assert exit_code.exit_code(findings("SKIPPED", "INFO")) == exit_code.NO_VERDICT


def test_an_open_verdict_fails_only_who_asks_for_it():
    assert exit_code.exit_code(findings("PASS", "INCONCLUSIVE")) == exit_code.PASSED
    assert exit_code.exit_code(findings("PASS", "INCONCLUSIVE"), fail_on="inconclusive") == exit_code.INCONCLUSIVE


def test_the_codes_are_those_that_scripts_lean_on():
    codes = (
        exit_code.PASSED,
        exit_code.FAILED,
        exit_code.USAGE_ERROR,
        exit_code.CRASHED,
        exit_code.INCONCLUSIVE,
        exit_code.NO_VERDICT,
        exit_code.INTERRUPTED,
    )
    assert codes == (0, 1, 2, 3, 4, 5, 130)
