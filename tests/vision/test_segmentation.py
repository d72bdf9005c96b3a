import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex

import surgery
from surgery.vision.preprocessing import Preprocessing
from surgery.vision.segmentation import View, class_ious, confusion, evaluate, mean_iou, predict, segment, segments

NAMES = ("road", "tree", "sky")


class Pixelwise(nn.Module):
    """Logits of a pixel from that pixel alone, so that windows make no difference."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x)


def pixelwise():
    torch.manual_seed(0)
    model = Pixelwise().eval()
    model.surgery_preprocessing = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, classes=NAMES, ignore=9)
    return model


def street(folder, count=3, size=(20, 30)):
    """Images with label maps of their brightest channel, a corner of each unlabelled."""
    generator = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        pixels = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
        labels = pixels.argmax(2).astype(np.uint8)
        labels[:3, :3] = 9
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{index}.png")
    return folder


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.0, 0.3, 0.9]), st.booleans())
def test_windows_and_mirror_images_cover_every_pixel(height, width, window, overlap, flip):
    model, images = pixelwise(), torch.randn(2, 3, height, width)
    with torch.no_grad():
        result = segment(model, images, View(window, overlap, flip))
        torch.testing.assert_close(result, model(images).softmax(1), atol=1e-6, rtol=0)


def test_windows_hide_what_is_far(tmp_path):
    """A model that gives every pixel the mean of all sees only a window's."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Upsample((4, 4)))
    images = torch.cat([torch.zeros(1, 2, 4, 4), torch.tensor([5.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)], 3)
    probabilities = segment(model, images, View(window=4, overlap=0.0))
    torch.testing.assert_close(probabilities[0, 0, :, :4], torch.full((4, 4), 0.5))
    assert (probabilities[0, 0, :, 4:] > 0.99).all()


def test_mean_iou_is_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    metric, total = MulticlassJaccardIndex(5, ignore_index=255, average="macro"), torch.zeros(5, 5, dtype=torch.int64)
    for _ in range(3):
        scores = torch.rand(2, 5, 6, 7, generator=generator)
        scores[:, 4] = -1  # nobody predicts the last class, and nothing is labelled so
        labels = torch.randint(0, 4, (2, 6, 7), generator=generator)
        labels[0, :2] = 255
        metric.update(scores.argmax(1), labels)
        total += confusion(scores, labels)
    assert mean_iou(total) == pytest.approx(100 * metric.compute().item(), abs=1e-4)
    assert class_ious(total)[4].isnan()
    assert total.sum() == 3 * (2 * 42 - 14)


def test_iou_by_hand():
    labels = torch.tensor([[[0, 0, 1, 255]]])
    scores = nn.functional.one_hot(torch.tensor([[[0, 1, 1, 0]]]), 2).permute(0, 3, 1, 2).float()
    assert class_ious(confusion(scores, labels)).tolist() == [50.0, 50.0]


def test_over_a_folder(tmp_path):
    model, folder = pixelwise().train(), street(tmp_path / "val")
    with torch.no_grad():
        model.conv.weight.copy_(10 * torch.eye(3).view(3, 3, 1, 1))
        model.conv.bias.zero_()
    for root in (folder, tmp_path):
        result = evaluate(model, root, progress=False)
        assert (result.mean, result.images, list(result.classes)) == (100.0, 3, list(NAMES))
    assert model.training
    assert "mIoU 100.00 % of 3 images" in str(result)


def test_masks_hold_classes_in_colours(tmp_path):
    model, images = pixelwise(), sorted((street(tmp_path) / "images").iterdir())
    masks = predict(model, images, tmp_path)
    assert [mask.name for mask in masks] == ["0.mask.png", "1.mask.png", "2.mask.png"]
    with Image.open(images[1]) as image, Image.open(masks[1]) as mask, torch.no_grad():
        expected = model(model.surgery_preprocessing.whole_image()(image)[None])[0].argmax(0)
        assert np.array_equal(np.array(mask), expected.numpy())
        assert mask.convert("RGB").size == image.size


def test_what_cannot_be(tmp_path):
    model, folder = pixelwise(), street(tmp_path)
    images = sorted((folder / "images").iterdir())
    with pytest.raises(ValueError, match="two images are called '0'"):
        predict(model, [images[0], images[0]], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere. to write masks to"):
        predict(model, images, tmp_path / "nowhere")
    Image.new("L", (5, 4)).save(folder / "masks" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png. is 30×20, its mask 5×4"):
        evaluate(model, folder, progress=False)
    model.surgery_preprocessing = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, classes=("a", "b"), ignore=9)
    (folder / "masks" / "1.png").unlink()
    (folder / "images" / "1.png").unlink()
    with pytest.raises(ValueError, match="gives 3 classes and was saved with 2 names"):
        evaluate(model, folder, progress=False)
    for bad in ({"window": -1}, {"overlap": 1.0}):
        with pytest.raises(ValueError, match="a side in pixels"):
            View(**bad)


def test_which_models_label_pixels():
    assert segments(pixelwise())
    assert not segments(surgery.create("resnet18", num_classes=3))
