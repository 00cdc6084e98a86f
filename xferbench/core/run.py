"""The result of a run: findings, rows of records, sample images; and its JSON. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from xferbench.core.matrix_result import matrix_to_json
from xferbench.core.record import Record, json_values

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
AUDIT = "audit/"  # begins the id of an audit that shares its name with no experiment
ARMS = ("subject", "cured", "induced", "scratch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A harm with its one-sided bounds and the p-values of ``harm ≤ margin`` (``p_fail``) and ``harm ≥ margin`` (``p_pass``).

    A number that could not be had is NaN, and NaN decides nothing.
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
class Finding:
    """One verdict with all that a reader needs; the fields of an entry of ``findings`` in ``results.json``.

    Attributes:
        id: the contrast's (:func:`contrast_id`), then ``/variant`` where there is one.
        plugin, contrast: as :class:`~xferbench.core.plugin.Plugin` and its contrast call themselves.
        harm, low, high: of the contrast, with unadjusted one-sided bounds. p_fail, p_pass: adjusted for looks and plugins.
        control_harm, control_low, control_high: the same contrast with the induced arm in the subject's place.
        exposed: False where the subject is its own cure. accuracy: mean target accuracy by arm.
        measures: means over seeds of the plugin's own measures, by "arm/measure".
        remedy: None or ``text``, ``patch`` (lines of the suite file) and ``verified``.
        kind: ``experiment``, or ``audit`` of a finished network.
    """

    id: str
    plugin: str
    contrast: str
    verdict: str
    variant: str = ""
    control: str = "none"
    metric: str = "accuracy"
    unit: str = "accuracy"
    harm: float | None = None
    low: float | None = None
    high: float | None = None
    p_fail: float | None = None
    p_pass: float | None = None
    margin: float | None = None
    benefit_retained: float | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 0
    examples: int = 0
    control_harm: float | None = None
    control_low: float | None = None
    control_high: float | None = None
    exposed: bool = True
    measures: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    remedy: Mapping[str, Any] | None = None
    kind: str = "experiment"


def contrast_id(plugin: str, contrast: str) -> str:
    """Id of a contrast in result files, ``plugin/contrast``; the id of a finding adds its variant.

    An audit that shares its name with no experiment has the id ``audit/NAME``, and its contrasts have the ids ``audit/NAME``
    (harm) and ``audit/NAME-CONTRAST``.
    """
    if not plugin.startswith(AUDIT):
        return f"{plugin}/{contrast}"
    return plugin if contrast == "harm" else f"{plugin}-{contrast}"


def finding_to_json(finding: Finding) -> dict[str, Any]:
    """An entry of ``findings``; its ``plugin`` and ``contrast`` are the two parts of the contrast's id."""
    plugin, _, contrast = contrast_id(finding.plugin, finding.contrast).partition("/")
    return asdict(finding) | {"plugin": plugin, "contrast": contrast}


def finding_from_json(entry: Mapping[str, Any], plugins: Iterable[str]) -> Finding:
    """A finding of an entry of ``findings``.

    Args:
        entry: the entry. plugins: ids of the plugins of the run, which tell where the name of an audit ends.

    Raises:
        TypeError: for an entry with other fields.
    """
    finding = Finding(**entry)
    if finding.plugin != AUDIT.removesuffix("/"):
        return finding
    written = f"{AUDIT}{finding.contrast}"
    owner = max((plugin for plugin in plugins if f"{written}-".startswith(f"{plugin}-")), key=len, default=written)
    return replace(finding, plugin=owner, contrast=written[len(owner) + 1 :] or "harm")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One row of ``records.csv``: an arm of a plugin, seen in one way, at one seed."""

    plugin: str
    arm: str
    variant: str
    view: str
    seed: int
    record: Record
    recipe: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleImages:
    """A few test images of a dataset as networks see them, mapped back to pixels.

    Attributes:
        role: ``target``, ``source`` or ``shifted``. title: the dataset, and how it is preprocessed.
        arms: who sees it so, briefly. images: [k, H, W, 3] uint8. labels: [k] names of classes.
    """

    role: str
    title: str
    arms: tuple[str, ...]
    images: np.ndarray
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run: what ``results.json``, ``records.csv``, ``predictions.npz`` and ``samples.npz`` hold between them.

    Attributes:
        suite: the suite as plain values. environment: versions, device, platform, processor, git revision.
        cost: as in the contract. plan: digest of the plan that was carried out.
        arms: per plugin, per arm (``induced:VARIANT`` for variants): the recipe in words, as patch lines, and what a choice
            weighed. notes: what was taken on trust, left out or found at an edge. expected_false_alarms: a bound.
        frozen: of the plan that was frozen before: ``hash``, when it was ``written``, the SHA-256 of its ``file``; {} without.
        evidence: ``hash`` of what was asked, whether frozen or not; the ``command``; when it ``begun`` and ``ended``, in UTC;
            ``inputs`` with digests and files; ``plugin_sources``, the digests of third-party plugins' source by id;
            ``repair``, where one was asked for; {} of runs that tell none of it.
        plugins: what was asked, by plugin: its ``version``, the digest of its ``source`` ("" of a built-in one) and its paired
            ``contrasts`` (``name``, ``weights``, ``metric``, ``margin``), so that two runs can be held against each other
            without the plugin; {} of older runs.
        gate: what was found when it was held against an accepted run; None where it was not.
        matrix: the rows, comparisons and claims of a suite with [matrix], whose ``cells`` and ``arms`` are empty; None of a
            suite of one task.
    """

    suite: Mapping[str, Any]
    environment: Mapping[str, Any]
    findings: tuple[Finding, ...]
    cells: tuple[TrialRow, ...]
    cost: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()
    expected_false_alarms: float = 0.0
    plan: str = ""
    samples: tuple[SampleImages, ...] = ()
    frozen: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    plugins: Mapping[str, Any] = field(default_factory=dict)
    gate: Comparison | None = None
    matrix: MatrixResult | None = None

    def to_frame(self) -> pd.DataFrame:
        """The cells as a table: plugin, arm, variant, view, seed, accuracy, seconds and the record's scalars.

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


def row_values(cell: TrialRow) -> dict[str, Any]:
    """One cell as plain values, the form in which ``records.csv`` has it."""
    record, told = cell.record, cell.record.predictions
    named = {name: getattr(cell, name) for name in ("plugin", "arm", "variant", "view", "seed", "recipe")}
    measured = {"accuracy": None if told is None else float((told.predicted == told.label).mean())}
    return named | measured | {"seconds": record.seconds, "error": record.error, "key": record.key} | dict(record.scalars)


def run_to_json(run: Run) -> dict[str, Any]:
    """The content of ``results.json``."""
    from xferbench.core.version import __version__

    told: dict[str, Any] = json_values(
        {
            "schema": RESULTS_SCHEMA,
            "xferbench": __version__,
            "suite": run.suite,
            "environment": run.environment,
            "findings": [finding_to_json(finding) for finding in run.findings],
            "cost": run.cost,
            "arms": run.arms,
            "notes": run.notes,
            "expected_false_alarms": run.expected_false_alarms,
            "plan": run.plan,
            "frozen": run.frozen or None,
            "evidence": without_file_lists(run.evidence),
            "plugins": run.plugins,
            "gate": asdict(run.gate) if run.gate else None,
            "matrix": matrix_to_json(run.matrix) if run.matrix else None,
        }
    )
    return told


def without_file_lists(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Evidence without the single files of inputs, which ``evidence.json`` has."""
    if "inputs" not in evidence:
        return dict(evidence)
    inputs = [{key: value for key, value in one.items() if key != "listed"} for one in evidence["inputs"]]
    return {**evidence, "inputs": inputs}
