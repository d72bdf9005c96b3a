import pytest
import torch
from torch import nn

import surgery


def trained_norms():
    """A small network whose norms remember some images."""
    torch.manual_seed(0)
    network = surgery.create("cifar_resnet", layers=[1, 1, 1, 1], channels=[8, 8, 16, 16])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(64, 3, 1, 1) + 0.3 * torch.randn(64, 3, 32, 32))
    return network.eval()


def distance(network, images):
    """Mean distance of the batch mean in front of each norm from the remembered one, in squared deviations."""
    found = []

    def compare(norm, args):
        mean = args[0].mean((0, 2, 3))
        found.append(((mean - norm.running_mean).square() / (norm.running_var + norm.eps)).mean())

    handles = [m.register_forward_pre_hook(compare) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return float(torch.stack(found).mean())


def test_comes_nearer_to_what_the_norms_remember_and_leaves_the_network_alone():
    network = trained_norms()
    network.conv1.requires_grad_(False)
    network.layer1.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    wanted = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    modes = {name: module.training for name, module in network.named_modules()}
    images = surgery.synthetic_images(network, 20, steps=40, batch_size=16, progress=False)
    assert modes == {name: module.training for name, module in network.named_modules()}
    assert wanted == {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert images.shape == (20, 3, 32, 32)
    noise = surgery.synthetic_images(network, 20, steps=0)
    assert distance(network.eval(), images[:16]) < 0.5 * distance(network, noise[:16])


def test_noise_is_like_photographs_and_repeats():
    network = trained_norms()
    noise = surgery.synthetic_images(network, 8, steps=0, seed=3)
    assert torch.equal(noise, surgery.synthetic_images(network, 8, steps=0, seed=3))
    assert not torch.equal(noise, surgery.synthetic_images(network, 8, steps=0, seed=4))
    assert noise.mean().abs() < 1e-5
    assert noise.std() == pytest.approx(1, abs=1e-4)
    assert noise.diff(dim=-1).square().mean() < 0.5 * 2  # of white noise: 2


@pytest.mark.parametrize("bad", [{"count": 0}, {"steps": -1}, {"batch_size": 1}, {"lr": 0.0}, {"lr": float("nan")}])
def test_what_cannot_be(bad):
    with pytest.raises(ValueError, match="are needed"):
        surgery.synthetic_images(trained_norms(), **bad)


def test_without_norms_only_noise():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU())
    with pytest.raises(ValueError, match=r"Sequential has no BatchNorm.*steps=0"):
        surgery.synthetic_images(network, 2)
    assert surgery.synthetic_images(network, 2, steps=0, input_size=(3, 5, 7)).shape == (2, 3, 5, 7)
