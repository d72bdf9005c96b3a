"""``export`` and what it writes."""

import onnx
import pytest
import torch
from torchvision.utils import save_image

import surgery
from tests.cli.command_line import run


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    kwargs = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    model = surgery.convert(surgery.create("cifar_resnet", **kwargs).eval(), calibrate=torch.randn(64, 3, 32, 32))
    surgery.save(model, tmp_path / "m.safetensors")
    return str(tmp_path / "m.safetensors")


def test_one_branch_by_the_images_of_a_folder(capsys, tmp_path, file):
    (tmp_path / "images").mkdir()
    for number in range(3):
        save_image(torch.rand(3, 40, 40), tmp_path / "images" / f"{number}.png")
    written = tmp_path / "m.onnx"
    status, out, err = run(capsys, "export", file, "--out", str(written), "--branches", str(tmp_path / "images"))
    assert status == 0, err
    assert "checked against the model" in out
    assert "one_branch" in {entry.key for entry in onnx.load(written).metadata_props}


def test_branches_that_cannot_be(capsys, tmp_path, file):
    status, _, err = run(capsys, "export", file, "--out", str(tmp_path / "m.onnx"), "--branches", str(tmp_path / "no"))
    assert status == 2
    assert "no image (" in err
    (tmp_path / "images").mkdir()
    save_image(torch.rand(3, 40, 40), tmp_path / "images" / "one.png")
    arguments = ["--out", str(tmp_path / "m.pt2"), "--format", "torch-export", "--branches", str(tmp_path / "images")]
    status, _, err = run(capsys, "export", file, *arguments)
    assert status == 2
    assert "belongs to format 'onnx'" in err
    assert not (tmp_path / "m.pt2").exists()
