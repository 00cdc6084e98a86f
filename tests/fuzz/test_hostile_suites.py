"""Suite files are input: whatever they contain, loading one gives a suite or one clear error, within seconds."""

from __future__ import annotations

import json
import tomllib
import traceback

import pytest
from limits import memory_limit, time_limit
from mutation import mutate_bytes, mutate_value

from xferbench.config import loader
from xferbench.core.errors import UserError
from xferbench.runner import discovery

CASES = 200
COMPLETE = """
schema = 1
name = "complete"
plugins = ["all"]
margin = 0.05
looks = [2, 3]
budget = "30m"
seed = 3
tuning_seeds = 2
[backbone]
arch = "tiny-resnet"
preprocessing = { resize = 32, crop = 32, interpolation = "bilinear", mean = [0.5, 0.5, 0.5], std = [0.2, 0.2, 0.2] }
[target]
data = "synthetic:near"
train_size = 100
[source]
data = "synthetic:source"
classes = { a = 0, b = 1 }
[shifted]
data = "synthetic:tinted"
[recipe]
strategy = "full"
lr = 1e-3
weight_decay = 0.01
steps = 40
augment = "flip"
regularizer = "l2-sp:0.1"
serve_preprocessing = { resize = 32, crop = 32 }
[scratch]
lr = [1e-2]
steps = 40
"""
PHASES = """
schema = 1
name = "phases"
plugins = ["batchnorm-drift", "head-shock"]
[backbone]
arch = "tiny-resnet"
[target]
data = "digits"
[recipe]
head = "mlp:64"
transferred = "low:2"
finish = "interpolate:0.5"
[[recipe.phases]]
trainable = "head"
lr = 1e-2
steps = 10
[[recipe.phases]]
trainable = "lora:4"
epochs = 2.5
schedule = "linear"
"""
AUDIT = """
schema = 1
name = "audit"
plugins = ["all"]
[backbone]
arch = "torchvision:resnet18"
[target]
data = "folder:images"
[checkpoint]
after = "after.pth"
before = "before.pth"
believed = "trainable=head,batchnorm=eval"
"""
# Values that a key may not expect: long, deep, far away, of another form, or a word of another key.
NASTY_WORDS = (
    *("ghost:999999999999999999999", "ghost:\u0663", "momentum:1e-999", "momentum:.", "top:" + "9" * 5000, "lora:" + "9" * 400),
    *("mlp:1:0.99999999999999999", "replay:-1", "l2-sp:1e400", "l2-sp:1e-400", "interpolate:1.000", "distill:0." + "0" * 300),
    *("folder:", "folder:/proc", "npz:/dev/zero", "folder:a\x00b", "torchvision:CIFAR10:", "synthetic:", "python:os:system"),
    *("timm:hf-hub:x/y", "torchvision:__class__", "9" * 400 + "h", "0s", "0.0000001s", "\u0663s", "~nobody", "a" * 10**6),
)
RAW_TEXTS = (
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"[" * 5000, b"{a=" * 2000, b'"""', b"'", b"\n[recipe]\n", b"[[target]]\n"),
    *(b"a." * 500 + b"b=1\n", b"1979-05-27T07:32:00Z", b"x = " + b"9" * 5000 + b"\n", b"0x7fffffffffffffffffff", b"inf"),
)


def toml_text(value):
    """Write a value in TOML; integers too long for Python's conversion as they are written by hand."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_text, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value).replace("\\u007f", "\x7f")
    return '""' if value is None else repr(value)


def document(table):
    return "\n".join(f"{json.dumps(str(key))} = {toml_text(value)}" for key, value in table.items())


def make_case(tables, raw, rng):
    """Return the bytes of one changed suite file."""
    if rng.random() < 0.3:
        data = mutate_bytes(rng.choice(raw), rng)
        place = rng.randrange(len(data))
        return data[:place] + (rng.choice(RAW_TEXTS) if rng.random() < 0.5 else b"") + data[place:]
    table = mutate_value(rng.choice(tables), rng)
    if rng.random() < 0.3:
        texts = [path for path, value in leaves(table) if isinstance(value, str)]
        if texts:
            *above, key = rng.choice(texts)
            parent = table
            for name in above:
                parent = parent[name]
            parent[key] = rng.choice(NASTY_WORDS)
    return document(table).encode("utf-8", "replace")


def leaves(value, prefix=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*prefix, key), item
        yield from leaves(item, (*prefix, key))


def test_changed_suite_files_give_a_suite_or_one_clear_error(tmp_path, fuzz_rng, fuzz_factor, record_property):
    shipped = [path.read_bytes() for path in sorted(loader.shipped_folder().glob("*.toml"))]
    raw = [*shipped, *(text.encode() for text in (COMPLETE, PHASES, AUDIT))]
    tables = [tomllib.loads(data.decode()) for data in raw]
    path, errors, crashes = tmp_path / "suite.toml", [""], {}
    with memory_limit():
        for _ in range(CASES * fuzz_factor):
            data = make_case(tables, raw, fuzz_rng)
            path.write_bytes(data)
            try:
                with time_limit():
                    suite = loader.load_suite(path)
                    discovery.suite_plugins(suite)
            except UserError as error:
                errors.append(str(error))
            except Exception:  # noqa: BLE001 - any other exception is what the test looks for
                crashes.setdefault(traceback.format_exc(limit=-3), data)
    record_property("inputs", CASES * fuzz_factor)
    record_property("refused", len(errors) - 1)
    assert not crashes, "".join(f"{trace}{data[:1000]!r}\n" for trace, data in crashes.items())
    assert max(map(len, errors)) < 5000, max(errors, key=len)[:3000]


@pytest.mark.parametrize("data", RAW_TEXTS)
def test_a_file_that_is_no_suite_is_one_clear_error(data, tmp_path):
    path = tmp_path / "suite.toml"
    path.write_bytes(data)
    with time_limit(), pytest.raises(UserError):
        loader.load_suite(path)
