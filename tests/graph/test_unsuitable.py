import pytest
import torch
import torchvision
from torch import nn

import surgery
from surgery.core.errors import TraceError
from surgery.graph import record
from surgery.methods.pix.layer import PiX
from tests.small_models import Net


class Inputs(Net):
    """A network behind a forward of the caller's choice."""

    def __init__(self, conv=nn.Conv2d):
        super().__init__("module")
        if conv is not nn.Conv2d:
            self.stem = conv(3, 16, 1)


class Two(Inputs):
    def forward(self, x, y):
        return super().forward(x + y)


class Keyword(Inputs):
    def forward(self, x, *, scale):
        return super().forward(x * scale)


class Key(Inputs):
    def forward(self, batch):
        return super().forward(batch["image"])


class Values(Inputs):
    def forward(self, batch):
        return sum(super(Values, self).forward(x) for x in batch.values())


class Items(Inputs):
    def forward(self, batch):
        return sum(super(Items, self).forward(x) for _, x in batch.items())


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Two(), r"Its forward takes 2 inputs \(x, y\): .* one batch of images"),
        (Keyword(), r"Its forward takes 2 inputs \(x, scale\)"),
        (Key(), r"indexed with 'image'\. Its forward takes a dict: .* one batch of images"),
        (Values(), "Its forward takes a dict"),
        (Items(), "Its forward takes a dict"),
        (Inputs(nn.Conv1d), r"Inputs reads \(N, C, L\): its first convolution, stem, is a Conv1d"),
        (Inputs(nn.Conv3d), r"Inputs reads \(N, C, T, H, W\): its first convolution, stem, is a Conv3d"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_models_that_no_size_suits_are_told_the_true_reason(model, reason):
    with pytest.raises(TraceError, match=reason) as caught:
        surgery.plan(model, input_size=(3, 8, 8))
    assert "input_size=" not in str(caught.value)


def test_a_video_network_is_refused_for_its_dimensions():
    with torch.device("meta"):
        model = torchvision.models.video.r3d_18(weights=None)
    with pytest.raises(TraceError, match=r"VideoResNet reads \(N, C, T, H, W\): its first convolution, stem\.0, is a"):
        surgery.plan(model)


def test_a_list_of_images_in_and_a_list_of_dicts_out():
    class Listed(Net):
        def forward(self, images):
            if not isinstance(images, list):
                raise TypeError(f"a list of images is needed, not a {type(images).__name__}")
            return [{"scores": super(Listed, self).forward(image[None])} for image in images]

    graph = record(Listed("module"), (3, 8, 8))
    assert graph.input_shape == (3, 8, 8)
    output = next(node for node in graph if node.op == "output")
    assert [node.meta["module"] for node in output.all_input_nodes] == ["fc"]
    assert len(surgery.plan(Listed("module"), input_size=(3, 8, 8)).sites) == 1


@pytest.mark.parametrize(
    ("name", "size"),
    [("retinanet_resnet50_fpn", {"min_size": 64, "max_size": 64}), ("ssdlite320_mobilenet_v3_large", {})],
)
def test_detectors_are_planned_and_narrowed(name, size):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=3, **size).eval()
    converted = surgery.convert(model, zeta=8, input_size=(3, 64, 64))
    heads = [module for module in converted.modules() if isinstance(module, PiX)]
    assert len(heads) > 10
    with torch.no_grad():
        assert set(converted([torch.rand(3, 64, 64)])[0]) == {"boxes", "scores", "labels"}
    if name.startswith("retinanet"):
        assert converted.backbone.body.layer3[1].conv1.out_channels == 128
