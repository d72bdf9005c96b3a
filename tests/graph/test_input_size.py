import numpy as np
import pytest
import torch

import surgery
from surgery.graph.input_size import image_shapes
from surgery.vision.preprocessing import preprocessing_of
from tests.small_models import Net


@pytest.mark.parametrize("size", [24, (24, 24), [3, 24, 24], np.int64(24)])
def test_one_side_means_three_channels_and_a_square(size, tmp_path):
    model = surgery.create("test_resnet", num_classes=3)
    assert surgery.plan(model, input_size=size).input_size == (3, 24, 24)
    assert surgery.cost(model, size).input_size == (3, 24, 24)
    assert preprocessing_of(model, size).size == (3, 24, 24)
    assert surgery.synthetic_images(model, 2, steps=0, input_size=size).shape == (2, 3, 24, 24)
    surgery.save(model, tmp_path / "m.safetensors", input_size=size)
    surgery.export(model, tmp_path / "m.pt2", format="torch-export", input_size=size, dynamic_size=False)
    assert surgery.convert(Net("module"), input_size=size) is not None


def test_a_network_of_other_channels_keeps_them():
    assert surgery.plan(surgery.create("test_resnet", in_chans=1), input_size=24).input_size == (1, 24, 24)
    assert image_shapes((5, 6), [2, 3, 2]) == [(2, 5, 6), (3, 5, 6)]


@pytest.mark.parametrize("size", [0, -3, True, 2.5, "224", (3, 4, 5, 6), (3.0, 4), torch.Size([])])
def test_what_is_no_size(size):
    with pytest.raises(ValueError, match=r"input_size=.*a side in pixels \(224\)"):
        image_shapes(size, [3])
