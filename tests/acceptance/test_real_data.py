"""Every recipe on real files below SURGERY_DATA, cut short:  SURGERY_DATA=FOLDER pytest -m slow tests/acceptance

The folder holds what is tried of: cifar10/, cifar100/, imagenet_sample/CLASS/*, camvid/{train,val}/{images,masks},
sod/{train,test}/{images,masks}.
"""

import os
from pathlib import Path

import pytest

import finetune
import surgery
from surgery.transforms.history import history
from tests.training.test_recipe import RECIPES

pytestmark = pytest.mark.slow
ROOT = Path(os.environ.get("SURGERY_DATA", "/nowhere"))
SHORT = ["baseline.epochs=1", "finetune.epochs=1", "surgery.calibrate=64", "data.workers=0", "precision=no"]
LIGHT = "channels: [8, 16, 32, 64], layers: [1, 1, 1, 1]"
PHOTOS = [
    "data.name=folder",
    "data.root={root}/imagenet_sample",
    "data.holdout=0.1",
    "data.image_size=64",
    "data.batch_size=50",
    "model.pretrained=false",
    f"model.kwargs={{num_classes: 1000, {LIGHT}}}",
]
CASES = {
    "cifar10": ("cifar10", [f"model.kwargs={{num_classes: 10, {LIGHT}, stem_stride: 2}}"]),
    "cifar100": ("cifar100", [f"model.kwargs={{num_classes: 100, {LIGHT}, stem_stride: 2}}"]),
    "imagenet": ("imagenet_sample", PHOTOS),
    "imagenet_scratch": ("imagenet_sample", PHOTOS),
    "classification_folder": ("imagenet_sample", PHOTOS),
    "segmentation_folder": (
        "camvid",
        [
            "data.root={root}/camvid",
            "model.pretrained=false",
            "data.image_size=96",
            "model.kwargs={num_classes: 11, backbone: resnet26, width: 16, backbone_kwargs: {channels: [8, 8, 8, 8]}}",
        ],
    ),
    "sod": (
        "sod",
        [
            "data.root={root}",
            "data.image_size=64",
            "model.kwargs={k: 0.5}",
            "surgery.options={threshold: 0.9999}",
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_from_files_to_a_file(name, tmp_path, capsys):
    part, settings = CASES[name]
    if not (ROOT / part).is_dir():
        pytest.skip(f"SURGERY_DATA={ROOT} holds no {part}")
    recipe = next(path for path in RECIPES if path.stem == name)
    overrides = [setting.replace("{root}", str(ROOT)) for setting in settings]
    assert finetune.main([str(recipe), f"output={tmp_path}", *SHORT, *overrides]) == 0, capsys.readouterr().err
    assert "logits identical" in capsys.readouterr().out
    assert history(surgery.load(tmp_path / "m.safetensors"))
