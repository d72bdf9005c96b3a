from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open

import surgery
from surgery.core.errors import CheckpointError
from surgery.vision.preprocessing import Preprocessing, preprocessing_of
from tests.checkpoint.test_checkpoint import rewrite

OWN = Preprocessing((3, 20, 30), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 0.8, "bilinear", ("a", "b"))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "m.safetensors"
    surgery.save(timm.create_model("test_resnet", num_classes=2), path)
    return path


def test_what_timm_says_unless_the_model_remembers(tmp_path):
    model = timm.create_model("resnet26", num_classes=2)
    preprocessing = preprocessing_of(model)
    config = model.pretrained_cfg
    assert (preprocessing.mean, preprocessing.std, preprocessing.crop_pct) == (
        config["mean"],
        config["std"],
        config["crop_pct"],
    )
    assert preprocessing_of(model, (3, 64, 48)).size == (3, 64, 48)
    surgery.save(model, tmp_path / "m.safetensors", preprocessing=OWN)
    loaded = surgery.load(tmp_path / "m.safetensors")
    assert preprocessing_of(loaded) == OWN
    assert preprocessing_of(surgery.convert(loaded, zeta=4)) == OWN
    surgery.save(loaded, tmp_path / "again.safetensors")
    assert preprocessing_of(surgery.load(tmp_path / "again.safetensors")) == OWN


def test_files_without_it_are_whole(tmp_path):
    surgery.save(timm.create_model("resnet18", num_classes=2), tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert "preprocessing" not in file.metadata()["surgery"]
    assert preprocessing_of(surgery.load(tmp_path / "m.safetensors")).size == (3, 224, 224)


def test_transform_crops_and_normalises():
    image = Image.new("RGB", (100, 100), (255, 0, 51))
    tensor = OWN.transform()(image)
    assert tensor.shape == (3, 20, 30)
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(OWN.mean)) / torch.tensor(OWN.std)
    torch.testing.assert_close(tensor[:, 5, 5], expected, rtol=0, atol=1e-5)


def test_numbers_must_be_finite():
    for bad in (float("nan"), float("inf")):
        for change in ({"mean": (bad, 0.5, 0.5)}, {"std": (bad, 0.5, 0.5)}, {"crop_pct": bad}):
            with pytest.raises(ValueError, match=f"preprocessing {next(iter(change))}="):
                replace(OWN, **change)


def test_large_images_are_accepted():
    assert replace(OWN, size=(3, 8192, 8192)).size == (3, 8192, 8192)


@pytest.mark.parametrize(
    "bad",
    [
        {"size": [3, 0, 30]},
        {"std": [0.5, 0.0, 1.0]},
        {"mean": [0.5]},
        {"crop_pct": 2},
        {"interpolation": "x"},
        {"interpolation": []},
        {"y": 1},
        {"size": [3, 200_000, 200_000]},
        {"size": [3, 16_000, 16_000]},
        {"size": [True, 8, 8]},
        {"size": "abc"},
        {"size": 5},
        {"crop_pct": 1e-5},
        {"crop_pct": "1"},
        {"mean": "abc"},
        {"mean": ["a", "b", "c"]},
        {"mean": None},
        {"std": [True] * 3},
        {"classes": [1, 2]},
        {"classes": "ab"},
        {"classes": {"a": 1}},
        {"colours": [5]},
        {"colours": ["#GGGGGG"]},
        {"ignore": True},
        {"ignore": 256},
        {"ignore": "7"},
    ],
)
def test_manifests_that_cannot_be(file, bad):
    content = {"size": [3, 20, 30], "mean": [0.5] * 3, "std": [1.0] * 3} | bad
    rewrite(file, preprocessing=content)
    with pytest.raises(CheckpointError, match="manifest preprocessing"):
        surgery.load(file)
