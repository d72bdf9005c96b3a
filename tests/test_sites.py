import pytest
import timm
import torch
import torchvision

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
