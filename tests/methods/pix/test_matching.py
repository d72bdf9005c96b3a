import copy

import numpy as np
import pytest
import timm
import torch

import surgery
from surgery.transforms.history import history
from surgery.transforms.reorder import INSIDE, THROUGHOUT, Reorder
from surgery.transforms.replace import Replace
from surgery.transforms.subsets import subset_members
from tests.calibration.test_calibrating import NARROW, images, small


def within(model, decided):
    """Share of a site's weight that lies in the subset of its output, over all sites that narrow."""
    shares = []
    for replace in decided.transforms:
        if not isinstance(replace, Replace):
            continue
        weight = model.get_submodule(replace.module).weight.detach().flatten(1)
        if weight.shape != replace.channels[::-1] or replace.channels[0] == replace.channels[1]:
            continue
        members = subset_members(*replace.channels, replace.options["grouping"])
        shares.append(
            sum(float(weight[i, list(row)].sum()) for i, row in enumerate(members)) / float(weight.abs().sum())
        )
    return np.mean(shares)


@pytest.mark.parametrize(
    ("name", "kwargs", "arguments"),
    [
        ("resnet26", NARROW, {"zeta": 4}),
        ("resnet26", NARROW, {"zeta": 4, "grouping": "strided"}),
        ("mobilenetv2_050", {}, {"projections": "all", "input_size": (3, 64, 64)}),
        ("seresnext50_32x4d", {"channels": (16, 32, 32, 32), "layers": (1, 2, 1, 1)}, {}),
    ],
    ids=str,
)
def test_the_function_stays_and_subsets_hold_what_a_row_adds_up(name, kwargs, arguments):
    model = small(name, **kwargs).double()
    state = copy.deepcopy(model.state_dict())
    decided = surgery.plan(model, **arguments)
    matched = surgery.match(model, **arguments)
    x = images(3, 64).double()
    torch.testing.assert_close(matched(x), model(x), rtol=1e-9, atol=1e-9)
    assert within(matched, decided) > within(model, decided) + 0.03
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert [type(transform) for transform in history(matched)] == [Reorder]
    assert [row.site for row in surgery.plan(matched, **arguments).sites] == [row.site for row in decided.sites]


def test_inside_leaves_the_order_of_feature_maps():
    model = small(**NARROW).double()
    x = images(2, 64).double()
    final, maps = model.forward_intermediates(x)
    plain, inside = surgery.match(model, zeta=4), surgery.match(model, zeta=4, inside=True)
    torch.testing.assert_close(inside(x), model(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inside.forward_features(x), final, rtol=1e-9, atol=1e-9)
    for feature_map, own in zip(inside.forward_intermediates(x)[1], maps, strict=True):
        torch.testing.assert_close(feature_map, own, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(plain.forward_features(x), final)
    torch.testing.assert_close(plain.forward_features(x).sort(1).values, final.sort(1).values, rtol=1e-9, atol=1e-9)
    decided = surgery.plan(model, zeta=4)
    assert within(model, decided) + 0.01 < within(inside, decided) < within(plain, decided)
    assert [reorder.note for reorder in history(inside)] == [INSIDE]
    assert [reorder.note for reorder in history(plain)] == [THROUGHOUT]


def test_a_wrong_match_is_named():
    with pytest.raises(ValueError, match="match='outside': True, False, None or 'inside' is needed"):
        surgery.convert(small(**NARROW), match="outside")


def test_in_place_and_with_a_ratio_of_its_own():
    model = small(**NARROW)
    x = images(3)
    before = model(x)
    assert surgery.match(model, zeta=8, inplace=True) is model
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-3)
    kept = surgery.plan(model, zeta=8).kept_outputs(model)
    assert kept["layer1.1.conv1"] == sorted(kept["layer1.1.conv1"])
    assert len(kept["layer1.1.conv1"]) == 8


def test_streams_that_are_not_understood_stay():
    torch.manual_seed(0)
    model = timm.create_model("resnet26", **NARROW)
    model.layer4[1].register_parameter("scale", torch.nn.Parameter(torch.ones(192, 1, 1)))
    model.layer4[1].act3 = Scaled(192)
    x = images(2)
    matched = surgery.match(model.eval(), zeta=4)
    torch.testing.assert_close(matched(x), model(x), rtol=1e-3, atol=1e-3)
    assert torch.equal(matched.layer4[1].conv3.weight, model.layer4[1].conv3.weight)


class Scaled(torch.nn.Module):
    """A parameter for each channel, which the analysis of channels does not follow."""

    def __init__(self, channels):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x):
        return torch.relu(x * self.scale)


def test_a_matched_network_is_saved_and_converted_like_any(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet26", num_classes=5)
    matched = surgery.match(model, zeta=4)
    surgery.save(matched, tmp_path / "matched.safetensors")
    again = surgery.load(tmp_path / "matched.safetensors")
    x = images(2)
    assert torch.equal(again.eval()(x), matched.eval()(x))
    converted = surgery.convert(again, zeta=4)
    surgery.save(converted, tmp_path / "m.safetensors")
    loaded = surgery.load(tmp_path / "m.safetensors")
    assert torch.equal(loaded.eval()(x), converted.eval()(x))
    assert [type(transform) for transform in history(loaded)].count(Reorder) == 1


def test_a_method_without_subsets_has_nothing_to_match():
    model = small(**NARROW)
    matched = surgery.match(model, "squeeze-conv", mode="downscale", zeta=2)
    assert not history(matched)


@pytest.mark.parametrize(("inside", "note"), [(True, INSIDE), (False, THROUGHOUT)])
def test_the_report_says_what_was_reordered(inside, note):
    matched = surgery.match(small(**NARROW), zeta=4, inside=inside)
    report = surgery.calibrate(surgery.convert(matched, zeta=4), matched, images(8), progress=False)
    assert report.notes == (note,)
    assert f"note: {note}" in str(report)
