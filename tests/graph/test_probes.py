import pytest
import timm
import torch
import torch.nn.functional as F
from timm import layers
from torch import nn

from surgery.graph import record
from surgery.graph.kinds import norm_has_activation
from surgery.graph.probes import bends, probed_kind

C = 16


class PerChannel(nn.Module):
    """A function of a map and of one or more numbers per channel, the way users write it."""

    def __init__(self, function, parameters=1, buffers=0, shape=(C, 1, 1)):
        super().__init__()
        self.function = function
        self.numbers = nn.ParameterList()
        for i in range(parameters):
            self.register_parameter(f"w{i}", nn.Parameter(torch.ones(shape)))
        for i in range(buffers):
            self.register_buffer(f"b{i}", torch.ones(shape))

    def forward(self, x):
        return self.function(x, *self.parameters(), *self.buffers())


def layer_norm(x, w, b):
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt() * w + b


def grouped(x, w):
    blocks = x.unflatten(1, (4, -1))
    return ((blocks - blocks.mean((2, 3, 4), keepdim=True)) / blocks.std((2, 3, 4), keepdim=True)).flatten(1, 2) * w


def global_response(x, w, b):
    size = x.norm(dim=(2, 3), keepdim=True)
    return x + w * (x * size / (size.mean(1, keepdim=True) + 1e-6)) + b


def attention(x, w):
    q = (x * w).flatten(2)
    return (q @ (q.transpose(1, 2) @ q).softmax(-1)).reshape(x.shape)


def shuffled(x, w):
    return (F.layer_norm(x, x.shape[1:]) * w).unflatten(1, (4, -1)).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize(
    ("function", "parameters", "buffers", "kind"),
    [
        (layer_norm, 2, 0, "norm"),
        (grouped, 1, 0, "norm"),
        (lambda x, w, b, mean, var: (x - mean) / (var + 1e-5).sqrt() * w + b, 2, 2, "norm"),
        (lambda x, w, b, mean, var: F.relu((x - mean) / (var + 1e-5).sqrt() * w + b), 2, 2, "norm"),
        (lambda x, w: x * w / x.square().mean((2, 3), keepdim=True).sqrt(), 1, 0, "norm"),
        (lambda x, w: x * w, 1, 0, "scale"),
        (lambda x, w, b: x * w + b, 2, 0, "scale"),
        (lambda x, w: F.conv2d(x, w[:, None], groups=C), 1, 0, "scale"),
        (lambda x, w: torch.tanh(2 * x) * w, 1, 0, "act"),
        (lambda x, w: x * torch.sigmoid(w * x), 1, 0, "act"),
        (lambda x, w: torch.maximum(x, 0.1 * w * x), 1, 0, "act"),
        (lambda x, w: x * torch.sigmoid(w * x.mean((2, 3), keepdim=True)), 1, 0, "other"),
        (lambda x, w: x * torch.sigmoid((w * x).mean(1, keepdim=True)), 1, 0, "other"),
        (lambda x, w: (x * w).softmax(1), 1, 0, "other"),
        (lambda x, w: (x * w).flatten(2).softmax(2).view_as(x), 1, 0, "other"),
        (lambda x, w: F.conv2d(x, w.view(C, 1, 1, 1).expand(C, 1, 3, 3), padding=1, groups=C), 1, 0, "other"),
        (lambda x, w: F.avg_pool2d(x * w, 3, 1, 1), 1, 0, "other"),
        (lambda x, w: (x * w).flip(1), 1, 0, "other"),
        (global_response, 2, 0, "other"),
        (attention, 1, 0, "other"),
        (shuffled, 1, 0, "other"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_hand_written_modules(function, parameters, buffers, kind, device):
    with torch.device(device):
        module = PerChannel(function, parameters, buffers)
    assert probed_kind(module) == kind


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(C, C, 1),
        nn.Conv2d(1, C, 1),
        nn.Conv1d(1, 1, 3),
        layers.EcaModule(C),
        layers.SEModule(C),
        nn.Sequential(nn.BatchNorm2d(C), nn.ReLU()),
        nn.ChannelShuffle(2),
        nn.Softmax(1),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_is_neither_norm_nor_scale_nor_activation(module):
    assert probed_kind(module) == "other"


EVO = [layers.EvoNorm2dB0, layers.EvoNorm2dB1, layers.EvoNorm2dB2, layers.EvoNorm2dS0, layers.EvoNorm2dS1]
EVO += [layers.EvoNorm2dS2, layers.FilterResponseNormTlu2d, layers.FilterResponseNormAct2d, layers.FrozenBatchNormAct2d]


@pytest.mark.parametrize("norm", EVO, ids=lambda norm: norm.__name__)
def test_norms_of_timm_with_an_activation_inside(norm):
    module = norm(64)
    assert probed_kind(module) == "norm"
    assert norm_has_activation(module)


@pytest.mark.parametrize("norm", [layers.RmsNorm2d, layers.SimpleNorm2d, layers.LayerNorm2d, nn.BatchNorm2d])
def test_norms_without_an_activation(norm):
    module = norm(64)
    assert probed_kind(module) == "norm"
    assert not bends(module)


def test_a_norm_with_an_activation_module_is_one_call_of_the_recording():
    model = nn.Sequential(nn.Conv2d(3, C, 1), layers.FilterResponseNormAct2d(C))
    assert [node.meta.get("kind") for node in record(model, (3, 8, 8))] == ["input", "conv", "norm", None]


def test_probing_leaves_the_model_as_it_is():
    model = timm.create_model("test_efficientnet_evos").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    record(model, (3, 64, 64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
