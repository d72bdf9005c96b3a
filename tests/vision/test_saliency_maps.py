import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import surgery
from surgery.vision.preprocessing import Preprocessing
from surgery.vision.saliency import figures, image_scores
from surgery.vision.saliency_maps import (
    evaluate,
    finds_objects,
    map_table,
    mask_pairs,
    predict,
    read_grey,
    read_mask,
    saliency_map,
)
from surgery.vision.segmentation import segments
from tests.training.test_saliency_datasets import objects


class Brightness(nn.Module):
    """Bright pixels are salient."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        nn.init.constant_(self.conv.weight, 4.0)
        nn.init.constant_(self.conv.bias, -1.0)

    def forward(self, x):
        return self.conv(x)


@pytest.fixture
def model():
    network = Brightness().train()
    network.surgery_preprocessing = Preprocessing((3, 16, 16), (0.5,) * 3, (0.5,) * 3, interpolation="bilinear")
    return network


def test_which_models_find_objects(model):
    assert finds_objects(model)
    assert not segments(model)
    for other in (nn.Sequential(nn.Conv2d(3, 2, 1)), surgery.create("resnet18", num_classes=1)):
        assert not finds_objects(other)


def test_maps_are_enlarged_to_8_bits():
    logits = torch.tensor([[[-50.0, 50.0], [-50.0, 50.0]]])
    assert saliency_map(logits, (2, 2)).tolist() == [[0, 255], [0, 255]]
    wide = saliency_map(logits.bfloat16(), (1, 8))
    assert wide.dtype == np.uint8
    assert wide[0].tolist() == [0, 0, 32, 96, 159, 223, 255, 255]  # linear between the pixels' centres


def test_what_is_judged_is_what_is_written(model, tmp_path):
    folder = objects(tmp_path, parts=("test",)) / "test"
    images = sorted((folder / "images").iterdir())
    maps = predict(model, images, tmp_path)
    assert [path.name for path in maps] == ["0.saliency.png", "1.saliency.png", "2.saliency.png"]
    for path, image in zip(maps, images, strict=True):
        with Image.open(path) as written, Image.open(image) as photograph:
            assert (written.mode, written.size) == ("L", photograph.size)
    masks = [read_mask(folder / "masks" / image.name).numpy() for image in images]
    expected = figures([image_scores(read_grey(path), mask) for path, mask in zip(maps, masks, strict=True)])
    for root in (folder, tmp_path):
        judged = evaluate(model, root, progress=False)
        assert (judged.figures, judged.images) == (expected, 3)
    assert model.training
    assert expected.max_f > 90
    assert str(judged).startswith(f"max F {expected.max_f:.2f}, adaptive F ")
    lines = map_table(maps).splitlines()
    assert len(lines) == 2 + 3
    assert all(line.endswith(" %") for line in lines[2:])


def test_folders_are_laid_out_as_duts_or_plainly(tmp_path):
    objects(tmp_path, parts=("DUTS-TE",), kinds=("DUTS-TE-Image", "DUTS-TE-Mask"))
    pairs = mask_pairs(tmp_path / "DUTS-TE")
    assert [(image.parent.name, mask.parent.name) for image, mask in pairs] == [("DUTS-TE-Image", "DUTS-TE-Mask")] * 3
    with pytest.raises(FileNotFoundError, match=r"no folder .*images.; images/NAME\.\* and masks/NAME\.\* are needed"):
        mask_pairs(tmp_path)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGB", "RGBA", "P"])
def test_masks_in_many_modes(mode, tmp_path):
    values = np.repeat(np.array([[0, 255]], np.uint8), 3, 0)
    Image.fromarray(values).convert(mode).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == values.tolist()


def test_soft_edges_stay_soft(tmp_path):
    Image.fromarray(np.array([[0, 77, 255]], np.uint8)).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png")
    assert (mask.dtype, mask.tolist()) == (torch.uint8, [[0, 77, 255]])


def test_files_that_are_no_masks(tmp_path):
    path = tmp_path / "mask.png"
    Image.new("RGB", (4, 4), (255, 0, 0)).save(path)
    with pytest.raises(ValueError, match=r"mask\.png. is RGB, with colours .* a grey image is needed"):
        read_mask(path)
    Image.new("I;16", (4, 4)).save(path)
    with pytest.raises(ValueError, match=r"mask\.png. is I;16"):
        read_mask(path)
    Image.new("L", (4, 4), 1).save(path)
    with pytest.raises(ValueError, match=r"holds 0 and 1 alone: 255 is needed"):
        read_mask(path)
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"mask\.png. is no image"):
        read_mask(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_mask(tmp_path / "none.png")


def test_what_cannot_be(model, tmp_path):
    folder = objects(tmp_path, parts=("test",)) / "test"
    image = folder / "images" / "0.png"
    with pytest.raises(ValueError, match="two images are called '0'"):
        predict(model, [image, image], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere. to write"):
        predict(model, [image], tmp_path / "nowhere")
    Image.new("L", (5, 4)).save(folder / "masks" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png. is 21×30, its mask 5×4"):
        evaluate(model, folder, progress=False)
