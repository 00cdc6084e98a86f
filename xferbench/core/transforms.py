"""The transforms of a decoded example into the input of a network, as frozen values. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from xferbench.core.canonical import location_field

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """The transform from a decoded image to a tensor.

    The image is converted to 8-bit RGB first: 16-bit channels keep the upper 8 of their ``bits``, a single channel is
    repeated three times, and transparency is dropped. Then the image is turned, resized, loses detail, is cropped, its
    channels are reordered, and its values are scaled and normalized.

    Attributes:
        resize: length of the shorter side after resizing, in pixels; None for no resizing.
        crop: side of the center square that is cut out, in pixels; None for no crop.
        interpolation, antialias: how the image is resized.
        channels: order of the channels: ``rgb``, ``bgr`` or ``grey`` (the mean of the three, repeated).
        scale: factor on the values.
        mean, std: mean and standard deviation of the normalization, in the unit after ``scale``.
        detail: factor by which the resized image is reduced and enlarged again, bilinear with antialias; 1 keeps the image.
        orientation: ``stored`` ignores the EXIF orientation of a file, as Pillow and torchvision do; ``upright`` applies it, as
            viewers and OpenCV do. ``auto`` becomes ``upright`` when a pipeline is profiled whose data have such files.
        bits: number of bits that 16-bit channels use. The upper 8 of them are kept, and larger values become 255: with 8, as
            Pillow converts them; with 12, as scanners that store 12 bits need it.
    """

    tag: ClassVar[str] = "Preprocessing"
    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"
    antialias: bool = True
    channels: str = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    detail: float = field(default=1.0, metadata={"added": True})
    orientation: str = field(default="auto", metadata={"added": True})
    bits: int = field(default=16, metadata={"added": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrogram:
    """The transform from a stored spectrogram [1, H, W] to a tensor.

    ``mean`` is subtracted, the result is divided by ``std`` and repeated to ``channels`` channels. Both are in the unit of the
    stored values, for example decibels. Nothing is resized: H and W may have any size that the backbone accepts.
    """

    tag: ClassVar[str] = "Spectrogram"
    channels: int = 3
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The transform from a text, or a pair of texts, to the token ids of a pretrained tokenizer.

    The text is tokenized and cut to ``max_length``, special tokens are added, and the result is padded to ``max_length``. A
    network gets ``input_ids``, ``attention_mask`` and ``token_type_ids``, each [batch, tokens].

    Attributes:
        tokenizer: the digest of the tokenizer; "" for the one that is saved with the weights.
        tokenizer_path: the folder of the tokenizer.
        lowercase: whether the text is converted to lower case first, and loses its accents if the tokenizer is BERT's; None for
            the setting that is saved with the tokenizer.
        max_length: the largest number of tokens of an example, with the special tokens; 0 for the longest text of the data, or
            the limit of the network if that is lower.
        special: special tokens around the text: ``single`` as in pretraining, ``none``, or ``twice``, as if the text already
            had them.
        truncation: the side on which a longer text is cut, ``right`` or ``left``.
        padding: the side on which a shorter text is padded, ``right`` or ``left``.
        extra_padding: number of padding tokens that every example gets in addition.
        masked: whether the attention mask hides the padding tokens. Without it, the network attends to them.
        shuffled: whether the ids of ordinary tokens are permuted, as if they were those of another vocabulary.
    """

    tag: ClassVar[str] = "Tokens"
    tokenizer: str = ""
    tokenizer_path: str = location_field()
    lowercase: bool | None = None
    max_length: int = 0
    special: str = "single"
    truncation: str = "right"
    padding: str = "right"
    extra_padding: int = 0
    masked: bool = True
    shuffled: bool = False


# The transform of a batch into a network's input. The lab dispatches on its type.
InputTransform: TypeAlias = Preprocessing | Spectrogram | Tokens
INPUT_KINDS: dict[type[InputTransform], str] = {Preprocessing: "image", Spectrogram: "spectrogram", Tokens: "text"}


def transform_class(names: Collection[str]) -> type[InputTransform]:
    """Return the class of a transform whose fields have some names; that of images if none has all of them."""
    kinds = (Spectrogram, Tokens, Preprocessing)
    return next((kind for kind in kinds if {*names} <= {field_.name for field_ in fields(kind)}), Preprocessing)


def complete_tokens(stated: Tokens, recorded: Tokens) -> Tokens:
    """Return a transform of texts with the values of the recorded one in place of those that it leaves open."""
    return replace(
        stated,
        tokenizer=recorded.tokenizer,
        tokenizer_path=recorded.tokenizer_path,
        lowercase=recorded.lowercase if stated.lowercase is None else stated.lowercase,
        max_length=stated.max_length or recorded.max_length,
    )
