"""Values that are trees of tensors: recorded with their shapes, costed, calibrated past, exported and benched."""

import copy

import pytest
import torch
from torch import nn

import surgery
from surgery.bench.networks import Free, with_free_sites
from surgery.core.surgery_layer import OpCost, SurgeryLayer
from surgery.graph import record
from surgery.graph.dataflow import non_negative
from surgery.graph.paused import PausableModel, Place
from surgery.graph.symbolic import trace_block
from surgery.graph.trees import shape_tree, shapes_in
from surgery.transforms.carry_out import apply
from tests.two_scales import CHANNELS, PutTwoScales, TwoScaleNet

HIGH, LOW = (1, CHANNELS, 8, 8), (1, CHANNELS, 4, 4)
TREES = {False: [HIGH, LOW], True: {"high": HIGH, "low": LOW}}


def nodes(graph, kind):
    return [node for node in graph if node.meta.get("kind") == kind]


def test_shapes_of_a_tree():
    value = {"maps": [torch.empty(1, 2), torch.empty(())], "size": 3, "rest": (torch.empty(4), None)}
    tree = shape_tree(value)
    assert tree == {"maps": [(1, 2), ()], "size": None, "rest": [(4,), None]}
    assert [*shapes_in(tree)] == [(1, 2), (), (4,)]


@pytest.mark.parametrize("named", [False, True])
def test_a_layer_of_two_scales_is_one_node_that_knows_all_shapes(named):
    graph = record(TwoScaleNet(named), (3, 8, 8))
    (layer,) = nodes(graph, "surgery")
    assert layer.meta["shapes"] == layer.meta["input_shapes"] == TREES[named]
    assert layer.meta["shape"] is None
    assert [node.meta["shape"] for node in nodes(graph, "item")] == [HIGH, LOW]
    assert [node.all_input_nodes for node in nodes(graph, "item")] == [[layer], [layer]]


def test_every_node_has_the_shapes_of_what_it_gives_and_takes():
    graph = record(TwoScaleNet(), (3, 8, 8))
    for node in graph:
        assert "shapes" in node.meta
        if node.op != "output" and node.meta["shape"] is not None:
            assert node.meta["shapes"] == node.meta["shape"]
    by_module = {node.meta["module"]: node.meta for node in graph if node.meta.get("module")}
    assert by_module["stem"]["input_shapes"] == (1, 3, 8, 8)
    (cat,) = nodes(graph, "cat")
    assert cat.meta["input_shapes"] == [HIGH, HIGH]


class Outputs(nn.Module):
    """What detectors give: a list of dicts."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        y = self.conv(x)
        return [{"maps": (y, y.mean((2, 3))), "count": 2}]


def test_shapes_of_what_a_model_gives():
    output = next(node for node in record(Outputs(), (3, 8, 8)) if node.op == "output")
    assert output.meta["shapes"] == [{"maps": [(1, 4, 8, 8), (1, 4)], "count": None}]


class Gate(SurgeryLayer):
    """Two maps as two arguments, one of them by name."""

    def forward(self, x, gate):
        return x * gate.sigmoid()

    def cost(self, inputs, outputs):
        x, gate = inputs
        assert x == gate == outputs
        return OpCost(0, 7, 0)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 4, 1), Gate()

    def forward(self, x):
        y = self.conv(x)
        return self.gate(gate=y, x=y.relu())


def test_several_arguments_are_a_list_and_named_ones_count():
    (site,) = [row for row in surgery.cost(Gated(), (3, 8, 8)).sites if row.kind == "Gate"]
    assert site.flops == 7


@pytest.mark.parametrize("named", [False, True])
def test_cost_of_a_layer_of_two_scales(named):
    model = TwoScaleNet(named)
    cost = surgery.cost(model, (3, 8, 8))
    filters = 9 * CHANNELS * CHANNELS
    (site,) = [row for row in cost.sites if row.name == "octave"]
    assert site.macs == filters * (64 + 3 * 16)
    assert cost.macs == site.macs + 64 * 9 * 3 * CHANNELS + 64 * 8 * 2 * CHANNELS + 8 * 5
    assert cost.uncounted == ()


def test_a_path_through_a_tree_is_not_taken_for_non_negative():
    graph = record(TwoScaleNet(), (3, 8, 8))
    assert not any(non_negative(graph, node) for node in nodes(graph, "item"))


@pytest.mark.parametrize("named", [False, True])
def test_a_forward_stops_at_a_layer_whatever_it_takes(named):
    model, point = TwoScaleNet(named).eval(), Place("octave", False)
    with PausableModel(model, [point]) as pausable:
        forward = pausable.start(torch.rand(2, 3, 8, 8))
        assert shape_tree(forward.advance(point)) == shape_tree(
            {"high": torch.empty(2, 4, 8, 8), "low": torch.empty(2, 4, 4, 4)}
            if named
            else [torch.empty(2, 4, 8, 8), torch.empty(2, 4, 4, 4)]
        )


def test_a_forward_stops_at_a_layer_that_is_called_by_name():
    point = Place("gate", False)
    with PausableModel(Gated().eval(), [point]) as pausable:
        assert pausable.start(torch.rand(2, 3, 8, 8)).advance(point).shape == (2, 4, 8, 8)


@pytest.mark.parametrize("named", [False, True])
def test_layers_behind_it_are_calibrated(named):
    torch.manual_seed(0)
    teacher = TwoScaleNet(named)
    student = copy.deepcopy(teacher)
    student.octave = TwoScaleNet(named).octave
    report = surgery.calibrate(student, teacher, torch.rand(64, 3, 8, 8), progress=False)
    assert [row.layer for row in report.rows] == ["octave", "fuse", "fc"]
    assert all(row.after > row.before for row in report.rows[1:])


@pytest.mark.parametrize("named", [False, True])
def test_a_block_with_it_is_traced_with_it_as_one_call(named):
    calls = [node.target for node in trace_block(TwoScaleNet(named)).nodes if node.op == "call_module"]
    assert calls == ["stem", "octave", "fuse", "fc"]


@pytest.mark.parametrize("named", [False, True])
def test_it_is_exported(named, tmp_path):
    path = tmp_path / "net.pt2"
    model = TwoScaleNet(named).eval()
    surgery.export(model, path, format="torch-export", input_size=(3, 16, 16), progress=False)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(path).module()(x), model(x))


@pytest.mark.parametrize("named", [False, True])
def test_it_is_benched_for_free(named):
    model, x = TwoScaleNet(named).eval(), torch.rand(2, 3, 8, 8)
    apply(model, [PutTwoScales(named)])
    with torch.no_grad():
        free = with_free_sites(model, x)
        assert isinstance(free.octave, Free)
        torch.testing.assert_close(free(x), model(x))
        assert shape_tree(free.octave()) == shape_tree(
            {"high": torch.empty(2, 4, 8, 8), "low": torch.empty(2, 4, 4, 4)}
            if named
            else [torch.empty(2, 4, 8, 8), torch.empty(2, 4, 4, 4)]
        )
        assert with_free_sites(model, x, sliced=True) is None  # no slice of a map is two maps
