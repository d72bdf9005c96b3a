"""Reordering channels so that runs become chunks changes nothing that a network computes."""

import copy
import json

import onnx
import pytest
import torch
from torch import nn

import surgery
from surgery.core.errors import ExportWarning
from surgery.core.surgery_layer import SurgeryLayer
from surgery.deploy.interleaving import digits_reversed, interleave
from surgery.deploy.one_branch import one_branch
from surgery.methods.pix.layer import PiX


class Stream(nn.Module):
    """One stream that two sites of different ratios read, with a depthwise convolution and an addition in it."""

    def __init__(self, fixed=False):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.four, self.two = PiX(24, 6), PiX(24, 12, stride=(2, 2))
        self.after_four, self.after_two = nn.Conv2d(6, 5, 1), nn.Conv2d(12, 5, 1)
        self.fixed = fixed

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = x + self.depthwise(x)
        four, two = self.after_four(self.four(x)).mean((2, 3)), self.after_two(self.two(x)).mean((2, 3))
        return (four + two, x) if self.fixed else four + two


def trained(model):
    torch.manual_seed(0)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.2, 1.0) if tensor.ndim == 1 else tensor.data.normal_()
    return model.double().eval()


@pytest.mark.parametrize(("width", "ratios"), [(24, [4, 2]), (24, [12, 4, 2]), (8, [8]), (6, [])])
def test_runs_are_strided_in_the_order(width, ratios):
    order = digits_reversed(width, ratios)
    assert sorted(order) == list(range(width))
    for ratio in ratios:
        outputs = width // ratio
        for start in range(outputs):
            assert len({channel // ratio for channel in order[start::outputs]}) == 1


@torch.no_grad()
def test_what_is_computed_stays_the_same():
    model = trained(Stream())
    x = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    changed = copy.deepcopy(model)
    result = interleave(changed, (3, 12, 12))
    assert sorted(result.done) == ["four", "two"] and not result.refused
    assert changed.four.grouping == changed.two.grouping == "strided"
    assert not torch.equal(changed.stem.weight, model.stem.weight)
    torch.testing.assert_close(changed(x), model(x))


@torch.no_grad()
def test_what_is_returned_keeps_its_order():
    model = trained(Stream(fixed=True))
    before = copy.deepcopy(model.state_dict())
    result = interleave(model, (3, 12, 12))
    assert not result.done and "output" in result.refused["four"]
    assert model.four.grouping == "contiguous"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_export_warns_where_runs_stay(tmp_path):
    with pytest.warns(ExportWarning, match="2 layers of Stream reduce runs .* OpenVINO"):
        surgery.export(trained(Stream(fixed=True)).float(), tmp_path / "m.onnx", input_size=12, progress=False)
    surgery.export(trained(Stream()).float(), tmp_path / "m.onnx", input_size=12, progress=False)
    kinds = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert {"Split", "Max"} <= kinds and "ReduceMax" not in kinds


@torch.no_grad()
def test_a_layer_keeps_the_one_branch_that_images_chose(tmp_path):
    model = trained(Stream()).float()
    for layer, sign in ((model.four, -1), (model.two, 1)):  # p far below tau; far above
        layer.weight.mul_(1e-3)
        layer.bias.fill_(5.0 * sign)
    x = torch.randn(3, 3, 12, 12)
    single = copy.deepcopy(model)
    said = one_branch(single, [x[:2], x[2:]])
    assert json.loads(said["one_branch"]) == {"images": 3, "layers": ["four", "two"]}
    assert (single.four.operator, single.two.operator) == ("max", "avg")
    torch.testing.assert_close(single(x), model(x))
    surgery.export(model, tmp_path / "m.onnx", input_size=12, branches=[x], progress=False)
    file = onnx.load(tmp_path / "m.onnx")
    assert "Where" not in {node.op_type for node in file.graph.node}
    assert {entry.key for entry in file.metadata_props} == {"one_branch"}


@torch.no_grad()
def test_a_layer_that_chose_both_is_left():
    model = trained(Stream()).float()
    model.four.bias[0], model.four.bias[1] = 50.0, -50.0
    model.two.bias[0], model.two.bias[1] = 50.0, -50.0
    for layer in (model.four, model.two):
        layer.weight.mul_(1e-3)
    assert one_branch(model, [torch.randn(2, 3, 12, 12)]) == {}
    assert all(layer.operator == "max+avg" for layer in model.modules() if isinstance(layer, SurgeryLayer))


@pytest.mark.parametrize(("batches", "error"), [([], ValueError), ([[1]], TypeError)])
def test_branches_without_images(batches, error):
    with pytest.raises(error, match="images"):
        one_branch(trained(Stream()), batches)


def test_branches_belong_to_onnx(tmp_path):
    with pytest.raises(ValueError, match="'onnx'"):
        surgery.export(Stream(), tmp_path / "m.pt2", format="torch-export", branches=[])
