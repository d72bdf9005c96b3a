"""Where a NaN or an infinity came from."""

import pytest
import timm
import torch
from torch import nn

import finetune
import surgery
from surgery.training import load_recipe, run
from surgery.training.non_finite import NonFiniteLossError, first_non_finite
from surgery.training.sampling_order import EpochSampler

SIZES = {"num_classes": 10, "channels": (8, 16, 32, 32), "layers": (1, 1, 1, 1)}


@surgery.register_builder("tests_overflowing")
def overflowing():
    """A network one of whose layers gives more than a float holds."""
    network = timm.create_model("resnet26", **SIZES)
    nn.init.constant_(network.layer2[0].bn2.weight, 3e38)
    return network


@pytest.fixture
def network():
    torch.manual_seed(0)
    return timm.create_model("resnet26", **SIZES).train()


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_images(network, images):
    images[1, 2, 3, 4] = torch.inf
    assert first_non_finite(network, images) == "the images themselves are not finite"


def test_a_parameter(network, images):
    network.layer3[0].conv2.weight.data[0, 0, 0, 0] = torch.nan
    assert (
        first_non_finite(network, images) == "the parameter layer3.0.conv2.weight is not finite since an earlier step"
    )


def test_a_layer(images):
    description = first_non_finite(overflowing().train(), images)
    assert description == "layer2.0.bn2 (BatchNorm2d) is the first layer whose output is not finite"


def test_an_operation_between_layers(network, images):
    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, images):
            return (self.inner(images) * 1e30).square()

    assert first_non_finite(Squared(), images) == "Squared is the first layer whose output is not finite"
    outer = nn.Sequential(Squared(), nn.Identity())
    assert first_non_finite(outer, images) == "0 (Squared) is the first layer whose output is not finite"


def test_nowhere_and_no_hook_is_left(network, images):
    assert first_non_finite(network, images) == "every layer's output is finite; the loss itself is not"
    assert not any(module._forward_hooks for module in network.modules())


def test_a_compiled_network(images):
    network = overflowing().train()
    network.compile(backend="eager")
    with torch.no_grad():
        network(images)
    assert first_non_finite(network, images).startswith("layer2.0.bn2 (BatchNorm2d)")


def test_a_job_names_step_images_and_layer(tmp_path):
    more = ["model.name=tests_overflowing", "model.kwargs={}", "baseline.epochs=1", "data.batch_size=64"]
    sampler = EpochSampler(1437, 64)
    indices = ", ".join(str(index) for index in sampler.batch(0, 0)[:8])
    message = rf"train 1/1: the loss is nan at step 1 \(training images {indices}, …\): layer2.0.bn2 \(BatchNorm2d\) is"
    with pytest.raises(NonFiniteLossError, match=message):
        run(load_recipe(finetune.QUICKSTART, [f"output={tmp_path}", *more]))
