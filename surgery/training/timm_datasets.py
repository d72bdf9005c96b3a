"""Datasets of torchvision (``torch/NAME``) and of Hugging Face (``hfds/NAME``) by timm, from files that are here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image
from timm.data import create_dataset
from torch.utils.data import Dataset

from surgery.training.image_dataset import ImageDataset, data_root
from surgery.training.recipe import DataSettings, RecipeError, check_key
from surgery.vision.image_files import decode_image

TORCH_DATASETS = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "mnist": "MNIST",
    "kmnist": "KMNIST",
    "fashion_mnist": "FashionMNIST",
    "qmnist": "QMNIST",
    "imagenet": "ImageNet",
    "places365": "Places365",
    "inaturalist": "INaturalist",
    "image_folder": "ImageFolder",
}
TWO_PARTS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
SPLITS = ("train", "training", "test", "val", "valid", "validation", "eval", "evaluation")


class RGBImages(Dataset):
    """Images of another dataset in RGB, with a ``transform`` of their own; ``read`` gives one of them, and its label.

    A damaged one raises ValueError, where timm's own dataset would give the next one in its place.
    """

    def __init__(self, source: Any, read: Callable[[Any, int], tuple[Image.Image, int]], name: str) -> None:
        self.source, self.read, self.name = source, read, name
        self.transform: Callable[[Image.Image], object] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[object, int]:
        try:
            image, label = self.read(self.source, index)
        except (
            OSError,
            SyntaxError,
            ValueError,
            TypeError,
            AssertionError,
        ) as error:  # timm: no image
            raise ValueError(f"{self.name}: image {index}: {error}") from None
        return (image if self.transform is None else self.transform(image)), int(label)


def torch_dataset(settings: DataSettings) -> ImageDataset:
    """A classification set of torchvision in its layout below ``data.root``; ``validation`` is also its test part."""
    name = settings.name.partition("/")[2]
    check_key("data.name", settings.name, [f"torch/{dataset}" for dataset in TORCH_DATASETS])
    if name in TWO_PARTS:
        for split in settings.splits:
            check_key("data.splits", split, SPLITS)  # timm takes whatever it does not know for the test part
    train, test = (_torch_part(settings, name, split) for split in settings.splits)
    class_names, test_names = _torch_names(train), _torch_names(test)
    if class_names != test_names:
        different = sorted(set(class_names) ^ set(test_names))
        raise RecipeError(f"{settings.name}: the splits do not have the same classes: {', '.join(different[:5])}")
    return _rgb_dataset(settings, (train, test), _torch_image, class_names)


def _torch_part(settings: DataSettings, name: str, split: str) -> Any:
    root = str(data_root(settings))
    try:
        part: Any = create_dataset(settings.name, root=root, split=split, download=False)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise RecipeError(
            f"data.name={settings.name}, split {split}: torchvision.datasets.{TORCH_DATASETS[name]}({root!r}) says: "
            f"{error}"
        ) from None
    if name == "image_folder" and str(part.root) == root:  # timm falls back on all of it
        raise RecipeError(f"data.splits={list(settings.splits)}: there is no folder {split} in data.root={root}")
    return part


def _torch_names(part: Any) -> tuple[str, ...]:
    names: Any = getattr(part, "classes", ()) or getattr(part, "all_categories", ())
    return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)


def _torch_image(source: Any, index: int) -> tuple[Image.Image, int]:
    image, label = source[index]
    return image.convert("RGB"), label


def hugging_face_dataset(settings: DataSettings) -> ImageDataset:
    """A dataset of Hugging Face: a local folder, or one by name that the library ``datasets`` has in its cache."""
    train, test = (_hugging_face_part(settings, split) for split in settings.splits)
    label = settings.columns[1]
    class_names = tuple(getattr(train.reader.dataset.features[label], "names", ()))
    data = _rgb_dataset(settings, (train, test), _hugging_face_image, class_names)
    for part, split in zip((train, test), settings.splits, strict=True):
        wrong = [value for value in part.reader.dataset.unique(label) if value not in range(data.classes)]
        if wrong:
            raise RecipeError(
                f"{settings.name}, split {split}: column {label!r} holds {wrong[0]!r}: integers from 0 to "
                f"{data.classes - 1} are needed (data.classes={data.classes})"
            )
    return data


def _hugging_face_part(settings: DataSettings, split: str) -> Any:
    try:
        from datasets import exceptions, load_dataset
    except ImportError:
        raise RecipeError(f"data.name={settings.name} needs a package: pip install datasets") from None
    name, (image, label) = settings.name.partition("/")[2], settings.columns
    try:
        with _offline():
            features = load_dataset(name, split=split, cache_dir=settings.root).features
            if {image, label} <= set(features):
                return create_dataset(
                    settings.name, settings.root, split, download=False, input_key=image, target_key=label
                )
    except ConnectionError:
        raise RecipeError(
            f"data.name={settings.name} is no folder and not in the cache (data.root={settings.root}); nothing is "
            f"downloaded here: datasets.load_dataset({name!r}, cache_dir={settings.root!r}) would do that"
        ) from None
    except (OSError, ValueError, RuntimeError, exceptions.DatasetsError) as error:
        raise RecipeError(f"data.name={settings.name}, split {split}: {error}") from None
    raise RecipeError(f"data.columns={[image, label]}: {settings.name} has the columns {', '.join(features)}")


@contextmanager
def _offline() -> Iterator[None]:
    """Keeps ``datasets`` to its cache: it would ask the hub for a newer version, and a resumed job must not get one."""
    from datasets import config

    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _hugging_face_image(source: Any, index: int) -> tuple[Image.Image, int]:
    try:
        file, label = source.reader[index]
    except (TypeError, AssertionError):  # timm's, for a null and for neither bytes nor a path
        raise ValueError("there is no image in this row") from None
    with file:
        return decode_image(file, "the file"), label


def _rgb_dataset(
    settings: DataSettings, parts: Sequence[Any], read: Callable, class_names: tuple[str, ...]
) -> ImageDataset:
    if class_names and settings.classes not in (None, len(class_names)):
        raise RecipeError(f"data.classes={settings.classes}: {settings.name} has {len(class_names)} classes")
    if not class_names and settings.classes is None:
        raise RecipeError(f"{settings.name} does not say how many classes it has: data.classes is needed")
    train, test = (
        RGBImages(part, read, f"{settings.name}, split {split}")
        for part, split in zip(parts, settings.splits, strict=True)
    )
    return ImageDataset(train, test, settings.classes or len(class_names), class_names)
