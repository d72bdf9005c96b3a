"""Single-shot channel pruning without fine-tuning: accuracy against the share of multiply-accumulates that is left.

    for seed in 0 1 2; do
        python finetune.py recipes/cifar10.yaml output=runs/seed$seed seed=$seed baseline.epochs=8 finetune.epochs=0 \\
            surgery.calibrate=0 surgery.match=false
    done
    python benchmarks/pruning_curve.py --networks runs/seed*/baseline.safetensors --data cifar10 --output runs/curve

--data holds {train,test}/CLASS/*, classes sorted in the order of the networks' outputs. Scores are computed from
--images training images (of each class as many), accuracies on --test-images of the test images (all by default).
``sfvr`` knows no image, ``sfvr (images)`` no label, ``taylor`` images and labels; ``random`` is drawn three times.
Every score is tried under each of --rules:

    global              channels of all layers are compared by their scores (for sfvr as published)
    global-normalised   by their scores divided by the mean of their axis
    uniform             the same share of every axis goes

--norms measures the running statistics of every BatchNorm again on those images, --calibrate fits the layers behind the
pruned ones to the original (``surgery.calibrate``); both are reported beside the pruned network as it is.

Below --output: pruning_curve.json, .md and .png. Each accuracy is written when it is known, and the same command goes
on where it was stopped. --jobs N prunes N networks at a time.
"""

import argparse
import copy
import hashlib
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import surgery
from surgery.core.atomic_file import write_atomically
from surgery.training.outcome import write_figure
from surgery.vision.preprocessing import preprocessing_of

METHODS = ("sfvr", "sfvr (images)", "l1", "taylor", "random")
RULES: dict[str, dict[str, Any]] = {
    "global": {"rule": "global", "normalise": False},
    "global-normalised": {"rule": "global", "normalise": True},
    "uniform": {"rule": "uniform"},
}
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
DRAWS = 3
BATCH = 250
COLOURS = dict(zip(METHODS, ("tab:blue", "tab:cyan", "tab:orange", "tab:green", "tab:gray"), strict=True))
TITLES = {"": "as pruned", "norms": "BatchNorms measured again", "calibrated": "calibrated in closed form"}
LINES = dict(zip(RULES, ("-", ":", "--"), strict=True))


@dataclass(frozen=True)
class Setting:
    """What every point of a curve has in common; points of another setting are not gone on with.

    Attributes:
        networks: SHA-256 of each file.
        images: training images that scores and statistics are computed from.
        test_images: that judge; None for all.
        include: patterns of the layers that are pruned; all by default.
    """

    networks: tuple[str, ...]
    images: int
    test_images: int | None
    include: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """One way to prune: a score, a rule, and for ``random`` which draw."""

    method: str
    rule: str
    draw: int = 0

    def plan(self, network: nn.Module, share: float, train: "Labelled", include: Sequence[str]) -> surgery.Plan:
        """What leaves a share of a network's multiply-accumulates."""
        options = {"macs": share, "include": tuple(include), **RULES[self.rule]}
        if self.method == "random":
            options["seed"] = self.draw
        images = list(train.batches()) if self.method in ("sfvr (images)", "taylor") else None
        return surgery.plan(network, self.method.partition(" ")[0], images=images, **options)


@dataclass(frozen=True)
class Point:
    """One measured accuracy.

    Attributes:
        network: position among the files.
        recovery: "" for the pruned network as it is, "norms" or "calibrated".
        share: of the original's multiply-accumulates that was asked for; 1.0 is the original.
        macs: the share that is left.
        accuracy: top-1, in percent.
    """

    network: int
    method: str
    rule: str
    draw: int
    recovery: str
    share: float
    macs: float
    accuracy: float


@dataclass(frozen=True)
class Labelled:
    """Images (N, C, H, W), normalised, float32, and their classes (N,), int64."""

    images: Tensor
    classes: Tensor

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.images.split(BATCH), self.classes.split(BATCH), strict=True)


def read_images(folder: Path, transform: Any, count: int | None) -> Labelled:
    """Images of a folder of class folders: of each class as many, drawn by lot with seed 0."""
    dataset = ImageFolder(folder, transform)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    by_class: list[list[int]] = [[] for _ in dataset.classes]
    for index in order:
        by_class[dataset.targets[index]].append(index)
    ranked = sorted((rank, index) for members in by_class for rank, index in enumerate(members))
    chosen = [index for _, index in ranked[:count]]
    pairs = [dataset[index] for index in tqdm(chosen, f"reading {folder.name}", leave=False)]
    return Labelled(torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs]))


@torch.inference_mode()
def accuracy(network: nn.Module, test: Labelled) -> float:
    """Top-1 in percent, float32."""
    folded = surgery.optimize_for_inference(network.eval(), input_size=tuple(test.images.shape[1:]))
    right = sum(
        int((folded(images.contiguous(memory_format=torch.channels_last)).argmax(1) == classes).sum())
        for images, classes in test.batches()
    )
    return 100 * right / len(test.classes)


@torch.no_grad()
def measure_norms(network: nn.Module, images: Labelled) -> nn.Module:
    """A copy whose BatchNorms hold the statistics of these images, mean over batches."""
    network = copy.deepcopy(network).eval()
    for norm in (module for module in network.modules() if isinstance(module, _BatchNorm)):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch, _ in images.batches():
        network(batch)
    return network.eval()


class Curve:
    """The points of one network, kept in a file."""

    def __init__(self, args: argparse.Namespace, number: int) -> None:
        self.args, self.number = args, number
        self.file = args.output / f"network{number}.json"
        self.points = _points(self.file, _setting(args))
        self._known = {astuple(point)[:-2] for point in self.points}

    def measure(self) -> list[Point]:
        """Measure what is asked for and not known yet; returns all points."""
        if asked := [task for task in self._tasks() if task not in self._known]:
            self._prepare()
        for task in tqdm(asked, f"network {self.number}", unit="point", position=self.number, leave=False):
            _, method, rule, draw, recovery, share = task
            pruned = self._network(Variant(method, rule, draw), share, recovery)
            macs = surgery.cost(pruned, self.input_size).macs / self.original_macs
            self._keep(Point(*task, macs=macs, accuracy=accuracy(pruned, self.test)))
        return self.points

    def _tasks(self) -> list[tuple[Any, ...]]:
        recoveries = ["", *(["norms"] if self.args.norms else []), *(["calibrated"] if self.args.calibrate else [])]
        return [(self.number, "original", "", 0, "", 1.0)] + [
            (self.number, method, rule, draw, recovery, share)
            for rule in self.args.rules
            for method in self.args.methods
            for share in self.args.shares
            for draw in range(DRAWS if method == "random" else 1)
            for recovery in recoveries
        ]

    def _prepare(self) -> None:
        network = surgery.load(self.args.networks[self.number]).eval()
        self.network = network.to(memory_format=torch.channels_last)
        transform = preprocessing_of(self.network).transform()
        self.train = read_images(self.args.data / "train", transform, self.args.images)
        self.test = read_images(self.args.data / "test", transform, self.args.test_images)
        self.input_size = tuple(self.test.images.shape[1:])
        self.original_macs = surgery.cost(self.network, self.input_size).macs

    def _network(self, variant: Variant, share: float, recovery: str) -> nn.Module:
        if variant.method == "original":
            return self.network
        pruned = copy.deepcopy(self.network)
        kept = variant.plan(self.network, share, self.train, self.args.include).carry_out(pruned)
        if recovery == "calibrated":
            surgery.calibrate(pruned, self.network, self.train.images, kept=kept, images=None, progress=False)
        return measure_norms(pruned, self.train) if recovery == "norms" else pruned

    def _keep(self, point: Point) -> None:
        self.points.append(point)
        content = {"setting": asdict(_setting(self.args)), "points": [asdict(known) for known in self.points]}
        write_atomically(self.file, json.dumps(content, indent=1).encode())


def _setting(args: argparse.Namespace) -> Setting:
    digests = tuple(hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in args.networks)
    return Setting(digests, args.images, args.test_images, tuple(args.include))


def _points(file: Path, setting: Setting) -> list[Point]:
    """What a file holds; raises ValueError where it was measured with another setting."""
    if not file.exists():
        return []
    content = json.loads(file.read_text())
    if content["setting"] != json.loads(json.dumps(asdict(setting))):
        raise ValueError(f"{file} was measured with other networks, images or patterns: choose another --output")
    return [Point(**point) for point in content["points"]]


def _measure(args: argparse.Namespace, number: int) -> list[Point]:
    """Top level, so that another process can run it."""
    torch.set_num_threads(args.threads)
    return Curve(args, number).measure()


def summary(points: Sequence[Point]) -> dict[tuple[str, str, str], dict[float, tuple[float, float]]]:
    """Mean and standard deviation of the accuracy over networks, by (method, rule, recovery) and share.

    Of several draws a network has their mean.
    """
    rows: dict[tuple[str, str, str], dict[float, dict[int, list[float]]]] = {}
    for point in points:
        by_network = rows.setdefault((point.method, point.rule, point.recovery), {}).setdefault(point.share, {})
        by_network.setdefault(point.network, []).append(point.accuracy)
    return {
        key: {share: _mean_and_deviation([statistics.fmean(a) for a in of.values()]) for share, of in shares.items()}
        for key, shares in rows.items()
    }


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def markdown(points: Sequence[Point]) -> str:
    """A table with a row for each method, rule and recovery, and a column for each share."""
    rows = summary(points)
    mean, deviation = rows.pop(("original", "", ""))[1.0]
    shares = sorted({share for row in rows.values() for share in row}, reverse=True)
    networks = len({point.network for point in points})
    most = max(abs(point.macs - point.share) for point in points)
    lines = [
        f"{networks} networks, {mean:.2f} ± {deviation:.2f} % as trained; mean ± standard deviation over them; the "
        f"share of multiply-accumulates that is left is met within {100 * most:.1f} points.",
        "",
        "| score | rule | then | " + " | ".join(f"{share:.0%}".replace("%", " %") for share in shares) + " |",
        "|---" * (3 + len(shares)) + "|",
    ]
    for (method, rule, recovery), row in rows.items():
        cells = [f"{row[share][0]:.1f} ± {row[share][1]:.1f}" if share in row else "" for share in shares]
        lines.append(f"| {method} | {rule} | {recovery or 'nothing'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, points: Sequence[Point]) -> None:
    """A panel for each recovery: means as lines, deviations as bands."""
    from matplotlib.figure import Figure

    rows = summary(points)
    original = rows.pop(("original", "", ""))[1.0]
    recoveries = list(dict.fromkeys(recovery for _, _, recovery in rows))
    figure = Figure(figsize=(1 + 5 * len(recoveries), 4.5), layout="constrained")
    for axes, recovery in zip(figure.subplots(1, len(recoveries), squeeze=False)[0], recoveries, strict=True):
        for (method, rule, _), row in ((key, row) for key, row in rows.items() if key[2] == recovery):
            by_share = sorted({1.0: original, **row}.items(), reverse=True)
            removed = [100 * (1 - share) for share, _ in by_share]
            means, deviations = zip(*(value for _, value in by_share), strict=True)
            style = {"color": COLOURS[method], "linestyle": LINES[rule]}
            axes.plot(removed, means, label=f"{method}, {rule}", marker="o", markersize=3, **style)
            low, high = ([m + sign * d for m, d in zip(means, deviations, strict=True)] for sign in (-1, 1))
            axes.fill_between(removed, low, high, color=COLOURS[method], alpha=0.12, linewidth=0)
        axes.set(title=TITLES[recovery], xlabel="multiply-accumulates removed (%)", ylabel="top-1 (%)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    write_figure(path, figure)


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        numbers = range(len(args.networks))
        if args.jobs > 1:
            with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
                measured = list(pool.map(_measure, [args] * len(numbers), numbers))
        else:
            measured = [_measure(args, number) for number in numbers]
    except (OSError, ValueError) as error:  # a file, a folder or a pattern that is not right, named in the message
        print(f"pruning_curve.py: {error}", file=sys.stderr)
        return 2
    points = [point for of_network in measured for point in of_network]
    content = {"setting": asdict(_setting(args)), "points": [asdict(point) for point in points]}
    text = markdown(points)
    write_atomically(args.output / "pruning_curve.json", json.dumps(content, indent=1).encode())
    write_atomically(args.output / "pruning_curve.md", f"{text}\n".encode())
    draw(args.output / "pruning_curve.png", points)
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", required=True, metavar="FILE", help="files of surgery.save")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="holds {train,test}/CLASS/*")
    parser.add_argument("--output", type=Path, default=Path("runs/pruning_curve"), metavar="FOLDER")
    parser.add_argument("--images", type=int, default=1024, metavar="N", help="training images (default: 1024)")
    parser.add_argument("--test-images", type=int, metavar="N", help="default: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--rules", nargs="+", choices=tuple(RULES), default=("global", "uniform"))
    parser.add_argument(
        "--shares", nargs="+", type=float, default=SHARES, metavar="SHARE", help="of the original's MACs"
    )
    parser.add_argument("--include", nargs="+", default=(), metavar="PATTERN", help="layers to prune (default: all)")
    parser.add_argument("--norms", action="store_true", help="measure BatchNorms' statistics again, too")
    parser.add_argument("--calibrate", action="store_true", help="calibrate in closed form, too")
    parser.add_argument("--threads", type=int, default=1, help="of each job (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="networks at a time, each in its own process")
    return parser


if __name__ == "__main__":
    sys.exit(main())
