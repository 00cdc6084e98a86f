"""Texts become the ids, the mask and the segments that a network of BERT's kind gets."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from xferbench.core.errors import UserError
from xferbench.core.transforms import Preprocessing, Spectrogram, Tokens, complete_tokens
from xferbench.data.raw import TextExample
from xferbench.lab.data import tokenizers, tokens
from xferbench.lab.data.preprocessing import apply_geometry, geometry_key, to_tensor

PAD, UNK, CLS, SEP, MASK = range(5)
WORDS = ("red", "green", "blue", "Red", "##dish")  # ids 5 to 9
RED, GREEN, BLUE, CAPITAL_RED = 5, 6, 7, 8
BERT = {
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "vocab": {token: number for number, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))},
    },
    "normalizer": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "TemplateProcessing", "special_tokens": {"[CLS]": {}, "[SEP]": {}}},
}


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 32}')
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 1e30}')
    return tmp_path / "model.safetensors"


@pytest.fixture
def recorded(weights):
    return tokens.recorded_tokens(weights)


def ids(text, transform, pair=""):
    return apply_geometry(TextExample(text, pair), transform)[0].tolist()


def segments(text, transform, pair=""):
    return apply_geometry(TextExample(text, pair), transform)[1].tolist()


def test_the_recorded_transform_has_the_settings_of_the_files(recorded):
    assert (recorded.lowercase, recorded.max_length, recorded.padding) == (True, 32, "right")


@pytest.mark.parametrize("missing", ["config.json", "vocab.txt"])
def test_without_a_tokenizer_or_a_configuration_nothing_is_recorded(weights, missing):
    (weights.parent / missing).unlink()
    assert tokens.recorded_tokens(weights) is None


def test_the_sides_and_the_limit_of_a_tokenizer_are_read(weights):
    (weights.parent / "tokenizer_config.json").write_text(
        '{"model_max_length": 16, "padding_side": "left", "truncation_side": "left", "do_lower_case": false}'
    )
    read = tokens.recorded_tokens(weights)
    assert (read.max_length, read.padding, read.truncation, read.lowercase) == (16, "left", "left", False)


@pytest.mark.parametrize(
    "change",
    [
        {"added_tokens": [{"content": "<user>"}]},
        {"added_tokens": ["<user>"]},
        {"normalizer": BERT["normalizer"] | {"strip_accents": False}},
        {"normalizer": {"type": "Sequence"}},
        {"normalizer": None},
        {"pre_tokenizer": None},
        {"post_processor": None},
        {"model": "WordPiece"},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"post_processor": {"type": "TemplateProcessing", "special_tokens": {"<s>": {}}}},
        {"model": BERT["model"] | {"vocab": {"[PAD]": 0, "[UNK]": 2}}},
        {"model": BERT["model"] | {"unk_token": "<unk>"}},
        {"model": BERT["model"] | {"type": "BPE"}},
    ],
)
def test_only_the_plain_tokenizer_of_bert_is_read_without_its_library(change):
    assert tokenizers.is_plain_bert(BERT)
    assert not tokenizers.is_plain_bert(BERT | change)


@pytest.mark.parametrize(
    ("config", "fast", "expected"),
    [
        ({"do_lower_case": False}, BERT, False),
        ({}, BERT | {"normalizer": BERT["normalizer"] | {"lowercase": False}}, False),
        ({}, BERT, True),
        ({}, {}, True),
        ({"do_lower_case": True}, {}, True),
        ({}, {"model": {"type": "BPE"}, "normalizer": None}, None),
    ],
)
def test_the_case_is_that_of_the_configuration_then_of_the_normalizer(config, fast, expected, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text(json.dumps(fast))
    assert tokenizers.recorded_lowercase(tmp_path) is expected


def test_roberta_has_two_positions_less_than_its_table(weights):
    (weights.parent / "config.json").write_text('{"model_type": "roberta", "max_position_embeddings": 34}')
    assert tokens.recorded_tokens(weights).max_length == 32


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [CLS, RED, GREEN, SEP, PAD, PAD]),
        ({"special": "none"}, [RED, GREEN, PAD, PAD, PAD, PAD]),
        ({"special": "twice"}, [CLS, CLS, RED, GREEN, SEP, SEP]),
        ({"padding": "left"}, [PAD, PAD, CLS, RED, GREEN, SEP]),
        ({"extra_padding": 2}, [CLS, RED, GREEN, SEP, PAD, PAD, PAD, PAD]),
        ({"lowercase": False}, [CLS, CAPITAL_RED, GREEN, SEP, PAD, PAD]),
        ({"max_length": 3}, [CLS, RED, SEP]),
        ({"max_length": 3, "truncation": "left"}, [CLS, GREEN, SEP]),
    ],
)
def test_each_setting_changes_the_ids_as_stated(change, expected, recorded):
    assert ids("Red green", replace(recorded, **({"max_length": 6} | change))) == expected


def test_a_pair_has_two_segments_and_padding_has_none(recorded):
    transform = replace(recorded, max_length=8)
    assert ids("red", transform, "blue green") == [CLS, RED, SEP, BLUE, GREEN, SEP, PAD, PAD]
    assert segments("red", transform, "blue green") == [0, 0, 0, 1, 1, 1, -1, -1]


@pytest.mark.parametrize(
    ("first", "second", "room", "kept"),
    [(5, 1, 4, (3, 1)), (1, 5, 4, (1, 3)), (5, 5, 4, (2, 2)), (5, 5, 5, (3, 2)), (2, 2, 9, (2, 2)), (3, 3, 0, (0, 0))],
)
def test_the_longer_text_of_a_pair_is_cut_first(first, second, room, kept):
    cut = tokens._truncate(list(range(first)), list(range(second)), room, "right")
    assert tuple(map(len, cut)) == kept


def test_a_network_gets_the_mask_unless_it_is_left_out(recorded):
    transform = replace(recorded, max_length=5)
    batch = torch.from_numpy(apply_geometry(TextExample("red"), transform))[None]
    prepared = to_tensor(batch, transform)
    assert prepared["input_ids"].tolist() == [[CLS, RED, SEP, PAD, PAD]]
    assert prepared["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]
    assert prepared["token_type_ids"].tolist() == [[0] * 5]
    assert to_tensor(batch, replace(transform, masked=False))["attention_mask"].tolist() == [[1] * 5]
    assert (
        geometry_key(transform)
        == geometry_key(replace(transform, masked=False))
        != geometry_key(replace(transform, padding="left"))
    )


def test_another_vocabulary_permutes_ordinary_tokens_only(recorded):
    transform = replace(recorded, max_length=8)
    plain, shuffled = (np.array(ids("red green blue reddish", t)) for t in (transform, replace(transform, shuffled=True)))
    special = np.isin(plain, range(5))
    assert (plain[special] == shuffled[special]).all()
    assert (plain[~special] != shuffled[~special]).any()
    tokenizer = tokens._load(transform)
    other = tokens._other_vocabulary(tokenizer.size, tokenizer.special)
    assert sorted(other) == list(range(10))
    assert other[:5].tolist() == list(range(5))


def test_the_length_is_that_of_the_longest_text_in_eights(recorded):
    texts = [TextExample("red " * 9), TextExample("red")]
    assert tokens.fit_length(recorded, texts).max_length == 16
    assert tokens.fit_length(recorded, [TextExample("red " * 99)]).max_length == 32
    assert tokens.count_truncated(replace(recorded, max_length=8), texts) == 1


def test_a_statement_keeps_its_values_and_gets_the_others_from_the_record(recorded):
    stated = complete_tokens(Tokens(lowercase=False, padding="left"), recorded)
    assert (stated.lowercase, stated.padding, stated.max_length) == (False, "left", 32)
    assert (stated.tokenizer, stated.tokenizer_path) == (recorded.tokenizer, recorded.tokenizer_path)


def test_a_batch_is_padded_to_its_longest_text(recorded):
    for transform in (replace(recorded, max_length=10), replace(recorded, max_length=10, padding="left", extra_padding=2)):
        texts = [TextExample("red"), TextExample("red green blue")]
        batch = torch.from_numpy(np.stack([apply_geometry(text, transform) for text in texts]))
        trimmed = tokens.trim_padding(transform, batch)
        assert trimmed.shape[-1] == 5 + transform.extra_padding
        assert ((trimmed[:, 1] >= 0).sum(1) == (batch[:, 1] >= 0).sum(1)).all()


def test_a_text_longer_than_the_limit_is_refused():
    with pytest.raises(UserError, match="max_length") as caught:
        tokens.check_length(Tokens(max_length=60, extra_padding=8), 64)
    assert (caught.value.found, caught.value.do) == ("68 tokens", "set max_length to 56 or less")


def test_an_image_classifier_with_a_tokenizer_is_no_network_for_text(weights):
    (weights.parent / "config.json").write_text('{"model_type": "siglip", "architectures": ["SiglipForImageClassification"]}')
    assert tokens.recorded_tokens(weights) is None


def test_a_tokenizer_that_changes_during_a_run_is_refused(weights, recorded):
    (weights.parent / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\n")
    tokenizers.load_tokenizer.cache_clear()
    with pytest.raises(UserError, match="the tokenizer changed"):
        ids("red", recorded)


def test_a_fast_tokenizer_of_bert_is_read_without_its_library(weights):
    (weights.parent / "vocab.txt").unlink()
    (weights.parent / "tokenizer.json").write_text(json.dumps(BERT))
    read = tokens.recorded_tokens(weights)
    assert ids("red reddish", replace(read, max_length=6)) == [CLS, RED, RED, 9, SEP, PAD]


@pytest.fixture
def byte_pairs(weights):
    """Replace the vocabulary by a tokenizer of RoBERTa's kind, which was trained on a few words."""
    library = pytest.importorskip("tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(special_tokens=["<s>", "<pad>", "</s>", "<unk>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["red green blue"] * 9, trainer)
    tokenizer.post_processor = library.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    (weights.parent / "vocab.txt").unlink()
    tokenizer.save(str(weights.parent / "tokenizer.json"))
    (weights.parent / "tokenizer_config.json").write_text('{"pad_token": {"content": "<pad>"}}')
    return tokenizer, tokens.recorded_tokens(weights)


def test_a_tokenizer_of_byte_pairs_is_read_by_its_library(byte_pairs):
    library, recorded = byte_pairs
    transform = replace(recorded, max_length=12)
    expected = library.encode("red green").ids
    assert ids("red green", transform) == expected + [1] * (12 - len(expected))
    pair = library.encode("red", "blue").ids
    assert ids("red", transform, "blue")[: len(pair)] == pair
    plain = library.encode("red green", add_special_tokens=False).ids
    assert ids("red green", replace(transform, special="none"))[: len(plain)] == plain
    assert ids("red", replace(transform, special="twice"))[:2] == [0, 0]


def test_byte_pairs_keep_case_unless_the_form_lowers_it(byte_pairs):
    _, recorded = byte_pairs
    transform = replace(recorded, max_length=12)
    assert recorded.lowercase is None
    assert ids("RED", transform) != ids("red", transform) == ids("RED", replace(transform, lowercase=True))


def test_a_file_that_the_library_cannot_read_is_refused(weights):
    pytest.importorskip("tokenizers")
    (weights.parent / "vocab.txt").unlink()
    (weights.parent / "tokenizer.json").write_text('{"model": {"type": "Unigram", "vocab": []}}')
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read"):
        ids("red", tokens.recorded_tokens(weights))


def test_without_the_library_a_message_names_the_extra(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (weights.parent / "vocab.txt").unlink()
    (weights.parent / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}}}')
    with pytest.raises(UserError, match="needs the library tokenizers") as caught:
        ids("red", tokens.recorded_tokens(weights))
    assert "xferbench[transformers]" in caught.value.do


@pytest.mark.parametrize("transform", [Preprocessing(), Spectrogram()])
def test_a_text_for_another_kind_of_network_is_refused(transform):
    with pytest.raises(UserError, match="a text for a network that takes"):
        apply_geometry(TextExample("red"), transform)


def test_an_image_for_a_network_that_takes_text_is_refused(recorded):
    with pytest.raises(UserError, match="an image for a network that takes text"):
        apply_geometry(np.zeros((4, 4, 3), np.uint8), recorded)
