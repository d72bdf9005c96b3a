"""A classifier on images in files: its accuracy over a folder, its predictions for some."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from surgery.core.checked_model import first_weight, output_for_one_image
from surgery.core.eval_mode import eval_mode
from surgery.core.extras import check_extra
from surgery.core.table import table
from surgery.graph.input_size import InputSize
from surgery.vision.class_folders import ClassFolders, held_out_part
from surgery.vision.image_files import open_image
from surgery.vision.preprocessing import Preprocessing, preprocessing_of

MANY = 8  # images that a bar is shown for


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy in percent over ``images`` images, at ``images_per_second`` with loading."""

    top1: float
    top5: float
    images: int
    images_per_second: float

    def __str__(self) -> str:
        return (
            f"top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} % of {self.images} images "
            f"({self.images_per_second:.0f} images/s)"
        )


def evaluate(
    model: nn.Module, folder: str | Path, *, batch_size: int = 32, workers: int = 0, progress: bool = True
) -> Accuracy:
    """Accuracy of a classifier on the images ``folder/CLASS/*`` (or ``folder/val/CLASS/*``, ``folder/test/CLASS/*``).

    Classes are matched by the names that the model was saved with; without such names the folders, sorted, must be as
    many as its outputs.

    Raises:
        FileNotFoundError: no folder of images.
        ValueError: classes that do not fit, or a file that is no image.
        MissingPackageError: torchmetrics is not installed.
    """
    check_extra("train", "an evaluation", ("torchmetrics",))
    from torchmetrics.classification import MulticlassAccuracy

    preprocessing = preprocessing_of(model)
    images = _class_folders(held_out_part(folder) or Path(folder), preprocessing)
    weight = first_weight(model)
    device, outputs = weight.device, _outputs(model, preprocessing)
    indices = torch.tensor(_indices(images, preprocessing.classes, outputs), device=device)
    metrics = [MulticlassAccuracy(outputs, top_k=k, average="micro").to(device) for k in (1, min(5, outputs))]
    loader: DataLoader = DataLoader(images, batch_size, num_workers=workers)
    begin = time.perf_counter()
    with eval_mode(model), torch.inference_mode():
        for batch, labels in tqdm(loader, "evaluating", unit="batch", leave=False, disable=not progress):
            logits = model(batch.to(weight))
            for metric in metrics:
                metric.update(logits, indices[labels.to(device)])
    top1, top5 = (100 * metric.compute().item() for metric in metrics)
    return Accuracy(top1, top5, len(images), len(images) / (time.perf_counter() - begin))


def labelled_batches(
    folder: str | Path, model: nn.Module, count: int = 1024, input_size: InputSize | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of ``count`` images ``folder/CLASS/*`` (or ``folder/train/CLASS/*``) and of the outputs they belong to.

    Images (N, C, H, W) are prepared as for :func:`evaluate` and spread evenly over the classes, which each batch mixes;
    classes are matched as there.

    Args:
        input_size: (C, H, W), (H, W) or one side in place of the configured one.

    Raises:
        FileNotFoundError: no folder of images.
        ValueError: ``count`` below 1, classes that do not fit, or a file that is no image.
    """
    if count < 1:
        raise ValueError(f"{count} labelled images: at least 1 is needed")
    preprocessing = preprocessing_of(model, input_size)
    training = Path(folder) / "train"
    images = _class_folders(training if training.is_dir() else Path(folder), preprocessing)
    indices = torch.tensor(_indices(images, preprocessing.classes, _outputs(model, preprocessing)))
    chosen = [i * len(images) // min(count, len(images)) for i in range(min(count, len(images)))]
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0)).tolist()
    for batch, labels in DataLoader(Subset(images, [chosen[i] for i in order]), 32):
        yield batch, indices[labels]


def _class_folders(root: Path, preprocessing: Preprocessing) -> ClassFolders:
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r}")
    channels, transform = preprocessing.size[0], preprocessing.transform()
    return ClassFolders(root, transform, loader=lambda path: open_image(path, channels))


def _outputs(model: nn.Module, preprocessing: Preprocessing) -> int:
    output = output_for_one_image(model, preprocessing.size)
    if not isinstance(output, Tensor) or output.ndim != 2:
        actual = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"{type(model).__name__} is no classifier: it gives {actual} for one image")
    if preprocessing.classes and len(preprocessing.classes) != output.shape[1]:
        raise ValueError(
            f"the model gives {output.shape[1]} outputs and was saved with {len(preprocessing.classes)} names"
        )
    return output.shape[1]


def _indices(images: ClassFolders, classes: Sequence[str], outputs: int) -> list[int]:
    """Of each folder, the output that stands for it."""
    folders, root = images.classes, images.root
    if classes:
        foreign = [name for name in folders if name not in classes]
        if foreign:
            raise ValueError(f"{root} has folders {foreign[:5]}; the model's classes are {', '.join(classes[:10])}")
        return [classes.index(name) for name in folders]
    if len(folders) != outputs:
        raise ValueError(f"{root} has {len(folders)} class folders, the model {outputs} outputs and no names for them")
    return list(range(outputs))


@dataclass(frozen=True)
class Prediction:
    """Of one image, the likeliest classes with their probabilities, best first."""

    path: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(model: nn.Module, paths: Iterable[str | Path], *, top: int = 5) -> list[Prediction]:
    """The ``top`` likeliest classes of each image; by number where the model was saved without names.

    Raises:
        FileNotFoundError, ValueError: a file that does not exist, or is no image; a model that is no classifier.
    """
    preprocessing = preprocessing_of(model)
    transform, weight = preprocessing.transform(), first_weight(model)
    count = min(top, _outputs(model, preprocessing))
    predictions, files = [], list(paths)
    with eval_mode(model), torch.inference_mode():
        for path in tqdm(files, "predicting", unit="image", leave=False, disable=len(files) < MANY):
            image = transform(open_image(path, preprocessing.size[0]))[None].to(weight)
            best = model(image)[0].float().softmax(0).topk(count)
            classes = tuple(
                preprocessing.classes[i] if preprocessing.classes else str(i) for i in best.indices.tolist()
            )
            predictions.append(Prediction(str(path), classes, tuple(best.values.tolist())))
    return predictions


def prediction_table(predictions: Sequence[Prediction]) -> str:
    """Predictions as text, a line each."""
    rows = [
        (
            prediction.path,
            ", ".join(
                f"{n} {100 * p:.1f} %" for n, p in zip(prediction.classes, prediction.probabilities, strict=True)
            ),
        )
        for prediction in predictions
    ]
    return table(("image", "classes"), rows)
