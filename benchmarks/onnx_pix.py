"""Which ONNX operators a PiX layer becomes: formulations against the original network, in turn, in one process.

    OMP_NUM_THREADS=1 python benchmarks/onnx_pix.py --model resnet50 --zeta 4 --size 224 --batch 1 --threads 1

Prints the median milliseconds of each file in ONNX Runtime (CPU, all optimisations) and its ratio to the original's.
``reduced axis`` for contiguous subsets and ``chunks`` for strided ones are what ``surgery.export`` writes.
"""

import argparse
import copy
import functools
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy
import onnxruntime
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgery
from surgery.methods.pix.layer import PiX
from surgery.methods.pix.lowering import ComposedPiX

WARM_UP = 3
Reductions = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # (x, subsets) → (max, mean)


class Formulation(ComposedPiX):
    """A PiX of evenly sized subsets with max and mean computed in one of the ways below."""

    def __init__(self, pix: PiX, reductions: Reductions) -> None:
        super().__init__(pix)
        self.reductions = reductions

    def _extreme(self, x: Tensor) -> Tensor:
        return self.reductions(x, self.subsets)[0]

    def _mean(self, x: Tensor) -> Tensor:
        return self.reductions(x, self.subsets)[1]


class Nothing(nn.Module):
    """The floor: the next layer's input for free, without descriptor, predictor and fusion."""

    def __init__(self, pix: PiX) -> None:
        super().__init__()
        self.subsets, self.stride = pix.out_channels, pix.stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.subsets, :: self.stride[0], :: self.stride[1]]


def strided_slices(x: Tensor, subsets: int) -> tuple[Tensor, Tensor]:
    ratio = x.shape[1] // subsets
    parts = [x[:, offset::ratio] for offset in range(ratio)]
    return functools.reduce(torch.maximum, parts), functools.reduce(torch.add, parts) / ratio


def max_pool(x: Tensor, subsets: int) -> tuple[Tensor, Tensor]:
    groups = x.unflatten(1, (subsets, -1))
    return F.max_pool3d(groups, (groups.shape[2], 1, 1)).squeeze(2), groups.mean(2)


def both_pools(x: Tensor, subsets: int) -> tuple[Tensor, Tensor]:
    groups = x.unflatten(1, (subsets, -1))
    window = (groups.shape[2], 1, 1)
    return F.max_pool3d(groups, window).squeeze(2), F.avg_pool3d(groups, window).squeeze(2)


def reduced_outer_axis(x: Tensor, subsets: int) -> tuple[Tensor, Tensor]:
    groups = x.unflatten(1, (-1, subsets))
    return groups.amax(1), groups.mean(1)


def networks(name: str, zeta: int) -> dict[str, nn.Module]:
    """The original and the converted network in every formulation."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    contiguous = surgery.convert(model, zeta=zeta)
    strided = surgery.convert(model, zeta=zeta, grouping="strided")
    return {
        "original": model,
        "without the sites (floor)": _with(contiguous, Nothing),
        "contiguous: reduced axis": contiguous,
        "contiguous: strided slices": _with(contiguous, lambda pix: Formulation(pix, strided_slices)),
        "contiguous: max-pool, reduced mean": _with(contiguous, lambda pix: Formulation(pix, max_pool)),
        "contiguous: max-pool, average-pool": _with(contiguous, lambda pix: Formulation(pix, both_pools)),
        "strided: chunks": strided,
        "strided: reduced axis": _with(strided, lambda pix: Formulation(pix, reduced_outer_axis)),
    }


def _with(model: nn.Module, make: Callable[[PiX], nn.Module]) -> nn.Module:
    changed = copy.deepcopy(model)
    for name, module in list(changed.named_modules()):
        if isinstance(module, PiX):
            changed.set_submodule(name, make(module))
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    for name, default in (("zeta", 4), ("size", 224), ("batch", 1), ("threads", 1), ("rounds", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, network in networks(args.model, args.zeta).items():
            files[name] = Path(folder) / f"{len(files)}.onnx"
            surgery.export(network, files[name], input_size=(3, args.size, args.size))
        # timed in a process that has done nothing else, as where a file is used: after exports it is 2 points slower
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            medians = fresh.submit(timed, files, (args.batch, 3, args.size, args.size), args.threads, args.rounds)
            show(medians.result())


def timed(files: dict[str, Path], shape: tuple[int, ...], threads: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of each file, run in turn."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {
        name: onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for name, file in files.items()
    }
    image = numpy.random.default_rng(0).standard_normal(shape, numpy.float32)
    times: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(rounds + WARM_UP):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {"image": image})
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(numpy.median(values[WARM_UP:])) for name, values in times.items()}


def show(medians: dict[str, float]) -> None:
    for name, median in medians.items():
        print(f"{name:36}{median:8.2f} ms  {median / medians['original']:.3f}")


if __name__ == "__main__":
    main()
