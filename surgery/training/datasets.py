"""Datasets by name: training and test images with labels, as timm's loaders take them."""

from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from surgery.training.image_dataset import ImageDataset, data_folder, own_folder
from surgery.training.image_scan import refuse_or_leave_out
from surgery.training.images_in_memory import ImagesInMemory, held_in_memory
from surgery.training.recipe import DataSettings, RecipeError, check_key
from surgery.training.saliency_datasets import sod
from surgery.training.segmentation_datasets import cityscapes, segmentation_folder
from surgery.training.shards import shards
from surgery.training.timm_datasets import RGBImages, hugging_face_dataset, torch_dataset
from surgery.vision.class_folders import ClassFolders, held_out_part
from surgery.vision.image_files import open_image

SMALL = (32, 32)  # width and height in pixels
PART_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "eval"})


def digits(settings: DataSettings) -> ImageDataset:
    """scikit-learn's 1,797 handwritten digits (8×8, 10 classes), enlarged; one fifth is the test set."""
    from sklearn.datasets import load_digits  # more than a second, which other datasets need not wait for
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    size = (settings.image_size, settings.image_size)
    small = (bunch.images / 16 * 255).round().astype(np.uint8)
    enlarged = [Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BICUBIC) for image in small]
    images = np.stack([np.asarray(image) for image in enlarged])
    labels = [int(label) for label in bunch.target]
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    return ImageDataset(ImagesInMemory(parts[0], parts[2]), ImagesInMemory(parts[1], parts[3]), 10)


def cifar10(settings: DataSettings) -> ImageDataset:
    """CIFAR-10 as image files: ``cifar10/{train,test}/CLASS/*``, decoded at once and kept in memory (180 MB)."""
    return _small_images(settings, "cifar10", 10)


def cifar100(settings: DataSettings) -> ImageDataset:
    """CIFAR-100 (fine labels) as image files: ``cifar100/{train,test}/CLASS/*``, kept in memory (180 MB)."""
    return _small_images(settings, "cifar100", 100)


def imagenet(settings: DataSettings) -> ImageDataset:
    """ImageNet-1k as its 1,000 folders of images: ``imagenet/{train,val}/WNID/*``."""
    return _folders(data_folder(settings, "imagenet", ("train", "val")), "val", 1000)


def folder(settings: DataSettings) -> ImageDataset:
    """A user's images below ``data.root``: ``{train,val}/CLASS/*`` or ``{train,test}/CLASS/*``, or ``CLASS/*`` alone.

    Of the last kind, and of ``train/CLASS/*`` without a val or test, ``data.holdout`` of the images, drawn once and for
    all, are for testing.
    """
    root = own_folder(settings, "CLASS/* or {train,val}/CLASS/*")
    image_root = root / "train" if (root / "train").is_dir() else root
    test = held_out_part(root)
    if test is not None and image_root == root:
        raise RecipeError(
            f"data.root={root} has a folder {test.name} but no train: {{train,{test.name}}}/CLASS/* is needed"
        )
    if test is not None:
        return _folders(root, test.name)
    if not settings.holdout:
        missing = "no folder val or test" if image_root != root else "no folders train and val (or test)"
        raise RecipeError(f"data.root={root} has {missing}: data.holdout=0.1 would test on a tenth of {image_root}")
    return _with_holdout(image_root, settings.holdout)


def _with_holdout(folder: Path, holdout: float) -> ImageDataset:
    """A share of a folder's images, the same every time, for testing, and the others for training."""
    images = _image_folder(folder)
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    count = max(1, round(holdout * len(images)))
    if count >= len(images):
        raise RecipeError(f"data.holdout={holdout} of {len(images)} images in {folder} leaves none to train on")
    train, test = (_ImageSubset(images, sorted(indices)) for indices in (order[count:], order[:count]))
    return ImageDataset(train, test, len(images.classes), tuple(images.classes))


class _ImageSubset(Dataset):
    """Some images of a folder, with a ``transform`` of their own."""

    def __init__(self, images: ClassFolders, chosen: Sequence[int]) -> None:
        self.images, self.chosen = images, list(chosen)
        self.transform: Callable[[Image.Image], object] | None = None

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def files(self) -> list[tuple[str]]:
        """The file of each image."""
        samples = self.images.samples
        return [(samples[index][0],) for index in self.chosen]

    def without(self, left_out: Container[int]) -> "_ImageSubset":
        """The same part without the images of these indices."""
        return _ImageSubset(self.images, [item for index, item in enumerate(self.chosen) if index not in left_out])

    def __getitem__(self, index: int) -> tuple[object, int]:
        image, label = self.images[self.chosen[index]]
        return (image if self.transform is None else self.transform(image)), label


DATASETS: dict[str, Callable[[DataSettings], ImageDataset]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet": imagenet,
    "folder": folder,
    "cityscapes": cityscapes,
    "segmentation_folder": segmentation_folder,
    "sod": sod,
    "shards": shards,
}
NAMED_DATASETS = {"torch": torch_dataset, "hfds": hugging_face_dataset}


def open_dataset(settings: DataSettings, say: Callable[[str], None] = tqdm.write) -> ImageDataset:
    """The recipe's dataset, in memory where its images are small.

    Args:
        say: is told of small images that are left out (``data.skip_unreadable``).

    Raises:
        RecipeError: lists what there is, or what is missing where.
        UnreadableImagesError: small images are damaged (with ``skip_unreadable``: more than half of a part).
    """
    data = open_files(settings)
    if settings.padding and isinstance(data.train, RGBImages):  # which a batch's augmentation may need as tensors
        train_name, test_name = settings.splits
        return replace(data, train=held_in_memory(data.train, train_name), test=held_in_memory(data.test, test_name))
    if not isinstance(data.train, _SmallImages) or not isinstance(data.test, _SmallImages):
        return data
    train, test = (_in_memory(part, settings.skip_unreadable, say) for part in (data.train, data.test))
    return replace(data, train=train, test=test)


def open_files(settings: DataSettings) -> ImageDataset:
    """The recipe's dataset without decoding anything; raises RecipeError as :func:`open_dataset` does."""
    source, _, name = settings.name.partition("/")
    if name and source in NAMED_DATASETS:
        return NAMED_DATASETS[source](settings)
    check_key("data.name", settings.name, [*DATASETS, *(f"{source}/NAME" for source in NAMED_DATASETS)])
    return DATASETS[settings.name](settings)


def _small_images(settings: DataSettings, name: str, classes: int) -> ImageDataset:
    return _folders(data_folder(settings, name, ("train", "test")), "test", classes, _SmallImages)


def _folders(
    folder: Path, test: str, classes: int | None = None, kind: type[ClassFolders] = ClassFolders
) -> ImageDataset:
    """The parts ``train`` and ``test`` of a folder, with the same classes (as many as given)."""
    parts = [_image_folder(folder / name, kind) for name in ("train", test)]
    first = parts[0].classes
    for part in parts:
        if part.classes != first:
            different = sorted(set(part.classes) ^ set(first))
            raise RecipeError(
                f"{part.root} and {parts[0].root} do not have the same classes: {', '.join(different[:5])}"
            )
        if classes is not None and len(part.classes) != classes:
            raise RecipeError(f"{part.root} has {len(part.classes)} class folders, {classes} are needed")
    return ImageDataset(parts[0], parts[1], len(first), tuple(first))


def _image_folder(folder: Path, kind: type[ClassFolders] = ClassFolders) -> ClassFolders:
    try:
        images = kind(folder)
    except FileNotFoundError as error:
        raise RecipeError(f"{folder} is no folder of images, CLASS/*: {error}") from None
    _check_classes(folder, images.classes)
    return images


def _check_classes(folder: Path, classes: Sequence[str]) -> None:
    """Raise RecipeError where what would be taken for classes is something else: parts of a dataset, or datasets."""
    if len(classes) < 2:
        raise RecipeError(f"{folder} has one class folder, {classes[0]!r}: at least 2 are needed")
    parts = [name for name in classes if name.lower() in PART_NAMES]
    if parts:
        raise RecipeError(
            f"{folder} has folders {', '.join(parts)}, which are no classes: parts are called train and val (or test)"
        )
    if set(classes) <= {"images", "masks", "labels"}:
        raise RecipeError(f"{folder} holds {', '.join(classes)}: of label maps, data.name=segmentation_folder reads it")
    for name in classes:
        inner = {entry.name.lower() for entry in (folder / name).iterdir() if entry.is_dir()} & PART_NAMES
        if inner:
            raise RecipeError(
                f"{folder / name} is no class: it has parts of its own ({', '.join(sorted(inner))}); data.root must be "
                "the folder of one dataset"
            )


class _SmallImages(ClassFolders):
    """Images of 32×32 pixels; one of another size is an error, as a damaged one is."""

    def __init__(self, root: str | Path) -> None:
        super().__init__(root, loader=_small_image)


def _small_image(path: str) -> Image.Image:
    image = open_image(path)
    if image.size != SMALL:
        raise RecipeError(f"{path} is {image.width}×{image.height}, {SMALL[0]}×{SMALL[1]} is needed")
    return image


def _in_memory(folder: _SmallImages, skip_unreadable: bool, say: Callable[[str], None]) -> ImagesInMemory:
    part, total = Path(folder.root).name, len(folder.samples)
    bar = tqdm(folder.samples, f"reading {part} images", leave=False, unit="image", mininterval=0.5)
    pixels, labels, unreadable = [], [], []
    for path, label in bar:
        try:
            pixels.append(np.asarray(folder.loader(path)))
            labels.append(label)
        except ValueError as error:
            unreadable.append(str(error))
    refuse_or_leave_out(part, unreadable, total, skip_unreadable, say)
    return ImagesInMemory(np.stack(pixels), labels)
