"""Every recipe as a user would first try it: --dry-run on a folder of the layout that its comment describes."""

import numpy as np
import pytest
from PIL import Image

import finetune
from tests.training.test_recipe import RECIPES

SMALL = ["data.batch_size=4", "data.workers=0"]
LAYOUTS = {
    "quickstart": None,
    "cifar10": ("cifar10", ("train", "test"), 10),
    "cifar100": ("cifar100", ("train", "test"), 100),
    "imagenet": ("imagenet", ("train", "val"), 1000),
    "imagenet_scratch": ("imagenet", ("train", "val"), 1000),
    "classification_folder": ("", ("train", "val"), 3),
}


def lay_out(root, name, parts, classes):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    for part in parts:
        for label in range(classes):
            folder = root / name / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            image.save(folder / "0.png")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_dry_run(path, tmp_path, capsys):
    settings = [f"output={tmp_path / 'out'}"]
    if LAYOUTS[path.stem]:
        lay_out(tmp_path / "data", *LAYOUTS[path.stem])
        settings += [f"data.root={tmp_path / 'data'}", *SMALL]
    if path.stem == "classification_folder":
        settings.append("model.kwargs={num_classes: 3}")
    assert finetune.main([str(path), "--dry-run", *settings]) == 0
    out = capsys.readouterr().out
    for expected in ("pix, mode squeeze", "converted  ", "a batch: ("):
        assert expected in out
    assert not (tmp_path / "out").exists()


def test_a_folder_of_photographs_from_the_first_training_to_the_file(tmp_path, capsys):
    lay_out(tmp_path / "data", *LAYOUTS["classification_folder"])
    recipe = next(path for path in RECIPES if path.stem == "classification_folder")
    settings = ["model.pretrained=false", "baseline.epochs=1", "finetune.epochs=1"]
    settings += ["data.image_size=64", "data.batch_size=2"]
    network = "model.kwargs={num_classes: 3, channels: [8, 16, 16, 32], layers: [1, 1, 1, 1]}"
    assert finetune.main([str(recipe), f"output={tmp_path}/out", f"data.root={tmp_path}/data", *settings, network]) == 0
    assert "logits identical on 3 test images" in capsys.readouterr().out
