import torch
from torch import nn

import surgery
from surgery.methods.planners.pruning.norm_statistics import remeasure_norms


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, momentum=0.2), nn.ReLU(), nn.Conv2d(16, 4, 3))


def test_statistics_are_the_means_over_the_batches():
    model, batches = network().eval(), torch.randn(32, 3, 8, 8).mul(3).add(1).split(16)
    remeasure_norms(model, batches)
    with torch.no_grad():
        maps = [model[0](batch) for batch in batches]
    torch.testing.assert_close(model[1].running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0))
    assert (model[1].momentum, model[1].training, model.training) == (0.2, False, False)


def test_sfvr_in_steps_leaves_the_model_and_meets_its_target():
    model = surgery.create("cifar_resnet", num_classes=5, layers=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = torch.randn(32, 3, 32, 32).split(16)
    for images in (batches, None):
        pruned = surgery.convert(model, "sfvr", macs=0.5, steps=3, images=images, input_size=32)
        share = surgery.cost(pruned, 32).macs / surgery.cost(model, 32).macs
        assert abs(share - 0.5) < 0.01
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
