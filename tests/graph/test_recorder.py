import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch import nn

import surgery
from surgery.core.errors import TraceError
from surgery.core.surgery_layer import OpCost, SurgeryLayer
from surgery.graph import record
from surgery.graph.scripted import calls_seen
from surgery.graph.skeleton import copied
from surgery.graph.symbolic import trace_block
from tests.small_models import LooksAtValues, Net


def kinds(model, **arguments):
    return [node.meta.get("kind") for node in record(model, **arguments) if node.op != "output"]


def test_records_calls_in_order_with_shapes():
    graph = record(Net("module"), (3, 8, 8))
    named = [(n.meta["module"], n.meta["shape"]) for n in graph if n.meta.get("module")]
    assert named[:4] == [
        ("stem", (1, 16, 8, 8)),
        ("blocks.0.conv1", (1, 4, 8, 8)),
        ("blocks.0.bn1", (1, 4, 8, 8)),
        ("blocks.0.act1", (1, 4, 8, 8)),
    ]
    assert named[-1] == ("fc", (1, 5))


def test_leaves_the_model_alone():
    model = Net("module").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    record(model)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_in_place_operations_are_followed():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            y = self.conv(x)
            y += 1
            y.relu_()
            y[:, :2] = 0
            return y * 2

    nodes = [n for n in record(InPlace(), (3, 4, 4)) if n.op != "output"]
    assert [n.meta["kind"] for n in nodes] == ["input", "conv", "add", "act", "other", "mul"]
    assert all(after.all_input_nodes[0] is before for before, after in itertools.pairwise(nodes))


def test_a_forward_that_looks_at_values_is_recorded_too():
    assert "conv" in kinds(LooksAtValues(), input_size=(3, 8, 8))


def test_a_meta_model_is_recorded():
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    assert kinds(model).count("conv") == 20


def test_sees_inside_blocks_that_tracers_treat_as_leaves():
    with torch.device("meta"):
        model = timm.create_model("nfnet_f0")
    assert kinds(model).count("conv") == 81


def test_wrong_size_is_one_clear_error():
    with pytest.raises(TraceError, match=r"Net fails on an input of shape \(1, 4, 8, 8\).*input_size="):
        record(Net("module"), (4, 8, 8))


@pytest.mark.parametrize("size", [(3, 0, 8), (8,), (3.0, 8, 8), 0, True, 2.5, "32", (1, 3, 8, 8)])
def test_size_that_is_none(size):
    with pytest.raises(ValueError, match=r"input_size=.*a side in pixels \(224\), \(height, width\) or"):
        record(Net("module"), size)


class Drawing(Net):
    def __init__(self):
        super().__init__("module")
        self.rng = random.SystemRandom()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_that_cannot_be_copied_is_told_what_it_holds(device):
    model = Drawing().to(device)
    with pytest.raises(TraceError, match=r"Drawing cannot be copied.* 'rng' is a SystemRandom \(NotImpl") as raised:
        record(model, (3, 8, 8))
    assert "input_size" not in str(raised.value)
    with pytest.raises(ValueError, match="pass inplace=True"):
        copied(model)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_calls_of_scripted_functions_in_other_threads_are_theirs():
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    scripted, seen = torch.jit.script(double), []

    def handle(function, run, args, kwargs):
        seen.append(args[0].item())
        return run()

    def call(number):
        return scripted(torch.tensor(number)).item()

    plain = torch.jit.ScriptFunction.__call__
    with ThreadPoolExecutor(1) as other, calls_seen(handle):
        assert call(1) == 2
        assert other.submit(call, 2).result() == 4
        with calls_seen(lambda function, run, args, kwargs: run()):
            assert call(3) == 6
        assert call(4) == 8
    assert seen == [1, 4]
    assert torch.jit.ScriptFunction.__call__ is plain


class Doubled(SurgeryLayer):
    """A method's layer: twice what its convolution gives."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return torch.relu(self.conv(x) * 2)

    def cost(self, in_shape, out_shape):
        return OpCost(macs=1)


class SeenThrough(Doubled):
    opaque = False


def test_a_surgery_layer_is_one_node_or_seen_through():
    assert kinds(nn.Sequential(Doubled()), input_size=8)[1:] == ["surgery"]
    assert kinds(nn.Sequential(SeenThrough()), input_size=8)[1:] == ["conv", "mul", "act"]
    assert kinds(SeenThrough(), input_size=8)[1:] == ["conv", "mul", "act"]
    assert kinds(nn.Sequential(Bare()), input_size=8)[1:] == ["mul"]


class Bare(SurgeryLayer):
    """One without modules, which a plain module of its kind would be a leaf for."""

    opaque = False

    def forward(self, x):
        return x * 2


@pytest.mark.parametrize(("kind", "expected"), [(Doubled, ["call_module"]), (SeenThrough, ["conv", "mul", "relu"])])
def test_so_it_is_in_a_traced_block(kind, expected):
    nodes = [node for node in trace_block(nn.Sequential(kind())).nodes if node.op not in ("placeholder", "output")]
    assert len(nodes) == len(expected)
    assert (nodes[0].target == "0") is kind.opaque


def test_what_is_seen_through_costs_what_its_operations_do():
    assert surgery.cost(nn.Sequential(SeenThrough()), 8).macs == 3 * 4 * 64
    assert surgery.cost(nn.Sequential(Doubled()), 8).macs == 1
