"""Losses that layers have of their own: the trainer adds them to the task's."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from surgery.core.surgery_layer import SurgeryLayer
from surgery.training.auxiliary_losses import auxiliary_losses
from surgery.training.classification_task import ImageClassification
from surgery.training.recipe import TrainSettings
from surgery.training.sampling_order import EpochSampler, SeededDataset
from surgery.training.trainer import train
from surgery.training.training_spec import TrainingSpec
from surgery.training.training_state import TrainingState


class Pulled(SurgeryLayer):
    """Gives what it reads; its one parameter, of which nothing else depends, is pulled to 3."""

    opaque = False

    def __init__(self, weight=1.0):
        super().__init__()
        self.level, self.weight = nn.Parameter(torch.zeros(())), weight

    def forward(self, x):
        return x

    def auxiliary_loss(self):
        return None if self.weight is None else self.weight * (self.level - 3) ** 2


def network(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), Pulled(**options), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


@pytest.fixture
def trained(tmp_path):
    def run(model, teacher=None, **options):
        """The first epoch's loss; the model is trained for two steps."""
        torch.manual_seed(1)
        images = TensorDataset(torch.randn(16, 3, 8, 8), torch.arange(16) % 5)
        sampler = EpochSampler(16, 8)
        loaders = DataLoader(SeededDataset(images, 16), 8, sampler=sampler), DataLoader(images, 8)
        settings = TrainSettings(epochs=1, lr=0.1, weight_decay=0.0, optimizer="sgd", warmup_epochs=0, **options)
        state = TrainingState(tmp_path / str(len(list(tmp_path.iterdir()))), {})
        spec = TrainingSpec(Accelerator(cpu=True), ImageClassification(5), settings, teacher)
        return train(spec, model, loaders, state)[1][0]["loss"]

    return run


@pytest.mark.parametrize("distills", [False, True])
def test_a_layer_is_trained_by_its_own_loss(trained, distills):
    options = {"teacher": network(weight=None), "distill_weight": 0.5} if distills else {}
    model, silent = network(), network(weight=None)
    loss, without = trained(model, **options), trained(silent, **options)
    assert loss > without + 3  # of both steps' mean; it is 9 in the first
    assert 0 < model[1].level.item() <= 3
    assert silent[1].level.item() == 0
    for name in ("weight", "bias"):  # nothing else depends on it
        torch.testing.assert_close(getattr(model[0], name), getattr(silent[0], name))


def test_losses_have_the_names_of_their_layers_shared_ones_once():
    shared = Pulled()
    model = nn.ModuleDict({"a": shared, "b": shared, "c": Pulled(2.0), "d": Pulled(None), "e": nn.ReLU()}).half()
    losses = auxiliary_losses(model)
    assert {name: (loss.item(), loss.dtype) for name, loss in losses.items()} == {
        "a": (9.0, torch.float32),
        "c": (18.0, torch.float32),
    }


def test_what_is_no_scalar_is_refused():
    model = nn.Sequential(Pulled(torch.ones(2)))
    with pytest.raises(ValueError, match=r"'0': auxiliary_loss\(\) of Pulled gives a tensor of shape \(2,\); a scalar"):
        auxiliary_losses(model)
