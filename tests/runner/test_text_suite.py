"""Texts through the whole line: a suite with the embedded network, and the audit of a classifier of transformers."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import xferbench
from xferbench.cli.main import main
from xferbench.core.errors import UserError
from xferbench.core.pipeline import Checkpoint
from xferbench.core.plugin import ProfileRequest
from xferbench.data import inputs, language
from xferbench.lab.worker import profile

SUITE = """
schema = 1
name = "texts"
plugins = ["preprocessing-mismatch", "negative-transfer"]
margin = 0.05
looks = [2]
tuning_seeds = 1
budget = "2h"
[backbone]
arch = "tiny-bert"
[target]
data = "synthetic:text-near"
train_size = 60
test_size = 200
[recipe]
trainable = "head"
lr = 3e-2
steps = 60
[scratch]
lr = [2e-3]
label_smoothing = [0.0]
steps = 5
halvings = 0
"""


def test_a_suite_of_texts_finds_what_wrong_serving_costs(tmp_path):
    (tmp_path / "texts.toml").write_text(SUITE)
    run = xferbench.run(tmp_path / "texts.toml", store=tmp_path / "store.sqlite", workers=1, device="cpu")
    by_id = {finding.id: finding for finding in run.findings}
    vocabulary = by_id["preprocessing-mismatch/harm/other-vocabulary"]
    assert vocabulary.control.outcome == "detected"
    assert {"PASS", "INCONCLUSIVE"} >= {finding.verdict for finding in run.findings}


@pytest.fixture
def classifier(tmp_path):
    """Return a folder with a small classifier of transformers that knows the classes, and a table of texts."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "classifier"
    folder.mkdir()
    words = [token for token in language.vocabulary_lines() if token.isalpha() and token.islower()][:40]
    (folder / "vocab.txt").write_text("\n".join(language.vocabulary_lines()) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "model_max_length": 32}))
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=240)
    texts = [" ".join([words[label].capitalize() if label else words[1], *rng.choice(words[4:], 5)]) for label in labels]
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        writer.writerows(zip(texts, labels, ["train"] * 80 + ["test"] * 160, strict=True))
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(language.vocabulary_lines()), max_position_embeddings=32, **settings)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder, tmp_path / "texts.csv"


def test_added_tokens_without_embeddings_are_refused(classifier, tmp_path, capsys):
    folder, table = classifier
    rows = table.read_text()
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text() + "zebra\n")
    table.write_text(rows.rstrip("\n") + "\nzebra,1,test\n")
    options = ["--store", tmp_path / "store.sqlite", "-o", tmp_path / "out", "--device", "cpu"]
    assert main(["audit", "--after", str(folder), "--data", f"csv:{table}", *map(str, options)]) == 2
    error = capsys.readouterr().err
    assert "the tokenizer has tokens without an embedding" in error
    assert "do: call model.resize_token_embeddings(len(tokenizer)) before training" in error


def test_an_audit_reads_a_classifier_of_transformers_with_its_tokenizer(classifier, tmp_path, capsys):
    folder, table = classifier
    arguments = [
        "audit",
        "--after",
        str(folder),
        "--data",
        f"csv:{table}",
        "--checks",
        "reload",
        "head-size",
        "-o",
        str(tmp_path / "out"),
    ]
    code = main([*arguments, "--store", str(tmp_path / "store.sqlite"), "-j", "1", "--device", "cpu"])
    text = capsys.readouterr().out
    assert code == 0, text
    assert "2 outputs, 2 classes" in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {finding["verdict"] for finding in results["findings"]} == {"PASS"}


def test_an_option_of_images_is_refused_for_a_network_that_takes_text(classifier, capsys):
    folder, table = classifier
    assert main(["audit", "--after", str(folder), "--data", f"csv:{table}", "--serve-channels", "bgr", "-j", "1"]) == 2
    assert "options of images for a network that takes text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ('serve_preprocessing = { kind = "image", resize = 32 }', "serve_preprocessing: kind"),
        ('serve_preprocessing = { kind = "text", max_length = 65 }', "serve_preprocessing: max_length"),
        ('serve_preprocessing = { kind = "text", extra_padding = 60 }', "serve_preprocessing: max_length"),
        ('augment = "flip"', "augment"),
    ],
)
def test_a_recipe_that_the_network_for_text_cannot_follow_is_refused_before_training(lines, what, tmp_path):
    (tmp_path / "texts.toml").write_text(SUITE.replace("[recipe]", f"[recipe]\n{lines}"))
    with pytest.raises(UserError) as caught:
        xferbench.run(tmp_path / "texts.toml", store=tmp_path / "store.sqlite", workers=1, device="cpu")
    assert what in caught.value.what


@pytest.mark.parametrize(
    "change", ["masked = false", 'special = "none"', "lowercase = true", 'padding = "left"', "shuffled = true"]
)
def test_a_stated_form_that_contradicts_the_tokenizer_is_refused(change, tmp_path):
    backbone = f'arch = "tiny-bert"\npreprocessing = {{ kind = "text", {change} }}'
    (tmp_path / "texts.toml").write_text(SUITE.replace('arch = "tiny-bert"', backbone))
    with pytest.raises(UserError, match="contradicts the tokenizer") as caught:
        xferbench.run(tmp_path / "texts.toml", store=tmp_path / "store.sqlite", workers=1, device="cpu")
    assert change.partition(" ")[0] in caught.value.found


def test_an_audit_serves_texts_with_the_tokenizer_of_the_finished_network(tmp_path):
    saved = inputs.SHIPPED_WEIGHTS_FOLDER / "tiny-bert-0"
    for name, lowercase in (("before", False), ("after", True)):
        shutil.copytree(saved, tmp_path / name)
        config = {"do_lower_case": lowercase, "model_max_length": 64}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config))
    before, after = (inputs.digest_weights_file(tmp_path / name) for name in ("before", "after"))
    target = inputs.digest_data("synthetic:text-near")
    request = ProfileRequest(
        arch="tiny-bert", weights=before, target=target, preprocessing=None, checkpoint=Checkpoint(after=after, before=before)
    )
    transform, note = profile._preprocessing(request)
    assert (transform.lowercase, note) == (True, "")
    assert before.digest != after.digest


def test_a_stated_pooling_is_that_of_every_network_of_the_run(tmp_path):
    plain = SUITE.replace('"preprocessing-mismatch", "negative-transfer"', '"learning-rate"').replace("[2]", "[1]")
    accuracy = {}
    for pooling in ("cls", "mean"):
        (tmp_path / "texts.toml").write_text(plain.replace('arch = "tiny-bert"', f'arch = "tiny-bert"\npooling = "{pooling}"'))
        run = xferbench.run(tmp_path / "texts.toml", store=tmp_path / "store.sqlite", workers=1, device="cpu")
        accuracy[pooling] = run.findings[0].accuracy
    assert accuracy["cls"].keys() == accuracy["mean"].keys()
    assert all(accuracy["cls"][arm] != accuracy["mean"][arm] for arm in accuracy["cls"])


def test_images_have_no_pooling(tmp_path):
    images = SUITE.replace("synthetic:text-near", "digits").replace("tiny-bert", "tiny-resnet")
    (tmp_path / "texts.toml").write_text(images.replace("[target]", 'pooling = "mean"\n[target]'))
    with pytest.raises(UserError, match="pooling: the network has none to choose"):
        xferbench.run(tmp_path / "texts.toml", store=tmp_path / "store.sqlite", workers=1, device="cpu")


def test_the_pooling_of_a_folder_is_part_of_its_digest(tmp_path):
    shutil.copytree(inputs.SHIPPED_WEIGHTS_FOLDER / "tiny-bert-0", tmp_path / "net")
    plain = inputs.digest_weights_file(tmp_path / "net").digest
    (tmp_path / "net" / "1_Pooling").mkdir()
    (tmp_path / "net" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert inputs.digest_weights_file(tmp_path / "net").digest != plain
