"""Write a repaired checkpoint if an audit confirmed that new BatchNorm statistics remove the harm. Writes one file.

A worker computes the repair.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.core import files
from xferbench.core.errors import UserError
from xferbench.core.interventions import OWN_HEAD, BatchNormEdit
from xferbench.core.run import contrast_id
from xferbench.core.sections import flat_values
from xferbench.core.version import __version__
from xferbench.runner.engines import local

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.run import Finding
    from xferbench.core.suite import Suite
    from xferbench.core.trial import Trial
    from xferbench.runner.execute import StudyResult

REPAIRED_PLUGIN = "batchnorm-drift"
PREPROCESSING_PLUGINS = ("preprocessing-mismatch", "train-serve-skew")  # audits of the format of the images
NO_REPAIR = "no repair was written: "
SAFETENSORS_SUFFIX = ".safetensors"


def require_repairable(suite: Suite, out: Path, *, force: bool = False) -> None:
    """Check, before anything is computed, that a repaired checkpoint can be written.

    Raises:
        UserError: if the file exists, is one of the inputs or has another suffix, or if its folder is not writable.
    """
    what = f"--repair {out}"
    if out.suffix != SAFETENSORS_SUFFIX:
        raise UserError(
            f"{what}: a file of another kind",
            found=out.suffix or "no suffix",
            expected=f"a name ending in {SAFETENSORS_SUFFIX}",
        )
    if any(
        file and Path(file).exists() and out.exists() and out.samefile(file)
        for file in (suite.checkpoint.after, suite.checkpoint.before)
    ):
        raise UserError(f"{what}: one of the inputs", expected="another file", do="name another file")
    do = "name another file" + ("" if out.is_dir() else ", or --force to overwrite it")
    files.refuse_existing(out, f"{what}:", force=force and out.is_file(), do=do)
    try:
        files.try_to_write(out)
    except OSError as error:
        expected = "an existing folder that is writable"
        raise UserError(f"{what}: cannot be written", found=error.strerror or str(error), expected=expected) from error


def write_repair(executed: StudyResult, findings: Sequence[Finding], out: Path, cache: Path) -> dict[str, Any]:
    """Write a repaired checkpoint if its repair was confirmed; return a message, and the path, size and digest of the file.

    A worker computes the repair, reads the file back, and compares its predictions with the confirmed ones.
    """
    harms = [finding for finding in findings if finding.plugin == REPAIRED_PLUGIN and finding.contrast == "harm"]
    failures = [finding for finding in findings if finding.verdict == "FAIL"]
    other_failures = {(finding.plugin, finding.contrast) for finding in failures} - {(REPAIRED_PLUGIN, "harm")}
    names = sorted(plugin if contrast == "harm" else contrast_id(plugin, contrast) for plugin, contrast in other_failures)
    advice = f"; the report describes patches for {', '.join(names)}" if names else ""
    confirmed = next(
        (finding for finding in harms if finding.verdict == "FAIL" and (finding.remedy or {}).get("verified")), None
    )
    trial = _cured_trial(executed)
    preprocessing = sorted({finding.plugin for finding in failures if finding.plugin in PREPROCESSING_PLUGINS})
    if confirmed is not None and preprocessing:
        reason = "fail too: statistics of wrongly preprocessed images would be wrong for correct ones"
        return {"said": f"{NO_REPAIR}{' and '.join(preprocessing)} {reason}"}
    if confirmed is None or trial is None:
        return {"said": f"{NO_REPAIR}{_why_no_repair(harms)}{advice}"}
    expected = executed.records[trial.key].predictions
    try:
        with local.start_workers(1) as call:
            arguments = (trial, expected, out, repair_metadata(trial, confirmed), cache)
            failure, sha256, size = call("xferbench.lab.worker.repair_checkpoint:write_repaired", *arguments).result()
    except (OSError, local.WorkerDied, UserError) as error:  # the report must still be written, and its FAIL stays
        failure, sha256, size = str(error).partition("\n")[0], "", 0
    if failure:
        return {"said": f"{NO_REPAIR}{failure}{advice}"}
    message = f"repaired: {out}, BatchNorm statistics {' and '.join(describe_edits(trial))}, predictions verified{advice}"
    return {"said": message, "path": str(out), "bytes": size, "sha256": sha256}


def _cured_trial(executed: StudyResult) -> Trial | None:
    """Return the trial of the cured network; None if its cure is anything but BatchNorm statistics."""
    cured = (REPAIRED_PLUGIN, "cured", "test")
    requests = executed.step.requests
    trial = next((request.trial for request in requests if (request.plugin, request.arm, request.view) == cured), None)
    if trial is None or trial.model.base.network.head != OWN_HEAD or not trial.model.edits:
        return None
    return trial if all(isinstance(edit, BatchNormEdit) for edit in trial.model.edits) else None


def describe_edits(trial: Trial) -> list[str]:
    """Return how the statistics were changed, one description for each edit."""
    return [edit.statistics for edit in trial.model.edits if isinstance(edit, BatchNormEdit)]


def _why_no_repair(harms: Sequence[Finding]) -> str:
    """Return why no repair is written, from the findings of the BatchNorm audit."""
    if not harms:
        return f"{REPAIRED_PLUGIN} was not run"
    worst = next((finding for finding in harms if finding.verdict in {"FAIL", "ERROR"}), harms[0])
    reasons = {
        "PASS": "the statistics are right for this network",
        "INCONCLUSIVE": "no harm of the statistics was confirmed",
        "FAIL": "it was not confirmed that the cure removes the harm",
    }
    return f"{REPAIRED_PLUGIN} is {worst.verdict}: {reasons.get(worst.verdict) or worst.reason}"


def repair_metadata(trial: Trial, finding: Finding) -> dict[str, str]:
    """Return the metadata of a repaired checkpoint: the edits, the digests of its inputs and the finding."""
    spec = trial.model.base
    weights = {"after": spec.network.start, "before": spec.network.before}
    names, values = ("harm", "low", "high", "p_fail", "margin", "metric", "examples"), flat_values(finding)
    metadata = {
        "xferbench": __version__,
        "edits": [str(edit) for edit in trial.model.edits],
        "sha256": {name: getattr(file, "digest", None) for name, file in weights.items()},
        "data": spec.data.dataset.digest,
        "finding": finding.id,
        **{name: values[name] for name in names},
    }
    return {"xferbench.repair": json.dumps(metadata)}
