"""Which training images a method gets to see."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

import finetune
from surgery.training import load_recipe
from surgery.training.data_loading import calibration_images
from surgery.training.evidence_images import evidence_images
from surgery.training.recipe import RecipeError


class Images(torch.utils.data.Dataset):
    """Images of one colour, the label of each its number."""

    transform = None

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return self.transform(Image.new("RGB", (16, 16), (5 * index, 0, 0))), index


def recipe(method, *more):
    share = ["surgery.zeta=null", "surgery.options={macs: 0.7}"] if method in ("sfvr", "taylor", "l1") else []
    settings = ["data.batch_size=8", "data.image_size=16", "surgery.calibrate=0", "data.padding=2", "data.hflip=0.5"]
    return load_recipe(finetune.QUICKSTART, [*settings, f"surgery.method={method}", *share, *more])


def test_labels_come_where_they_are_needed_with_images_that_are_not_augmented():
    batches = evidence_images(recipe("taylor"), Images(), seed=0)
    for _ in range(2):  # they can be read again
        images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
        assert sorted(labels.tolist()) == list(range(40))
        assert torch.allclose(images[:, 0], ((5 * labels / 255 - 0.5) / 0.5)[:, None, None].expand(-1, 16, 16))


@pytest.mark.parametrize(
    ("method", "settings", "count"),
    [
        ("taylor", [], 40),
        ("taylor", ["surgery.images=10"], 10),
        ("sfvr", ["surgery.images=10"], 10),
        ("sfvr", ["surgery.calibrate=12"], 12),
        ("sfvr", ["surgery.calibrate=12", "surgery.images=9"], 9),
    ],
)
def test_as_many_as_the_recipe_says(method, settings, count):
    batches = list(evidence_images(recipe(method, *settings), Images(), seed=0))
    assert sum(len(batch[0] if method == "taylor" else batch) for batch in batches) == count
    few = list(evidence_images(recipe(method, *settings), Images(), seed=0, most=4))
    assert sum(len(batch[0] if method == "taylor" else batch) for batch in few) == 4


def test_none_where_the_recipe_gives_none():
    for settings in ([], ["surgery.images=0", "surgery.calibrate=12"]):
        assert evidence_images(recipe("sfvr", *settings), Images(), seed=0) is None


def test_a_method_without_labels_sees_what_calibration_takes():
    settings = recipe("sfvr", "surgery.calibrate=12")
    seen = torch.cat(list(evidence_images(settings, Images(), seed=3)))
    assert torch.equal(seen, torch.cat(list(calibration_images(Images(), settings.data, 12, seed=3))))


def test_label_maps_are_no_classes():
    label_maps = replace(recipe("taylor").data, name="segmentation_folder", crop_pct=1.0, padding=0)
    with pytest.raises(RecipeError, match=r"surgery\.method=taylor needs images with a class each"):
        evidence_images(replace(recipe("taylor"), data=label_maps), Images(), seed=0)
