import pytest
import timm
import torch
from torch import nn

import surgery
from surgery.methods.octave.maps import Maps, RegionConv, RegionNorm
from surgery.methods.octave.method import OctaveConfig

SIZE = 32


def blocky(count, channels=3, side=SIZE):
    """Images of one value in each square of 2 × 2 pixels: what they lose by pooling they have again when enlarged."""
    return torch.randn(count, channels, side // 2, side // 2).repeat_interleave(2, 2).repeat_interleave(2, 3)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1, self.act = nn.Conv2d(width, 6, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.conv2, self.norm2 = nn.Conv2d(6, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        y += x
        return self.act(y)


class Pointwise(nn.Module):
    """1×1 convolutions alone."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.Sequential(*(Residual(8) for _ in range(3)))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def pointwise():
    torch.manual_seed(0)
    model = Pointwise()
    for _ in range(3):
        model(torch.randn(8, 3, SIZE, SIZE))  # statistics of their own
    return model.eval()


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("pooling", ["average", "max"])
def test_what_coarse_maps_can_hold_is_computed_exactly(alpha, pooling):
    model, x = pointwise(), blocky(2)
    converted = surgery.convert(model, "octave", alpha=alpha, pooling=pooling, input_size=SIZE)
    torch.testing.assert_close(converted(x), model(x), rtol=1e-5, atol=1e-5)
    assert surgery.cost(converted, SIZE).macs < surgery.cost(model, SIZE).macs


def test_training_mode_measures_the_norms_as_before():
    model, x = pointwise(), blocky(4)
    converted = surgery.convert(model, "octave", input_size=SIZE)
    for network in (model, converted):
        network.train()(x)
    own = converted.blocks.base[0].norm1
    torch.testing.assert_close(own.running_mean, model.blocks[0].norm1.running_mean, rtol=1e-4, atol=1e-5)
    assert own.num_batches_tracked == model.blocks[0].norm1.num_batches_tracked


def test_weights_are_the_originals_under_their_names():
    model = pointwise()
    converted = surgery.convert(model, "octave", input_size=SIZE)
    own = {name.replace(".base", ""): tensor for name, tensor in converted.state_dict().items()}
    assert own.keys() == model.state_dict().keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())
    converted.load_state_dict(model.state_dict())  # the original's own is taken too


def test_calibration_measures_the_statistics_anew():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    images = torch.randn(32, 3, SIZE, SIZE)
    converted = surgery.convert(model, "octave", input_size=SIZE, calibrate=images)
    norms = [(name, m) for name, m in converted.named_modules() if isinstance(m, RegionNorm)]
    assert norms
    seen = {}
    handles = [
        m.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0]})) for name, m in norms
    ]
    with torch.no_grad():
        converted.eval()(images)
    for handle in handles:
        handle.remove()
    name, norm = norms[0]  # behind the others stand rounding and bfloat16
    means = torch.cat([x.mean((0, 2, 3)) for x in seen[name]])
    torch.testing.assert_close(norm.running_mean, means, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name,regions", [("resnet26", 4), ("mobilenetv2_050", 5), ("vgg11_bn", 3), ("seresnet50", 0)])
def test_regions_end_where_timm_hands_maps_out(name, regions):
    with torch.device("meta"):
        model = timm.create_model(name)
    plan = surgery.plan(model, "octave", input_size=64)
    assert len(plan.decisions) == regions


def test_feature_maps_are_of_the_sizes_that_they_were():
    torch.manual_seed(0)
    model = timm.create_model("resnet26", channels=[8, 8, 8, 8]).eval()
    converted = surgery.convert(model, "octave", input_size=64).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        own, others = (network.forward_intermediates(x, intermediates_only=True) for network in (converted, model))
    assert [y.shape for y in own] == [y.shape for y in others]


@pytest.mark.parametrize("size", [33, 47, 64])
def test_any_size_of_image(size):
    torch.manual_seed(0)
    converted = surgery.convert(timm.create_model("test_resnet", num_classes=3), "octave", input_size=64).eval()
    assert converted(torch.randn(1, 3, size, size)).shape == (1, 3)


def test_strided_stage_of_odd_maps():
    torch.manual_seed(0)
    converted = surgery.convert(timm.create_model("resnet26", channels=[8] * 4), "octave", input_size=224).eval()
    assert converted(torch.randn(1, 3, 224, 224)).shape == (1, 1000)  # 7 × 7 at the end


def test_selection():
    with torch.device("meta"):
        model = timm.create_model("resnet26")
    plan = surgery.plan(model, "octave", include="layer2", input_size=64)
    assert [decision.name for decision in plan.decisions] == ["layer2"]
    plan = surgery.plan(model, "octave", exclude="layer2.0.conv1", input_size=64)
    assert "layer2" not in [decision.name for decision in plan.decisions]
    with pytest.raises(ValueError, match="include pattern 'stem' matches no site"):
        surgery.plan(model, "octave", include="stem", input_size=64)


def test_skipped_say_why():
    with torch.device("meta"):
        plan = surgery.plan(timm.create_model("seresnet50"), "octave", input_size=64)
    assert any("is not followed" in skipped.reason for skipped in plan.skipped)


@pytest.mark.parametrize("alpha", [0, 1, True, "half", -0.5])
def test_alpha(alpha):
    with pytest.raises(ValueError, match="alpha=.*a share of the channels, above 0 and below 1"):
        OctaveConfig(alpha=alpha)


def test_maps_are_added_map_by_map():
    one, two = Maps([torch.ones(1), torch.zeros(2)]), Maps([torch.ones(1), torch.ones(2)])
    assert [x.tolist() for x in one + two] == [[2.0], [1.0, 1.0]]
    one += two
    assert isinstance(one, Maps) and one[0].tolist() == [2.0]
    with pytest.raises(ValueError, match="zip"):
        one + Maps([torch.ones(1)])


def test_channels_inside_a_region_can_be_pruned(tmp_path):
    torch.manual_seed(0)
    model = surgery.create("cifar_resnet", num_classes=3, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16])
    converted = surgery.convert(model, "octave", input_size=SIZE)
    pruned = surgery.convert(converted, "l1", macs=0.8, input_size=SIZE).eval()
    widths = [
        [m.scales.out_channels for m in net.modules() if isinstance(m, RegionConv)] for net in (converted, pruned)
    ]
    assert any(sum(after) < sum(before) for before, after in zip(*widths, strict=True))
    surgery.save(pruned, tmp_path / "m.safetensors")
    x = torch.randn(2, 3, SIZE, SIZE)
    torch.testing.assert_close(surgery.load(tmp_path / "m.safetensors").eval()(x), pruned(x))
