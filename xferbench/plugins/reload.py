"""A network that is another one after it was saved and loaded.

Symptom
    The evaluation at the end of training cannot be had again from the file.

Cause
    Part of what the network computes with is not in its state dict: plain attributes, buffers that are not persistent, tables
    drawn at random when the network is built; or names that nothing loads.

Remedy
    Register such tensors as buffers, save the state dict of the whole network, and load it with ``strict=True``.

How it is judged
    An exact invariant: the network is saved, built anew with other random numbers and loaded; its logits are then the same.

How it is induced
    Not on purpose: what is exact needs no control.

References
    peft issue 1732: buffers lost at reload; simple-HRNet issue 79: ``strict=False`` that loads nothing.
"""

from __future__ import annotations

from xferbench.plugin import Contrast, MeasureContext, Plugin, always_applies, leave_unchanged
from xferbench.plugins.head_size import induce

ASKED = 16  # images


def reload(seen: MeasureContext) -> dict[str, float]:
    """The share of images whose logits differ once the network was saved, built anew and loaded."""
    import io

    import torch
    from torch.func import functional_call

    from xferbench.lab.data import preprocessing
    from xferbench.lab.training import feature_cache

    assert seen.fresh is not None, "a finished network can be built anew"
    file = io.BytesIO()
    torch.save({name: seen.after[name].cpu() for name in seen.network.module.state_dict()}, file)
    file.seek(0)
    again = seen.fresh().to(seen.network.device)
    with torch.no_grad():  # by hand: load_state_dict would rebuild MNASNet for want of a version
        for name, tensor in torch.load(file, weights_only=True).items():
            again.state_dict()[name].copy_(tensor)
    images = preprocessing.to_tensor(seen.served[:ASKED].to(seen.network.device), seen.ready)
    with (
        feature_cache.evaluation_mode(seen.network.module, seen.network.device),
        feature_cache.evaluation_mode(again, seen.network.device),
    ):
        laid = {name: tensor.contiguous() for name, tensor in seen.after.items()}  # as what is loaded lies in memory
        logits = functional_call(seen.network.module, laid, (images,)).float().cpu()
        reloaded = again(images).float().cpu()
    same = ((logits == reloaded) | (logits.isnan() & reloaded.isnan())).all(1)
    return {"reload": float((~same).double().mean())}


audit = Plugin(
    id="audit/reload",
    version=1,
    question="Is the network the same once it was saved and loaded?",
    doc=__doc__,
    applies=always_applies,
    cure=leave_unchanged,
    induce=induce,
    contrasts=(
        Contrast(name="harm", kind="exact", weights={("subject", "reload"): 1.0}, meaning="saved and loaded, the same logits"),
    ),
    measures={"reload": "xferbench.plugins.reload:reload@1"},
    remedy="register every tensor that the network computes with, and load its whole state dict with strict=True",
)
