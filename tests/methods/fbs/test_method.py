"""Where FBS goes, what links layers, budgets, files, and real networks at inference."""

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import surgery
from surgery.core.errors import NoSitesError
from surgery.methods.fbs import FBSConfig
from surgery.methods.fbs.execution import FORMS
from surgery.methods.fbs.layer import FBSConv2d
from surgery.methods.fbs.transform import BoostAndSuppress
from surgery.transforms.history import history
from surgery.transforms.transform import transform_from_json


def layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, FBSConv2d)}


def with_saliencies(model):
    """As if trained: saliencies that differ from image to image."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in layers(model).values():
            layer.saliency.weight.normal_(0, 0.3 / layer.in_channels**0.5, generator=generator)
    return model.eval()


def plain_network():
    """Convolutions of all kinds that are left alone, and two that are not."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 12, 1),
        nn.GroupNorm(3, 12),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.Sigmoid(),
        nn.Conv2d(12, 16, 8),
        nn.ReLU(),
        nn.Conv2d(16, 5, 1),
        nn.Flatten(),
    ).eval()


def test_a_plan_says_why_not():
    plan = surgery.plan(plain_network(), "fbs", input_size=16)
    assert [row.site for row in plan.sites] == ["0", "7"]
    reasons = {item.name: item.reason for item in plan.skipped}
    assert reasons["4"] == "depth-wise"
    assert "GroupNorm reads it" in reasons["5"]
    assert "classifier written as a convolution" in reasons["9"]
    assert "classifier written as a convolution" in reasons["11"]
    converted = plan.apply(plain_network())
    assert isinstance(converted[1], nn.Identity)
    assert isinstance(converted[8], nn.Sigmoid)  # makes something of zero, so it stays outside


def test_vgg_is_one_chain_and_blocks_are_linked_inside():
    vgg = surgery.plan(timm.create_model("vgg11_bn", mlp_ratio=1 / 64), "fbs", input_size=64)
    producers = [change.producer for change in vgg.transforms if isinstance(change, BoostAndSuppress)]
    assert producers == ["", *(row.site for row in vgg.sites[:-1])]
    resnet = surgery.plan(timm.create_model("test_resnet"), "fbs", input_size=32)
    producers = {change.module: change.producer for change in resnet.transforms if isinstance(change, BoostAndSuppress)}
    assert producers["layer1.0.conv2"] == "layer1.0.conv1"
    assert producers["layer1.0.conv1"] == producers["layer2.0.conv1"] == ""


def test_selection_cuts_links():
    plan = surgery.plan(timm.create_model("vgg11_bn", mlp_ratio=1 / 64), "fbs", exclude="features.4", input_size=32)
    producers = {change.module: change.producer for change in plan.transforms if isinstance(change, BoostAndSuppress)}
    assert producers["features.8"] == ""
    assert producers["features.11"] == "features.8"


def test_a_budget_gives_a_density():
    model = timm.create_model("test_resnet")
    plan = surgery.plan(model, "fbs", macs=0.5, input_size=32)
    assert ", for macs=0.5" in str(plan)
    share = surgery.cost(plan.apply(timm.create_model("test_resnet")), 32).macs / surgery.cost(model, 32).macs
    assert 0.47 < share <= 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0}, "density=0: a share of the channels"),
        ({"density": 1.5}, "density=1.5"),
        ({"schedule": [1, 0]}, "schedule=0"),
        ({"placement": "before"}, "placement"),
        ({"l1": -1}, "l1=-1"),
        ({"macs": 2}, "macs=2"),
        ({"macs": 0.5, "density": 0.7}, "give one"),
        ({"macs": 1e-6}, "at the least density"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        surgery.plan(timm.create_model("test_resnet"), "fbs", input_size=32, **options)


def test_numbers_of_numpy_are_numbers():
    config = FBSConfig(density=np.float32(0.6), schedule=(np.int64(1), np.float32(0.8)), l1=np.float16(0))
    assert config == FBSConfig(density=0.6, schedule=(1, 0.8), l1=0.0)
    assert type(config.density) is float
    assert FBSConfig(macs=np.float32(0.7)).macs == 0.7


def test_a_schedule_is_a_list():
    with pytest.raises(TypeError, match="schedule=0.8"):
        surgery.plan(timm.create_model("test_resnet"), "fbs", input_size=32, schedule=0.8)


def test_nothing_to_convert_says_so():
    with pytest.raises(NoSitesError, match="no convolution without groups"):
        surgery.convert(nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU()), "fbs", strict=True, input_size=8)


def test_a_file_says_what_was_done_and_wrong_values_are_refused():
    change = BoostAndSuppress("conv", (3, 8), "norm", "act", "", True, {"density": 0.25})
    assert transform_from_json(change.to_json()) == change
    for key, value in (("module", ""), ("norm", 3), ("non_negative", 1), ("options", {"rate": 1}), ("channels", [3])):
        with pytest.raises(ValueError, match=key if key != "options" else "options="):
            transform_from_json({**change.to_json(), key: value})


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_real_networks_skip_to_the_same_logits(name):
    model = timm.create_model(name, num_classes=5).double().eval()
    converted = with_saliencies(surgery.convert(model, "fbs", strict=True, input_size=160))
    x = torch.randn(3, 3, 160, 160, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = converted(x).detach()  # with gradients: dense
    fast = surgery.optimize_for_inference(converted, input_size=160)
    for network in (converted, fast):
        for form in (None, *FORMS):
            for layer in layers(network).values():
                layer._execution.form = form
            with torch.no_grad():
                torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-10)


def test_a_chain_hands_compact_maps_on_without_scattering():
    model = with_saliencies(
        surgery.convert(timm.create_model("vgg11_bn", num_classes=5, mlp_ratio=1 / 64).eval(), "fbs", input_size=32)
    )
    fast, widths = surgery.optimize_for_inference(model, input_size=32), {}
    for name, layer in layers(fast).items():
        layer.register_forward_hook(lambda _, arguments, output, name=name: widths.update({name: output.shape[1]}))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-3, atol=1e-4)
    *inner, last = widths.items()
    assert all(width == layers(fast)[name].count for name, width in inner)
    assert last[1] == layers(fast)[last[0]].out_channels


def test_the_history_names_what_went():
    converted = surgery.convert(timm.create_model("test_resnet"), "fbs", input_size=32)
    change = next(c for c in history(converted) if getattr(c, "module", "") == "layer1.0.conv1")
    assert change.removed() == ("layer1.0.bn1", "layer1.0.act1")
    assert change.changed() == change.added() == ("layer1.0.conv1",)


def around(*between, act=None):
    """A convolution, modules, its norm and its activation, and what reads that."""
    act = nn.ReLU() if act is None else act
    return nn.Sequential(nn.Conv2d(3, 8, 3), *between, nn.BatchNorm2d(8), act, nn.Conv2d(8, 4, 3), nn.ReLU())


def plan_of(model, **options):
    plan = surgery.plan(model, "fbs", input_size=8, **options)
    taken_in = {c.module: (c.norm, c.act) for c in plan.transforms if isinstance(c, BoostAndSuppress)}
    return taken_in, {item.name: item.reason for item in plan.skipped}


def test_modules_that_do_nothing_may_stand_before_the_norm():
    taken_in, _ = plan_of(around(nn.Identity(), nn.Sequential()))
    assert taken_in["0"] == ("3", "4")


def test_what_training_notices_is_not_moved_behind_the_norm():
    taken_in, reasons = plan_of(around(nn.Dropout(0.5)))
    assert list(taken_in) == ["4"]
    assert reasons["0"] == "Dropout stands between it and its norm"
    taken_in, _ = plan_of(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU(), nn.Flatten())
    )
    assert taken_in["0"] == ("1", "")


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_norms_and_activations_with_hooks_stay_what_they_are(register):
    model = around()
    getattr(model[1], register)(lambda *arguments: None)
    taken_in, reasons = plan_of(model)
    assert "0" not in taken_in
    assert "its norm carries hooks" in reasons["0"]
    model = around()
    getattr(model[2], register)(lambda *arguments: None)
    assert plan_of(model)[0]["0"] == ("1", "")


class OnlyEightChannels(nn.Module):
    def forward(self, x):
        assert x.shape[1] == 8
        return torch.relu(x)


def test_an_activation_that_cannot_be_tried_out_stays_outside():
    assert plan_of(around(act=OnlyEightChannels()))[0]["0"] == ("1", "")


def test_filters_that_another_module_holds_keep_their_signs():
    def model():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
        network[3].weight = network[0].weight
        nn.init.constant_(network[1].weight, -1.0)
        return network.eval()

    taken_in, reasons = plan_of(model(), placement="norm_scale")
    assert not taken_in
    assert "another module holds its weight too" in reasons["0"]
    assert list(plan_of(model(), placement="output")[0]) == ["0", "3"]


def test_a_plan_says_that_calibration_leaves_norm_scale_constant():
    model = timm.create_model("test_resnet")
    assert "note: placement 'norm_scale': calibration leaves" in str(
        surgery.plan(model, "fbs", placement="norm_scale", input_size=32)
    )
    assert "note:" not in str(surgery.plan(model, "fbs", input_size=32))
    assert "note:" not in str(surgery.plan(model, "fbs", placement="norm_scale", density=1.0, input_size=32))


def test_feature_extractors_trace_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten())
    model = with_saliencies(surgery.convert(model.eval(), "fbs", input_size=8))
    extracted = create_feature_extractor(model, {"4": "map"})
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(extracted.eval()(x)["map"], model[:5](x))
