"""Slicing a model to new widths: what fits, what is refused, and what a slice keeps."""

import copy
import json

import pytest
import timm
import torch
from torch import nn

from surgery.core.errors import SurgeryError
from surgery.graph import record
from surgery.graph.coupling import couple
from surgery.graph.skeleton import meta_copy
from surgery.transforms.slicing import Sizes, keep_of_sides, sizes, slice_channels


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 8, 3, groups=4), nn.GroupNorm(2, 8)
    )


def halved(model, shape=(3, 32, 32)):
    """(form, keep) of a model without every second class of channels that can go."""
    coupling = couple(record(model, shape))
    keep = coupling.kept(coupling.removable()[::2])
    return sizes(model, keep), keep


def test_a_layer_takes_the_kept_channels_and_all_its_numbers():
    model = small()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = [1, 2, 5, 7]
    keep = {("0", "weight"): {0: kept}, ("1", "weight"): {0: kept}, ("2", "weight"): {0: kept}}
    keep |= {("1", name): {0: kept} for name in ("bias", "running_mean", "running_var")}
    form = sizes(model, keep)
    assert form.to_json() == {"widths": {"0": [None, 4], "1": [4, None]}, "parameters": {"2.weight": [0, 4]}}
    slice_channels(model, form, keep)
    assert (model[0].out_channels, model[1].num_features, model[2].num_parameters) == (4, 4, 4)
    for name in ("0.weight", "0.bias", "1.running_var", "2.weight"):
        torch.testing.assert_close(model.state_dict()[name], weights[name][kept])


def test_groups_keep_their_own_inputs():
    conv = nn.Conv2d(8, 4, 1, groups=2)
    weight = conv.weight.detach().clone()
    model = nn.Sequential(conv)
    slice_channels(model, Sizes({"0": [4, None]}), {("0", "weight"): {1: torch.tensor([[0, 1], [2, 3]])}})
    assert (conv.in_channels, conv.groups, tuple(conv.weight.shape)) == (4, 2, (4, 2, 1, 1))
    torch.testing.assert_close(conv.weight[0, :, 0, 0], weight[0, :2, 0, 0])
    torch.testing.assert_close(conv.weight[2, :, 0, 0], weight[2, 2:, 0, 0])


def test_depthwise_convolutions_change_their_groups():
    model = nn.Sequential(nn.Conv2d(8, 16, 3, groups=8))
    slice_channels(model, Sizes({"0": [3, 6]}))
    assert (model[0].in_channels, model[0].out_channels, model[0].groups) == (3, 6, 3)
    assert model(torch.randn(1, 3, 5, 5)).shape == (1, 6, 3, 3)


def test_dtype_format_and_requires_grad_stay():
    model = timm.create_model("test_resnet").to(torch.bfloat16, memory_format=torch.channels_last)
    model.requires_grad_(False)
    next(model.parameters()).requires_grad_(True)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    slice_channels(model, *halved(model, (3, 64, 64)))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    for parameter in model.parameters():
        assert parameter.dtype == torch.bfloat16
        assert parameter.dim() < 4 or parameter.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_byobnet"])
def test_a_form_rebuilds_on_meta_what_was_sliced(name):
    model = timm.create_model(name, num_classes=5).eval()
    rebuilt = meta_copy(model)
    form, keep = halved(model, model.pretrained_cfg["input_size"])
    slice_channels(model, form, keep)
    slice_channels(rebuilt, Sizes.from_json(json.loads(json.dumps(form.to_json()))))
    rebuilt.to_empty(device="cpu").load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(x), model(x))
    for (_, one), (_, two) in zip(model.named_modules(), rebuilt.named_modules(), strict=True):
        assert one.extra_repr() == two.extra_repr()


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (Sizes({"9": [None, 4]}), r"has no module '9'"),
        (Sizes({"0": [None, 9]}), r"'0': a Conv2d with 8 outputs cannot be narrowed to 9"),
        (Sizes({"3": [6, None]}), r"'3': 6 inputs cannot be divided into 4 groups"),
        (Sizes({"4": [3, None]}), r"'4': 3 channels cannot be divided into 2 groups"),
        (Sizes({"1": [None, 4]}), r"'1': a BatchNorm2d has one width"),
        (Sizes({"2": [4, None]}), r"'2': a PReLU has no widths"),
        (Sizes({}, {"2.slope": [0, 4]}), r"no parameter or buffer '2.slope'"),
        (Sizes({}, {"2.weight": [1, 4]}), r"'2.weight' is of shape \(8,\): dimension 1 cannot be sliced to 4"),
    ],
)
def test_a_form_for_another_model_is_refused_and_changes_nothing(form, says):
    model = small()
    before = repr(model)
    with pytest.raises(SurgeryError, match=says):
        slice_channels(model, Sizes({"0": [None, 4], **form.widths}, form.parameters))
    assert repr(model) == before
    assert model[0].weight.shape[0] == 8


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"widths": {}, "more": 1},
        {"widths": []},
        {"widths": {"0": 4}},
        {"widths": {"0": [None, None]}},
        {"widths": {"0": [None, True]}},
        {"widths": {"0": [None, 0]}},
        {"widths": {"0": [None, 2.0]}},
        {"widths": {"0": [None, 4, 4]}},
        {"widths": {0: [None, 4]}},
        {"widths": {}, "parameters": {"a": [-1, 3]}},
        {"widths": {}, "parameters": {"a": [0, None]}},
    ],
)
def test_a_form_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="needed"):
        Sizes.from_json(value)


def test_widths_of_the_first_schema_are_a_form():
    assert Sizes.from_json({"widths": {"conv": [None, 4]}}) == Sizes({"conv": [None, 4]})


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({}, "which channels of 0.weight stay is not said"),
        ({("0", "weight"): {0: [0, 1, 2]}}, "indices along dimension 0 for 4 places"),
        ({("0", "weight"): {0: [0, 1, 2, 8]}}, "is not below 8"),
    ],
)
def test_kept_channels_must_be_those_of_the_form(keep, says):
    model = nn.Sequential(nn.Conv2d(3, 8, 1))
    with pytest.raises(SurgeryError, match=says):
        slice_channels(model, Sizes({"0": [None, 4]}), keep)


def test_tied_tensors_are_sliced_alike_or_refused():
    model = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False))
    model[1].weight = model[0].weight
    with pytest.raises(SurgeryError, match=r"0\.weight and 1\.weight are one tensor"):
        slice_channels(model, Sizes({"0": [None, 4]}))
    slice_channels(model, Sizes({"0": [8, 4], "1": [8, 4]}))
    assert model[0].weight is model[1].weight
    assert model[0].weight.shape == (4, 8, 1, 1)


def test_narrowing_by_zeta_is_a_case_of_it():
    """What zeta's narrowing slices, with groups that keep other inputs each."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=2)),
        *(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 5, 1), nn.Flatten(), nn.Linear(20, 6)),
    )
    middle, other = [0, 2, 5, 7], [1, 3, 4, 6]
    kept = {"0": (None, middle), "1": (middle, None), "2": (middle, other), "3": (other, other), "4": (other, None)}
    kept["6"] = ([*range(10)], None)
    widths = {name: [None if side is None else len(side) for side in sides] for name, sides in kept.items()}
    sliced = copy.deepcopy(model)
    slice_channels(sliced, Sizes(widths), keep_of_sides(model, kept))
    for name, (into, out) in kept.items():
        assert torch.equal(sliced.get_submodule(name).weight, by_hand(model.get_submodule(name), into, out)), name


def by_hand(module, into, out):
    """The weight that stays, number by number."""
    weight = module.weight
    if weight.dim() == 1:
        return weight[into]
    rows = range(len(weight)) if out is None else out
    groups = getattr(module, "groups", 1)
    each, per = len(weight) // groups, weight.shape[1]
    if groups > 1 and per == 1:  # depth-wise: an output's own input goes with it
        return torch.stack([weight[row] for row in rows])
    columns = {
        row: [c - row // each * per for c in into or range(groups * per) if c // per == row // each] for row in rows
    }
    return torch.stack([weight[row][columns[row]] for row in rows])
