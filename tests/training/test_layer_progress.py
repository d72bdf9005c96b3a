"""Layers are told how far their training is, those of its average too, and when it goes on from a state."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from surgery.core.surgery_layer import SurgeryLayer
from surgery.training.classification_task import ImageClassification
from surgery.training.recipe import TrainSettings
from surgery.training.sampling_order import EpochSampler, SeededDataset
from surgery.training.trainer import train
from surgery.training.training_spec import TrainingSpec
from surgery.training.training_state import TrainingState

EPOCHS = 4


class Told(SurgeryLayer):
    """Notes what it is told, and in which mode it ran last since."""

    opaque = False

    def __init__(self):
        super().__init__()
        self.share, self.ran = None, []

    def forward(self, x):
        self.ran.append((self.share, self.training))
        return x

    def set_progress(self, share):
        self.share = share


def run(folder, reached=lambda network, history: None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Told(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    images = TensorDataset(torch.randn(16, 3, 8, 8), torch.arange(16) % 5)
    loaders = DataLoader(SeededDataset(images, 16), 8, sampler=EpochSampler(16, 8)), DataLoader(images, 8)
    settings = TrainSettings(epochs=EPOCHS, lr=0.1, optimizer="sgd", warmup_epochs=0, **options)
    spec = TrainingSpec(Accelerator(cpu=True), ImageClassification(5), settings)
    return train(spec, model, loaders, TrainingState(folder, {}), reached=reached)[0]


def test_before_each_epoch_and_while_it_is_judged(tmp_path):
    told = []

    def reached(network, history):
        told.append(network[1].share)
        assert {share for share, _ in network[1].ran} == set(told)

    model = run(tmp_path, reached)
    assert told == [0, 0.25, 0.5, 0.75]
    assert model[1].share is None  # the layer that was handed over is what it was


def test_the_average_of_the_weights_too(tmp_path):
    told = []
    run(tmp_path, lambda network, history: told.append(network[1].share), ema_decay=0.9)
    assert told == [0, 0.25, 0.5, 0.75]


def test_what_a_state_held_is_what_it_was_when_it_was_judged(tmp_path):
    run(tmp_path)
    told = []
    run(tmp_path, lambda network, history: told.append((network[1].share, len(history))))
    assert told == [(0.75, EPOCHS)]
