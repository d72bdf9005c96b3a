"""Layers are told where their training is, those of its average too, and are judged as they are at its end."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from surgery.core.surgery_layer import SurgeryLayer
from surgery.methods.fbs.layer import FBSConv2d
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


def run(folder, reached=lambda network, history: None, layer=None, epochs=EPOCHS, **options):
    torch.manual_seed(0)
    layer = Told() if layer is None else layer
    model = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    images = TensorDataset(torch.randn(16, 3, 8, 8), torch.arange(16) % 5)
    loaders = DataLoader(SeededDataset(images, 16), 8, sampler=EpochSampler(16, 8)), DataLoader(images, 8)
    settings = TrainSettings(epochs=epochs, lr=0.1, optimizer="sgd", warmup_epochs=0, **options)
    spec = TrainingSpec(Accelerator(cpu=True), ImageClassification(5), settings)
    return train(spec, model, loaders, TrainingState(folder, {}), reached=reached)[0]


def test_before_each_epoch_and_as_they_are_at_the_end_while_they_are_judged(tmp_path):
    trained, judged = [], []

    def reached(network, history):
        assert network[1].share == 1
        trained.append({share for share, training in network[1].ran if training})
        judged.append({share for share, training in network[1].ran if not training})
        network[1].ran.clear()

    model = run(tmp_path, reached)
    assert trained == [{0}, {1 / 3}, {2 / 3}, {1}]
    assert judged == [{1}] * EPOCHS
    assert model[1].share is None  # the layer that was handed over is what it was


def test_the_average_of_the_weights_too(tmp_path):
    judged = []
    run(tmp_path, lambda network, history: judged.append(set(network[1].ran[-2:])), ema_decay=0.9)
    assert judged == [{(1, False)}] * EPOCHS


def test_what_a_state_held_is_what_it_was_when_it_was_judged(tmp_path):
    run(tmp_path)
    told = []
    run(tmp_path, lambda network, history: told.append((network[1].share, len(history))))
    assert told == [(1, EPOCHS)]


class Counting(FBSConv2d):
    """Notes how many channels it keeps in training."""

    counts: list[int]

    def forward(self, x):
        if self.training:
            self.counts.append(self.count)
        return super().forward(x)


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, [5]), (2, [10, 5]), (3, [10, 6, 5]), (4, [10, 8, 6, 5]), (5, [10, 8, 6, 5, 5])]
)
def test_the_last_epoch_has_the_density_however_many_there_are(tmp_path, epochs, expected):
    layer, kept = Counting(nn.Conv2d(4, 10, 1), density=0.5, schedule=(1.0, 0.8, 0.6)), []
    layer.counts = []
    head = nn.Conv2d(10, 4, 1)

    def reached(network, history):
        kept.append(network[1][0].counts[-1])
        assert network[1][0].count == 5  # as it was judged

    run(tmp_path, reached, nn.Sequential(layer, head), epochs)
    assert kept == expected
