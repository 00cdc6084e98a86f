"""The watch as a callback of Lightning and transformers."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn import functional as F

import xferbench

HEAD_ONLY = {"trainable": "head", "batchnorm": "eval"}


def make_data(count=64):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (count,), generator=generator)
    return torch.utils.data.TensorDataset(torch.randn(count, 3, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1), labels)


def make_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )


class Lightning:
    """A module, a trainer and the callback. The import is late because it takes seconds."""

    def __init__(self, *, frozen, **options):
        library = pytest.importorskip("lightning.pytorch", reason="needs the extra lightning")
        from xferbench.callbacks.lightning import Watch

        class Module(library.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = make_net()
                self.fail_at = None

            def training_step(self, batch, index):
                if index == self.fail_at:
                    raise ZeroDivisionError
                if frozen:
                    self.net[:2].eval()
                x, y = batch
                return {"loss": F.cross_entropy(self.net(x), y)}

            def configure_optimizers(self):
                if frozen:
                    self.net[:2].requires_grad_(False)
                return torch.optim.AdamW([tensor for tensor in self.parameters() if tensor.requires_grad], lr=1e-2)

        self.module, self.callback = Module(), Watch(**options)
        self.trainer = library.Trainer(
            max_epochs=3,
            accelerator="cpu",
            callbacks=[self.callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def fit(self):
        self.trainer.fit(self.module, torch.utils.data.DataLoader(make_data(), batch_size=8))
        return self.callback.watch


def hooks(optimizer):
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


@pytest.mark.filterwarnings("ignore")  # Lightning warns about its own code
def test_training_with_lightning_is_watched():
    run = Lightning(frozen=False, recipe=HEAD_ONLY, on_event="collect")
    watch = run.fit()
    assert [(event.kind, event.tensor, event.step) for event in watch.events] == [
        ("frozen-moved", "net.0.weight", 1),
        ("buffer-moved", "net.1.running_mean", 1),
    ]
    assert watch.steps == len(watch._loss_history._losses) == 24
    assert hooks(run.trainer.optimizers[0]) == 0


@pytest.mark.filterwarnings("ignore")
def test_a_correct_training_with_lightning_has_no_events():
    watch = Lightning(frozen=True, recipe=HEAD_ONLY, on_event="raise").fit()
    assert (watch.steps, watch.events) == (24, [])


@pytest.mark.filterwarnings("ignore")
def test_a_failed_training_with_lightning_removes_the_hooks():
    run = Lightning(frozen=True)
    run.module.fail_at = 5
    with pytest.raises(ZeroDivisionError):
        run.fit()
    assert hooks(run.trainer.optimizers[0]) == 0
    assert run.callback.watch.steps == 6, "the failed step has begun"


@pytest.mark.filterwarnings("ignore")
def test_an_event_can_stop_lightning():
    with pytest.raises(xferbench.TransferWarning, match=r"net\.0\.weight"):
        Lightning(frozen=False, recipe=HEAD_ONLY, on_event="raise").fit()


def make_trainer(folder, *, frozen, model=None, **options):
    library = pytest.importorskip("transformers", reason="needs the extra transformers")
    pytest.importorskip("accelerate", reason="needs transformers[torch]")
    from xferbench.callbacks.transformers import Watch

    if model is None:
        shape = {"num_channels": 3, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        model = library.ResNetForImageClassification(library.ResNetConfig(**shape, num_labels=4))
    if frozen:
        model.resnet.requires_grad_(False)
        model.resnet.train = lambda mode=True: nn.Module.train(model.resnet, False)
    callback = Watch(**options)
    settings = library.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        num_train_epochs=6,
        logging_steps=3,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    data = [{"pixel_values": x, "labels": y} for x, y in make_data()]
    return library.Trainer(model=model, args=settings, train_dataset=data, callbacks=[callback]), callback


@pytest.mark.filterwarnings("ignore")
def test_training_with_transformers_is_watched(tmp_path):
    run, callback = make_trainer(tmp_path, frozen=False, recipe=HEAD_ONLY, on_event="collect")
    run.train()
    kinds = {event.kind: event for event in callback.watch.events}
    assert set(kinds) == {"frozen-moved", "buffer-moved"}
    assert kinds["buffer-moved"].tensor == "resnet.embedder.embedder.normalization.running_mean"
    assert {event.step for event in callback.watch.events} == {1}
    assert callback.watch.steps == len(callback.watch._loss_history._losses) == 24
    assert not run.model._forward_hooks
    assert hooks(run.optimizer.optimizer) == 0


@pytest.mark.filterwarnings("ignore")
def test_a_correct_training_with_transformers_has_no_events(tmp_path):
    run, callback = make_trainer(tmp_path, frozen=True, recipe=HEAD_ONLY, on_event="raise")
    run.train()
    assert (callback.watch.steps, callback.watch.events) == (24, [])


class Plain(nn.Module):
    """A model that returns only logits; the Trainer computes the loss."""

    def __init__(self):
        super().__init__()
        self.net = make_net()

    def forward(self, pixel_values):
        return {"logits": self.net(pixel_values)}


@pytest.mark.filterwarnings("ignore")
def test_the_logged_loss_is_recorded_if_the_model_returns_none(tmp_path):
    run, callback = make_trainer(tmp_path, frozen=False, model=Plain(), on_event="collect")
    run.compute_loss_func = lambda outputs, labels, **options: F.cross_entropy(outputs["logits"], labels)
    run.label_names = ["labels"]
    run.train()
    assert [step for step, _ in callback.watch._loss_history._losses] == [3, 6, 9, 12, 15, 18, 21, 24]


TEXTS = [
    "a fine small film",
    "a dull film",
    "not a fine film at all but a small one",
    "dull and small",
    "fine film",
    "the film is dull",
]


def make_tokenizer(library):
    """Return a fast tokenizer of whole words."""
    tokenizers = pytest.importorskip("tokenizers")
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[END]", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return library.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def make_text_model(library, kind, rows):
    sizes = {"vocab_size": rows, "num_labels": 2, "pad_token_id": 0}
    if kind == "gpt2":
        config = library.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=2, eos_token_id=2, **sizes)
        return library.GPT2ForSequenceClassification(config)
    if kind == "distilbert":
        return library.DistilBertForSequenceClassification(
            library.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=32, **sizes)
        )
    encoder = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = library.BertConfig(max_position_embeddings=32, **encoder, **sizes)
    model = library.BertForSequenceClassification(config)
    if kind == "lora":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    return model


def train_on_texts(folder, kind, *, length=16, hide_mask=False, ids_above=0, **options):
    """Train a small classifier of texts with the Trainer, and return the watch."""
    library = pytest.importorskip("transformers", reason="needs the extra transformers")
    pytest.importorskip("accelerate", reason="needs transformers[torch]")
    from xferbench.callbacks.transformers import Watch

    tokenizer = make_tokenizer(library)
    encoded = tokenizer(TEXTS * 8, truncation=True, max_length=length)
    rows = [
        {"input_ids": [ids[0] + ids_above, *ids[1:]], "attention_mask": mask, "labels": number % 2}
        for number, (ids, mask) in enumerate(zip(encoded["input_ids"], encoded["attention_mask"], strict=True))
    ]
    pad = library.DataCollatorWithPadding(tokenizer)

    def collate(features):
        batch = dict(pad(features))
        if hide_mask:
            del batch["attention_mask"]
        return batch

    torch.manual_seed(0)
    callback = Watch(**options)
    settings = library.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_steps=25,
        logging_steps=5,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = library.Trainer(
        model=make_text_model(library, kind, len(tokenizer)),
        args=settings,
        train_dataset=rows,
        data_collator=collate,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    try:
        trainer.train()
    except IndexError:
        assert ids_above, "an embedding has no row for an id"
    return callback.watch


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "lora"])
def test_a_sound_training_on_texts_with_transformers_has_no_events(tmp_path, kind):
    watch = train_on_texts(tmp_path, kind, on_event="raise")
    assert (watch.steps, watch.events) == (25, [])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"hide_mask": True}, ("padding-visible", "input_ids", 1)),
        ({"length": 2}, ("texts-cut", "input_ids", 3)),
        ({"ids_above": 100}, ("id-outside", "bert.embeddings.word_embeddings.weight", 1)),
    ],
)
def test_a_faulty_training_on_texts_with_transformers_is_reported(tmp_path, fault, expected):
    (event,) = train_on_texts(tmp_path, "bert", on_event="collect", **fault).events
    assert (event.kind, event.tensor, event.step) == expected
