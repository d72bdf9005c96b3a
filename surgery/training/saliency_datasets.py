"""Datasets of images with masks of what is salient in them."""

from pathlib import Path

from surgery.training.image_dataset import DATA_VARIABLE, ImageDataset, data_root
from surgery.training.recipe import DataSettings, RecipeError
from surgery.training.segmentation_datasets import LabelledImages
from surgery.vision.class_folders import held_out_part
from surgery.vision.saliency_maps import mask_pairs, read_mask

DUTS = ("DUTS-TR", "DUTS-TE")


def sod(settings: DataSettings) -> ImageDataset:
    """Images and grey masks: ``{train,test}/{images,masks}/NAME.*`` (or val in place of test), or DUTS as unpacked.

    That is ``DUTS-TR/{DUTS-TR-Image,DUTS-TR-Mask}`` and ``DUTS-TE`` in the same way. They are in the folder ``sod``
    below ``data.root`` (or SURGERY_DATA), or in that folder itself.
    """
    root = data_root(settings)
    try:
        train, test = (LabelledImages(mask_pairs(part), read_mask) for part in _parts(settings, root))
    except FileNotFoundError as error:
        raise RecipeError(f"{_source(settings)}={root}: {error}") from None
    return ImageDataset(train, test, classes=1)


def _parts(settings: DataSettings, root: Path) -> tuple[Path, Path]:
    """The folders of training and of test images."""
    for folder in (root / "sod", root):
        train, test = folder / "train", held_out_part(folder)
        if train.is_dir() and test is not None:
            return train, test
        if all((folder / part).is_dir() for part in DUTS):
            return folder / DUTS[0], folder / DUTS[1]
    raise RecipeError(
        f"{_source(settings)}={root}: there is neither {{train,test}}/{{images,masks}}/NAME.* (or val in place of "
        f"test) nor {DUTS[0]}/{DUTS[0]}-Image, … and {DUTS[1]}/… in it, or in a folder sod below it"
    )


def _source(settings: DataSettings) -> str:
    return "data.root" if settings.root else DATA_VARIABLE
