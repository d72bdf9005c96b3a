import numpy as np
import pytest
import torch
from PIL import Image

from surgery.vision.label_maps import Labelling, pairs_below, palette, write_label_map


def save(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8), mode).save(path)
    return path


def test_values_become_classes(tmp_path):
    path = save(tmp_path / "a.png", [[0, 1, 2], [11, 255, 2]])
    assert Labelling(3, ignore=11).read(path).tolist() == [[0, 1, 2], [255, 255, 2]]
    assert Labelling(2, ignore=11, renumbered={0: 1, 1: 255, 2: 0}).read(path).tolist() == [[1, 255, 0], [255, 255, 0]]


def test_a_palette_is_not_looked_at(tmp_path):
    write_label_map(tmp_path / "m.png", torch.tensor([[0, 2], [1, 1]], dtype=torch.uint8), palette((), 3))
    assert Labelling(3).read(tmp_path / "m.png").tolist() == [[0, 2], [1, 1]]
    with Image.open(tmp_path / "m.png") as image:
        assert image.convert("RGB").getpixel((1, 0)) == (128, 128, 0)  # PASCAL VOC's third object class


def test_colours_of_voc():
    assert palette((), 4) == ["#800000", "#008000", "#808000", "#000080"]
    assert palette(["#010203"], 1) == ["#010203"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0, 3]], r"holds the value 3: one of the 3 classes 0 to 2, or 11 and 255 for pixels without a class"),
        ([[[0, 0, 0]]], r"is RGB: a label map has one channel"),
    ],
)
def test_files_that_are_no_label_map(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        Labelling(3, ignore=11).read(save(tmp_path / "a.png", values))


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png. is no image that can be read"):
        Labelling(3).read(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"b\.png. does not exist"):
        Labelling(3).read(tmp_path / "b.png")


def test_pairs(tmp_path):
    for name in ("b", "a"):
        save(tmp_path / "images" / f"{name}.jpg", [[[1, 2, 3]]])
        save(tmp_path / "masks" / f"{name}.png", [[0]])
    assert [(image.name, mask.name) for image, mask in pairs_below(tmp_path)] == [
        ("a.jpg", "a.png"),
        ("b.jpg", "b.png"),
    ]
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"'a' is not both in images and in masks \(1 such\)"):
        pairs_below(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*no/images"):
        pairs_below(tmp_path / "no")
