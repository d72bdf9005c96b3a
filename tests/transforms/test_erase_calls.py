import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from surgery.core.errors import SurgeryError
from surgery.transforms.erase_calls import EraseCalls
from tests.small_models import Net, with_statistics


def net():
    torch.manual_seed(0)
    return with_statistics(Net("functional", "module", function=F.silu)).eval()


@torch.no_grad()
def test_the_block_computes_the_same_without_the_call():
    model, expected = net(), net()
    EraseCalls("blocks.0", "conv1", ((2, "silu"),)).apply(model)
    expected.blocks[0]._act = _skipping_the_first(F.silu)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), expected(x))
    assert not torch.allclose(model(x), net()(x))
    assert isinstance(model.blocks[0], fx.GraphModule)
    assert type(model.blocks[0]).__name__ == "Bottleneck"
    assert not model.blocks[0].training
    assert model.state_dict().keys() == net().state_dict().keys()


def _skipping_the_first(function):
    calls = 0

    def act(x):
        nonlocal calls
        calls += 1
        return x if calls == 1 else function(x)

    return act


@pytest.mark.parametrize(
    ("block", "conv", "calls", "message"),
    [
        ("", "conv1", ((1, "silu"),), "the model's own forward holds a functional activation"),
        ("blocks.7", "conv1", ((1, "silu"),), "no module 'blocks.7'"),
        ("blocks.0", "conv9", ((1, "silu"),), "the calls after 'conv9' cannot be told apart"),
        ("blocks.0", "conv1", ((1, "silu"),), "the calls after 'conv1' cannot be told apart"),
        ("blocks.0", "conv1", ((2, "relu"),), "the calls after 'conv1' cannot be told apart"),
        ("blocks.0", "conv1", ((2, "silu"), (900, "silu")), "cannot be told apart"),
    ],
)
def test_other_blocks_stay_as_they_are(block, conv, calls, message):
    model = net()
    with pytest.raises(SurgeryError, match=message):
        EraseCalls(block, conv, calls).apply(model)
    assert not any(isinstance(module, fx.GraphModule) for module in model.modules())


def test_may_fail_half_way_and_costs_by_the_block():
    done = EraseCalls("blocks.0", "conv1", ((1, "silu"),))
    assert done.rewrites
    assert done.changed() == done.removed() == done.resized() == ()
    assert EraseCalls("", "conv1", ((1, "silu"),)).work(net()) > done.work(net()) > 0
    with pytest.raises(SurgeryError, match="no module"):
        done.work(nn.Identity())
