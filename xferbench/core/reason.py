"""The reason for a verdict, a decision or a note: a code and the values that its sentence needs. Pure.

The sentences are in :mod:`xferbench.report.messages`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Code(Enum):
    """The codes, one for each sentence; a comment lists the values that the sentence needs."""

    # Any finding
    TEXT = auto()  # text: from a plugin or an error
    NOT_MEASURED = auto()
    ON_TRUST = auto()  # what
    # A harm
    ABOVE_MARGIN = auto()  # margin
    BELOW_MARGIN = auto()  # margin
    NOT_EXPOSED = auto()  # why: a reason
    BEST_ALTERNATIVE = auto()  # count: number of candidates, the subject included
    NOT_EXPOSED_NO_CONTROL = auto()  # why: a reason
    CURE_CHANGES_NOTHING = auto()
    SIDES_ARE_EQUAL = auto()
    NO_BETTER_REPAIR = auto()  # count
    NO_BETTER_RECIPE = auto()  # count
    NO_BASELINE = auto()  # arm, view
    CONTROL_IMPROVES = auto()  # variant, cost: an estimate
    SEEDS_APART = auto()  # seeds
    FAILURES_LEAVE_OPEN = auto()  # margin, share: upper bound of the share of runs that fail
    FAILED_RUNS = auto()  # arm, count, seeds; low, high: bounds of the share of runs that fail
    NO_POWER = auto()  # margin, variant, cost: an estimate or None
    NOT_ESTIMATED = auto()
    MARGIN_WITHIN_INTERVAL = auto()  # margin
    ABOVE_BEFORE_CORRECTION = auto()  # margin
    BELOW_BEFORE_CORRECTION = auto()  # margin
    TO_DECIDE = auto()  # seeds, examples (None if no number suffices), grouped, at_these_seeds
    BUDGET_SPENT = auto()  # budget in seconds, seeds, planned
    UNAFFORDABLE = auto()  # budget and needed, in seconds
    SEARCH_CUT = auto()  # arm
    RECIPE_IS_CAUSE = auto()  # estimate: harm of pretraining with the best recipe
    PRETRAINING_IS_CAUSE = auto()  # estimate: as above
    CHOSEN = auto()  # count, confidence
    BETTER_RECIPE = auto()  # cured, subject: accuracies
    DIVERGED = auto()  # arm, count, seeds
    LEFT_AFTER_REPAIR = auto()  # by, verdict, estimate
    # A share of failed runs
    SHARE_ABOVE = auto()  # allowed
    SHARE_BELOW = auto()  # allowed
    SHARE_OPEN = auto()  # allowed, estimate
    SHARE_TO_DECIDE = auto()  # allowed, seeds (None if no number suffices), count: failed runs so far, below: the open side
    SHARE_WITHOUT_REFERENCE = auto()
    SHARE_WITHOUT_POWER = auto()  # allowed, variant, cost: an estimate or None
    RUN_FAILURES = auto()  # arm, seeds, failures: by way of failing, the seeds
    DOUBTFUL_RUNS = auto()  # arm, seeds: those of the runs
    CURED_RUN_FAILURES = auto()  # count, subject: failed runs of both, seeds, p_value
    # An invariant
    BROKEN = auto()  # meaning, count, seeds
    HOLDS = auto()  # meaning, seeds
    SUBJECT_DIVERGED = auto()  # count, seeds
    LOW_RECALL = auto()  # kinds: tuples of kind, found, copies, lower bound; at_least, confidence
    NO_GROUPS = auto()
    EFFECT = auto()  # meaning, estimate
    # A change between two runs
    SAME_ANSWERS = auto()
    SAME_ZERO_HARM = auto()
    ONE_PAIR = auto()  # seeds
    WORSE_THAN_MARGIN = auto()  # margin
    SAME_TRIALS_ELSEWHERE = auto()
    WORSE_BY_LESS = auto()  # margin
    CHANGE_OPEN = auto()  # margin, same (whether the trials are the same), to_decide (a reason or None)
    FAIL_ELSEWHERE = auto()  # accepted
    NEW_FAIL = auto()  # accepted, text
    FAIL_LEFT_OPEN = auto()  # why: a reason
    FAIL_GREW = auto()  # why: a reason
    PASSES_NOW = auto()  # text
    SIZE_UNKNOWN = auto()  # text
    SIZE_GREW = auto()  # before, now, text
    OWN_VERDICT = auto()  # why: a reason, verdict, text
    NO_LONGER_JUDGED = auto()  # accepted, text
    NO_LONGER_TESTED = auto()  # accepted
    NOT_TESTED_BEFORE = auto()
    NO_VERDICT_BEFORE = auto()  # verdict
    OTHER_VERSION = auto()  # old, new
    OTHER_SOURCE = auto()  # old, new: prefixes of digests
    OTHER_CONTRAST = auto()
    PAIRED_BY_RANK = auto()
    FEWER_SEEDS = auto()  # count, old, new
    ENDED_EARLY = auto()  # old, new
    BASELINE_RERUN = auto()  # why: text
    BASELINE_NOT_RERUN = auto()  # why: text
    FILES_NOT_CHECKED = auto()
    NOT_MADE_ALIKE = auto()  # difference
    SUITE_DIFFERS = auto()  # changes: tuples of key, old, new
    INPUTS_DIFFER = auto()  # keys
    SOURCE_DIFFERS = auto()  # kind: plugin or intervention, name, old, new: prefixes of digests
    VERSION_DIFFERS = auto()  # name, old, new
    PACKAGES_DIFFER = auto()  # changes: tuples of name, old, new
    # An estimate that does not exist
    CRASHED = auto()  # arm, seed, error
    EXPLANATION_CRASHED = auto()  # error
    MEASURES_CRASHED = auto()  # error
    NO_PREDICTIONS = auto()  # arm, seed
    NOTHING_SCORED = auto()  # arm
    NOT_MEASURED_AT_ANY_SEED = auto()
    OTHER_EXAMPLES = auto()
    METRIC_OF_PARTS = auto()  # metric
    # An arm, a recipe or a plugin that cannot run
    LAYERS_MISSING = auto()  # value: an intervention, requirement
    TOO_FEW_GROUPS = auto()  # value, groups
    FINISHED_WITHOUT_ADDED = auto()  # value
    ADDED_OF_SEVERAL_SIZES = auto()  # values
    NO_ROOM_FOR_TOKENS = auto()  # tokens, length, limit
    CODE_WITHOUT_SHIFTED = auto()  # value
    NO_SHIFTED = auto()  # value
    NO_SHIFTED_TRAINING_IMAGES = auto()  # value
    NO_SOURCE = auto()  # value
    NO_SOURCE_CLASSES = auto()  # value
    LAST_PHASE_UNKNOWN = auto()  # value
    FIELDS_UNSUPPORTED = auto()  # fields
    RATES_UNSUPPORTED = auto()
    SCRATCH_NOT_REQUESTED = auto()
    HEAD_TOO_SMALL = auto()  # outputs, classes
    PLUGIN_CRASHED = auto()  # error
    # A claim that is not measured
    NO_SUCH_CONTRAST = auto()  # available
    SEED_WITHOUT_MEASURE = auto()  # recipe, seed, error
    RECIPE_NOT_MEASURED = auto()  # recipe
    NO_SCORE_TO_REACH = auto()  # recipe
    NO_LEARNING_CURVE = auto()  # seed, error
    TOO_FEW_SEEDS = auto()  # recipe, seeds
    RECIPE_ERROR = auto()  # recipe, error
    # Notes of a run
    DECIDES_LITTLE = auto()  # power: a DecisionPower
    DECISION_CHANCES = auto()  # power: a DecisionPower
    OVERRIDDEN = auto()  # overrides
    SUPPORTED_FIELDS = auto()  # training, fields
    CLASSES = auto()  # names, in the order of the outputs
    ROTATED = auto()  # count, orientation
    SIXTEEN_BIT = auto()  # count, highest, bits
    TRUNCATED = auto()  # count, test, length
    DROPPED_EXAMPLES = auto()  # entries
    AT_EDGE = auto()  # plugins, arm, edge
    SUBJECT_LEARNT_NOTHING = auto()  # share
    SCRATCH_LEARNT_NOTHING = auto()  # share
    UNSEARCHED_COPIES = auto()  # kinds
    SEARCH_COST = auto()  # plugin; scratch, cured: numbers of images that the searches trained
    SCRATCH_SEARCH = auto()  # grid, full: the search that was made, and that of the suite
    UNUSED_INPUT = auto()  # role
    HALF_JUDGED = auto()  # count
    JUDGED_APART = auto()
    ONE_FINISHED_NETWORK = auto()
    ONE_CHECKPOINT = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A code and its values; a value can be another reason."""

    code: Code
    values: Mapping[str, Any] = field(default_factory=dict)


def because(code: Code, **values: Any) -> Reason:
    """Return a reason with its values."""
    return Reason(code=code, values=values)
