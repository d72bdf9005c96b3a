import copy

import pytest
import timm
import torch
from torch import nn

import surgery
from surgery.core.norm_folding import norm_folded
from surgery.core.surgery_layer import OpCost, SurgeryLayer
from tests.small_models import with_statistics

MODELS = ["resnet26", "mobilenetv2_050", "nf_resnet26", "resnetv2_50", "tf_efficientnet_b0", "densenet121"]


@pytest.mark.parametrize("name", MODELS)
def test_folded_models_give_the_same(name):
    model = with_statistics(timm.create_model(name))
    converted = surgery.convert(model)
    state = copy.deepcopy(converted.state_dict())
    fast = surgery.optimize_for_inference(converted, input_size=(3, 64, 64))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = converted.eval()(x), fast(x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    assert all(torch.equal(state[key], value) for key, value in converted.state_dict().items())
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (converted, fast)]
    assert norms[1] < norms[0] or norms[0] == 0
    assert not fast.training
    assert not any(p.requires_grad for p in fast.parameters())


def test_predictor_norm_and_standardised_weights_are_folded():
    model = with_statistics(surgery.convert(timm.create_model("resnet26"), predictor_norm=True))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in surgery.optimize_for_inference(model).modules())
    fast = surgery.optimize_for_inference(surgery.convert(timm.create_model("nf_resnet26")), input_size=(3, 64, 64))
    assert not any(hasattr(m, "gain") and m.gain is not None for m in fast.modules())


def test_layout_and_dtype():
    fast = surgery.optimize_for_inference(timm.create_model("resnet10t"), dtype=torch.bfloat16, input_size=(3, 64, 64))
    weight = fast.layer1[0].conv1.weight
    assert weight.dtype == torch.bfloat16
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert fast(torch.randn(1, 3, 64, 64).bfloat16()).dtype == torch.bfloat16


def test_a_norm_that_two_readers_share_or_that_has_no_statistics_stays():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.norm, self.batch = nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)

        def forward(self, x):
            a = self.conv(x)
            b = self.norm(a) + a
            return self.batch(self.other(b))

    fast = surgery.optimize_for_inference(with_statistics(Net()), input_size=(3, 8, 8))
    assert isinstance(fast.norm, nn.BatchNorm2d)
    assert isinstance(fast.batch, nn.BatchNorm2d)


def test_a_hooked_convolution_is_left_alone():
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    model[0].register_forward_hook(lambda m, given, result: result * 2)
    assert isinstance(surgery.optimize_for_inference(model, input_size=(3, 8, 8))[1], nn.BatchNorm2d)


def test_what_cannot_be_is_refused():
    with pytest.raises(TypeError, match=r"dtype=torch\.int8.*floating"):
        surgery.optimize_for_inference(nn.Sequential(nn.Conv2d(3, 4, 1)), dtype=torch.int8)
    with pytest.raises(TypeError, match="nn.Module"):
        surgery.optimize_for_inference("resnet50")
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match="meta"):
        surgery.optimize_for_inference(model)


def test_a_fold_that_changes_the_output_is_refused():
    class Net(nn.Module):
        """Reads its norm's statistics itself: folding them away changes it."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) * self.conv.weight.abs().sum()

    with pytest.raises(surgery.errors.SurgeryError, match="changes its output by"):
        surgery.optimize_for_inference(with_statistics(Net()), input_size=(3, 8, 8))


class Normed(SurgeryLayer):
    """A method's layer, which folds its norm by itself; in graphs one node, or not."""

    def __init__(self, opaque):
        super().__init__()
        self.opaque = opaque
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)).clamp(0)

    def cost(self, in_shape, out_shape):
        return OpCost()

    def folded(self):
        plain = nn.Conv2d(3, 4, 1)
        plain.weight, plain.bias = norm_folded(self.conv.weight, self.conv.bias, self.norm)
        return nn.Sequential(plain, nn.ReLU())


@pytest.mark.parametrize("opaque", [True, False])
@torch.no_grad()
def test_a_layer_of_a_method_is_folded_as_it_says(opaque):
    layer = Normed(opaque)
    model = with_statistics(nn.Sequential(layer, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))).eval()
    x = torch.randn(2, 3, 8, 8)
    fast = surgery.optimize_for_inference(model, input_size=(3, 8, 8))
    torch.testing.assert_close(fast(x), model(x))
    assert [type(module) for module in fast[0]] == [nn.Conv2d, nn.ReLU]
    assert isinstance(model[0], Normed)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    alone = surgery.optimize_for_inference(layer, input_size=(3, 8, 8))
    torch.testing.assert_close(alone(x), layer(x))
    assert isinstance(alone, nn.Sequential)
