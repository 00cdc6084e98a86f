"""A network that computes something else after it is saved and loaded.

Symptom
    The file does not reproduce the evaluation at the end of training.

Cause
    The state dict lacks part of what the network computes with: plain attributes, buffers that are not persistent, tables that
    are drawn at random when the network is built; or names that nothing loads.

Remedy
    Register such tensors as buffers, save the state dict of the whole network, and load it with ``strict=True``.

How it is judged
    An exact invariant: the network is saved, built again with other random numbers and loaded; its logits are then the same.
    Both networks keep their tensors in the same memory layout. Logits that differ by no more than rounding are the same.

How it is induced
    It is not induced: an exact invariant needs no control.

References
    peft issue 1732: buffers lost at reload; simple-HRNet issue 79: ``strict=False`` that loads nothing.
"""

from __future__ import annotations

from xferbench.plugin import Contrast, MeasureContext, Plugin, always_applies, leave_unchanged
from xferbench.plugins.head_size import induce

COMPARED_IMAGES = 16
ROUNDING = 1e-4  # of the largest logit of an image: sums of float32 in another order differ by less


def reload(context: MeasureContext) -> dict[str, float]:
    """Return the share of images whose logits differ after the network is saved, built again and loaded."""
    import io

    import torch
    from torch.func import functional_call

    from xferbench.lab.data import preprocessing
    from xferbench.lab.training import feature_cache

    assert context.build_random is not None, "a finished network can be built again"
    file = io.BytesIO()
    saved = [name for name in context.network.module.state_dict() if name in context.after]  # shared tensors have one name
    torch.save({name: context.after[name].cpu() for name in saved}, file)
    file.seek(0)
    rebuilt = context.build_random().to(context.network.device)
    with torch.no_grad():  # not load_state_dict, which would rebuild MNASNet because the file has no version
        for name, tensor in torch.load(file, weights_only=True).items():
            rebuilt.state_dict()[name].copy_(tensor)
    images = preprocessing.to_tensor(
        context.test.images[:COMPARED_IMAGES].to(context.network.device), context.test.preprocessing
    )
    with (
        feature_cache.evaluation_mode(context.network.module, context.network.device),
        feature_cache.evaluation_mode(rebuilt, context.network.device),
    ):
        # .contiguous() keeps the strides of a kernel of 1 × 1 pixels and of a depthwise kernel, so it does not suffice.
        layouts = dict(rebuilt.named_parameters()) | dict(rebuilt.named_buffers())
        original = {name: torch.empty_like(layouts[name]).copy_(tensor) for name, tensor in context.after.items()}
        logits = functional_call(context.network.module, original, (images,)).float().cpu()
        reloaded = rebuilt(images).float().cpu()
    rounding = ROUNDING * logits.abs().amax(1, keepdim=True)
    same = (((logits - reloaded).abs() <= rounding) | (logits == reloaded) | (logits.isnan() & reloaded.isnan())).all(1)
    return {"reload": float((~same).double().mean())}


audit = Plugin(
    id="audit/reload",
    version=1,
    question="Is the network the same after it is saved and loaded?",
    doc=__doc__,
    applies=always_applies,
    cure=leave_unchanged,
    induce=induce,
    contrasts=(
        Contrast(name="harm", kind="exact", weights={("subject", "reload"): 1.0}, meaning="saved and loaded, the same logits"),
    ),
    measures={"reload": "xferbench.plugins.reload:reload@2"},
    remedy="register every tensor that the network computes with, and load its whole state dict with strict=True",
)
