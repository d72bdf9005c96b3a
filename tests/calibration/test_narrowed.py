"""Calibration of networks that lost channels, and of what stands on tokens."""

import copy

import numpy as np
import pytest
import timm
import torch

import surgery
from surgery.calibration.kept_channels import KeptChannels
from surgery.graph import record
from surgery.graph.coupling import couple
from surgery.transforms.carry_out import apply
from surgery.transforms.narrow import Narrow
from surgery.transforms.slicing import sizes
from tests.calibration.test_calibrating import NARROW, error, images, same, small


def pruned(teacher, size, wanted=lambda layer: True, share=4):
    """A copy without one of ``share`` channels written by the wanted layers, and what its layers have kept."""
    coupling = couple(record(teacher, (3, size, size)))
    written = [np.unique(layer.writes) for name, layer in coupling.layers.items() if wanted(name)]
    axes = [numbers[np.isin(numbers, coupling.removable())] for numbers in written]
    gone = np.unique(np.concatenate([numbers[::share] for numbers in axes]))
    keep = coupling.kept(gone)
    form = sizes(teacher, keep)
    smaller = copy.deepcopy(teacher)
    kept = apply(smaller, [Narrow(form.widths, form.parameters, lambda model: keep)], choosing=True)
    return smaller, kept


def recovered(teacher, model, kept, size):
    """The report of a calibration that brings a network nearer to its original on other images."""
    before = error(model.eval(), teacher, images(size=size, seed=2))
    report = surgery.calibrate(model, teacher, images(48, size), kept=kept, progress=False, dtype=torch.float32)
    assert error(model.eval(), teacher, images(size=size, seed=2)) < before
    return {row.layer: row for row in report.rows}


def test_sums_over_a_narrowed_stream_are_fitted():
    teacher = small(**NARROW)
    model, kept = pruned(teacher, 32)
    assert len(kept["layer2.1.conv3"]) < 96
    rows = recovered(teacher, model, kept, 32)
    assert {rows[name].aim for name in ("layer1.1.conv3", "layer2.1.conv3", "layer3.0.downsample.0")} == {"sum"}
    assert not any(row.note for row in rows.values())
    assert all(row.after >= row.before - 0.01 for row in rows.values())


def test_what_only_lost_channels_is_left_as_it_is():
    teacher = small(**NARROW)
    model, kept = pruned(teacher, 32, lambda name: name == "layer2.1.conv1")
    rows = recovered(teacher, model, kept, 32)
    assert next(iter(rows)) == "layer2.1.conv2"
    assert rows["layer2.1.conv2"].aim == "output"
    index = torch.tensor(kept["layer2.1.conv1"])
    assert torch.equal(model.layer2[1].conv1.weight, teacher.layer2[1].conv1.weight[index])
    assert torch.equal(model.layer1[0].conv1.weight, teacher.layer1[0].conv1.weight)


def test_the_outputs_of_one_layer_tell_what_the_others_lost():
    teacher = small(**NARROW)
    model, kept = pruned(teacher, 32)
    other = copy.deepcopy(model)
    streams = {"conv1.6", "layer1.0.conv3", "layer2.0.conv3", "layer3.0.conv3", "layer4.0.conv3"}
    some = {name: out for name, out in kept.items() if name in streams or ("conv3" not in name and "down" not in name)}
    assert len(some) < len(kept)
    surgery.calibrate(model, teacher, images(), kept=kept, progress=False)
    surgery.calibrate(other, teacher, images(), kept=some, progress=False)
    assert same(model, other)


def test_without_knowing_what_was_kept_norms_are_measured():
    teacher = small(**NARROW)
    model, _ = pruned(teacher, 32, lambda name: name == "layer2.1.conv1")
    report = surgery.calibrate(model, teacher, images(), progress=False)
    notes = {row.layer: row.aim for row in report.rows}
    assert notes["layer2.1.bn1"] == "statistics"
    assert any(item.name == "layer2.1.conv1" and "not known" in item.reason for item in report.skipped)


def test_depthwise_convolutions_behind_narrowed_ones():
    teacher = small("mobilenetv2_050")
    model, kept = pruned(teacher, 32, lambda name: name.endswith("conv_pw"), share=3)
    rows = recovered(teacher, model, kept, 32)
    assert rows["blocks.2.1.conv_dw"].aim == "output"
    assert rows["blocks.2.1.conv_pwl"].aim == "sum"


def test_a_real_squeeze_is_calibrated():
    teacher = small(**NARROW)
    model = surgery.convert(teacher, "squeeze-conv", mode="prune", zeta=2, insert="layer*.conv2", input_size=32)
    rows = recovered(teacher, model, {}, 32)
    assert rows["layer1.0.conv2"].aim == "output"
    assert rows["layer1.0.conv2.squeeze.norm"].aim == "statistics"


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "last", "aim"),
    [
        ("test_vit", {}, 160, "blocks.1.mlp.fc2", "sum"),
        ("test_convnext", {"ls_init_value": 1.0}, 64, "stages.1.blocks.0.mlp.fc2", "output"),
    ],
    ids=["tokens", "channels last"],
)
def test_hidden_widths_of_mlps(name, kwargs, size, last, aim):
    torch.manual_seed(0)
    teacher = timm.create_model(name, num_classes=7, **kwargs).eval()
    model, kept = pruned(teacher, size, lambda layer: layer.endswith("mlp.fc1"), share=2)
    assert kept
    rows = recovered(teacher, model, kept, size)
    assert rows[last].aim == aim
    assert rows[last].after > rows[last].before


def test_an_unchanged_network_is_refused():
    teacher = small(**NARROW)
    with pytest.raises(ValueError, match="has no surgery: convert it first"):
        surgery.calibrate(copy.deepcopy(teacher), teacher, images())


def test_kept_channels():
    teacher = small(**NARROW)
    graph = record(teacher, (3, 32, 32))
    channels = KeptChannels(graph, {"layer1.0.conv1": [0, 3, 5]})
    assert channels.outputs("layer1.0.bn1", 3) == channels.inputs("layer1.0.conv2", 3) == (0, 3, 5)
    assert channels.outputs("layer1.0.bn1", 4) is None
    weight = teacher.layer1[0].conv2.weight
    assert torch.equal(channels.slice_of("layer1.0.conv2", torch.Size((len(weight), 3, 3, 3))), weight[:, [0, 3, 5]])
    unknown = KeptChannels(graph, {})
    assert unknown.inputs("layer1.0.conv2", 3) is unknown.slice_of("layer1.0.conv2", torch.Size((16, 3, 3, 3))) is None
