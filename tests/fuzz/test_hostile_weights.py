"""Hostile files of weights: each gives one clear error or tensors in limited time and memory, and nothing of it runs."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import struct
import subprocess
import tarfile
import traceback
import warnings
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
resource = pytest.importorskip("resource")

from xferbench.core.errors import UserError
from xferbench.lab.models import checkpoint_reader, checkpoints

SECONDS = 10
MEMORY_FILE = Path("/proc/self/statm")
MEMORY = 2**30
DEFAULT_CASES = 25
MIN_FUZZ_CASES = 300
WEIGHTS = {"stem.weight": torch.arange(9.0).view(3, 3), "stem.bias": torch.ones(3)}


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def in_memory(write):
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def torch_file(content, *, zipped=True):
    return in_memory(lambda stream: torch.save(content, stream, _use_new_zipfile_serialization=zipped))


def with_pickle(content):
    """Return a file of torch.save whose pickle is replaced."""

    def write(stream):
        with zipfile.ZipFile(io.BytesIO(torch_file(WEIGHTS))) as original, zipfile.ZipFile(stream, "w") as changed:
            for name in original.namelist():
                changed.writestr(name, content if name.endswith("data.pkl") else original.read(name))

    return in_memory(write)


def integer(value):
    digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(digits)]) + digits


def view(size, stride, numbers, offset=0):
    """Return a file with one tensor that states its size, strides and storage."""
    shape, steps = (b"(" + b"".join(map(integer, values)) + b"t" for values in (size, stride))
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + integer(numbers) + b"tQ"
    arguments = storage + integer(offset) + shape + steps + b"\x89ccollections\nOrderedDict\n)R"
    return with_pickle(b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tRs.")


def safetensors(header, data=bytes(8), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def inflated(megabytes):
    """Return a compressed archive of torch.save whose tensor unpacks to many zeros."""

    def write(stream):
        with (
            zipfile.ZipFile(io.BytesIO(torch_file(WEIGHTS))) as original,
            zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for name in original.namelist():
                with packed.open(name, "w") as member:
                    for _ in range(megabytes if name.endswith("data/0") else 0):
                        member.write(bytes(2**20))
                    member.write(original.read(name))

    return in_memory(write)


def tar(members):
    def write(stream):
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))

    return in_memory(write)


def cycle():
    content = {}
    content["state_dict"] = content
    return content


def doubled(levels):
    content = {}
    for _ in range(levels):
        content = {"left": content, "right": content}
    return content


def odd_tensors():
    rows = torch.ones(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "quantized": torch.quantize_per_tensor(rows, 0.1, 0, torch.qint8),
            "nested": torch.nested.nested_tensor([rows, rows]),
            "sparse": rows.to_sparse(),
            "compressed": rows.to_sparse_csr(),
            "complex": rows.to(torch.complex64),
            "meta": rows.to("meta"),
            "float8": rows.to(torch.float8_e4m3fn),
            "bool": rows.bool(),
            "expanded": torch.zeros(1).expand(2**31),
            "shared": torch.ones(2**20).expand(2**8, 2**20),
        }


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "beyond": {"w": ENTRY | {"data_offsets": [0, 2**40]}},
    "product": {"w": ENTRY | {"shape": [2**62, 2**62]}},
    "negative": {"w": ENTRY | {"shape": [-2]}},
    "overlap": {"w": ENTRY, "v": ENTRY},
    "reversed": {"w": ENTRY | {"data_offsets": [8, 0]}},
    "dtype": {"w": ENTRY | {"dtype": "PICKLE"}},
    "float4": {"w": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}},
    "scale": {"w": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}},
    "number": {"w": 5},
    "empty": {},
    "names": {"a\n::error::\x1b[2J" + "b" * 2**20: ENTRY},
    "preprocessing": {"__metadata__": {checkpoints.PREPROCESSING_METADATA: '{"crop": 1000000000}'}, "w": ENTRY},
    "mean": {"__metadata__": {checkpoints.PREPROCESSING_METADATA: '{"mean": "evil"}'}, "w": ENTRY},
    "deep": b'{"a":' * 100_000,
    "unfinished": b"{" * 1000,
}
VIEWS = {
    "terabytes": ((10**6, 10**6), (0, 0), 9),
    "gigabytes": ((3 * 10**9,), (0,), 9),
    "beyond": ((1000,), (1,), 9),
    "before": ((3,), (1,), 9, -1000),
    "backwards": ((3,), (-1,), 9, 2),
    "overflow": ((2**40, 2**40), (1, 1), 9),
    "storage": ((3,), (1,), 2**45),
    "large storage": ((3,), (1,), 3 * 10**9),
}
PICKLES = {
    "lists": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "dictionaries": b"\x80\x02}" + b"U\x01a}" * 50_000 + b"s" * 50_000 + b".",
    "text": b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"a.",
    "number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"a.",
    "memo": b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".",
    "key": b"\x80\x02}" + integer(2**2000) + b"U\x01as.",
    "extension": b"\x80\x02\x82\x07.",
    "nothing": b"",
}
WRAPPERS = {
    "alone": lambda content: content,
    "list": lambda content: [content],
    "beside": lambda content: {**WEIGHTS, "extra": content},
    "ordered": lambda content: OrderedDict(a=WEIGHTS["stem.bias"], b=content),
    "hyper parameters": lambda content: {"state_dict": WEIGHTS, "hyper_parameters": content},
    "optimizer": lambda content: {"model": WEIGHTS, "optimizer": {"state": content}, "epoch": 2},
    "nested": lambda content: {"state_dict": {"model": {"net": {"a": content}}}},
    **{name: (lambda content, name=name: {name: {**WEIGHTS, "x": content}}) for name in checkpoint_reader.WRAPPERS},
}


def calls(mark):
    """Return objects whose pickles would create the file ``mark`` if they were loaded without care."""
    return {
        "system": Call(os.system, f"touch '{mark}'"),
        "eval": Call(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Call(exec, f"open({str(mark)!r}, 'w')"),
        "open": Call(open, str(mark), "w"),
        "import": Call(__import__, "antigravity"),
        "process": Call(subprocess.Popen, ["touch", str(mark)]),
        "mkdir": Call(os.mkdir, str(mark)),
    }


def cases(mark):
    """Return for each hostile file, by its name, the function that makes its content."""
    evil = calls(mark)
    tensors = odd_tensors()
    groups = [
        {
            f"pickle {name} {protocol}": partial(pickle.dumps, [call], protocol)
            for name, call in evil.items()
            for protocol in range(6)
        },
        {
            f"member {name} {protocol}": partial(with_pickle, pickle.dumps([call], protocol))
            for name, call in evil.items()
            for protocol in range(6)
        },
        {
            f"{wrapper} {name} {zipped}": partial(torch_file, wrap(evil[name]), zipped=zipped)
            for (wrapper, wrap), name, zipped in itertools.product(WRAPPERS.items(), ("system", "eval"), (True, False))
        },
        {
            f"{wrapper} {name}": partial(torch_file, wrap(tensor))
            for (wrapper, wrap), (name, tensor) in itertools.product(WRAPPERS.items(), tensors.items())
            if name not in {"meta", "shared"} or wrapper == "beside"
        },
        {f"header {name}": partial(safetensors, header) for name, header in HEADERS.items()},
        {f"length {length}": partial(safetensors, {"w": ENTRY}, length=length) for length in (0, 10**8, 2**63, 2**64 - 1)},
        {f"view {name}": partial(view, *arguments) for name, arguments in VIEWS.items()},
        {f"zip {name}": partial(with_pickle, content) for name, content in PICKLES.items()},
        {f"bare {name}": partial(bytes, content + bytes(20)) for name, content in PICKLES.items()},
        {
            "cycle": partial(torch_file, cycle()),
            "doubled": partial(torch_file, doubled(40)),
            "inflated": partial(inflated, 1100),
        },
        {
            "long name": partial(torch_file, {"a\n" * 2**19: tensors["complex"]}),
            "bytes": partial(torch_file, {b"a": torch.ones(2), 1: torch.ones(2)}),
        },
        {
            "tar": partial(tar, {"pickle": pickle.dumps(evil["open"]), "storages": pickle.dumps(evil["open"]), "tensors": b""}),
            "tar outside": partial(tar, {f"../../..{mark}": b"x"}),
        },
    ]
    return {name: content for group in groups for name, content in group.items()}


def outcome(path):
    """Read a file in a child with limited memory and time. Return ``read``, ``refused`` and the message, or what went wrong."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads; the child starts none
        child = os.fork()
    if child == 0:
        _answer(path, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return answer or f"killed by signal {status & 127}"


def _answer(path, write_end):
    import signal

    used = int(MEMORY_FILE.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.alarm(SECONDS)
    try:
        checkpoint_reader.read_checkpoint(path)
        checkpoints.recorded_preprocessing(path)
        answer = "read"
    except UserError as error:
        answer = f"refused {error}"
    except BaseException:  # noqa: BLE001 - the parent reports it
        answer = f"failed {traceback.format_exc()[-1500:]}"
    os.write(write_end, answer.encode("utf-8", "replace")[:60_000])
    os._exit(0)


def is_clear(answer):
    """Return whether tensors were read, or one message of few short lines without control characters says why not."""
    lines = answer.splitlines()
    return answer == "read" or (
        answer.startswith("refused ") and len(lines) <= 4 and all(line.isprintable() and len(line) < 3000 for line in lines)
    )


pytestmark = pytest.mark.skipif(not MEMORY_FILE.exists(), reason="limits the memory of a process as Linux does")


def test_hostile_files_are_read_or_refused(tmp_path, fuzz_factor, fuzz_rng, record_property):
    mark, path = tmp_path / "mark", tmp_path / "weights.pth"
    contents = cases(mark)
    assert len(contents) >= MIN_FUZZ_CASES
    chosen = sorted(contents) if fuzz_factor > 1 else fuzz_rng.sample(sorted(contents), DEFAULT_CASES)
    wrong, read = {}, 0
    for name in chosen:
        path.write_bytes(contents[name]())
        answer = outcome(path)
        if not is_clear(answer) or mark.exists():
            wrong[name] = "it ran" if mark.exists() else answer
            mark.unlink(missing_ok=True)
        read += answer == "read"
    record_property("inputs", len(chosen))
    record_property("refused", len(chosen) - read)
    assert not wrong


def test_the_calls_of_the_hostile_files_work(tmp_path):
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(calls(mark)["mkdir"]))
    assert mark.exists(), "a file that cannot run shows nothing"


def test_flipped_bytes_of_good_files_are_read_or_refused(tmp_path, fuzz_factor, fuzz_rng, record_property):
    path = tmp_path / "weights.pth"
    good = [torch_file({"model": WEIGHTS}), torch_file(WEIGHTS, zipped=False), safetensors({"w": ENTRY})]
    wrong, count, read = [], 10 * min(fuzz_factor, 30), 0
    for _ in range(count):
        content = bytearray(fuzz_rng.choice(good))
        for _ in range(fuzz_rng.choice((1, 1, 4, 40))):
            content[fuzz_rng.randrange(len(content))] = fuzz_rng.randrange(256)
        path.write_bytes(content[: fuzz_rng.choice((len(content), fuzz_rng.randrange(1, len(content))))])
        answer = outcome(path)
        if not is_clear(answer):
            wrong.append((bytes(content), answer))
        read += answer == "read"
    record_property("inputs", count)
    record_property("refused", count - read)
    assert not wrong


@pytest.mark.parametrize("kind", ["pipe", "zeros", "loop", "folder"])
def test_what_is_no_file_is_refused(kind, tmp_path):
    path = tmp_path / "weights.pth"
    make = {
        "pipe": lambda: os.mkfifo(path),
        "zeros": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path),
        "folder": path.mkdir,
    }
    make[kind]()
    answer = outcome(path)
    assert answer.startswith("refused ") and is_clear(answer)
