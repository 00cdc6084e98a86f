"""Hostile image files: each is decoded or left out with a reason, in little time and memory, and nothing is executed."""

from __future__ import annotations

import io
import os
import resource
import socket
import struct
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from xferbench.data import images, sources
from xferbench.report.format import one_line

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses pipes, devices and limits of Linux")
MAX_SECONDS, MAX_MEBIBYTES = 10, 1000
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def encode(form, mode="RGB", side=24, **options):
    pixels = np.random.default_rng(side).integers(256, size=(side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height, depth=8, color=0):
    return PNG_MAGIC + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))


def png_of_zeros(width, height, depth=8):
    """Return a PNG of few bytes that has many pixels."""
    packer, row = zlib.compressobj(9), bytes(1 + width * depth // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return png_header(width, height, depth) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def with_chunk(kind, start):
    """Return a good PNG with a compressed chunk that unpacks to 200 MB."""
    packer, block = zlib.compressobj(9), bytes(10**6)
    bomb = b"".join(packer.compress(block) for _ in range(200)) + packer.flush()
    png = encode("PNG")
    return png[:33] + png_chunk(kind, start + bomb) + png[33:]


def bmp(width, height, bits=24, compression=0):
    header = struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + header[:52] + b"\0" * 64


def tiff(*entries):
    """Return a TIFF whose directory has the entries (tag, type, count, value)."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + struct.pack("<I", 8) + bytes(40)


def gif(width, height):
    return (
        b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;"
    )


SIZES = {
    "huge": (2**31 - 1, 2**31 - 1), "wide": (2**31 - 1, 1), "high": (1, 2**31 - 1), "zero": (0, 0), "flat": (5, 0),
    "large": (40000, 40000),
}  # fmt: skip
BIG_SIDE = {"above-limit": 7100, "above-pillow": 20000}
GOOD = {
    "png": encode("PNG"), "jpg": encode("JPEG"), "webp": encode("WEBP"), "bmp": encode("BMP"), "tif": encode("TIFF"),
    "ppm": encode("PPM"), "lzw.tif": encode("TIFF", compression="tiff_lzw"), "la.png": encode("PNG", "LA"),
    "p.png": encode("PNG", "P", transparency=bytes(range(200))), "cmyk.jpg": encode("JPEG", "CMYK"),
    "gif.png": encode("GIF", "P"), "1.png": encode("PNG", "1"), "lossless.webp": encode("WEBP", lossless=True),
    "mpo.jpg": encode("MPO"),
}  # fmt: skip
FOREIGN = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(touch PWNED) system\nshowpage\n",
    "pdf": b"%PDF-1.4\n1 0 obj\n<< /OpenAction << /S /JavaScript >> >>\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "html": b"<!doctype html><title>404</title>",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "zip": b"PK\x03\x04" + bytes(60), "empty": b"", "nul": bytes(4096), "ico": b"\0\0\1\0\1\0" + bytes(60), "text": b"hello",
    "fits": b"SIMPLE  =                    T" + bytes(2880), "psd": b"8BPS\0\1" + bytes(60),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(60),
    "xbm": b"#define x_width 99999\n#define x_height 99999\nstatic char x[] = {\n0x00 };", "tga": bytes([0, 0, 2]) + bytes(60),
}  # fmt: skip


def constructions():
    """Return hostile and odd files by name, more than a hundred of them."""
    files = {f"good-{name}": content for name, content in GOOD.items()}
    files |= {f"foreign-{name}": content for name, content in FOREIGN.items()}
    for name, content in GOOD.items():
        files |= {f"cut-{share}-{name}": content[: len(content) * share // 10] for share in (1, 5, 9)}
        files[f"tail-{name}"] = content + GOOD["jpg"]
    for name, (width, height) in SIZES.items():
        files[f"png-{name}"] = (
            png_header(width, height) + png_chunk(b"IDAT", zlib.compress(b"\0" * 99)) + png_chunk(b"IEND", b"")
        )
        files[f"bmp-{name}"] = bmp(width, height)
        files[f"ppm-{name}"] = f"P6\n{width} {height}\n255\n".encode()
        files[f"pgm-text-{name}"] = f"P2\n{width} {height}\n65535\n1 2 3".encode()
        files[f"gif-{name}"] = gif(min(width, 65535), min(height, 65535))
        files[f"tif-{name}"] = tiff((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8))
    files |= {f"png-{name}": png_of_zeros(side, side, depth=1) for name, side in BIG_SIDE.items()}
    files |= {
        "text-bomb": with_chunk(b"zTXt", b"k\0\0"),
        "profile-bomb": with_chunk(b"iCCP", b"k\0\0"),
        "international-bomb": with_chunk(b"iTXt", b"k\0\1\0\0\0"),
        "thin": encode("PNG", side=1),
        "depth": png_header(9, 9, depth=3) + png_chunk(b"IEND", b""),
        "palette-missing": png_header(9, 9, color=3) + png_chunk(b"IDAT", zlib.compress(bytes(90))) + png_chunk(b"IEND", b""),
        "chunk-length": PNG_MAGIC + b"\xff\xff\xff\xffIHDR" + bytes(20),
        "bmp-rle": bmp(9, 9, bits=8, compression=1),
        "bmp-negative": bmp(-9, -9),
        "ppm-token": b"P6\n" + b"9" * 10**6 + b" 1\n255\n",
        "ppm-comment": b"P6\n#" + b"x" * 10**6,
        "tiff-loop": tiff((256, 4, 1, 9)),
        "tiff-count": tiff((256, 4, 2**32 - 1, 8), (273, 4, 2**32 - 1, 8), (279, 4, 2**32 - 1, 8)),
        "tiff-strings": tiff((270, 2, 2**31, 8), (305, 2, 2**31, 8)),
        "jpeg-exif": encode("JPEG")[:2] + b"\xff\xe1\x00\x20Exif\0\0II*\0" + b"\xff" * 20 + encode("JPEG")[2:],
    }
    return files


def run_limited(function, *arguments):
    """Run a function in a fork with limited time and memory. Return its text; fail if it dies or needs too much."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS + 1))
            result = function(*arguments)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) // 1024
            assert grown < MAX_MEBIBYTES, f"{grown} MiB"
            os.write(writing, b"ok" + result.encode("utf-8", "backslashreplace")[:30000])
        except BaseException as error:  # noqa: BLE001 - the parent fails with it
            os.write(writing, f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace")[:30000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read().decode()
    _, status = os.waitpid(child, 0)
    assert answer.startswith("ok"), f"{answer or 'killed'} (status {status})"
    return answer[2:]


def decode_file(file):
    """Return the outcome of a file as text; every file has pixels or a reason of one line."""
    start = time.monotonic()
    pixels, reason = images.open_image(file, images.to_rgb)
    assert time.monotonic() - start < MAX_SECONDS
    assert (pixels is None) == bool(reason), "either pixels or a reason"
    assert pixels is None or (pixels.dtype == np.uint8 and pixels.ndim == 3)
    assert "\n" not in reason
    assert len(reason) < 300
    return reason


def test_every_construction_is_decoded_or_has_a_reason(tmp_path, fuzz_factor, record_property):
    files = constructions()
    assert len(files) > 100
    names = list(files) if fuzz_factor >= 100 else list(files)[:: max(1, 4 // fuzz_factor)]
    refused = 0
    for name in names:
        (tmp_path / "x.png").write_bytes(files[name])
        reason = run_limited(decode_file, tmp_path / "x.png")
        refused += bool(reason)
        assert not (name.startswith("good-") and reason), (name, reason)
        assert reason or not name.startswith(("foreign-", "cut-1-")), name
    assert not (tmp_path / "PWNED").exists()
    record_property("inputs", len(names))
    record_property("refused", refused)


def decode_flips(file, content, seeds):
    """Decode an image with damaged bytes for each seed. Return as text how many are refused."""
    refused = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        damaged = bytearray(content)
        for place in rng.integers(len(content) // (1 + 7 * int(seed % 2)), size=rng.integers(1, 9)):
            damaged[place] = rng.integers(256)
        file.write_bytes(damaged)
        refused += bool(decode_file(file))
    return str(refused)


@pytest.mark.parametrize("name", GOOD)
def test_flipped_bytes_never_end_the_process(name, tmp_path, fuzz_factor, fuzz_rng, record_property):
    seeds = [fuzz_rng.randrange(2**32) for _ in range(5 * fuzz_factor)]
    parts = [seeds[start : start + 50] for start in range(0, len(seeds), 50)]
    refused = sum(int(run_limited(decode_flips, tmp_path / "x.png", GOOD[name], part)) for part in parts)
    record_property("inputs", len(seeds))
    record_property("refused", refused)


@pytest.mark.parametrize("name", ["text-bomb", "profile-bomb", "international-bomb"])
def test_a_compressed_chunk_is_never_unpacked_whole(name, tmp_path):
    (tmp_path / "x.png").write_bytes(constructions()[name])

    def grow(file):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        decode_file(file)
        return str((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)

    assert int(run_limited(grow, tmp_path / "x.png")) < 100


def test_a_large_image_is_named_with_its_size(tmp_path):
    (tmp_path / "x.png").write_bytes(png_of_zeros(7100, 7100, depth=1))
    assert decode_file(tmp_path / "x.png") == "too many pixels, 7100 × 7100 pixels, above the limit of 50 million"


def make_classes(folder):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "0.png").write_bytes(GOOD["png"])
    return folder / "train" / "a"


def test_only_regular_files_are_opened(tmp_path):
    folder = make_classes(tmp_path)
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "self.png").symlink_to("self.png")
    (folder / "dead.png").symlink_to("/nowhere")
    (folder / "around").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.png"))
    _, splits, left_out = sources.read_dataset(f"folder:{tmp_path}", None)
    assert len(splits["train"].labels) == 2
    irregular = {note.split(":")[0] for note in left_out if note.endswith("not a regular file")}
    assert irregular == {f"train/a/{name}.png" for name in ("pipe", "zero", "self", "dead", "socket")}
    for name in ("pipe.png", "zero.png"):
        assert "not a regular file" in run_limited(decode_file, folder / name)


@pytest.mark.parametrize("name", ["a\nb.png", "\x1b[31mred.png", "x\r::error::y.png", "\u202egnp.exe.png", "-rf.png"])
def test_names_reach_no_terminal_as_they_are(name, tmp_path, capsys):
    from xferbench.cli import main

    folder = make_classes(tmp_path / name)
    (folder / "0.png").unlink()
    assert main.main(["manifest", f"folder:{tmp_path / name}", "-o", str(tmp_path / "nowhere" / "m.npz")]) == 2
    (folder / name).write_bytes(b"no image")
    main.main(["manifest", f"folder:{tmp_path / name}", "-o", str(tmp_path / "m.npz")])
    printed = "".join(capsys.readouterr())
    assert all(line == one_line(line) or line == f"  {one_line(line)}" for line in printed.split("\n"))
    assert "\n::" not in printed


def test_thousands_of_bad_files_are_one_note(tmp_path):
    from xferbench.core.reason import Code, because
    from xferbench.report.messages import write_sentence

    folder = make_classes(tmp_path)
    for number in range(3000):
        (folder / f"bad{number}.png").touch()
    datasets = pytest.importorskip("xferbench.lab.data.datasets")
    from xferbench.core.transforms import Preprocessing
    from xferbench.data import inputs

    data = datasets.load_dataset(inputs.digest_data(f"folder:{tmp_path}"), Preprocessing(), None, tmp_path / "cache")
    note = write_sentence(because(Code.DROPPED_EXAMPLES, entries=data.left_out))
    assert note.endswith("and 2995 more")
    assert len(note) < 1000
