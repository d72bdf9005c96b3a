import pytest
import torch

from surgery.training.data_loading import make_loader
from surgery.training.datasets import open_dataset
from surgery.training.recipe import DataSettings, RecipeError, load_recipe
from surgery.training.saliency_transform import saliency_preprocessing, saliency_transform
from surgery.vision.image_files import open_image
from tests.training.test_recipe import RECIPES
from tests.training.test_saliency_datasets import SETTINGS, objects

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear"}


@pytest.fixture
def folder(tmp_path):
    return objects(tmp_path)


def settings(root, **more):
    return DataSettings(root=str(root), **{**SETTINGS, **PLAIN, "image_size": 32, **more})


@pytest.mark.parametrize(("hflip", "vflip"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_image_and_mask_go_through_the_same(folder, hflip, vflip):
    chosen = settings(folder, hflip=hflip, vflip=vflip)
    loader = make_loader(open_dataset(chosen).train, chosen, training=True)
    sides, heights, several = set(), set(), set()
    for epoch in range(6):
        loader.sampler.begin(epoch)
        for images, masks in loader:
            # the object is lighter by half of the mask, the ground 60 of 255, noise up to 8
            torch.testing.assert_close(images.mean(1), masks / 2 + 64 / 255, atol=0.02, rtol=0)
            for mask in masks:
                several.add(round(mask.sum().item(), 2))
                sides.add(bool(mask[:, :16].sum() > mask[:, 16:].sum()))
                heights.add(bool(mask[:16].sum() > mask[16:].sum()))
    assert len(several) > 6, "crops differ"
    assert sides == ({True, False} if hflip == 0.5 else {hflip == 0})
    assert heights == ({True, False} if vflip == 0.5 else {vflip == 0})


def test_masks_are_soft_shares(folder):
    chosen = settings(folder, image_size=13)
    loader = make_loader(open_dataset(chosen).train, chosen, training=True)
    masks = torch.cat([masks for _, masks in loader])
    assert masks.min() == 0
    assert masks.max() == 1
    assert ((masks > 0.05) & (masks < 0.95)).any()


def test_no_more_than_15_pixels_are_cut_off(monkeypatch):
    ends = []
    monkeypatch.setattr(torch, "randint", lambda low, high, size: ends.append((low, high)) or torch.tensor([0, 0]))
    image = torch.zeros(3, 400, 12, dtype=torch.uint8)
    from torchvision.transforms.functional import to_pil_image

    saliency_transform(settings("."), training=True)(to_pil_image(image), image[0])
    assert ends == [(0, 16), (0, 4)]  # of a small side a quarter


def test_the_same_key_gives_the_same_crop(folder):
    chosen = settings(folder, hflip=0.3, vflip=0.3, color_jitter=0.3)
    images = make_loader(open_dataset(chosen).train, chosen, training=True).dataset
    first, second, other = images[1], images[1], images[4]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])


def test_test_images_are_prepared_as_saved_networks_prepare_them(folder):
    chosen = settings(folder)
    path = folder / "test" / "images" / "1.png"
    (image, *_), _ = next(iter(make_loader(open_dataset(chosen).test, chosen, training=False)))
    expected = saliency_preprocessing(chosen).resized_image()(open_image(folder / "test" / "images" / "0.png"))
    assert torch.equal(image, expected)
    assert saliency_preprocessing(chosen).size == (3, 32, 32)
    assert saliency_preprocessing(chosen).resized_image()(open_image(path)).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("sod", {"padding": 4}, r"data\.padding=4: not for data\.name=sod"),
        ("sod", {"holdout": 0.1}, r"data\.holdout=0\.1: not for"),
        ("sod", {"crop_pct": 0.9}, r"data\.crop_pct=0\.9: not for"),
        ("sod", {"scale": (0.5, 1.0)}, r"data\.scale=\(0\.5, 1\.0\): not for data\.name=sod"),
        ("digits", {"vflip": 0.5}, r"data\.vflip=0\.5: not for data\.name=digits; it is 0\.0 there"),
        ("sod", {"hflip": 0.6, "vflip": 0.5}, r"data\.hflip=0\.6 and data\.vflip=0\.5: together at most 1"),
    ],
)
def test_keys_that_are_for_other_data(name, more, message):
    with pytest.raises(RecipeError, match=message):
        DataSettings(name=name, **more)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.mixup=0.2", r"finetune\.mixup=0\.2: not for label maps"),
        ("baseline.first_size=64", r"baseline\.first_size=64: not for label maps"),
        ("segmentation.flip=true", r"segmentation\.flip=True: data\.name=sod is looked at whole"),
        ("segmentation.window=64", r"segmentation\.window=64, "),
    ],
)
def test_what_the_recipe_cannot_have(override, message):
    recipe = next(path for path in RECIPES if path.stem == "sod")
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, [override])
