"""Channels of MobileNet-v2 pruned by what the others cannot make up for, and calibrated: no label, no gradient.

    python benchmarks/mobilenet_pruning.py --weights FILE --images FOLDER --macs 0.77

FOLDER holds a folder for each class, in the order of the model's classes when sorted. Images with an even number
calibrate and the others judge, and then the other way round.
"""

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import surgery
from surgery.core.table import table
from surgery.graph import record
from surgery.graph.operation_cost import graph_cost


def main() -> None:
    arguments = _parser().parse_args()
    model = timm.create_model(arguments.name, pretrained=arguments.weights is None)
    if arguments.weights:
        model.load_state_dict(load_file(arguments.weights))
    model.eval().to(memory_format=torch.channels_last)
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    halves = _halves(ImageFolder(arguments.images, transform))
    draws = arguments.draws or (0, 1)
    rows = [_judged(model, halves[draw][0], halves[1 - draw], arguments.macs) for draw in draws]
    for draw, cells in zip(draws, rows, strict=True):
        print(f"images {draw}, {draw + 2}, {draw + 4}, … calibrate ({len(halves[draw][0])}), the others judge")
        print(table(("", "MACs", "top-1", "seconds"), cells, right=(1, 2, 3)))
    means = np.mean([[float(row[2].rstrip(" %")) for row in cells] for cells in rows], axis=0)
    print("mean over the draws: " + ", ".join(f"{row[0]} {m:.1f} %" for row, m in zip(rows[0], means, strict=True)))


def _halves(images: ImageFolder) -> list[tuple[Tensor, Tensor]]:
    """Images and labels with an even and with an odd number."""
    halves = []
    for first in (0, 1):
        pairs = [images[number] for number in tqdm(range(first, len(images), 2), "reading images", leave=False)]
        halves.append((torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])))
    return halves


def _judged(
    model: nn.Module, seen: Tensor, judging: tuple[Tensor, Tensor], share: float
) -> list[tuple[str, str, str, str]]:
    macs = graph_cost(record(model)).macs
    rows = [("original", "1.000", f"{_accuracy(model, *judging):.1f} %", "")]
    begin = time.perf_counter()
    smaller = copy.deepcopy(model)
    kept = surgery.plan(model, "reconstruction", macs=share, images=seen.split(32)).carry_out(smaller)
    seconds, left = time.perf_counter() - begin, f"{graph_cost(record(smaller)).macs / macs:.3f}"
    rows.append(("pruned", left, f"{_accuracy(smaller, *judging):.1f} %", f"{seconds:.0f}"))
    begin = time.perf_counter()
    surgery.calibrate(smaller, model, seen, kept=kept)
    seconds = time.perf_counter() - begin
    rows.append(("calibrated", left, f"{_accuracy(smaller, *judging):.1f} %", f"{seconds:.0f}"))
    return rows


@torch.inference_mode()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    outputs = [model(batch).argmax(1) for batch in tqdm(images.split(32), "judging", leave=False)]
    return 100 * float((torch.cat(outputs) == labels).double().mean())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="mobilenetv2_100", help="timm model (default: mobilenetv2_100)")
    parser.add_argument("--weights", help="safetensors of the model's state dict (default: timm's pretrained)")
    parser.add_argument("--images", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--macs", type=float, default=0.77, help="share that is left (default: 0.77)")
    parser.add_argument("--draws", type=int, nargs="*", choices=(0, 1), help="which halves calibrate (default: both)")
    return parser


if __name__ == "__main__":
    main()
