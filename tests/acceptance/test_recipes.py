"""Every recipe as a user would first try it: --dry-run on a folder of the layout that its comment describes."""

import json

import numpy as np
import pytest
from PIL import Image

import finetune
import surgery
from surgery.cli.main import main
from tests.training.test_recipe import RECIPES
from tests.training.test_saliency_datasets import objects
from tests.training.test_segmentation_datasets import cityscapes, street

SMALL = ["data.batch_size=4", "data.workers=0"]
LAYOUTS = {
    "quickstart": None,
    "cifar10": ("cifar10", ("train", "test"), 10),
    "ablations": ("cifar10", ("train", "test"), 10),
    "cifar10_wide": ("cifar10", ("train", "test"), 10),
    "cifar100": ("cifar100", ("train", "test"), 100),
    "imagenet": ("imagenet", ("train", "val"), 1000),
    "imagenet_scratch": ("imagenet", ("train", "val"), 1000),
    "classification_folder": ("", ("train", "val"), 3),
}
SMALL_BACKBONE = "backbone: resnet26, width: 16, backbone_kwargs: {channels: [8, 8, 8, 8]}"
PIXELS = {  # how files are laid out, classes
    "segmentation_folder": (lambda root: street(street(root, "train"), "val"), 3),
    "pspnet_cityscapes": (lambda root: cityscapes(root / "cityscapes"), 19),
}


# as a plan's first line has it; the others': squeezes replaced
SURGERIES = dict.fromkeys(("sod", "sod_few_images"), "gamma, keep 0.5")


def lay_out(root, name, parts, classes):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    for part in parts:
        for label in range(classes):
            folder = root / name / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            image.save(folder / "0.png")


def pixel_settings(path, root):
    """Settings for a small network on generated files, which it writes."""
    write, classes = PIXELS[path.stem]
    write(root)
    settings = [f"data.root={root}", "data.batch_size=2", "data.workers=0", "data.image_size=32", "sync_bn=false"]
    settings += [
        f"model.kwargs={{num_classes: {classes}, {SMALL_BACKBONE}}}",
        "model.pretrained=false",
        "surgery.calibrate=3",
    ]
    return settings + ([f"data.classes={classes}"] if path.stem == "segmentation_folder" else [])


def object_settings(root):
    """Settings for a small network on generated files with masks, which it writes."""
    objects(root, count=4)
    settings = [f"data.root={root}", "data.batch_size=2", "data.workers=0", "data.image_size=32"]
    return [*settings, "model.kwargs={k: 0.5}"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_dry_run(path, tmp_path, capsys):
    settings = [f"output={tmp_path / 'out'}"]
    if path.stem in PIXELS:
        settings += pixel_settings(path, tmp_path / "data")
    elif path.stem in SURGERIES:
        settings += [*object_settings(tmp_path / "data"), "surgery.calibrate=3"]
    elif LAYOUTS[path.stem]:
        lay_out(tmp_path / "data", *LAYOUTS[path.stem])
        settings += [f"data.root={tmp_path / 'data'}", "surgery.calibrate=3", *SMALL]
    assert finetune.main([str(path), "--dry-run", *settings]) == 0
    out = capsys.readouterr().out
    for expected in (SURGERIES.get(path.stem, "pix, mode squeeze"), "converted  ", "a batch: ("):
        assert expected in out
    assert not (tmp_path / "out").exists()


def test_a_folder_of_photographs_from_the_first_training_to_the_file(tmp_path, capsys):
    lay_out(tmp_path / "data", *LAYOUTS["classification_folder"])
    recipe = next(path for path in RECIPES if path.stem == "classification_folder")
    settings = ["model.pretrained=false", "baseline.epochs=1", "finetune.epochs=1"]
    settings += ["data.image_size=64", "data.batch_size=2", "surgery.calibrate=3"]
    network = "model.kwargs={channels: [8, 16, 16, 32], layers: [1, 1, 1, 1]}"
    assert finetune.main([str(recipe), f"output={tmp_path}/out", f"data.root={tmp_path}/data", *settings, network]) == 0
    assert "logits identical on 3 test images" in capsys.readouterr().out


@pytest.mark.parametrize("name", PIXELS)
def test_images_with_label_maps_from_the_first_training_to_masks(name, tmp_path, capsys):
    recipe = next(path for path in RECIPES if path.stem == name)
    settings = [*pixel_settings(recipe, tmp_path / "data"), "baseline.epochs=1", "finetune.epochs=1", "control=true"]
    settings += ["finetune.block_weight=1.0", "segmentation.window=24", "segmentation.flip=true"]
    assert finetune.main([str(recipe), f"output={tmp_path}/out", *settings]) == 0
    out = capsys.readouterr().out
    assert "mIoU" in out
    assert "logits identical on" in out
    file = str(tmp_path / "out" / "m.safetensors")
    preprocessing = surgery.load(file).surgery_preprocessing
    assert preprocessing.size == (3, 32, 32)
    assert len(preprocessing.colours) == (19 if name == "pspnet_cityscapes" else 0)
    if name == "segmentation_folder":
        assert main(["eval", file, str(tmp_path / "data"), "--window", "24", "--flip"]) == 0
        printed = capsys.readouterr().out
        assert f"mIoU {rows(tmp_path)['after fine-tuning']:.2f} % of 3 images" in printed
    image = next((tmp_path / "data").rglob("*leftImg8bit.png" if name == "pspnet_cityscapes" else "images/0.png"))
    assert main(["predict", file, str(image), "--out", str(tmp_path)]) == 0
    with Image.open(image) as photograph, Image.open(tmp_path / f"{image.stem}.mask.png") as mask:
        assert mask.size == photograph.size
        assert mask.mode == "P"


def test_images_with_masks_from_the_first_training_to_maps(tmp_path, capsys):
    recipe = next(path for path in RECIPES if path.stem == "sod")
    settings = [*object_settings(tmp_path / "data"), "baseline.epochs=1", "finetune.epochs=1", "control=true"]
    settings += ["finetune.block_weight=1.0", "finetune.lr_by_damage=true", "data.workers=1"]
    settings += ["baseline.lr=0.02", "surgery.options={threshold: 0.99}"]  # one epoch brings some scales so far down
    assert finetune.main([str(recipe), f"output={tmp_path}/out", *settings]) == 0
    out = capsys.readouterr().out
    assert "control: mean training mask: max F" in out
    assert "logits identical on 4 test images" in out
    file, image = str(tmp_path / "out" / "m.safetensors"), tmp_path / "data" / "test" / "images" / "0.png"
    assert main(["eval", file, str(tmp_path / "data")]) == 0
    assert f"max F {rows(tmp_path)['after fine-tuning']:.2f}, " in capsys.readouterr().out
    assert main(["predict", file, str(image), "--out", str(tmp_path)]) == 0
    with Image.open(image) as photograph, Image.open(tmp_path / "0.saliency.png") as written:
        assert (written.mode, written.size) == ("L", photograph.size)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_label_that_is_no_class_is_one_line(workers, tmp_path, capsys):
    recipe = next(path for path in RECIPES if path.stem == "segmentation_folder")
    settings = [*pixel_settings(recipe, tmp_path / "data"), f"data.workers={workers}"]
    settings += ["data.classes=2", f"model.kwargs={{num_classes: 2, {SMALL_BACKBONE}}}"]
    assert finetune.main([str(recipe), f"output={tmp_path}/out", *settings]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "finetune.py" in line]
    assert len(errors) == 1
    assert "holds the value 2: one of the 2 classes 0 to 1, or 11 and 255" in errors[0]


def rows(folder):
    return {row["stage"]: row["accuracy"] for row in json.loads((folder / "out" / "results.json").read_text())["rows"]}
