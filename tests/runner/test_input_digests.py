from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from xferbench.core.errors import UserError
from xferbench.core.sections import replace_flat
from xferbench.core.suite import BackboneSection, DataSection, Invocation, Suite
from xferbench.data import inputs
from xferbench.runner import input_digests

PICTURES = {"train/cat/a.png": b"a", "train/dog/b.png": b"bb", "val/cat/c.png": b"ccc", "val/dog/d.png": b""}


@pytest.fixture
def suite(tmp_path):
    for name, content in PICTURES.items():
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(content)
    (tmp_path / "mine.toml").write_text("schema = 1")
    return Suite(
        name="mine",
        plugins=("all",),
        invocation=Invocation(path=str(tmp_path / "mine.toml")),
        backbone=BackboneSection(arch="tiny-resnet"),
        data=DataSection(target=f"folder:{tmp_path / 'pets'}"),
    )


def test_a_folder_has_a_digest_for_each_file_and_the_digest_of_its_trials(suite):
    data, *_ = input_digests.input_digests(suite)
    assert (data.key, data.value, data.digest) == (
        "target.data",
        suite.data.target,
        inputs.digest_data(suite.data.target).digest,
    )
    assert {file.name: (file.size, file.sha256) for file in data.files} == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in PICTURES.items()
    }


def test_shipped_weights_and_the_suite_file_are_inputs(suite):
    digests = {entry.key: entry for entry in input_digests.input_digests(suite)}
    assert list(digests) == ["target.data", "backbone.weights", "suite"]
    assert digests["backbone.weights"].files[0].name == "tiny-resnet-0.safetensors"
    assert digests["backbone.weights"].digest == digests["backbone.weights"].files[0].sha256
    assert [entry.key for entry in digests.values() if not entry.counts] == ["suite"]


def test_inputs_of_an_audit_include_checkpoints_and_manifest(tmp_path, suite):
    for name in ("after", "before", "seen"):
        (tmp_path / name).write_text(name)
    paths = {"after": str(tmp_path / "after"), "before": str(tmp_path / "before"), "manifest": str(tmp_path / "seen")}
    digests = {
        entry.key: entry.digest for entry in input_digests.input_digests(replace_flat(suite, path="command line", **paths))
    }
    assert list(digests) == ["target.data", "checkpoint.after", "checkpoint.before", "source.manifest"]
    assert digests["source.manifest"] == hashlib.sha256(b"seen").hexdigest()


def test_user_code_has_a_digest_for_each_file(tmp_path, suite):
    (tmp_path / "mine.py").write_text("import beside\ndef build(classes): ...")
    (tmp_path / "beside.py").write_text("x = 1")
    weights = tmp_path / "w"
    weights.write_text("w")
    with_code = replace(
        suite,
        backbone=replace(suite.backbone, arch="python:mine:build", weights=str(weights)),
        invocation=replace(suite.invocation, allow_code=True),
    )
    code = {entry.key: entry for entry in input_digests.input_digests(with_code)}["backbone.arch"]
    assert sorted(file.name for file in code.files) == ["beside.py", "mine.py"]
    assert code.digest == inputs.digest_code(with_code)[0].digest
    with pytest.raises(UserError, match="names code that would run"):
        input_digests.input_digests(replace(with_code, invocation=replace(with_code.invocation, allow_code=False)))


def test_a_generated_dataset_has_a_digest_without_files(suite):
    data, *_ = input_digests.input_digests(replace(suite, data=replace(suite.data, target="synthetic:near")))
    assert data.files == ()
    assert data.digest == inputs.digest_data("synthetic:near").digest


def test_a_file_name_that_is_not_text_is_listed(suite, tmp_path):
    path = os.fsencode(tmp_path / "pets" / "val" / "dog") + b"/\xff\n.png"
    Path(os.fsdecode(path)).write_bytes(b"x")
    data, *_ = input_digests.input_digests(suite)
    assert "val/dog/\udcff\n.png" in {file.name for file in data.files}


def test_a_change_during_the_run_is_an_error(suite, tmp_path):
    before = input_digests.input_digests(suite)
    store = tmp_path / "store.sqlite"
    input_digests.assert_unchanged(suite, store, before)
    (tmp_path / "mine.toml").write_text("schema = 1  # a remark")
    input_digests.assert_unchanged(suite, store, before)
    (tmp_path / "pets" / "train" / "cat" / "a.png").write_bytes(b"another")
    with pytest.raises(UserError, match=r"changed during the run\n  found: target\.data"):
        input_digests.assert_unchanged(suite, store, before)
