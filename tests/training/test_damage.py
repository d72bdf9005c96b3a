"""The learning rate that a conversion asks for."""

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from surgery.training import job, job_stages, run
from surgery.training.classification_task import ImageClassification
from surgery.training.damage import Damage, Judged, measure_damage
from surgery.training.data_loading import calibration_images, labelled_images
from surgery.training.datasets import open_dataset
from surgery.training.recipe import DataSettings, RecipeError
from surgery.training.segmentation_task import SemanticSegmentation
from tests.training.test_job import recipe
from tests.training.test_segmentation_datasets import SETTINGS as PIXELS
from tests.training.test_segmentation_datasets import street


@pytest.mark.parametrize(
    ("original", "converted", "share", "factor"),
    [
        (0.3, 0.3, 0.0, 0.05),  # nothing lost: it is to move all the same
        (0.3, 0.2, 0.0, 0.05),
        (0.3, 0.5, 0.1, math.sqrt(0.1)),
        (0.3, 2.3, 1.0, 1.0),
        (0.3, 9.0, 1.0, 1.0),
        (0.3, float("nan"), 1.0, 1.0),
        (2.3, 2.3, 1.0, 1.0),  # an original that knows nothing
    ],
)
def test_the_root_of_what_is_lost(original, converted, share, factor):
    damage = Damage(original, converted, 2.3)
    assert damage.share == pytest.approx(share)
    assert damage.lr_factor == pytest.approx(factor)


class Sure(torch.nn.Module):
    """The same logits for every image or pixel."""

    def __init__(self, logits, pixels=False):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits))
        self.pixels = pixels

    def forward(self, images):
        logits = self.logits.expand(len(images), -1)
        return logits[:, :, None, None].expand(-1, -1, *images.shape[-2:]) if self.pixels else logits


def damage_of(networks, task, batches, classes):
    return measure_damage(Accelerator(), task, *(Judged(network, batches) for network in networks), classes)


def test_measured_as_the_mean_loss_of_images():
    settings = DataSettings()
    data = open_dataset(settings)
    sure = Sure([3.0] + [0.0] * 9).train()
    batches = labelled_images(data.train, settings, 1024, 0)
    damage = damage_of((Sure([0.0] * 10), sure), ImageClassification(10), batches, 10)
    chosen = list(labelled_images(data.train, settings, 1024, 0))
    labels = torch.cat([labels for _, labels in chosen])
    assert len(labels) == 1024
    expected = torch.nn.functional.cross_entropy(torch.tensor([[3.0] + [0.0] * 9]).expand(1024, -1), labels)
    assert damage.original == pytest.approx(math.log(10), abs=1e-5)
    assert damage.guessing == pytest.approx(math.log(10))
    assert damage.converted == pytest.approx(expected.item(), abs=1e-4)
    assert sure.training


def test_measured_on_label_maps(tmp_path):
    street(street(tmp_path, "train"), "val")
    settings = DataSettings(root=str(tmp_path), **PIXELS)
    networks = Sure([0.0] * 3, pixels=True), Sure([9.0, 0.0, 0.0], pixels=True)
    batches = labelled_images(open_dataset(settings).train, settings, 1024, 0)
    damage = damage_of(networks, SemanticSegmentation(), batches, 3)
    assert damage.original == pytest.approx(math.log(3), abs=1e-5)
    assert damage.converted > damage.original


def test_on_images_that_calibration_did_not_see():
    settings = DataSettings()
    data = open_dataset(settings)
    calibrating = torch.cat(list(calibration_images(data.train, settings, 400, 0))).flatten(1)
    used = torch.cat([images for images, _ in labelled_images(data.train, settings, 400, 0)]).flatten(1)
    assert torch.cdist(calibrating, used).min() > 0


def test_converted_and_control_are_trained_at_the_same_rate(tmp_path, monkeypatch, capsys):
    real, rates = job_stages.train, []

    def watched(spec, *arguments, **more):
        rates.append(spec.settings.lr)
        return real(spec, *arguments, **more)

    monkeypatch.setattr(job_stages, "train", watched)
    monkeypatch.setattr(job, "measure_damage", lambda *arguments: Damage(0.1, 0.2, 2.6))
    more = ["baseline.epochs=1", "finetune.epochs=1", "control=true", "data.batch_size=700", "finetune.lr=0.01"]
    run(recipe(tmp_path, *more))
    assert "4.0 % of what guessing would lose); fine-tuning at lr 0.01 × 0.200 = 0.002" in capsys.readouterr().out
    assert rates == [0.002, pytest.approx(0.002), pytest.approx(0.002)]
    rates.clear()
    AcceleratorState._reset_state(reset_partial_state=True)
    run(recipe(tmp_path, *more, "finetune.lr_by_damage=false", "fresh=true"))
    assert rates == [0.002, 0.01, 0.01]


def test_a_baseline_has_nothing_to_measure(tmp_path):
    with pytest.raises(RecipeError, match="baseline.lr_by_damage=true"):
        recipe(tmp_path, "baseline.lr_by_damage=true")
