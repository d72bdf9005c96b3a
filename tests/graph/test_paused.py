import pytest
import torch
from torch import nn

from surgery.core.errors import TraceError
from surgery.graph.paused import PausableModel, Place
from tests.small_models import Net

IN, OUT = Place("blocks.1.conv2", False), Place("blocks.1.conv2", True)


def images(seed):
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def hooked(model):
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_passes_go_on_side_by_side_with_what_was_changed_meanwhile():
    torch.manual_seed(0)
    net = Net("module", "shared").train()
    kept = Place("blocks.0", False)
    with PausableModel(net, [IN, OUT], [kept]) as pausable:
        passes = [pausable.start(images(seed)) for seed in range(3)]
        read = [each.advance(IN) for each in passes]
        assert all(torch.equal(each.values[kept], torch.relu(net.stem(each.image))) for each in passes)
        with torch.no_grad():
            net.blocks[1].conv2.weight.mul_(2)
        written = [each.advance(OUT) for each in reversed(passes)][::-1]
        for x, y in zip(read, written, strict=True):
            assert torch.equal(net.blocks[1].conv2(x), y)
            assert not y.requires_grad
        assert len(set(map(id, read))) == 3
    assert net.training
    assert not hooked(net)


def test_other_calls_of_the_model_pass_unhindered():
    net = Net("module", "module").eval()
    with PausableModel(net, [IN]) as pausable:
        forward = pausable.start(images(0))
        forward.advance(IN)
        assert net(images(1)).shape == (2, 5)
        forward.end()
        assert not forward.values
        assert not pausable.passes


def test_a_place_that_is_not_come_by():
    net = Net("module")
    net.unused = nn.Conv2d(3, 3, 1)
    place = Place("unused", True)
    with PausableModel(net, [place]) as pausable, pytest.raises(TraceError, match="the output of 'unused'"):
        pausable.start(images(0)).advance(place)
    assert not hooked(net)


def test_an_error_of_the_forward_is_the_callers():
    net = Net("module", "module")
    with PausableModel(net, [IN]) as pausable, pytest.raises(RuntimeError, match="expected input"):
        pausable.start(torch.zeros(1, 4, 8, 8)).advance(IN)
    assert not hooked(net)


def test_autocast_holds_in_every_stretch_and_nowhere_else():
    net = Net("module", "module").eval()
    with PausableModel(net, [IN, OUT], dtype=torch.bfloat16) as pausable:
        one, two = pausable.start(images(0)), pausable.start(images(1))
        for place in (IN, OUT):
            assert one.advance(place).dtype == two.advance(place).dtype == torch.bfloat16
            assert not torch.is_autocast_enabled("cpu")
            assert torch.is_grad_enabled()
