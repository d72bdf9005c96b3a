"""MobileNet-v2 made cheaper without a label: by a method at a budget, calibrated, and made to mimic the original.

    python benchmarks/mobilenet_pruning.py --weights FILE --images FOLDER --macs 0.77
    python benchmarks/mobilenet_pruning.py --weights FILE --images FOLDER --method auto --macs 0.77 --mimic 400
    python benchmarks/mobilenet_pruning.py --weights FILE --images FOLDER --method auto --latency 0.8 --engine openvino

FOLDER holds a folder for each class, in the order of the model's classes when sorted. Images with an even number
calibrate and the others judge, and then the other way round.
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import surgery
from surgery.core.run_setting import Setting
from surgery.core.table import table
from surgery.deploy.engines import timed_in_turn
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
    torch.set_num_threads(arguments.threads)
    rows = [_judged(model, halves[draw][0], halves[1 - draw], arguments) for draw in draws]
    for draw, cells in zip(draws, rows, strict=True):
        print(f"images {draw}, {draw + 2}, {draw + 4}, … calibrate ({len(halves[draw][0])}), the others judge")
        print(table(("", "MACs", "top-1", "seconds"), cells, right=(1, 2, 3)))
    judged = [[float(row[2].rstrip(" %")) for row in cells if row[2]] for cells in rows]
    means = np.mean(judged, axis=0)
    print("mean over the draws: " + ", ".join(f"{row[0]} {m:.1f} %" for row, m in zip(rows[0], means, strict=False)))


def _halves(images: ImageFolder) -> list[tuple[Tensor, Tensor]]:
    """Images and labels with an even and with an odd number."""
    halves = []
    for first in (0, 1):
        pairs = [images[number] for number in tqdm(range(first, len(images), 2), "reading images", leave=False)]
        halves.append((torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])))
    return halves


def _judged(
    model: nn.Module, seen: Tensor, judging: tuple[Tensor, Tensor], arguments: argparse.Namespace
) -> list[tuple[str, str, str, str]]:
    macs = graph_cost(record(model)).macs
    rows = [("original", "1.000", f"{_accuracy(model, *judging):.1f} %", "")]

    def add(stage: str, network: nn.Module, begin: float) -> None:
        left, seconds = f"{graph_cost(record(network)).macs / macs:.3f}", time.perf_counter() - begin
        rows.append((stage, left, f"{_accuracy(network, *judging):.1f} %", f"{seconds:.0f}"))

    begin = time.perf_counter()
    planned = surgery.plan(model, arguments.method, images=seen.split(32), **_budget(arguments))
    print("\n".join(decision.note for decision in planned.decisions if decision.note))
    teacher = surgery.match(model, planned)
    smaller = copy.deepcopy(teacher)
    kept = planned.carry_out(smaller)
    add(arguments.method, smaller, begin)
    begin = time.perf_counter()
    held = torch.arange(len(seen)) % 7 == 0 if arguments.mimic else torch.zeros(len(seen), dtype=torch.bool)
    surgery.calibrate(smaller, teacher, seen[~held], kept=kept, rows_per_feature=arguments.rows)
    add("calibrated", smaller, begin)
    if arguments.mimic:
        begin = time.perf_counter()
        print(surgery.mimic(smaller, teacher, seen[~held], held=seen[held], steps=arguments.mimic))
        add("mimicked", smaller, begin)
    if arguments.latency:
        rows.append((f"time, {arguments.engine}", _time_share(model, smaller, arguments.engine), "", ""))
    return rows


def _budget(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.latency is None:
        return {"macs": arguments.macs}
    return {"latency": arguments.latency, "engine": arguments.engine, "threads": 1}


def _time_share(model: nn.Module, smaller: nn.Module, engine: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        setting, networks = Setting(mode=engine, threads=1), {"original": model, "smaller": smaller}
        timing = timed_in_turn(networks, torch.randn(1, 3, 224, 224), setting, Path(folder), 20)
    return f"{timing.ratio('smaller', 'original')[0]:.3f}"


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
    parser.add_argument("--latency", type=float, help="share of the time that is left, in place of --macs")
    parser.add_argument("--engine", default="eager", help="that --latency is of")
    parser.add_argument("--method", default="reconstruction", help="default: reconstruction")
    parser.add_argument("--mimic", type=int, default=0, help="steps of surgery.mimic after calibration")
    parser.add_argument("--rows", type=float, default=6.0, help="rows_per_feature of the calibration")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draws", type=int, nargs="*", choices=(0, 1), help="which halves calibrate (default: both)")
    return parser


if __name__ == "__main__":
    main()
