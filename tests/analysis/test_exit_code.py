from __future__ import annotations

from itertools import combinations, permutations

import pytest

from xferbench.analysis import exit_code
from xferbench.core.run import VERDICTS, Finding

ALONE = {"FAIL": 1, "PASS": 0, "INCONCLUSIVE": 0, "ERROR": 3, "SKIPPED": 5, "INFO": 5}
PRECEDENCE = (3, 1, 5, 4, 0)


def make_findings(*verdicts):
    return [
        Finding(id=f"p/harm/{index}", plugin="p", contrast="harm", verdict=verdict) for index, verdict in enumerate(verdicts)
    ]


def expected_code(verdicts, fail_on):
    """Return the first code, in the order of precedence, whose condition holds."""
    codes = {0}
    if "ERROR" in verdicts:
        codes.add(3)
    if "FAIL" in verdicts:
        codes.add(1)
    if not {"PASS", "FAIL", "INCONCLUSIVE"} & set(verdicts):
        codes.add(5)
    if "INCONCLUSIVE" in verdicts and fail_on == "inconclusive":
        codes.add(4)
    return next(code for code in PRECEDENCE if code in codes)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_one_verdict_determines_the_exit_code(verdict):
    assert exit_code.exit_code(make_findings(verdict)) == ALONE[verdict]


@pytest.mark.parametrize("fail_on", ["fail", "inconclusive"])
def test_exit_codes_follow_their_precedence(fail_on):
    for count in range(len(VERDICTS) + 1):
        for verdicts in combinations(VERDICTS, count):
            assert exit_code.exit_code(make_findings(*verdicts), fail_on=fail_on) == expected_code(verdicts, fail_on), verdicts


def test_the_order_of_findings_does_not_matter():
    for verdicts in permutations(("FAIL", "PASS", "INCONCLUSIVE", "SKIPPED")):
        assert exit_code.exit_code(make_findings(*verdicts)) == exit_code.FAILED


def test_no_verdict_is_not_a_success():
    assert exit_code.exit_code([]) == exit_code.NO_VERDICT
    assert exit_code.exit_code(make_findings("SKIPPED", "INFO")) == exit_code.NO_VERDICT


def test_an_inconclusive_verdict_fails_only_on_request():
    assert exit_code.exit_code(make_findings("PASS", "INCONCLUSIVE")) == exit_code.PASSED
    assert exit_code.exit_code(make_findings("PASS", "INCONCLUSIVE"), fail_on="inconclusive") == exit_code.INCONCLUSIVE


def test_exit_codes_are_pinned():
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
