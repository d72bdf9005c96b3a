import pytest
import timm
import torch
import torchvision
from torch.nn.utils import prune

from surgery.graph import record
from surgery.sites import HEAD, PROJECTION, TRANSITION, squeeze_sites
from tests.small_models import Awkward


def found(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    return squeeze_sites(record(model))


def test_awkward_convolutions_are_passed_over_with_their_reason():
    sites, skipped = squeeze_sites(record(Awkward(), (3, 8, 8)))
    reasons = {item.name: item.reason for item in skipped}
    assert sites == []
    assert "shared" in reasons["shared"]
    assert "tied" in reasons["tied"]
    assert "tied" in reasons["twin"]
    assert "padded" in reasons["padded"]
    assert "grouped" in reasons["grouped"]
    assert "F.conv2d" in reasons[" (F.conv2d)"]
    assert "not called" in reasons["unused"]


@pytest.mark.parametrize(
    ("name", "heads", "projections"),
    [
        ("resnet50", 16, 0),
        ("resnetv2_50", 16, 0),
        ("res2net50_26w_4s", 15, 0),
        ("resnest50d", 16, 0),
        ("nfnet_f0", 11, 0),
        ("inception_v3", 21, 0),
        ("mobilenetv2_100", 0, 10),
        ("efficientnet_b0", 0, 9),
        ("resnet18", 0, 0),
        ("convnext_tiny", 0, 0),
        ("vgg16_bn", 0, 0),
    ],
)
def test_heads_and_residual_projections(name, heads, projections):
    roles = [site.role for site in found(name)[0]]
    assert (roles.count(HEAD), roles.count(PROJECTION)) == (heads, projections)


def test_every_pointwise_convolution_is_listed_once():
    sites, skipped = found("seresnet50")
    with torch.device("meta"):
        model = timm.create_model("seresnet50")
    pointwise = {n for n, m in model.named_modules() if getattr(m, "kernel_size", None) == (1, 1)}
    listed = [item.name for item in (*sites, *skipped)]
    assert sorted(listed) == sorted(pointwise)


def test_gates_shortcuts_and_stems_are_never_sites():
    reasons = {item.name: item.reason for item in found("seresnet50")[1]}
    assert "pooled descriptor" in reasons["layer1.0.se.fc1"]
    with torch.device("meta"):
        googlenet = torchvision.models.googlenet(init_weights=False)
    reasons = {item.name: item.reason for item in squeeze_sites(record(googlenet))[1]}
    assert reasons["conv2.conv"] == "part of the stem"
    assert "not called" in reasons["aux1.conv.conv"]


def test_mobilenet_transitions_are_told_from_residual_projections():
    sites = found("mobilenetv2_100")[0]
    assert {s.ratio for s in sites if s.role == PROJECTION} == {6.0}
    assert sum(s.role == TRANSITION for s in sites) == 7


class Head(torch.nn.Module):
    """A narrowing 1×1, something behind it, and a 3×3, in a residual block."""

    def __init__(self, behind, wrap=lambda conv: conv):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.squeeze = wrap(torch.nn.Conv2d(16, 8, 1))
        self.behind = behind
        self.spatial = torch.nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return x + self.spatial(self.behind(self.squeeze(x)))


class Centred(torch.nn.Module):
    def forward(self, x):
        return x - x.mean(1, keepdim=True)


class Doubled(torch.nn.Module):
    def forward(self, x):
        return torch.tanh(2 * x)


@pytest.mark.parametrize(
    ("behind", "is_site"),
    [(torch.nn.ChannelShuffle(2), False), (torch.nn.Softmax(1), False), (Centred(), False), (Doubled(), True)],
)
def test_only_elementwise_modules_count_as_activations(behind, is_site):
    sites, _ = squeeze_sites(record(Head(behind), (3, 8, 8)))
    assert (len(sites) == 1) is is_site
    assert all(site.after.act is not None for site in sites)


@pytest.mark.parametrize(
    "wrap",
    [
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    ],
)
def test_computed_weights_are_left_alone(wrap):
    sites, skipped = squeeze_sites(record(Head(torch.nn.ReLU(), wrap), (3, 8, 8)))
    assert sites == []
    assert "computed from others" in {item.name: item.reason for item in skipped}["squeeze"]


def test_hooks_are_not_lost():
    model = Head(torch.nn.ReLU())
    model.squeeze.register_forward_hook(lambda module, inputs, output: None)
    assert "hooks" in squeeze_sites(record(model, (3, 8, 8)))[1][0].reason


@pytest.mark.parametrize("name", ["resnet26", "seresnet50", "mobilenetv3_small_050"])
def test_images_so_small_that_strides_leave_one_pixel_have_the_same_sites(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    (small, passed), (large, left) = (squeeze_sites(record(model, (3, side, side))) for side in (32, 224))
    assert [site.name for site in small] == [site.name for site in large] != []
    assert passed == left
