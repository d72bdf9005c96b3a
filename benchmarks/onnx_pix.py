"""An exported PiX network against its original in ONNX Runtime and OpenVINO, in turn, in one process.

    OMP_NUM_THREADS=1 python benchmarks/onnx_pix.py --model resnet50 --zeta 4 --size 224 --batch 1 --threads 1

``chunks`` is what ``surgery.export`` writes, ``one branch`` what it writes with ``branches=`` from a calibrated start,
``runs`` what it writes where channels cannot be reordered; ``slices`` has slices of their inputs in place of the sites.
Random weights: times do not depend on them.
"""

import argparse
import copy
import statistics
import tempfile
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import surgery
from surgery.bench.networks import with_free_sites
from surgery.core.run_setting import Setting
from surgery.core.surgery_layer import SurgeryLayer
from surgery.core.timing import interleaved
from surgery.deploy.engines import prepared
from surgery.deploy.export import lowered
from surgery.deploy.one_branch import one_branch

ENGINES = (("onnxruntime", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"))


def networks(name: str, zeta: float, x: Tensor) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    original = timm.create_model(name).eval()
    converted = surgery.convert(original, zeta=zeta).eval()
    _start(converted, x)
    single = copy.deepcopy(converted)
    print(one_branch(single, [x]).get("one_branch", "no layer with one branch"))
    free = with_free_sites(converted, x, sliced=True)
    assert free is not None
    return {
        "original": original,
        "runs": lowered(copy.deepcopy(converted)),
        "chunks": converted,
        "one branch": single,
        "slices": free,
    }


def _start(model: nn.Module, x: Tensor) -> None:
    """Start every site as a calibration does: each image has the mean."""

    def start(layer: nn.Module, arguments: tuple[Tensor]) -> None:
        assert isinstance(layer, SurgeryLayer)
        observed = layer.observe(arguments[0])
        if observed is not None:
            layer.start(observed)

    layers = [layer for layer in model.modules() if isinstance(layer, SurgeryLayer)]
    hooks = [layer.register_forward_pre_hook(start) for layer in layers]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--zeta", type=float, default=4)
    parser.add_argument("--seconds", type=float, default=20, help="per engine (default: 20)")
    for name, default in (("size", 224), ("batch", 1), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    x = torch.randn(args.batch, 3, args.size, args.size)
    models = networks(args.model, args.zeta, x)
    with tempfile.TemporaryDirectory() as folder:
        for mode, dtype in ENGINES:
            setting = Setting(args.batch, mode, dtype, threads=args.threads)
            steps = {name: prepared(model, x, setting, Path(folder)) for name, model in models.items()}
            show(mode, dtype, interleaved(steps, seconds=args.seconds, device="cpu", label=mode).seconds)


def show(mode: str, dtype: str, seconds: dict[str, list[float]]) -> None:
    """Median milliseconds, and the median ratio of each round to the original's."""
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds["original"], strict=True))
        print(f"{mode:12}{dtype:10}{name:12}{1e3 * statistics.median(times):8.2f} ms  {ratio:.3f}")


if __name__ == "__main__":
    main()
