"""Datasets of images with label maps: a user's folders, Cityscapes."""

from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import Cityscapes

from surgery.training.image_dataset import ImageDataset, data_folder, own_folder
from surgery.training.recipe import DataSettings, RecipeError
from surgery.vision.class_folders import held_out_part
from surgery.vision.image_files import open_image
from surgery.vision.label_maps import UNLABELLED, Labelling, pairs_below
from surgery.vision.segmentation import check_same_size


class LabelledImages(Dataset):
    """Files of images and of their label maps, or masks, which ``read`` makes uint8 (H, W).

    ``transform`` takes an image (PIL) and what was read.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], read: Callable[[Path], Tensor]) -> None:
        self.pairs, self.read = list(pairs), read
        self.transform: Callable[[Image.Image, Tensor], object] | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def files(self) -> list[tuple[Path, Path]]:
        """The two files of each item."""
        return self.pairs

    def without(self, left_out: Container[int]) -> "LabelledImages":
        """The same folder without the items of these indices."""
        return LabelledImages([pair for index, pair in enumerate(self.pairs) if index not in left_out], self.read)

    def __getitem__(self, index: int) -> object:
        path, mask = self.pairs[index]
        image, labels = open_image(path), self.read(mask)
        check_same_size(path, (image.height, image.width), labels)
        return (image, labels) if self.transform is None else self.transform(image, labels)


def segmentation_folder(settings: DataSettings) -> ImageDataset:
    """A user's images and label maps: ``{train,val}/{images,masks}/NAME.*`` (or test in place of val).

    Label maps hold the numbers of ``data.classes`` classes; ``data.ignore``, and 255, stand for no class. A file
    ``classes.txt`` may name them, a line each.
    """
    root = own_folder(settings, "{train,val}/{images,masks}/NAME.*")
    test = held_out_part(root)
    if test is None or not (root / "train").is_dir():
        missing = "train" if test is not None else "val (or test)"
        raise RecipeError(
            f"data.root={root}: a folder with {{train,val}}/{{images,masks}}/NAME.* is needed; there is no {missing}"
        )
    if settings.classes is None:
        raise RecipeError("data.classes: the number of classes in the label maps is needed")
    labelling = Labelling(settings.classes, settings.ignore)
    try:
        parts = [LabelledImages(pairs_below(root / part), labelling.read) for part in ("train", test.name)]
    except FileNotFoundError as error:
        raise RecipeError(f"data.root={root}: {error}") from None
    return ImageDataset(parts[0], parts[1], settings.classes, _names(root / "classes.txt", settings.classes))


def _names(path: Path, classes: int) -> tuple[str, ...]:
    if not path.exists():
        return ()
    names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if len(names) != classes:
        raise RecipeError(f"{path} has {len(names)} names, data.classes={classes}: one for each is needed")
    return names


BENCHMARK_CLASSES = [city_class for city_class in Cityscapes.classes if 0 <= city_class.train_id < UNLABELLED]


def cityscapes(settings: DataSettings) -> ImageDataset:
    """Cityscapes' finely labelled images as they are unpacked: ``leftImg8bit/{train,val}/CITY/*_leftImg8bit.png`` and
    ``gtFine/{train,val}/CITY/*_gtFine_labelIds.png``; the 19 classes that its benchmark judges.
    """
    root = data_folder(settings, "cityscapes", ("leftImg8bit", "gtFine"))
    labelling = Labelling(
        len(BENCHMARK_CLASSES), renumbered={city_class.id: _train_id(city_class) for city_class in Cityscapes.classes}
    )
    parts = [LabelledImages(_cityscapes_pairs(root, part), labelling.read) for part in ("train", "val")]
    names = tuple(city_class.name for city_class in BENCHMARK_CLASSES)
    colours = tuple("#{:02x}{:02x}{:02x}".format(*city_class.color) for city_class in BENCHMARK_CLASSES)
    return ImageDataset(parts[0], parts[1], len(BENCHMARK_CLASSES), names, colours)


def _train_id(city_class: Any) -> int:
    return city_class.train_id if 0 <= city_class.train_id < UNLABELLED else UNLABELLED


def _cityscapes_pairs(root: Path, part: str) -> list[tuple[Path, Path]]:
    """torchvision's list of files, after a look at what it takes for granted."""
    for kind in ("leftImg8bit", "gtFine"):
        if not (root / kind / part).is_dir():
            raise RecipeError(f"{root} lacks {kind}/{part}/CITY/*.png: unpack {kind}_trainvaltest.zip there")
    listing = Cityscapes(str(root), split=part, mode="fine", target_type="semantic")
    pairs = [(Path(image), Path(target[0])) for image, target in zip(listing.images, listing.targets, strict=True)]
    if not pairs:
        raise RecipeError(f"{root / 'leftImg8bit' / part} has no image CITY/*_leftImg8bit.png")
    for image, mask in pairs:
        if not mask.is_file():
            raise RecipeError(f"{image} has no label map {mask}")
    return sorted(pairs)
