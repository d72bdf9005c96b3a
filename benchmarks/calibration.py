"""What surgery takes and closed-form calibration gives back, on images with labels; no training.

    python benchmarks/calibration.py mobilenetv2_100 IMAGES --weights FILE --option norm=after

IMAGES holds a folder for each class, in the order of the model's classes when sorted. Of every class's images the ones
with an even number calibrate and the others judge (of all classes together, where each has one image).
"""

import argparse
import time
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import surgery
from surgery.core.table import table


def main() -> None:
    args = _parser().parse_args()
    torch.manual_seed(0)
    model = timm.create_model(args.name, pretrained=args.weights is None)
    if args.weights:
        model.load_state_dict(load_file(args.weights))
    model.eval()
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    images = ImageFolder(args.images, transform)
    calibrating, judging = (torch.utils.data.Subset(images, range(first, len(images), 2)) for first in (0, 1))
    calibration_images = torch.stack(
        [calibrating[i][0] for i in tqdm(range(min(args.count, len(calibrating))), "images", leave=False)]
    )
    options = {"zeta": args.zeta, **{key: yaml.safe_load(value) for key, value in args.option}}
    rows = [("original", _accuracy(model, judging), 0.0)]
    for name, arguments in _variants(calibration_images).items():
        begin = time.perf_counter()
        converted = surgery.convert(model, strict=True, **arguments, **options)
        rows.append((name, _accuracy(converted.eval(), judging), time.perf_counter() - begin))
    cells = [(name, f"{accuracy:.1f} %", f"{seconds:.0f} s") for name, accuracy, seconds in rows]
    print(f"{len(calibration_images)} images calibrate, {len(judging)} others judge; {torch.get_num_threads()} threads")
    print(table(("", "top-1", "with evaluation"), cells, right=(1, 2)))


def _variants(calibration_images: Tensor) -> dict[str, dict[str, Any]]:
    return {
        "converted": {},
        "matched": {"match": True},
        "calibrated": {"calibrate": calibration_images, "match": False},
        "matched and calibrated": {"calibrate": calibration_images},
    }


@torch.inference_mode()
def _accuracy(model: nn.Module, images: torch.utils.data.Dataset[Any]) -> float:
    classes = model.num_classes
    assert isinstance(classes, int)
    metric = MulticlassAccuracy(classes, average="micro")
    for batch, labels in tqdm(torch.utils.data.DataLoader(images, 32), "judging", leave=False):
        metric.update(model(batch), labels)
    return 100 * float(metric.compute())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="timm model")
    parser.add_argument("images", type=Path, help="folder of class folders")
    parser.add_argument("--weights", help="safetensors of the model's state dict (default: timm's pretrained)")
    parser.add_argument("--count", type=int, default=1024, help="images that calibrate, at most (default: 1024)")
    parser.add_argument("--zeta", type=int, help="as for surgery.convert")
    parser.add_argument(
        "--option", action="append", default=[], type=lambda text: tuple(text.split("=", 1)), metavar="KEY=VALUE"
    )
    return parser


if __name__ == "__main__":
    main()
