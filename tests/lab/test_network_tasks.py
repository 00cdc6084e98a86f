from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from xferbench.core.errors import UserError
from xferbench.lab.models import backbones, checkpoints, network_tasks

NAMES = {
    "a detection network (R-CNN)": ["backbone.body.conv1.weight", "module.roi_heads.box_head.fc6.weight"],
    "a detection network (DETR)": ["transformer.encoder.layers.0.norm1.weight", "class_embed.bias"],
    "a detection network (YOLO)": ["model.model.0.conv.weight", "model.model.2.cv1.conv.weight"],
    "a segmentation network (DeepLab or FCN)": ["backbone.layer1.0.bn1.weight", "classifier.4.weight"],
    "a segmentation network (U-Net)": ["inc.double_conv.0.weight", "outc.conv.bias"],
    "a network of images and text (CLIP)": ["logit_scale", "visual.proj", "text_projection"],
    "a network of text": ["model.embed_tokens.weight"],
}


@pytest.mark.parametrize("task", NAMES)
def test_other_tasks_are_named_by_their_tensors(task):
    assert network_tasks.describe_task(NAMES[task]).startswith(f"{task}, by the tensor ")


@pytest.mark.parametrize("name", ["alexnet", "swin_v2_t", "mobilenet_v2", "squeezenet1_0", "vit_b_16", "googlenet"])
def test_a_classifier_is_no_other_task(name):
    with torch.device("meta"):
        state = backbones.build(f"torchvision:{name}", 3).state_dict()
    assert network_tasks.describe_task(state) == ""


def test_the_error_for_weights_that_do_not_fit_names_the_task():
    with torch.device("meta"):
        detector = torchvision.models.get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None)
    module = backbones.build("tiny-resnet", 3)
    with pytest.raises(UserError, match=r"the file holds a detection network \(SSD or RetinaNet\)"):
        checkpoints.match_tensors(module, detector.state_dict(), backbones.layer_layout(module, 32).head)


def test_the_error_for_a_transformer_of_another_size_names_both():
    module = backbones.build("torchvision:vit_b_32", 3)
    state = module.state_dict() | {"encoder.pos_embedding": torch.zeros(1, 145, 768)}
    with pytest.raises(UserError, match="the file is made for images of 384 px, the network for 224 px"):
        checkpoints.match_tensors(module, state, "heads.head")
