"""What networks really compute, counted while they run."""

import torch
from torch import nn

import surgery
from surgery.planning.computed_macs import counting_macs


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    return surgery.convert(model.eval(), "fbs", include="2", input_size=(8, 4, 4))


def test_it_is_the_mean_over_all_images_of_what_layers_leave_out():
    model = network()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([1.0, 1, 1, -1, -1, -1, -1, -1]))  # 3 of 8 inputs are not zero
    with counting_macs(model) as computed, torch.no_grad():
        model(torch.rand(5, 8, 4, 4))
        model(torch.rand(2, 8, 4, 4))
    assert computed.difference == 3 * (3 - 8) * 9 * 16
    assert not model[2]._forward_hooks


def test_layers_that_are_called_by_keyword_count_too():
    model, x = network()[2:3], torch.rand(2, 8, 4, 4)
    with counting_macs(model) as computed, torch.no_grad():
        model[0](input=x)
    assert computed.difference == 0


def test_networks_without_such_layers_compute_what_they_cost():
    model = surgery.convert(surgery.create("cifar_resnet", num_classes=5, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16]))
    with counting_macs(model) as computed, torch.no_grad():
        model(torch.rand(2, 3, 32, 32))
    assert computed.difference == 0
