"""The result of a run: findings, rows of records, sample images; and its JSON. Pure.

History of the schema of ``results.json``:
    1  first form.
    2  one form for runs of one task and of many: ``matrix`` is null for one task.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from xferbench.core.comparison import comparison_to_json
from xferbench.core.matrix_result import matrix_to_json
from xferbench.core.record import Record, json_values
from xferbench.core.sections import flat_values, from_flat, section_field

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import pandas as pd

    from xferbench.core.comparison import Comparison
    from xferbench.core.matrix_result import MatrixResult


RESULTS_SCHEMA = 2
VERDICTS = ("FAIL", "PASS", "INCONCLUSIVE", "ERROR", "SKIPPED", "INFO")
WORST_FIRST = ("FAIL", "ERROR", "INCONCLUSIVE", "PASS", "SKIPPED", "INFO")
CONTROLS = ("detected", "harmless", "missed", "none")
AUDIT = "audit/"  # prefix of the id of an audit whose name is not that of an experiment
ARMS = ("subject", "cured", "induced", "scratch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A harm with its one-sided bounds and p-values. A number that cannot be computed is NaN, and NaN decides nothing.

    Attributes:
        harm: the point estimate, in the unit of the metric.
        low, high: one-sided bounds.
        p_fail: p-value of ``harm ≤ margin``.
        p_pass: p-value of ``harm ≥ margin``.
        se: standard error.
        df: degrees of freedom.
        seeds, examples: numbers of seeds and of test examples (or groups).
    """

    harm: float
    low: float
    high: float
    p_fail: float
    p_pass: float
    se: float
    df: float
    seeds: int
    examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmEstimate:
    """The harm of a finding next to its margin, as results have it: a number that cannot be computed is None.

    Attributes:
        metric, unit: the metric and its unit.
        harm, low, high: the harm with unadjusted one-sided bounds.
        p_fail, p_pass: p-values, adjusted for looks and plugins.
        margin: the margin in the unit of the metric.
        seeds, examples: numbers of seeds and of test examples (or groups).
        exposed: whether the cure changes the subject.
    """

    metric: str = "accuracy"
    unit: str = "accuracy"
    harm: float | None = None
    low: float | None = None
    high: float | None = None
    p_fail: float | None = None
    p_pass: float | None = None
    margin: float | None = None
    seeds: int = 0
    examples: int = 0
    exposed: bool = True

    @property
    def bounds(self) -> tuple[float | None, float | None, float | None]:
        """The harm, its lower and its upper bound."""
        return self.harm, self.low, self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class PositiveControl:
    """What a positive control of a finding shows: the same contrast with the induced arm in the place of the subject.

    Attributes:
        variant: the induced variant, or "".
        outcome: one of :data:`CONTROLS`.
        harm, low, high: the harm of the induced arm with unadjusted one-sided bounds, in the unit of the finding.
    """

    variant: str = ""
    outcome: str = field(default="none", metadata={"key": "control"})
    harm: float | None = field(default=None, metadata={"key": "control_harm"})
    low: float | None = field(default=None, metadata={"key": "control_low"})
    high: float | None = field(default=None, metadata={"key": "control_high"})

    @property
    def bounds(self) -> tuple[float | None, float | None, float | None]:
        """The harm, its lower and its upper bound."""
        return self.harm, self.low, self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRuns:
    """The runs of a finding that failed, and the share of runs that fail.

    A run failed if it diverged, or if it is no better than the most frequent class although the median run is better.

    Attributes:
        count: number of failed runs among the seeds of the finding; None if failures do not apply.
        low, high: exact two-sided bounds of the share of runs that fail, with confidence 1 − ``alpha``.
    """

    count: int | None = field(default=None, metadata={"key": "failed_runs"})
    low: float | None = field(default=None, metadata={"key": "failed_share_low"})
    high: float | None = field(default=None, metadata={"key": "failed_share_high"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One verdict with its numbers. Its flat form is an entry of ``findings`` in ``results.json``.

    Attributes:
        id: the id of the contrast (:func:`contrast_id`), followed by ``/variant`` if there is a variant.
        plugin, contrast: the id of the plugin and the name of the contrast.
        kind: ``experiment``, or ``audit`` of a finished network.
        verdict: one of :data:`VERDICTS`.
        reason: the sentences of the finding.
        symptom_of: "", or the id of the plugin whose repair removes this failure as well.
        remedy: None, or ``text``, ``patch`` (lines of the suite file) and ``verified``.
        estimate: a :class:`HarmEstimate`, the harm next to its margin: ``metric``, ``unit``, ``harm``, ``low``, ``high``,
            ``p_fail``, ``p_pass``, ``margin``, ``seeds``, ``examples``, ``exposed``.
        control: a :class:`PositiveControl`: ``variant``, ``outcome``, ``harm``, ``low``, ``high``.
        failures: a :class:`FailedRuns`: ``count``, ``low``, ``high``.
        accuracy: mean target accuracy by arm.
        benefit_retained: (subject − scratch) / (cured − scratch), in target accuracy.
        measures: means over seeds of the plugin's measures, by ``arm/measure``.
    """

    id: str
    plugin: str
    contrast: str
    kind: str = "experiment"
    verdict: str
    reason: str = ""
    symptom_of: str = ""
    remedy: Mapping[str, Any] | None = None
    estimate: HarmEstimate = section_field(HarmEstimate, default=HarmEstimate())
    control: PositiveControl = section_field(PositiveControl, default=PositiveControl())
    failures: FailedRuns = section_field(FailedRuns, default=FailedRuns())
    accuracy: Mapping[str, float] = field(default_factory=dict)
    benefit_retained: float | None = None
    measures: Mapping[str, float] = field(default_factory=dict)


FINDING_KEYS = (  # keys of an entry of ``findings`` in ``results.json``, in their order
    *("id", "plugin", "contrast", "verdict", "variant", "control", "metric", "unit"),
    *("harm", "low", "high", "p_fail", "p_pass", "margin", "benefit_retained", "accuracy", "seeds", "examples"),
    *("control_harm", "control_low", "control_high", "failed_runs", "failed_share_low", "failed_share_high"),
    *("exposed", "measures", "reason", "symptom_of", "remedy", "kind"),
)


def contrast_id(plugin: str, contrast: str) -> str:
    """Return the id of a contrast in result files, ``plugin/contrast``. The id of a finding adds its variant.

    An audit whose name is not that of an experiment has the id ``audit/NAME``. Its contrasts have the ids ``audit/NAME`` (for
    ``harm``) and ``audit/NAME-CONTRAST``.
    """
    if not plugin.startswith(AUDIT):
        return f"{plugin}/{contrast}"
    return plugin if contrast == "harm" else f"{plugin}-{contrast}"


def finding_to_json(finding: Finding) -> dict[str, Any]:
    """Return an entry of ``findings``. Its ``plugin`` and ``contrast`` are the two parts of the contrast's id."""
    plugin, _, contrast = contrast_id(finding.plugin, finding.contrast).partition("/")
    return dict.fromkeys(FINDING_KEYS) | flat_values(finding) | {"plugin": plugin, "contrast": contrast}


def finding_from_json(entry: Mapping[str, Any], plugins: Iterable[str]) -> Finding:
    """Return the finding of an entry of ``findings``.

    Args:
        entry: the entry.
        plugins: ids of the plugins of the run, which determine where the name of an audit ends.

    Raises:
        TypeError: if the entry has other fields.
    """
    finding = from_flat(Finding, entry)
    if finding.plugin != AUDIT.removesuffix("/"):
        return finding
    audit_id = f"{AUDIT}{finding.contrast}"
    owner = max((plugin for plugin in plugins if f"{audit_id}-".startswith(f"{plugin}-")), key=len, default=audit_id)
    return replace(finding, plugin=owner, contrast=audit_id[len(owner) + 1 :] or "harm")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One row of ``records.csv``: an arm of a plugin in one view at one seed."""

    plugin: str
    arm: str
    variant: str
    view: str
    seed: int
    record: Record
    recipe: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """A test example with a copy; one row of ``duplicates.csv``.

    Attributes:
        test: the file of the test image or the line of the test text, or its place in the test set.
        original: the file or line of the other example, or its place.
        dataset: the set of the other example: ``train``, or a pretraining set.
        kind: ``exact``, ``near``, for images also ``flipped`` or ``cropped``, for pairs of texts also ``swapped``.
        similarity: cosine of the embeddings of two images, or weighted Jaccard index of the words of two texts; 1 for identical
            examples.
    """

    test: str
    original: str
    dataset: str
    kind: str
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleImages:
    """Some test images of a dataset after preprocessing, mapped back to pixels.

    Attributes:
        role: ``target``, ``source`` or ``shifted``.
        title: the dataset and its preprocessing, in words.
        arms: the arms with this preprocessing, in words.
        images: [k, H, W, 3] uint8.
        labels: [k] names of classes.
    """

    role: str
    title: str
    arms: tuple[str, ...]
    images: np.ndarray
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where the numbers of a run come from.

    Attributes:
        environment: versions, device, platform, processor, git revision.
        plan: digest of the plan of the run.
        preregistration: ``hash``, time ``written`` and SHA-256 of the ``file`` of the preregistered plan; {} without a plan.
        evidence: ``hash`` of the study, with or without a preregistered plan; the ``command``; the times ``begun`` and
            ``ended`` in UTC; ``inputs`` with digests and files; ``plugin_sources``, the digests of third-party plugins' source
            by id; ``intervention_sources``, those of the third-party interventions that its pipelines use, by spelling;
            ``repair`` if a repair was requested. It is {} if the run has no evidence.
        plugins: by plugin: its ``version``, the digest of its ``source`` ("" for a built-in one) and its paired ``contrasts``
            (``name``, ``weights``, ``metric``, ``margin``), so that two runs can be compared without the plugin. It is {} for
            older runs.
    """

    environment: Mapping[str, Any]
    plan: str = ""
    preregistration: Mapping[str, str] = field(default_factory=dict, metadata={"key": "frozen"})
    evidence: Mapping[str, Any] = field(default_factory=dict)
    plugins: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run: the content of ``results.json``, ``records.csv``, ``predictions.npz`` and ``samples.npz``.

    Attributes:
        suite: the suite as plain values.
        findings: the findings, in the order of the plugins.
        cells: the rows of ``records.csv``.
        cost: numbers of trained networks and trials, and seconds by kind.
        arms: by plugin and arm (``induced:VARIANT`` for variants): the recipe in words, as patch lines, and the candidates of
            a selection.
        notes: what is taken on trust or left out, and which selections lie at the edge of a grid.
        expected_false_alarms: a bound on the expected number of false alarms.
        samples: sample images of the datasets.
        duplicates: the test examples with a copy, if ``data-leakage`` was tested.
        provenance: a :class:`Provenance`: ``environment``, ``plan``, ``preregistration``, ``evidence``, ``plugins``.
        gate: the comparison with an accepted run, or None.
        matrix: the rows, comparisons and claims of a suite with [matrix], whose ``cells`` and ``arms`` are empty; None for a
            suite of one task.
    """

    suite: Mapping[str, Any]
    findings: tuple[Finding, ...]
    cells: tuple[TrialRow, ...]
    cost: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()
    expected_false_alarms: float = 0.0
    samples: tuple[SampleImages, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()
    provenance: Provenance = section_field(Provenance)
    gate: Comparison | None = None
    matrix: MatrixResult | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return the cells as a data frame: plugin, arm, variant, view, seed, accuracy, seconds and the scalars of the record.

        The frame of a matrix has a row for each task, recipe and seed, with :data:`xferbench.core.matrix_result.COLUMNS`.
        """
        import pandas as pd

        if self.matrix is not None:
            return self.matrix.to_frame()
        return pd.DataFrame([row_values(cell) for cell in self.cells])

    def __repr__(self) -> str:
        if self.matrix is not None:
            recipes, tasks = len(self.suite["recipes"]), len(self.suite["tasks"])
            return f"<Run {self.suite['name']!r}: {recipes} recipes on {tasks} tasks, {len(self.matrix.rows)} rows>"
        verdicts = Counter({(finding.plugin, finding.contrast): finding.verdict for finding in self.findings}.values())
        counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in WORST_FIRST if verdict in verdicts) or "no finding"
        return f"<Run {self.suite.get('name', '')!r}: {counts}; {len(self.cells)} records>"


def replace_provenance(run: Run, **changes: Any) -> Run:
    """Return a run with other values of its provenance."""
    return replace(run, provenance=replace(run.provenance, **changes))


def row_values(cell: TrialRow) -> dict[str, Any]:
    """Return one cell as plain values, a row of ``records.csv``."""
    record, predictions = cell.record, cell.record.predictions
    labels = {name: getattr(cell, name) for name in ("plugin", "arm", "variant", "view", "seed", "recipe")}
    accuracy = None if predictions is None else float((predictions.predicted == predictions.label).mean())
    costs = {"seconds": record.seconds, "error": record.error, "key": record.key}
    return labels | {"accuracy": accuracy} | costs | dict(record.scalars)


def run_to_json(run: Run) -> dict[str, Any]:
    """Return the content of ``results.json``."""
    from xferbench.core.version import __version__

    payload: dict[str, Any] = json_values(
        {
            "schema": RESULTS_SCHEMA,
            "xferbench": __version__,
            "suite": run.suite,
            "environment": run.provenance.environment,
            "findings": [finding_to_json(finding) for finding in run.findings],
            "cost": run.cost,
            "arms": run.arms,
            "notes": run.notes,
            "duplicates": [asdict(duplicate) for duplicate in run.duplicates],
            "expected_false_alarms": run.expected_false_alarms,
            "plan": run.provenance.plan,
            "frozen": run.provenance.preregistration or None,
            "evidence": without_file_lists(run.provenance.evidence),
            "plugins": run.provenance.plugins,
            "gate": comparison_to_json(run.gate) if run.gate else None,
            "matrix": matrix_to_json(run.matrix) if run.matrix else None,
        }
    )
    return payload


def without_file_lists(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return the evidence without the lists of files of the inputs, which only ``evidence.json`` has."""
    if "inputs" not in evidence:
        return dict(evidence)
    inputs = [{key: value for key, value in entry.items() if key != "listed"} for entry in evidence["inputs"]]
    return {**evidence, "inputs": inputs}
