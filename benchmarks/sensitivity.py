"""How long a sensitivity takes, and what the sum of its losses says of mixtures.

    python benchmarks/sensitivity.py mobilenetv2_100 --weights FILE --images FOLDER --count 256 --mixtures 12

Prints the table of ``surgery.sensitivity``, how long it took, and for mixtures drawn at random the rank correlation
(Spearman) between the sum of their candidates' divergences and the divergence of the mixture carried out, with and
without calibration, on the images that judged. Without --images, noise is looked at: good for the time alone.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import surgery
from surgery.calibration import calibrate
from surgery.core.table import table
from surgery.graph import ModelGraph, record
from surgery.graph.skeleton import copied
from surgery.methods.auto.finalists import compared
from surgery.methods.planners.pruning.candidates import together
from surgery.planning.candidate import Candidate, conflict
from surgery.planning.rehearsal import transforms_of
from surgery.planning.selection import Selection
from surgery.sensitivity_analysis.images import split_images
from surgery.sensitivity_analysis.measure import SensitivitySpec, Workbench, with_options
from surgery.sensitivity_analysis.result import SensitivityRow
from surgery.transforms.carry_out import apply


def main() -> None:
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    model = timm.create_model(arguments.name)
    if arguments.weights:
        model.load_state_dict(load_file(arguments.weights))
    model.eval().to(memory_format=torch.channels_last)
    images = _images(model, arguments.images, arguments.count)
    begin = time.perf_counter()
    measured = surgery.sensitivity(model, images, count=None)
    print(measured)
    print(f"{len(measured.rows)} candidates in {(time.perf_counter() - begin) / 60:.1f} minutes")
    if arguments.mixtures:
        print(_against_truth(model, images, {row_key(row): row.kl for row in measured.rows}, arguments.mixtures))


def row_key(row: SensitivityRow) -> tuple[str, str, float]:
    return row.method, row.site, row.keep


def _against_truth(
    model: nn.Module, images: list[tuple[Tensor, Tensor]], losses: dict[tuple[str, str, float], float], count: int
) -> str:
    fit, judge = split_images(images)
    graph = record(model, tuple(fit.batches[0].shape[1:]))
    bench = Workbench(model, graph, fit, judge, SensitivitySpec(with_options(("reconstruction",))))
    candidates = bench.candidates("reconstruction", Selection())
    rows = []
    for chosen in tqdm(list(_mixtures(candidates, count)), "mixtures", leave=False):
        predicted = sum(losses[c.method, c.site, c.keep] for c in chosen)
        changed = copied(model)
        kept = apply(changed, transforms_of(together(graph, chosen)), choosing=True)
        calibrate(changed, model, fit.batches, kept=kept, images=None, progress=False)
        rows.append((len(chosen), predicted, compared(changed, model, judge).kl, _saved(graph, changed)))
    predicted, truth = (np.array([row[n] for row in rows]) for n in (1, 2))
    shown = [(n, f"{p:.3f}", f"{t:.3f}", f"{left:.3f}") for n, p, t, left in rows]
    header = ("changes", "sum of KL", "KL, calibrated", "MACs")
    return f"{table(header, shown, right=(0, 1, 2, 3))}\nrank correlation {spearmanr(predicted, truth).statistic:.2f}"


def _saved(graph: ModelGraph, changed: nn.Module) -> float:
    from surgery.planning.cost import graph_cost

    return graph_cost(record(changed, graph.input_shape)).macs / graph_cost(graph).macs


def _mixtures(candidates: list[Candidate], count: int) -> Iterator[list[Candidate]]:
    """Sets of candidates that do not exclude each other, of ever more of the sites, drawn by a fixed seed."""
    generator = np.random.default_rng(0)
    for share in np.linspace(0.2, 1.0, count):
        chosen: list[Candidate] = []
        for number in generator.permutation(len(candidates)):
            candidate = candidates[number]
            if generator.random() < share and not any(conflict(candidate, other) for other in chosen):
                chosen.append(candidate)
        yield chosen


def _images(model: nn.Module, folder: Path | None, count: int) -> list[tuple[Tensor, Tensor]]:
    config = resolve_data_config({}, model=model)
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(count, *config["input_size"], generator=generator)
        return [(batch, torch.zeros(len(batch), dtype=torch.int64)) for batch in noise.split(32)]
    photographs = ImageFolder(folder, create_transform(**config, is_training=False))
    numbers = range(0, 2 * count, 2)  # every other one: the rest judges elsewhere
    pairs = [photographs[number] for number in tqdm(numbers, "reading images", leave=False)]
    images, labels = torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])
    return list(zip(images.split(32), labels.split(32), strict=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="timm model")
    parser.add_argument("--weights", help="safetensors of its state dict (default: random ones)")
    parser.add_argument("--images", type=Path, help="folder of class folders (default: noise)")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mixtures", type=int, default=0, help="mixtures to carry out and calibrate")
    return parser


if __name__ == "__main__":
    main()
