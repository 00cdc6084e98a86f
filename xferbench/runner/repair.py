"""Which finished network may be repaired in its file: one whose BatchNorm statistics fail, and were shown to be mended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.core import files
from xferbench.core.errors import UserError
from xferbench.core.interventions import OWN_HEAD, BatchNormEdit, Edit
from xferbench.core.run import contrast_id
from xferbench.core.version import __version__
from xferbench.runner.engines import local

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.core.run import Finding
    from xferbench.core.suite import Suite
    from xferbench.core.trial import Trial
    from xferbench.runner.execute import StudyResult

REPAIRED_PLUGIN = "batchnorm-drift"
FORM_PLUGINS = ("preprocessing-mismatch", "train-serve-skew")  # audits of the form that images come in
NO_REPAIR = "no repair was written: "
SAFETENSORS_SUFFIX = ".safetensors"


def require_repairable(suite: Suite, out: Path, *, force: bool = False) -> None:
    """Look, before anything is computed, whether a repair could be written.

    Raises:
        UserError: if the file exists, is one of the inputs or has another ending, or if its folder is not writable.
    """
    what = f"--repair {out}"
    if out.suffix != SAFETENSORS_SUFFIX:
        raise UserError(
            f"{what}: a file of another kind",
            found=out.suffix or "no ending",
            expected=f"a name ending in {SAFETENSORS_SUFFIX}",
        )
    if any(given and Path(given).exists() and out.exists() and out.samefile(given) for given in (suite.after, suite.before)):
        raise UserError(f"{what}: one of the inputs", expected="a file of its own", do="name another file")
    do = "give another name" + ("" if out.is_dir() else ", or --force to overwrite it")
    files.refuse_existing(out, f"{what}:", force=force and out.is_file(), do=do)
    try:
        files.try_to_write(out)
    except OSError as error:
        expected = "a folder that is there and can be written to"
        raise UserError(f"{what}: cannot be written", found=error.strerror or str(error), expected=expected) from error


def write_repair(executed: StudyResult, findings: Sequence[Finding], out: Path, cache: Path) -> dict[str, Any]:
    """Write the repair where, and only where, it was confirmed: what was said of it, and the file's digest and size.

    A worker computes it, reads the file back and compares its predictions with those that were confirmed.
    """
    of_check = [one for one in findings if one.plugin == REPAIRED_PLUGIN and one.contrast == "harm"]
    failing = {(one.plugin, one.contrast) for one in findings if one.verdict == "FAIL"} - {(REPAIRED_PLUGIN, "harm")}
    others = sorted(plugin if contrast == "harm" else contrast_id(plugin, contrast) for plugin, contrast in failing)
    words = f"; for {', '.join(others)} there are patches in words, in the report" if others else ""
    failed = next((one for one in of_check if one.verdict == "FAIL" and (one.remedy or {}).get("verified")), None)
    trial = _cured(executed)
    form = sorted({one.plugin for one in findings if one.plugin in FORM_PLUGINS and one.verdict == "FAIL"})
    if failed is not None and form:
        why = "fail too: statistics of images in a wrong form would be wrong in the right one"
        return {"said": f"{NO_REPAIR}{' and '.join(form)} {why}"}
    if failed is None or trial is None:
        return {"said": f"{NO_REPAIR}{_why(of_check)}{words}"}
    expected = executed.answers[trial.key].predictions
    try:
        with local.start_workers(1) as call:
            asked = (trial, expected, out, repair_metadata(trial, failed), cache)
            why, sha256, size = call("xferbench.lab.worker.repair_checkpoint:write_repaired", *asked).result()
    except (OSError, local.WorkerDied, UserError) as error:  # the report is still to be written, and its FAIL stands
        why, sha256, size = str(error).partition("\n")[0], "", 0
    if why:
        return {"said": f"{NO_REPAIR}{why}{words}"}
    said = f"repaired: {out}, BatchNorm statistics {' and '.join(describe_edits(trial))}, predictions verified{words}"
    return {"said": said, "path": str(out), "bytes": size, "sha256": sha256}


def _cured(executed: StudyResult) -> Trial | None:
    """The cured network as it was confirmed; None where its cure is anything but BatchNorm statistics."""
    asked = (one.trial for one in executed.step.asked if (one.plugin, one.arm, one.view) == (REPAIRED_PLUGIN, "cured", "test"))
    found = next(asked, None)
    if found is None or found.model.base.head != OWN_HEAD or not found.model.edits:
        return None
    return found if all(isinstance(Edit.parse(edit), BatchNormEdit) for edit in found.model.edits) else None


def describe_edits(trial: Trial) -> list[str]:
    """What was done to the statistics, in words."""
    return [edit.partition(":")[2].partition("@")[0] for edit in trial.model.edits]


def _why(of_check: Sequence[Finding]) -> str:
    """Why there is nothing to write, from the findings of the audit."""
    if not of_check:
        return f"{REPAIRED_PLUGIN} was not asked"
    worst = next((one for one in of_check if one.verdict in {"FAIL", "ERROR"}), of_check[0])
    said = {
        "PASS": "the statistics are those that the network needs",
        "INCONCLUSIVE": "no harm of the statistics was confirmed",
        "FAIL": "the cure was not confirmed to take the harm away",
    }
    return f"{REPAIRED_PLUGIN} is {worst.verdict}: {said.get(worst.verdict) or worst.reason}"


def repair_metadata(trial: Trial, finding: Finding) -> dict[str, str]:
    """What the file says of how it came to be."""
    fit = trial.model.base
    weights = {"after": fit.start, "before": fit.before}
    figures = {name: getattr(finding, name) for name in ("harm", "low", "high", "p_fail", "margin", "metric", "examples")}
    told = {
        "xferbench": __version__,
        "edits": trial.model.edits,
        "sha256": {name: getattr(one, "digest", None) for name, one in weights.items()},
        "data": fit.data.digest,
        "finding": finding.id,
        **figures,
    }
    return {"xferbench.runner.repair": json.dumps(told)}
