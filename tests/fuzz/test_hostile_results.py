"""Result files and accepted runs are input: whatever they hold, a command gives its result or one clear error."""

from __future__ import annotations

import base64
import io
import json
import traceback
import zipfile

import numpy as np
import pytest
from factory import make_comparison, make_run
from limits import memory_limit, time_limit
from mutation import mutate_bytes, mutate_value

from xferbench.analysis import compare, compatibility
from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.core.run import SampleImages, replace_provenance
from xferbench.core.sections import replace_flat
from xferbench.report import baseline, checklist, console, files, github, html, junit, latex, markdown, matrix_tables, messages

CASES = 60
JSON_FILES, ARRAY_FILES = ("results.json", "evidence.json"), ("predictions.npz", "samples.npz")


def npy_header(shape, dtype="<f4"):
    """Return the header of an array, whatever its shape claims."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (64 - (len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


class Hostile:
    def __reduce__(self):
        return open, ("executed", "w")


def pickled_array():
    file = io.BytesIO()
    np.save(file, np.array([Hostile()], dtype=object), allow_pickle=True)
    return file.getvalue()


MEMBERS = (
    npy_header((10**12,)) + bytes(100),
    npy_header((-1, -5)) + bytes(100),
    npy_header((100_000_000,), "|u1") + bytes(100_000_000),
    npy_header((0,)),
    npy_header((3, 0, 7), "<c16"),
    npy_header((5,), "<U1000000") + bytes(10),
    npy_header((1,) * 40),
    npy_header((2**62, 2**62)) + bytes(8),
    npy_header("__import__('os').system('touch executed')"),
    b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 65535,
    pickled_array(),
)


def replace_member(data, rng):
    """Return an npz file with one hostile member."""
    source, file = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    victim = rng.choice(source.namelist())
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            hostile = rng.choice(MEMBERS) if rng.random() < 0.8 else mutate_bytes(source.read(name), rng)
            target.writestr(name, hostile if name == victim else source.read(name))
        if rng.random() < 0.2:
            target.writestr("../../escaped.npy", npy_header((0,)))
    return file.getvalue()


def replace_array(data, rng):
    """Return an npz file with one array of another shape, type or content."""
    arrays = dict(np.load(io.BytesIO(data)))
    name = rng.choice([name for name in arrays if name != "index"] or list(arrays))
    array = arrays[name]
    changes = (
        lambda: array[:-1],
        lambda: array[None],
        lambda: array[..., :0],
        lambda: array.astype(str),
        lambda: array.astype(complex),
        lambda: np.zeros((0, *array.shape[1:]), array.dtype),
        lambda: np.full(array.shape, np.nan),
        lambda: np.full_like(array, np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1),
        lambda: -array if array.dtype.kind in "if" else array[::-1],
        lambda: np.array(5),
    )
    arrays[name] = rng.choice(changes)() if array.dtype.kind != "U" else np.array(["x"])
    return pack(arrays)


def replace_index(data, change):
    """Return an npz file with a changed index."""
    arrays = dict(np.load(io.BytesIO(data)))
    index = json.dumps(change(json.loads(arrays["index"].tobytes())))
    return pack(arrays | {"index": np.frombuffer(index.encode(), np.uint8)})


def pack(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def change_arrays(data, rng):
    """Return an npz file that was changed in one of many ways."""
    changes = (
        lambda: mutate_bytes(data, rng),
        lambda: replace_member(data, rng),
        lambda: replace_array(data, rng),
        lambda: replace_index(data, lambda index: mutate_value(index, rng)),
    )
    return rng.choice(changes)()


def change_results(folder, rng):
    """Change results, and the files next to them so that they seem to belong to these results."""
    results = mutate_value(json.loads((folder / "results.json").read_bytes()), rng)
    (folder / "results.json").write_text(json.dumps(results))
    try:
        run = digest(json.loads(json.dumps(results)))
    except TypeError:  # NaN, which no results contain
        return
    for name in ARRAY_FILES:
        (folder / name).write_bytes(replace_index((folder / name).read_bytes(), lambda index: index | {"run": run}))
    evidence = json.loads((folder / "evidence.json").read_bytes()) | {"run": run}
    (folder / "evidence.json").write_text(json.dumps(evidence))


def change_folder(folder, rng):
    """Change one file of a finished run, or several that then agree."""
    name = rng.choice((*JSON_FILES, *ARRAY_FILES))
    path = folder / name
    if rng.random() < 0.5:
        change_results(folder, rng)
    elif name in ARRAY_FILES:
        path.write_bytes(change_arrays(path.read_bytes(), rng))
    elif rng.random() < 0.5:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    else:
        path.write_text(json.dumps(mutate_value(json.loads(path.read_bytes()), rng)))


def change_accepted(data, rng):
    """Return an accepted run with other content, often under a checksum that fits."""
    if rng.random() < 0.2:
        return mutate_bytes(data, rng)
    content = json.loads(data)
    if rng.random() < 0.5:
        content["results"] = mutate_value(content["results"], rng)
    else:
        content["predictions"] = base64.b64encode(change_arrays(base64.b64decode(content["predictions"]), rng)).decode()
    content["sha256"] = baseline._sha256(content["results"], content["predictions"])
    return json.dumps(content if rng.random() < 0.8 else mutate_value(content, rng, 1)).encode()


def compare_runs(accepted, run):
    """Compare two runs as ``compare`` and ``gate`` do."""
    comparison = messages.write_comparison(compare.compare(accepted, run))
    compatibility.refusals(accepted, run)
    compatibility.changed_rules(accepted, run)
    compatibility.differences(accepted, run)
    console.print_comparison(comparison)
    github.workflow_commands(replace_flat(run, gate=comparison))


def show_run(run, *, page):
    """Write a run in every format; the page of HTML, which takes a second, only if it is wanted."""
    markdown.render(run)
    junit.render(matrix_tables.with_recipe_findings(run, plugins=True))
    github.workflow_commands(run)
    latex.render(run)
    checklist.render(run)
    files.records_csv(run.cells)
    console.print_run(run)
    if page:
        html.render(run, {}, None)


@pytest.fixture(scope="module")
def run():
    images = SampleImages(
        role="target", title="near, 8 px", arms=("subject",), images=np.zeros((2, 8, 8, 3), np.uint8), labels=("a", "b")
    )
    inputs = [{"key": "target", "given": "synthetic:near", "digest": "0" * 64, "files": 1, "bytes": 100}]
    evidence = {"hash": "0" * 64, "command": "run", "begun": "2026-01-02T03:04:05Z", "inputs": inputs}
    plain = make_run(seeds=2, examples=30, samples=(images,), gate=make_comparison())
    return replace_provenance(plain, evidence=evidence)


@pytest.fixture(scope="module")
def originals(run, tmp_path_factory):
    """Return the files of a finished run, and of an accepted one, by name."""
    folder = tmp_path_factory.mktemp("original")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "render", lambda *_: "")
        files.write_run(run, folder)
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    return contents, baseline.pack_baseline(run)


def test_the_originals_can_be_read(run, originals, tmp_path):
    contents, accepted = originals
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "accepted.json").write_bytes(accepted)
    read = files.read_run(tmp_path)
    assert read.findings == run.findings
    show_run(read, page=True)
    compare_runs(baseline.read_baseline(tmp_path / "accepted.json"), read)


@pytest.mark.parametrize("kind", ["folder", "accepted"])
def test_changed_result_files_give_a_result_or_one_clear_error(
    kind, originals, tmp_path, fuzz_rng, fuzz_factor, monkeypatch, record_property
):
    monkeypatch.chdir(tmp_path)
    contents, accepted = originals
    (tmp_path / "good.json").write_bytes(accepted)
    good = baseline.read_baseline(tmp_path / "good.json")
    errors, crashes = [""], []
    with memory_limit():
        for number in range(CASES * fuzz_factor):
            for name in (*JSON_FILES, *ARRAY_FILES):
                (tmp_path / name).write_bytes(contents[name])
            path = tmp_path / "results.json"
            if kind == "folder":
                change_folder(tmp_path, fuzz_rng)
            else:
                path = tmp_path / "accepted.json"
                path.write_bytes(change_accepted(accepted, fuzz_rng))
            try:
                with time_limit():
                    changed = baseline.read_baseline(path)
                    compare_runs(good, changed)
                    if kind == "folder":  # an accepted run has no report
                        show_run(changed, page=number % CASES == 0)
            except UserError as error:
                errors.append(str(error))
            except Exception:  # noqa: BLE001 - any other exception is what the test looks for
                crashes.append(traceback.format_exc(limit=-4))
    record_property("inputs", CASES * fuzz_factor)
    record_property("refused", len(errors) - 1)
    assert not crashes, f"{len(crashes)} crashes, the first:\n{crashes[0]}"
    assert max(map(len, errors)) < 3000
    assert not (tmp_path / "executed").exists()
