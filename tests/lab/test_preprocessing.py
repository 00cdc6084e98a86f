from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms._presets import ImageClassification

from xferbench.core.canonical import canonical
from xferbench.core.errors import UserError
from xferbench.core.transforms import Preprocessing, Spectrogram
from xferbench.lab.data.preprocessing import apply_geometry, geometry_key, to_tensor

IMAGENET = Preprocessing(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (45, 61, 3), dtype=np.uint8)


def torchvision_transforms(image, preprocessing):
    """Preprocess with torchvision. Without antialias this needs a tensor, because Pillow always applies it."""
    steps = [] if preprocessing.antialias else [v2.PILToTensor()]
    if preprocessing.resize:
        mode = InterpolationMode(preprocessing.interpolation)
        steps.append(v2.Resize(preprocessing.resize, interpolation=mode, antialias=preprocessing.antialias))
    if preprocessing.crop:
        steps.append(v2.CenterCrop(preprocessing.crop))
    steps += [v2.PILToTensor()] if preprocessing.antialias else []
    return v2.Compose(steps)(image).numpy()


SHAPES = [
    IMAGENET,
    replace(IMAGENET, interpolation="bicubic"),
    replace(IMAGENET, interpolation="nearest"),
    replace(IMAGENET, antialias=False),
    replace(IMAGENET, antialias=False, interpolation="bicubic"),
    replace(IMAGENET, resize=37, crop=50),
    replace(IMAGENET, resize=None),
    replace(IMAGENET, crop=None, resize=33),
]


@pytest.mark.parametrize("preprocessing", SHAPES)
def test_photographs_are_preprocessed_as_in_torchvision(preprocessing, shared):
    photographs = sorted((shared / "data" / "hymenoptera" / "val" / "bees").glob("*.jpg"))[:4]
    assert photographs
    for path in photographs:
        with Image.open(path) as image:
            expected = torchvision_transforms(image.convert("RGB"), preprocessing)
            actual = apply_geometry(image, preprocessing)
        assert actual.dtype == np.uint8
        assert actual.flags.c_contiguous
        assert np.array_equal(actual, expected)


@pytest.mark.parametrize("preprocessing", SHAPES)
@pytest.mark.parametrize("shape", [(45, 61), (61, 45), (7, 90), (256, 256)])
def test_images_of_any_shape_are_preprocessed_as_in_torchvision(preprocessing, shape):
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert np.array_equal(apply_geometry(pixels, preprocessing), torchvision_transforms(Image.fromarray(pixels), preprocessing))


def test_geometry_and_values_equal_a_torchvision_preset(shared):
    path = min((shared / "data" / "hymenoptera" / "val" / "ants").glob("*.jpg"))
    with Image.open(path) as image:
        expected = ImageClassification(crop_size=224, resize_size=256)(image.convert("RGB"))
        pixels = apply_geometry(image, IMAGENET)
    actual = to_tensor(torch.from_numpy(pixels)[None], IMAGENET)[0]
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)


def test_without_resize_and_crop_the_pixels_do_not_change():
    actual = apply_geometry(NOISE, Preprocessing())
    assert np.array_equal(actual, NOISE.transpose(2, 0, 1))
    assert actual.flags.c_contiguous


def rgb(image):
    return apply_geometry(image, Preprocessing()).transpose(1, 2, 0)


def test_gray_images_are_repeated():
    grey = NOISE[:, :, 0]
    for image in (grey, grey[:, :, None], Image.fromarray(grey)):
        assert np.array_equal(rgb(image), np.stack([grey] * 3, axis=2))


def test_16_bit_arrays_keep_their_upper_8_bits():
    deep = RNG.integers(0, 65536, (5, 6)).astype(np.uint16)
    expected = np.stack([deep // 256] * 3, axis=2)
    for image in (deep, Image.fromarray(deep), Image.fromarray(deep.astype(np.int32))):
        assert np.array_equal(rgb(image), expected)


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
def test_16_bit_files_keep_their_upper_8_bits(name, tmp_path):
    deep = (np.arange(12, dtype=np.uint16) * 5000).reshape(3, 4)
    Image.fromarray(deep).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.mode.startswith("I")
        assert np.array_equal(rgb(image)[:, :, 0], deep // 256)


def test_transparency_is_dropped():
    alpha = RNG.integers(0, 256, NOISE.shape[:2], dtype=np.uint8)
    image = Image.fromarray(np.dstack([NOISE, alpha]))
    assert image.mode == "RGBA"
    assert np.array_equal(rgb(image), NOISE)


def test_palettes_are_resolved_with_and_without_transparency(tmp_path):
    indexed = Image.fromarray(NOISE).quantize(17)
    expected = np.asarray(indexed.convert("RGB"))
    assert np.array_equal(rgb(indexed), expected)
    indexed.save(tmp_path / "palette.png", transparency=bytes(range(17)))
    with Image.open(tmp_path / "palette.png") as image:
        assert (image.mode, type(image.info["transparency"])) == ("P", bytes)
        assert np.array_equal(rgb(image), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_pillow_converts_other_image_modes(mode):
    image = Image.fromarray(NOISE).convert("RGBA" if mode == "LA" else "RGB").convert(mode)
    assert np.array_equal(rgb(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "image",
    [Image.fromarray(np.zeros((3, 3), np.float32)), np.zeros((3, 3, 3)), np.zeros((3, 3, 2), np.uint8), np.zeros(3, np.uint8)],
    ids=["float image", "float array", "two channels", "a row"],
)
def test_an_unsupported_image_is_an_error(image):
    with pytest.raises(UserError, match="8"):
        apply_geometry(image, Preprocessing())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolation": "biliner"}, "did you mean 'bilinear'"),
        ({"interpolation": "lanczos", "antialias": False}, "without antialias"),
        ({"resize": 0}, "at least 1"),
        ({"crop": -3}, "at least 1"),
    ],
)
def test_an_invalid_geometry_is_an_error(change, message):
    with pytest.raises(UserError, match=message):
        apply_geometry(NOISE, replace(IMAGENET, **change))


def test_the_geometry_key_contains_exactly_what_the_pixels_depend_on():
    other = replace(IMAGENET, channels="bgr", scale=1.0, mean=(1.0,), std=(2.0,))
    assert geometry_key(other) == geometry_key(IMAGENET)
    assert np.array_equal(apply_geometry(NOISE, other), apply_geometry(NOISE, geometry_key(IMAGENET)))
    for change in ({"resize": 200}, {"crop": 200}, {"interpolation": "bicubic"}, {"antialias": False}):
        assert geometry_key(replace(IMAGENET, **change)) != geometry_key(IMAGENET)
    unresized = Preprocessing(crop=20)
    assert geometry_key(replace(unresized, interpolation="bicubic", antialias=False)) == unresized


def test_less_detail_keeps_the_size_and_removes_fine_patterns():
    board = np.repeat((np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    for form in (Preprocessing(), Preprocessing(crop=20), Preprocessing(resize=32, crop=32, antialias=False)):
        full, half = (apply_geometry(board, replace(form, detail=detail)) for detail in (1.0, 0.5))
        assert half.shape == full.shape and half.dtype == np.uint8 and half.flags.c_contiguous
        assert np.ptp(full) == 255 and np.ptp(half) <= 40, "alternating black and white become gray"
        assert geometry_key(replace(form, detail=0.5)) != geometry_key(form)
    smooth = np.full((32, 32, 3), 90, np.uint8)
    assert (apply_geometry(smooth, Preprocessing(detail=0.5)) == 90).all()


@pytest.mark.parametrize("detail", [0.0, 1.5, float("nan")])
def test_an_invalid_detail_is_an_error(detail):
    with pytest.raises(UserError, match="detail"):
        apply_geometry(NOISE, Preprocessing(detail=detail))


def test_full_detail_does_not_change_the_key():
    assert "detail" not in canonical(Preprocessing()) and "detail" in canonical(Preprocessing(detail=0.5))


BATCH = torch.from_numpy(RNG.integers(0, 256, (2, 3, 4, 5), dtype=np.uint8))


def test_the_default_only_scales():
    torch.testing.assert_close(to_tensor(BATCH, Preprocessing()), BATCH / 255)


def test_mean_and_std_apply_after_the_channel_order():
    caffe = Preprocessing(channels="bgr", scale=1.0, mean=(104.0, 117.0, 123.0))
    actual = to_tensor(BATCH, caffe)
    torch.testing.assert_close(actual[:, 0], BATCH[:, 2] - 104.0)
    torch.testing.assert_close(actual[:, 2], BATCH[:, 0] - 123.0)


def test_one_mean_applies_to_all_channels():
    image, three = (Preprocessing(mean=(0.5,) * n, std=(0.25,) * n) for n in (1, 3))
    assert torch.equal(to_tensor(BATCH, image), to_tensor(BATCH, three))


def test_grey_is_the_repeated_mean_of_the_channels():
    actual = to_tensor(BATCH, Preprocessing(channels="grey"))
    assert actual.shape == BATCH.shape
    torch.testing.assert_close(actual[:, 1], BATCH.float().mean(1) / 255)


def test_values_are_equal_under_vmap():
    whole = torch.func.vmap(lambda batch: to_tensor(batch, IMAGENET))(BATCH[None])
    assert torch.equal(whole[0], to_tensor(BATCH, IMAGENET))


@pytest.mark.parametrize(
    "change",
    [
        {"std": (0.2, 0.0, 0.2)},
        {"std": (-1.0,)},
        {"mean": (0.5, 0.5)},
        {"mean": ()},
        {"mean": (float("nan"),)},
        {"std": (float("inf"),)},
        {"channels": "gbr"},
    ],
)
def test_invalid_values_are_errors(change):
    with pytest.raises(UserError, match="preprocessing: "):
        to_tensor(BATCH, replace(IMAGENET, **change))


# Spectrograms

HEARD = Spectrogram(channels=3, mean=-30.0, std=10.0)
DECIBELS = RNG.normal(-30, 10, (24, 40))


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "uint16", "uint8"])
@pytest.mark.parametrize("more", [(), (None,)])
def test_a_spectrogram_keeps_its_shape_and_one_channel(kind, more):
    values = np.abs(DECIBELS).astype(kind)
    actual = apply_geometry(values[(..., *more)], HEARD)
    assert actual.shape == (1, 24, 40)
    assert actual.dtype == (np.uint8 if kind == "uint8" else np.float32)
    assert np.array_equal(actual[0], values.astype(actual.dtype))
    assert actual.flags.c_contiguous


@pytest.mark.parametrize("name", ["grey.png", "deep.png", "float.tiff"])
def test_a_gray_image_can_be_a_spectrogram(name, tmp_path):
    values = np.abs(DECIBELS).astype({"grey.png": np.uint8, "deep.png": np.uint16, "float.tiff": np.float32}[name])
    Image.fromarray(values).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert np.array_equal(apply_geometry(image, HEARD)[0], values)


@pytest.mark.parametrize(
    "example",
    [
        NOISE,
        Image.fromarray(NOISE),
        Image.fromarray(NOISE).quantize(17),
        np.zeros(3),
        np.zeros((3, 3), bool),
        np.full((3, 3), np.nan),
        np.full((3, 3), 1e300),
    ],
    ids=["colours", "coloured image", "palette", "a row", "flags", "NaN", "too large"],
)
def test_an_array_that_is_not_a_spectrogram_is_an_error(example):
    with np.errstate(over="ignore"), pytest.raises(UserError, match="spectrogram"):
        apply_geometry(example, HEARD)


def test_spectrograms_are_normalized_in_their_unit_and_repeated():
    batch = torch.from_numpy(DECIBELS.astype(np.float32))[None, None]
    actual = to_tensor(batch, HEARD)
    assert actual.shape == (1, 3, 24, 40)
    torch.testing.assert_close(actual[0, 2], (batch[0, 0] + 30) / 10)
    assert to_tensor(batch, replace(HEARD, channels=1)).shape == (1, 1, 24, 40)
    assert torch.equal(torch.func.vmap(lambda image: to_tensor(image, HEARD))(batch[None])[0], actual)


@pytest.mark.parametrize("change", [{"std": 0.0}, {"std": float("nan")}, {"mean": float("inf")}, {"channels": 0}])
def test_invalid_spectrogram_values_are_errors(change):
    with pytest.raises(UserError, match="preprocessing: spectrogram"):
        to_tensor(torch.zeros(1, 1, 2, 2), replace(HEARD, **change))


def test_stored_spectrograms_depend_on_the_kind_only():
    assert geometry_key(HEARD) == geometry_key(Spectrogram()) != geometry_key(Preprocessing())


@pytest.mark.parametrize("function", [lambda kind: apply_geometry(NOISE, kind), geometry_key])
def test_an_unknown_kind_of_preprocessing_is_refused(function):
    with pytest.raises(TypeError, match="str"):
        function("words")


def test_a_file_with_an_orientation_is_read_as_stored_or_upright(tmp_path):
    upright = Image.fromarray(NOISE)
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera that was turned by 90 degrees
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        stored, turned = apply_geometry(image, Preprocessing()), apply_geometry(image, Preprocessing(orientation="upright"))
    assert np.array_equal(turned, NOISE.transpose(2, 0, 1))
    assert stored.shape == (3, 61, 45)


def test_damaged_metadata_have_no_orientation(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    with Image.open(tmp_path / "a.png") as image:
        assert apply_geometry(image, Preprocessing(orientation="upright")).shape == (3, 45, 61)


@pytest.mark.parametrize(
    ("bits", "expected"), [(16, [0, 0, 1, 15, 255]), (12, [0, 6, 18, 255, 255]), (8, [0, 100, 255, 255, 255])]
)
def test_sixteen_bit_files_keep_the_upper_eight_of_the_bits_that_they_use(tmp_path, bits, expected):
    Image.fromarray(np.array([[0, 100, 300, 4095, 65535]], np.uint16)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pixels = apply_geometry(image, Preprocessing(bits=bits))
        clipped_by_pillow = np.asarray(image.convert("RGB"))[0, :, 0].tolist()
    assert pixels[0, 0].tolist() == expected
    assert bits != 8 or expected == clipped_by_pillow


@pytest.mark.parametrize("wrong", [{"orientation": "sideways"}, {"bits": 7}])
def test_decoding_that_does_not_exist_is_refused(wrong):
    with pytest.raises(UserError, match="decoding"):
        apply_geometry(NOISE, Preprocessing(**wrong))
    assert geometry_key(Preprocessing(bits=12, orientation="upright", scale=1.0)) == Preprocessing(
        bits=12, orientation="upright"
    )
