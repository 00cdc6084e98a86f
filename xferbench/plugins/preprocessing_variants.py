"""Common preprocessing mistakes, as values. Pure.

The plugins about the inputs that a network is trained on and served share this module.
"""

from __future__ import annotations

from dataclasses import replace

from xferbench.plugin import InputTransform, Preprocessing, Profile, Spectrogram, Tokens
from xferbench.plugins.text_forms import TEXT_MISTAKES, text_mistakes

IMAGE_MISTAKES = ("unnormalised", "raw", "bgr", "zoom", "nearest")
SERVING_MISTAKES = (*IMAGE_MISTAKES, *TEXT_MISTAKES)
ZOOM_FACTOR = 1.5  # shorter side, relative to its correct length


def normalized_twice(transform: Preprocessing | Spectrogram) -> Preprocessing | Spectrogram:
    """Return the one normalization that equals normalizing twice with the transform's mean and standard deviation."""
    if isinstance(transform, Spectrogram):
        return replace(transform, mean=transform.mean * (1 + transform.std), std=transform.std**2)
    means, stds = transform.mean, transform.std
    pairs = [(means[i % len(means)], stds[i % len(stds)]) for i in range(max(len(means), len(stds)))]
    return replace(transform, mean=tuple(mean + mean * std for mean, std in pairs), std=tuple(std * std for _, std in pairs))


def preprocessing_mistakes(transform: InputTransform, profile: Profile, virtual_tokens: int = 0) -> dict[str, InputTransform]:
    """Return common mistakes by name, each in one field; mistakes that change nothing are absent.

    Args:
        transform: the right preprocessing.
        profile: the profile of the network.
        virtual_tokens: the number of tokens that the recipe puts before each text.
    """
    if isinstance(transform, Tokens):
        limit = max(profile.model.accepted_sizes, default=transform.max_length) - virtual_tokens
        return {name: mistake for name, mistake in text_mistakes(transform, limit).items() if mistake != transform}
    mistakes: dict[str, InputTransform] = {"twice-normalised": normalized_twice(transform)}
    if isinstance(transform, Spectrogram):
        mistakes["unnormalised"] = replace(transform, mean=0.0, std=1.0)
    else:
        plain = replace(transform, mean=(0.0,) * len(transform.mean), std=(1.0,) * len(transform.std))
        shorter = transform.resize or min(profile.model.size)
        mistakes["unnormalised"] = plain
        if transform.scale != 1:
            mistakes["raw"] = replace(plain, scale=1.0)
        mistakes["bgr"] = replace(transform, channels="rgb" if transform.channels == "bgr" else "bgr")
        mistakes["zoom"] = replace(
            transform, resize=round(ZOOM_FACTOR * shorter), crop=transform.crop or min(profile.model.size)
        )
        if transform.resize:
            mistakes["nearest"] = replace(transform, interpolation="nearest", antialias=False)
            mistakes["no-antialias"] = replace(transform, antialias=False)
    return {name: mistake for name, mistake in mistakes.items() if mistake != transform}
