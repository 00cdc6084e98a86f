"""What people get wrong about a preprocessing, as values. Pure.

It is shared by the plugins about the images that a network is trained on and served.
"""

from __future__ import annotations

from dataclasses import replace

from xferbench.plugin import InputTransform, Profile, Spectrogram

FIELDS = ("unnormalised", "raw", "bgr", "zoom", "nearest")  # mistakes of serving alone
ZOOM = 1.5  # shorter side, over what it should be


def normalized_twice(ready: InputTransform) -> InputTransform:
    """Normalised, and then once more with the same mean and standard deviation, as one normalisation."""
    if isinstance(ready, Spectrogram):
        return replace(ready, mean=ready.mean * (1 + ready.std), std=ready.std**2)
    width = max(len(ready.mean), len(ready.std))
    pairs = [(ready.mean[i % len(ready.mean)], ready.std[i % len(ready.std)]) for i in range(width)]
    return replace(ready, mean=tuple(m + m * s for m, s in pairs), std=tuple(s * s for _, s in pairs))


def preprocessing_mistakes(ready: InputTransform, facts: Profile) -> dict[str, InputTransform]:
    """What people get wrong about a preprocessing, one field each; those that change nothing are left out."""
    found = {"twice-normalised": normalized_twice(ready)}
    if isinstance(ready, Spectrogram):
        found["unnormalised"] = replace(ready, mean=0.0, std=1.0)
    else:
        plain = replace(ready, mean=(0.0,) * len(ready.mean), std=(1.0,) * len(ready.std))
        shorter = ready.resize or min(facts.size)
        found["unnormalised"] = plain
        if ready.scale != 1:
            found["raw"] = replace(plain, scale=1.0)
        found["bgr"] = replace(ready, channels="rgb" if ready.channels == "bgr" else "bgr")
        found["zoom"] = replace(ready, resize=round(ZOOM * shorter), crop=ready.crop or min(facts.size))
        if ready.resize:
            found["nearest"] = replace(ready, interpolation="nearest", antialias=False)
            found["no-antialias"] = replace(ready, antialias=False)
    return {name: wrong for name, wrong in found.items() if wrong != ready}
