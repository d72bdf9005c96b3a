import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from surgery.training.data_loading import calibration_images, labelled_images, make_loader
from surgery.training.datasets import open_dataset
from surgery.training.image_scan import UnreadableImagesError, check_data, check_headers, leave_out_unreadable
from surgery.training.recipe import DataSettings, RecipeError
from surgery.training.saliency_datasets import sod

SETTINGS = {"name": "sod", "image_size": 16, "batch_size": 2}


def objects(root, parts=("train", "test"), kinds=("images", "masks"), count=3):
    """Images of a light object on dark ground, left of the middle and above it, each of another size."""
    generator = np.random.default_rng(0)
    for part in parts:
        for index in range(count):
            height, width = 30 + 4 * (index % 3 - 1), 20 + index % 5
            mask = np.zeros((height, width), np.uint8)
            mask[5 : height // 2, 3 : width // 2 + 2] = 255
            mask[5, 3 : width // 2 + 2] = 120
            pixels = np.stack([mask // 2 + 60] * 3, 2) + generator.integers(0, 9, (height, width, 3), dtype=np.uint8)
            for kind, content in zip(kinds, (pixels, mask), strict=True):
                names = (f"{part}-Image", f"{part}-Mask") if kinds[0].endswith("-Image") else kinds
                folder = root / part / names[kinds.index(kind)]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(folder / f"{index}.png")
    return root


@pytest.fixture
def folder(tmp_path):
    return objects(tmp_path)


def settings(root, **more):
    return DataSettings(root=str(root), **{**SETTINGS, **more})


def count(data):
    return len(data.train), len(data.test), data.classes


def test_the_folder_itself_or_sod_below_it(folder, monkeypatch):
    assert count(open_dataset(settings(folder))) == (3, 3, 1)
    assert count(open_dataset(settings(folder / ".." / folder.name))) == (3, 3, 1)
    (folder / "test").rename(folder / "val")
    (folder / "datasets" / "sod").mkdir(parents=True)
    for part in ("train", "val"):
        shutil.move(folder / part, folder / "datasets" / "sod" / part)
    monkeypatch.setenv("SURGERY_DATA", str(folder / "datasets"))
    for where in (settings(folder / "datasets"), settings(folder / "datasets" / "sod"), DataSettings(**SETTINGS)):
        assert count(open_dataset(where)) == (3, 3, 1)


def test_duts_as_it_is_unpacked(tmp_path):
    objects(tmp_path, parts=("DUTS-TR", "DUTS-TE"), kinds=("DUTS-TR-Image", "DUTS-TR-Mask"))
    data = open_dataset(settings(tmp_path))
    assert count(data) == (3, 3, 1)
    assert {path.parent.name for pair in data.test.files for path in pair} == {"DUTS-TE-Image", "DUTS-TE-Mask"}


def test_folders_that_will_not_do(folder, monkeypatch):
    monkeypatch.delenv("SURGERY_DATA", raising=False)
    with pytest.raises(RecipeError, match=r"data\.name=sod is read from files: set data\.root, or SURGERY_DATA"):
        sod(DataSettings(**SETTINGS))
    with pytest.raises(RecipeError, match=r"data\.root=.*nowhere is no folder"):
        sod(settings(folder / "nowhere"))
    with pytest.raises(RecipeError, match=r"data\.root=.*train: there is neither \{train,test\}/.* nor DUTS-TR/DUTS"):
        sod(settings(folder / "train"))
    monkeypatch.setenv("SURGERY_DATA", str(folder / "train"))
    with pytest.raises(RecipeError, match=r"^SURGERY_DATA=.*train: there is neither"):
        sod(DataSettings(**SETTINGS))
    (folder / "test" / "masks" / "1.png").unlink()
    with pytest.raises(RecipeError, match=r"data\.root=.*test.: '1' is not both in images and in masks \(1 such\)"):
        sod(settings(folder))
    shutil.rmtree(folder / "test" / "masks")
    with pytest.raises(RecipeError, match=r"data\.root=.*there is no folder .*masks"):
        sod(settings(folder))


def test_an_image_and_its_mask_are_of_one_size(folder):
    Image.new("L", (7, 5)).save(folder / "train" / "masks" / "2.png")
    with pytest.raises(ValueError, match=r"2\.png. is 22×34, its mask 7×5"):
        open_dataset(settings(folder)).train[2]


def test_damaged_files_are_named_or_left_out(folder, tmp_path, capsys):
    (folder / "train" / "masks" / "0.png").write_bytes(b"no image")
    data = open_dataset(settings(folder))
    with pytest.raises(UnreadableImagesError, match=r"1 of 3 images in train cannot be read: .*masks/0\.png"):
        check_headers(data, Accelerator())
    assert check_data(data, settings(folder), print) == 1
    skipping = settings(folder, skip_unreadable=True)
    assert count(leave_out_unreadable(data, skipping, Accelerator(), tmp_path)) == (2, 3, 1)
    assert "1 of 3 images left out" in capsys.readouterr().out


def test_batches_for_training_and_for_testing(folder):
    data = open_dataset(settings(folder))
    images, masks = next(iter(make_loader(data.train, settings(folder), training=True)))
    assert (images.shape, masks.shape) == ((2, 3, 16, 16), (2, 16, 16))
    assert (images.dtype, masks.dtype) == (torch.float32, torch.float32)
    (images, masks), (rest, _) = make_loader(data.test, settings(folder), training=False)
    assert (images.shape, rest.shape) == ((2, 3, 16, 16), (1, 3, 16, 16))
    assert [(mask.dtype, tuple(mask.shape)) for mask in masks] == [(torch.uint8, (26, 20)), (torch.uint8, (30, 21))]
    assert masks[0].unique().tolist() == [0, 120, 255]


def test_calibration_sees_images_of_one_size(folder):
    train = open_dataset(settings(folder)).train
    batches = [torch.cat(list(calibration_images(train, settings(folder), 3, seed))) for seed in (0, 0, 1)]
    assert batches[0].shape == (3, 3, 16, 16)
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])
    assert [masks.shape for _, masks in labelled_images(train, settings(folder), 2, 0)] == [(2, 16, 16)]
