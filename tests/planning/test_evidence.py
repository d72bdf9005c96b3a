"""Images that a user passes to a method: what cannot be is refused by name, what can be is brought to the model."""

import pytest
import torch
from torch import nn

from surgery.planning.evidence import Evidence

IMAGES = torch.randn(4, 3, 8, 8)
LABELS = torch.tensor([0, 1, 2, 1])


def model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("read", [Evidence.images, Evidence.labelled_images])
@pytest.mark.parametrize(
    ("batches", "kind", "message"),
    [
        (5, TypeError, "images are 5: a tensor"),
        ("folder", TypeError, "images are 'folder'"),
        ([None], TypeError, "batch 0 of the images is of type NoneType"),
        ([{"pixels": IMAGES}], TypeError, r"pass \(batch\['pixels'\] for batch in loader\)"),
        ([(IMAGES, LABELS), (IMAGES.byte(), LABELS)], TypeError, "batch 1 of the images is torch.uint8"),
        ([(IMAGES[0], LABELS)], TypeError, r"of shape \(3, 8, 8\)"),
        ([(IMAGES * float("nan"), LABELS)], ValueError, "batch 0 of the images holds NaN"),
        ([(IMAGES[:, :1], LABELS)], ValueError, r"Sequential fails on an image of images=, of shape \(1, 8, 8\)"),
        (None, ValueError, "images=None: batches"),
    ],
)
def test_images_that_cannot_be_are_named(read, batches, kind, message):
    with pytest.raises(kind, match=message):
        list(read(Evidence(model(), batches)))


@pytest.mark.parametrize("labels", [(), (None,), (LABELS.tolist(),), (LABELS[:2],), (torch.tensor(1),)])
def test_there_is_a_label_for_each_image(labels):
    with pytest.raises(ValueError, match="batch 0 of images= has 4 images, and its labels are"):
        list(Evidence(model(), [(IMAGES, *labels)]).labelled_images())


def test_batches_come_in_the_dtype_of_the_model():
    network = model().train()
    ((images, labels),) = Evidence(network, [(IMAGES.double(), LABELS.int())]).labelled_images()
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(images, IMAGES)
    assert network.training


def test_a_batch_of_no_image_is_left_out():
    assert len(list(Evidence(model(), [IMAGES[:0], IMAGES]).images())) == 1
