import json

import numpy as np
import pytest
import torch
from PIL import Image

from surgery.training.data_loading import calibration_images, make_loader
from surgery.training.datasets import open_dataset
from surgery.training.recipe import DataSettings, RecipeError

SETTINGS = {"name": "segmentation_folder", "classes": 3, "ignore": 11, "image_size": 16, "batch_size": 2}


def street(root, part, count=3):
    """Images of six squares of grey with label maps of them: 0, 1, 2, and 11 in a corner."""
    generator = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / part / kind).mkdir(parents=True)
    for index in range(count):
        labels = np.kron(generator.permutation(6).reshape(2, 3) % 3, np.ones((10, 10))).astype(np.uint8)
        labels[:3, :3] = 11
        pixels = np.stack([labels * 20] * 3, 2)
        Image.fromarray(pixels).save(root / part / "images" / f"{index}.png")
        Image.fromarray(labels).save(root / part / "masks" / f"{index}.png")
    return root


def cityscapes(root, size=(32, 64)):
    """Two cities in the layout and with the file names of the real thing."""
    generator = np.random.default_rng(0)
    for part, city in (("train", "aachen"), ("train", "ulm"), ("val", "lindau")):
        for index in range(2):
            stem = f"{city}_{index:06d}_000019"
            image, mask = (root / kind / part / city for kind in ("leftImg8bit", "gtFine"))
            for folder in (image, mask):
                folder.mkdir(parents=True, exist_ok=True)
            ids = generator.choice([0, 4, 7, 8, 11, 26, 33], size).astype(np.uint8)
            Image.fromarray(np.stack([ids * 7] * 3, 2)).save(image / f"{stem}_leftImg8bit.png")
            Image.fromarray(ids).save(mask / f"{stem}_gtFine_labelIds.png")
            Image.fromarray(ids).save(mask / f"{stem}_gtFine_instanceIds.png")
            Image.fromarray(np.stack([ids] * 3, 2)).save(mask / f"{stem}_gtFine_color.png")
            (mask / f"{stem}_gtFine_polygons.json").write_text(json.dumps({}))
    return root


@pytest.fixture
def folder(tmp_path):
    return street(street(tmp_path, "train"), "val", count=2)


def test_images_and_labels_go_through_the_same_crops(folder):
    settings = DataSettings(root=str(folder), mean=(0.0,) * 3, std=(1.0,) * 3, scale=(0.5, 2.0), hflip=0.5, **SETTINGS)
    data = open_dataset(settings)
    assert (len(data.train), len(data.test), data.classes, data.names) == (3, 2, 3, ())
    loader = make_loader(data.train, settings, training=True)
    unlabelled = 0
    for epoch in range(8):
        loader.sampler.begin(epoch)
        for images, labels in loader:
            assert (images.shape, labels.shape) == ((2, 3, 16, 16), (2, 16, 16))
            assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
            unlabelled += int((labels == 255).sum())
            # enlarged images are between the labels' values at edges; most pixels are not
            near = (images[:, 0] * 255 / 20 - labels).abs() < 0.5
            assert near[labels != 255].float().mean() > 0.7
    assert unlabelled > 100


def test_the_same_key_gives_the_same_crop(folder):
    settings = DataSettings(root=str(folder), scale=(0.5, 2.0), hflip=0.5, color_jitter=0.3, **SETTINGS)
    images = make_loader(open_dataset(settings).train, settings, training=True).dataset
    first, second, other = images[1], images[1], images[4]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])


def test_test_images_are_whole_and_come_one_by_one(folder):
    settings = DataSettings(root=str(folder), **SETTINGS)
    batches = list(make_loader(open_dataset(settings).test, settings, training=False))
    assert [images.shape for images, _ in batches] == [(1, 3, 20, 30)] * 2
    assert set(batches[0][1].unique().tolist()) == {0, 1, 2, 255}


def test_calibration_sees_crops(folder):
    settings = DataSettings(root=str(folder), **SETTINGS)
    train = open_dataset(settings).train
    batches = [torch.cat(list(calibration_images(train, settings, 3, seed))) for seed in (0, 0, 1)]
    assert batches[0].shape == (3, 3, 16, 16)
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_classes_may_have_names(folder):
    (folder / "classes.txt").write_text("road\ntree\nsky\n")
    assert open_dataset(DataSettings(root=str(folder), **SETTINGS)).names == ("road", "tree", "sky")
    (folder / "classes.txt").write_text("road\ntree\n")
    with pytest.raises(RecipeError, match=r"classes\.txt has 2 names, data\.classes=3"):
        open_dataset(DataSettings(root=str(folder), **SETTINGS))


def test_folders_that_will_not_do(folder, monkeypatch):
    monkeypatch.delenv("SURGERY_DATA", raising=False)
    for root in (None, str(folder / "train")):
        with pytest.raises(RecipeError, match=r"a folder with \{train,val\}/\{images,masks\}/NAME"):
            open_dataset(DataSettings(root=root, **SETTINGS))
    with pytest.raises(RecipeError, match=r"data\.classes: the number of classes"):
        open_dataset(DataSettings(root=str(folder), **{**SETTINGS, "classes": None}))
    (folder / "val" / "masks" / "1.png").unlink()
    with pytest.raises(RecipeError, match="'1' is not both in images and in masks"):
        open_dataset(DataSettings(root=str(folder), **SETTINGS))


def test_other_datasets_folder_and_missing_parts(folder, monkeypatch):
    monkeypatch.setenv("SURGERY_DATA", str(folder))
    with pytest.raises(RecipeError, match=r"data\.root=null: .*\(SURGERY_DATA is for named datasets\)"):
        open_dataset(DataSettings(**SETTINGS))
    (folder / "train" / "images" / "._0.png").write_bytes(b"left by a Mac")
    assert len(open_dataset(DataSettings(root=str(folder), **SETTINGS)).train) == 3
    (folder / "val").rename(folder / "validation")
    with pytest.raises(RecipeError, match=r"there is no val \(or test\)$"):
        open_dataset(DataSettings(root=str(folder), **SETTINGS))


def test_an_image_and_its_labels_are_of_one_size(folder):
    Image.new("L", (7, 5)).save(folder / "train" / "masks" / "2.png")
    train = open_dataset(DataSettings(root=str(folder), **SETTINGS)).train
    with pytest.raises(ValueError, match=r"2\.png. is 30×20, its mask 7×5"):
        train[2]


def test_cityscapes(tmp_path):
    cityscapes(tmp_path / "cityscapes")
    data = open_dataset(DataSettings(name="cityscapes", root=str(tmp_path)))
    assert (len(data.train), len(data.test), data.classes) == (4, 2, 19)
    assert (data.names[0], data.names[13], data.colours[0]) == ("road", "car", "#804080")
    _, labels = data.train[0]
    # road, sidewalk, building, car, bicycle; the rest is not judged
    assert set(labels.unique().tolist()) == {0, 1, 2, 13, 18, 255}


def test_cityscapes_with_a_part_missing(tmp_path):
    root = cityscapes(tmp_path)
    settings = DataSettings(name="cityscapes", root=str(root))
    mask = root / "gtFine/val/lindau/lindau_000001_000019_gtFine_labelIds.png"
    mask.unlink()
    with pytest.raises(RecipeError, match=r"lindau_000001_000019_leftImg8bit\.png has no label map .*labelIds\.png"):
        open_dataset(settings)
    (root / "leftImg8bit" / "val").rename(root / "leftImg8bit" / "test")
    with pytest.raises(RecipeError, match=r"lacks leftImg8bit/val/CITY/\*\.png: unpack leftImg8bit_trainvaltest\.zip"):
        open_dataset(settings)
    (root / "gtFine").rename(root / "gtCoarse")
    with pytest.raises(RecipeError, match=r"there is no cityscapes/\{leftImg8bit,gtFine\}"):
        open_dataset(settings)


@pytest.mark.parametrize("bad", [{"padding": 4}, {"holdout": 0.1}, {"crop_pct": 0.9}])
def test_keys_that_are_for_single_labels(bad):
    with pytest.raises(RecipeError, match=rf"data\.{next(iter(bad))}=.*not for data\.name=segmentation_folder"):
        DataSettings(**SETTINGS, **bad)
