"""The exit code of a command, from findings, a comparison and a matrix. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.comparison import Comparison
    from xferbench.core.matrix_result import MatrixResult
    from xferbench.core.run import Finding

PASSED, FAILED, USAGE_ERROR, CRASHED, INCONCLUSIVE, NO_VERDICT, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
SIGNALLED = 128  # added to the number of the signal that ended a command, as shells do: 130, 143 or 129
VERDICT_OF_DECISION = {
    "worse": "FAIL",
    "not worse": "PASS",
    "cannot tell": "INCONCLUSIVE",
    "crashed": "ERROR",
    "skipped": "SKIPPED",
}


def exit_code(
    findings: Sequence[Finding],
    *,
    fail_on: str = "fail",
    comparison: Comparison | None = None,
    matrix: MatrixResult | None = None,
) -> int:
    """Return the exit code of a run.

    The first condition that holds decides:

    - 5: every finding is SKIPPED or INFO, so there is no verdict;
    - 3: something crashed;
    - 1: there is a FAIL;
    - 5: there is neither a PASS nor an open verdict;
    - 4: a verdict is open, if ``fail_on`` is ``"inconclusive"``; or the run has fewer seeds than the accepted one, which
      nothing excuses, because a small budget must not hide a loss;
    - 0: otherwise.

    Args:
        findings: the findings of the run.
        fail_on: ``"fail"``, or ``"inconclusive"`` to make an open verdict an error too.
        comparison: the comparison with an accepted run. Its decisions then replace the verdicts: worse counts as FAIL,
            not worse as PASS, and a change that cannot be decided as INCONCLUSIVE.
        matrix: the result of a matrix. A row that was measured counts as PASS, and an open claim as INCONCLUSIVE. A claim
            that does not hold is no failure.
    """
    verdicts = {finding.verdict for finding in findings}
    if matrix is not None:
        verdicts |= {"PASS" for row in matrix.rows if row["accuracy"] is not None} | {"ERROR" for _ in matrix.crashes}
    if not verdicts - {"SKIPPED", "INFO"}:
        return NO_VERDICT
    if comparison is not None:
        verdicts = {VERDICT_OF_DECISION[outcome.decision] for outcome in comparison.outcomes}
    if "ERROR" in verdicts:
        return CRASHED
    if "FAIL" in verdicts:
        return FAILED
    if not verdicts & {"PASS", "INCONCLUSIVE"}:
        return NO_VERDICT
    claims = matrix.claims if matrix is not None else ()
    is_open = "INCONCLUSIVE" in verdicts or any(claim["outcome"] in {"inconclusive", "not measured"} for claim in claims)
    is_short = comparison is not None and comparison.has_too_few_seeds
    return INCONCLUSIVE if is_short or (fail_on == "inconclusive" and is_open) else PASSED
