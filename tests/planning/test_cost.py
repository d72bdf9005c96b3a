import warnings

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import surgery
from surgery.transforms.edit import apply


def built(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def converted(model, *arguments, **keywords):
    """A conversion's structure: planned and carried out on meta."""
    from surgery.graph.skeleton import meta_copy

    return apply(meta_copy(model), surgery.plan(model, *arguments, **keywords).edits)


def predictor(cost):
    return sum(site.macs for site in cost.sites if site.kind == "PiX")


# name, sites, GMACs before and after without PiX's own cost, M params of the converted network
PUBLISHED = [
    ("resnet50", {"zeta": 4}, 16, 4.089, 3.151, 25.55),
    ("resnet101", {"zeta": 4}, 33, 7.801, 5.990, 44.53),
    ("resnet152", {"zeta": 4}, 50, 11.514, 8.829, 60.17),
    ("seresnet50", {"zeta": 4}, 16, 4.092, 3.154, 28.08),
    ("resnet50", {"zeta": 8}, 16, 4.089, 1.353, 12.38),
    ("mobilenetv2_100", {"zeta": 6}, 10, 0.3008, 0.3008 - 0.072, 3.503),
    ("mobilenetv2_100", {"projections": "all"}, 17, 0.3008, 0.3008 - 0.118, 3.502),
]


@pytest.mark.parametrize(("name", "arguments", "sites", "before", "after", "params"), PUBLISHED, ids=str)
def test_published_networks(name, arguments, sites, before, after, params):
    model = built(name)
    pix = converted(model, **arguments)
    cost = surgery.cost(pix, (3, 224, 224))
    assert len(surgery.plan(model, **arguments).sites) == sites
    assert surgery.cost(model, (3, 224, 224)).macs / 1e9 == pytest.approx(before, abs=0.0005)
    assert (cost.macs - predictor(cost)) / 1e9 == pytest.approx(after, abs=0.0006)
    assert cost.params / 1e6 == pytest.approx(params, rel=1e-3)


def test_half_as_wide_resnet50_is_what_zeta_8_starts_from():
    """The narrowed network, before PiX, is ResNet-50 with base width 32."""
    model = built("resnet50")
    narrowed = apply(built("resnet50"), surgery.plan(model, zeta=8).edits[:1])
    cost = surgery.cost(narrowed, (3, 224, 224))
    assert cost.macs / 1e9 == pytest.approx(1.822, abs=0.0005)
    assert cost.params == surgery.cost(built("resnet50", base_width=32)).params


@pytest.mark.parametrize(("zeta", "before", "after", "params"), [(2, 10.00, 9.34, 10.43), (4, 6.66, 6.33, 7.43)])
def test_published_vgg(zeta, before, after, params):
    arguments = {"mode": "downscale", "zeta": zeta, "head": "pool"}
    squeezed = converted(built("vgg16_bn"), "squeeze-conv", **arguments)
    cost = surgery.cost(squeezed, (3, 224, 224))
    assert cost.macs / 1e9 == pytest.approx(before, abs=0.005)
    assert cost.params / 1e6 == pytest.approx(params, rel=1e-3)
    assert len(surgery.plan(squeezed).sites) == 8
    for pix in (converted(squeezed), converted(built("vgg16_bn"), **arguments)):
        assert surgery.cost(pix, (3, 224, 224)).macs / 1e9 == pytest.approx(after, abs=0.005)


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "densenet121", "nfnet_f0", "convnext_tiny"])
def test_macs_agree_with_torch_flop_counter(name):
    model = timm.create_model(name).eval()
    x = torch.randn(1, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = surgery.convert(model, zeta=4)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert surgery.cost(model, (3, 64, 64)).macs == counter.get_total_flops() // 2


def test_macs_agree_with_fvcore():
    fvcore = pytest.importorskip("fvcore.nn")
    model = surgery.convert(timm.create_model("resnet26"), zeta=4).eval()
    analysis = fvcore.FlopCountAnalysis(model, torch.randn(1, 3, 64, 64))  # it traces, and so sees plain operators
    counted = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    assert counted["conv"] + counted["linear"] + counted["matmul"] == surgery.cost(model, (3, 64, 64)).macs


def test_squeeze_layer_example_of_the_supplement():
    """PiX supplement E: 12 × 5 × 5 into 3 channels: 900 + 300 + 75 = 1275, PiX 573."""

    class Site(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(12, 12, 3, padding=1)
            self.conv, self.norm, self.act = torch.nn.Conv2d(12, 3, 1), torch.nn.BatchNorm2d(3), torch.nn.ReLU()
            self.spatial = torch.nn.Conv2d(3, 12, 3, padding=1)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            return x + self.spatial(self.act(self.norm(self.conv(x))))

    model = Site()
    (before,) = surgery.cost(model, (12, 5, 5)).sites
    (after,) = surgery.cost(surgery.convert(model, input_size=(12, 5, 5)), (12, 5, 5)).sites
    assert (before.flops, after.flops) == (1275, 573)
    assert (before.macs, after.macs) == (900, 36)
    assert (before.memory, after.memory) == (4 * 75, 4 * (12 + 3 + 75))


def test_prints_a_table_with_a_total():
    text = str(surgery.cost(built("resnet50"), (3, 224, 224)))
    assert text.splitlines()[0] == "input 3×224×224, one image"
    assert text.splitlines()[-1].startswith("total")
    assert "4.089 G" in text


def test_no_weight_is_needed_and_any_size_counts():
    model = built("resnet50")
    small, large = (surgery.cost(model, (3, side, side)).macs for side in (224, 2240))
    assert large == pytest.approx(100 * small, rel=0.01)


@pytest.mark.parametrize("functional", [False, True])
def test_transposed_convolutions_count_as_torch_counts_them(functional):
    class Upscaling(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.near = torch.nn.Conv2d(3, 8, 1)
            self.up = torch.nn.ConvTranspose2d(8, 12, 3, stride=2, groups=2)

        def forward(self, x):
            if functional:
                return torch.nn.functional.conv_transpose2d(self.near(x), self.up.weight, stride=2, groups=2)
            return self.up(self.near(x))

    model = Upscaling()
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 8, 8))
    assert surgery.cost(model, (3, 8, 8)).macs == counter.get_total_flops() // 2
