"""Faults in the first batches of texts, and sound loops of texts without events."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="needs the extra transformers")

from torch import nn

import xferbench
from xferbench.core.errors import UserError
from xferbench.lab.monitor import text_inputs, user_model

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about missing masks and about its own code
ROWS, POSITIONS, PAD = 60, 24, 0
SIZES = {"vocab_size": ROWS, "num_labels": 3}
ENCODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
DECODER = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": POSITIONS, "bos_token_id": 2, "eos_token_id": 2}
DISTILLED = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
SEQ2SEQ = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 1,
    "num_heads": 2,
    "vocab_size": ROWS,
    "decoder_start_token_id": 0,
}


def make_model(kind, **changes):
    torch.manual_seed(0)
    make = {
        "bert": lambda: transformers.BertForSequenceClassification(
            transformers.BertConfig(**SIZES | ENCODER | {"max_position_embeddings": POSITIONS} | changes)
        ),
        "distilbert": lambda: transformers.DistilBertForSequenceClassification(
            transformers.DistilBertConfig(**SIZES | DISTILLED | {"max_position_embeddings": POSITIONS} | changes)
        ),
        "roberta": lambda: transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(
                **SIZES
                | ENCODER
                | {"max_position_embeddings": POSITIONS + PAD + 1, "pad_token_id": PAD, "bos_token_id": 3}
                | changes
            )
        ),
        "gpt2": lambda: transformers.GPT2ForSequenceClassification(
            transformers.GPT2Config(**SIZES | DECODER | {"pad_token_id": PAD} | changes)
        ),
        "causal": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**SIZES | DECODER | {"pad_token_id": PAD} | changes)
        ),
        "masked": lambda: transformers.BertForMaskedLM(
            transformers.BertConfig(**SIZES | ENCODER | {"max_position_embeddings": POSITIONS} | changes)
        ),
        "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**SEQ2SEQ | changes)),
    }
    return make[kind]()


def make_batches(count=4, *, texts=8, longest=12, side="right", pad=PAD, seed=0):
    """Yield batches of texts of random lengths, as a tokenizer pads them."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(count):
        lengths = torch.randint(4, longest - 2, (texts,), generator=random)
        ids = torch.randint(3, ROWS, (texts, longest), generator=random)
        places = torch.arange(longest).expand(texts, longest)
        mask = places < lengths[:, None] if side == "right" else places >= longest - lengths[:, None]
        yield {
            "input_ids": torch.where(mask, ids, pad),
            "attention_mask": mask.long(),
            "labels": torch.randint(3, (texts,), generator=random),
        }


def train_watched(model, batches, **options):
    """Train in a simple loop, and return the watch."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with xferbench.watch(model, optimizer, on_event="collect", **options) as watch:
        for batch in batches:
            optimizer.zero_grad()
            model(**batch)["loss"].backward()
            optimizer.step()
    return watch


def only_event(watch):
    (event,) = watch.events
    return event


def without_mask(batches):
    for batch in batches:
        yield {key: value for key, value in batch.items() if key != "attention_mask"}


def with_labels_of_tokens(batches, share=1.0):
    """Replace the labels by those of the visible tokens, and ignore some."""
    random = torch.Generator().manual_seed(1)
    for batch in batches:
        used = (batch["attention_mask"] > 0) & (torch.rand(batch["input_ids"].shape, generator=random) < share)
        yield batch | {"labels": torch.where(used, batch["input_ids"], text_inputs.IGNORED_LABEL)}


# Sound loops.


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "gpt2"])
def test_a_sound_classifier_has_no_events(kind, side):
    watch = train_watched(make_model(kind), make_batches(25, side=side))
    assert (watch.steps, watch.events) == (25, [])


@pytest.mark.parametrize("kind", ["masked", "causal", "t5"])
def test_a_sound_language_model_has_no_events(kind):
    share = 0.15 if kind == "masked" else 1.0
    assert train_watched(make_model(kind), with_labels_of_tokens(make_batches(25), share)).events == []


def test_a_decoder_does_not_see_padding_that_follows():
    assert train_watched(make_model("gpt2"), without_mask(make_batches())).events == []
    shared = make_batches(pad=2)  # the token that ends a text is also the padding
    assert train_watched(make_model("gpt2", pad_token_id=2), shared).events == []


def test_texts_of_one_length_need_no_mask():
    batches = ({"input_ids": torch.randint(1, ROWS, (8, 10)), "labels": torch.randint(3, (8,))} for _ in range(4))
    assert train_watched(make_model("bert"), batches).events == []


def test_a_single_id_of_padding_at_an_end_is_a_word():
    batches = list(without_mask(make_batches()))
    for batch in batches:
        batch["input_ids"][batch["input_ids"] == PAD] = 5
        batch["input_ids"][:3, -1] = PAD
    assert train_watched(make_model("bert"), batches).events == []


def test_a_network_without_a_mask_argument_is_not_reported():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = transformers.BertConfig(**SIZES)
            self.words, self.head = nn.Embedding(ROWS, 8), nn.Linear(8, 3)

        def forward(self, input_ids, labels):
            visible = (input_ids != PAD).unsqueeze(-1)
            logits = self.head((self.words(input_ids) * visible).sum(1))
            return {"loss": nn.functional.cross_entropy(logits, labels)}

    assert train_watched(Words(), without_mask(make_batches())).events == []


def test_an_unused_pooler_is_not_reported():
    class MeanPooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = transformers.BertModel(transformers.BertConfig(**SIZES | ENCODER))
            self.head = nn.Linear(16, 3)

        def forward(self, input_ids, attention_mask, labels):
            hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            visible = attention_mask.unsqueeze(-1)
            return {"loss": nn.functional.cross_entropy(self.head((hidden * visible).sum(1) / visible.sum(1)), labels)}

    assert train_watched(MeanPooled(), make_batches(25)).events == []
    recipe = {"trainable": "all"}  # a recipe says that it must train
    assert only_event(train_watched(MeanPooled(), make_batches(25), recipe=recipe)).tensor == "body.pooler.dense.weight"


# Faults.


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "t5"])
def test_padding_without_a_mask_is_reported(kind):
    batches = list(with_labels_of_tokens(make_batches()) if kind == "t5" else make_batches())
    event = only_event(train_watched(make_model(kind), without_mask(batches)))
    assert (event.kind, event.tensor, event.step, event.since) == ("padding-visible", "input_ids", 1, 0)
    padding = int((batches[0]["attention_mask"] == 0).sum())
    assert event.cause == (
        f"{padding} of the 96 tokens of a batch are padding that other tokens see: the model received no attention_mask"
    )


def test_a_mask_of_ones_over_padding_is_reported():
    batches = (batch | {"attention_mask": torch.ones_like(batch["attention_mask"])} for batch in make_batches())
    event = only_event(train_watched(make_model("bert"), batches))
    assert (event.kind, event.step) == ("padding-visible", 1)
    assert event.cause.endswith("its attention mask is 1 there")


@pytest.mark.parametrize("pad", [PAD, 2])
def test_padding_on_the_left_of_a_decoder_needs_a_mask(pad):
    batches = without_mask(make_batches(side="left", pad=pad))
    assert only_event(train_watched(make_model("gpt2", pad_token_id=pad), batches)).kind == "padding-visible"


def test_ignored_labels_of_texts_are_reported_at_the_first_step():
    batches = (batch | {"labels": torch.full((8,), text_inputs.IGNORED_LABEL)} for batch in make_batches())
    events = train_watched(make_model("bert"), batches).events
    assert ("labels-ignored", "labels", 1) in [(event.kind, event.tensor, event.step) for event in events]
    assert "all 8 labels so far are -100" in events[0].cause


def test_ignored_labels_of_tokens_are_reported_after_three_steps():
    first, second, *rest = with_labels_of_tokens(make_batches(5))
    nothing = {"labels": torch.full_like(first["labels"], text_inputs.IGNORED_LABEL)}
    model = make_model("causal")
    kinds = [event.kind for event in train_watched(model, [first | nothing, second | nothing, *rest]).events]
    assert "labels-ignored" not in kinds
    events = train_watched(make_model("causal"), [batch | nothing for batch in (first, second, *rest)]).events
    assert [event.step for event in events if event.kind == "labels-ignored"] == [3]


@pytest.mark.parametrize(("length", "options"), [(POSITIONS, {}), (10, {"max_length": 10})])
@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_texts_that_are_all_cut_are_reported(kind, length, options):
    batches = [{"input_ids": torch.randint(3, ROWS, (8, length)), "labels": torch.randint(3, (8,))} for _ in range(5)]
    event = only_event(train_watched(make_model(kind), batches, **options))
    assert (event.kind, event.tensor, event.step) == ("texts-cut", "input_ids", 3)
    assert f"all 24 texts so far fill {length} tokens" in event.cause
    batches[1]["attention_mask"] = torch.ones_like(batches[1]["input_ids"])
    batches[1]["attention_mask"][0, -1] = 0
    assert train_watched(make_model(kind), batches, **options).events == [], "one text is shorter"
    assert train_watched(make_model(kind), [{**batch, "labels": batch["labels"]} for batch in batches[:2]]).events == []


@pytest.mark.parametrize(
    ("kind", "tensor", "rows"),
    [
        ("bert", "bert.embeddings.word_embeddings.weight", ROWS),
        ("gpt2", "transformer.wte.weight", ROWS),
    ],
)
def test_an_id_without_a_row_is_reported_before_the_lookup_fails(kind, tensor, rows):
    model = make_model(kind)
    batch = next(make_batches(1))
    batch["input_ids"][2, 0] = rows
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(IndexError), xferbench.watch(model, optimizer, on_event="collect") as watch:
        model(**batch)
    event = only_event(watch)
    assert (event.kind, event.tensor, event.step) == ("id-outside", tensor, 1)
    assert event.cause == f"it is looked up at {rows}, but has {rows} rows"
    with pytest.raises(xferbench.TransferWarning, match="id-outside"), xferbench.watch(model, optimizer, on_event="raise"):
        model(**batch)
    assert not model._forward_pre_hooks


# What is read.


def test_only_the_first_three_steps_are_read():
    model = make_model("bert")
    good = list(make_batches(5))
    bad = list(without_mask(make_batches(3)))
    assert train_watched(model, [*good[:3], *bad]).events == []
    assert [event.step for event in train_watched(model, [*good[:2], *bad]).events] == [3]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_evaluation_is_not_read():
    model = make_model("bert")
    optimizer = torch.optim.AdamW(model.parameters())
    with xferbench.watch(model, optimizer, on_event="collect") as watch, torch.no_grad():
        model(**next(without_mask(make_batches(1))))
    assert watch.events == []


def test_positional_arguments_and_inner_networks_are_read():
    class Pipeline(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = make_model("bert")

        def forward(self, batch):
            return self.network(batch["input_ids"], labels=batch["labels"])

    model = Pipeline()
    assert list(text_inputs.find_text_networks(model)) == ["network"]
    optimizer = torch.optim.AdamW(model.parameters())
    with xferbench.watch(model, optimizer, on_event="collect") as watch:
        model(next(make_batches(1))).loss.backward()
    assert only_event(watch).tensor == "network.input_ids"


def test_training_is_bit_identical_with_and_without_a_watch():
    ends = []
    for is_watched in (True, False):
        model = make_model("bert").train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.manual_seed(3)
        with xferbench.watch(model, optimizer, on_event="collect") if is_watched else torch.enable_grad():
            for batch in make_batches(6):
                optimizer.zero_grad()
                model(**batch).loss.backward()
                optimizer.step()
        ends.append((model.state_dict(), torch.get_rng_state()))
    assert all(torch.equal(tensor, ends[1][0][name]) for name, tensor in ends[0][0].items())
    assert torch.equal(ends[0][1], ends[1][1])


def test_the_direction_and_the_positions_of_networks():
    kinds = {"bert": "both", "distilbert": "both", "roberta": "both", "gpt2": "causal", "causal": "causal", "t5": "both"}
    assert {kind: text_inputs.attention_direction(make_model(kind)) for kind in kinds} == kinds
    assert text_inputs.attention_direction(nn.Linear(2, 2)) == ""
    for kind in ("bert", "distilbert", "roberta", "gpt2"):
        assert text_inputs.position_limit(make_model(kind)) == POSITIONS
    assert text_inputs.position_limit(make_model("t5")) is None


def test_a_wrong_max_length_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(UserError, match="max_length"):
        xferbench.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), max_length=0)


def test_a_tensor_is_in_the_pooler_of_a_network_of_transformers():
    model = nn.ModuleDict(
        {"body": transformers.BertModel(transformers.BertConfig(**SIZES | ENCODER)), "pooler": nn.Linear(2, 2)}
    )
    assert user_model.is_in_pooler(model, "body.pooler.dense.weight")
    assert not user_model.is_in_pooler(model, "body.encoder.layer.0.output.dense.weight")
    assert not user_model.is_in_pooler(model, "pooler.weight")
