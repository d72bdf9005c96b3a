"""Time a network before and after surgery, and with its sites for free: the floor that no kernel can go below."""

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgery.bench.timing import Timing, interleaved
from surgery.core.errors import check_choice
from surgery.core.surgery_layer import SurgeryLayer

MODES = ("eager", "compile", "cudagraph", "onnx")
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


@dataclass(frozen=True)
class Setting:
    """One way to run a network.

    Attributes:
        mode: ``eager``, ``compile`` (torch.compile), ``cudagraph`` (a captured eager step) or ``onnx`` (ONNX Runtime).
        threads: of the CPU; None leaves them.
        training: time forward, backward and an SGD step instead of inference.
    """

    batch: int = 1
    mode: str = "eager"
    dtype: str = "float32"
    layout: str = "channels_last"
    threads: int | None = None
    device: str = "cpu"
    training: bool = False

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("layout", self.layout, LAYOUTS)
        if self.batch < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError(f"batch={self.batch} and threads={self.threads}: positive numbers are needed")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r}: this machine has no CUDA device")
        if self.mode == "cudagraph" and not self.device.startswith("cuda"):
            raise ValueError(f"mode='cudagraph' needs device='cuda', not {self.device!r}")
        if self.mode == "onnx" and (self.training or self.device != "cpu" or self.dtype != "float32"):
            raise ValueError("mode='onnx' is for inference in float32 on the CPU")


class Free(nn.Module):
    """Stands for a site and costs nothing: hands out what the site gave once, or slices of its input.

    The slices are for ONNX Runtime, which would compute ahead all that follows a constant. A site may take and give one
    map or any tree of maps.
    """

    def __init__(self, output: Any, stride: tuple[int, ...], sliced: bool) -> None:
        super().__init__()
        maps, self.structure = pytree.tree_flatten(output)
        self.count, self.stride, self.sliced = len(maps), stride, sliced
        for number, tensor in enumerate(maps):
            self.register_buffer(f"output{number}", tensor.detach().clone(), persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        maps = [self.get_buffer(f"output{number}") for number in range(self.count)]
        if self.sliced:
            inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            maps = [self._slice(inputs, tensor) for tensor in maps]
        return pytree.tree_unflatten(maps, self.structure)

    def _slice(self, inputs: list[Tensor], output: Tensor) -> Tensor:
        """A part of the first input of the wanted size that has one; where none has, the output plus nothing of it."""
        for x in inputs:
            part = x[:, : output.shape[1], :: self.stride[0], :: self.stride[1]] if x.dim() == 4 else x
            if part.shape[1:] == output.shape[1:]:
                return part
        return output + 0 * inputs[0].flatten()[0]


def bench_network(
    original: nn.Module,
    converted: nn.Module,
    setting: Setting,
    input_size: tuple[int, ...] = (3, 224, 224),
    *,
    seconds: float = 10.0,
) -> Timing:
    """Time ``original``, ``converted`` and ``free`` in turn in this process.

    Args:
        original, converted: with weights; copied, so neither changes.
        input_size: (C, H, W).
        seconds: for all rounds together.

    Raises:
        ValueError: a model without a converted site.
    """
    with threads_set_to(setting.threads):
        x = _placed(torch.randn(setting.batch, *input_size), setting)
        models = {name: _prepared(model, setting) for name, model in (("original", original), ("converted", converted))}
        models["free"] = with_free_sites(models["converted"], x, sliced=setting.mode == "onnx")
        with tempfile.TemporaryDirectory() as folder:
            steps = {name: _step(name, model, x, setting, Path(folder)) for name, model in models.items()}
            label = f"batch {setting.batch} {setting.mode} {setting.dtype}"
            return interleaved(steps, seconds=seconds, device=setting.device, label=label)


def with_free_sites(model: nn.Module, x: Tensor, sliced: bool = False) -> nn.Module:
    """A copy of a converted model whose surgery layers are :class:`Free`; run once on ``x`` to see their outputs."""
    outputs: dict[str, Any] = {}
    sites = {name: module for name, module in model.named_modules() if isinstance(module, SurgeryLayer)}
    if not sites:
        raise ValueError("the model has no converted site: there is nothing to compare")
    hooks = [
        module.register_forward_hook(lambda _, given, result, name=name: outputs.update({name: result}))
        for name, module in sites.items()
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    free = copy.deepcopy(model)
    for name, output in outputs.items():
        free.set_submodule(name, Free(output, getattr(sites[name], "stride", (1, 1)), sliced))
    return free


@contextlib.contextmanager
def threads_set_to(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _placed(x: Tensor, setting: Setting) -> Tensor:
    return x.to(setting.device, DTYPES[setting.dtype], memory_format=LAYOUTS[setting.layout])


def _prepared(model: nn.Module, setting: Setting) -> nn.Module:
    ready = copy.deepcopy(model).to(setting.device, DTYPES[setting.dtype])
    return ready.to(memory_format=LAYOUTS[setting.layout]).train(setting.training)


def _step(name: str, model: nn.Module, x: Tensor, setting: Setting, folder: Path) -> Callable[[], object]:
    if setting.mode == "onnx":
        return _onnx_step(model, x, folder / f"{name}.onnx", setting)
    run = torch.compile(model) if setting.mode == "compile" else model
    step = _training_step(run, model, x) if setting.training else _inference_step(run, x)
    return _captured(step) if setting.mode == "cudagraph" else step


def _inference_step(run: Callable[[Tensor], Any], x: Tensor) -> Callable[[], object]:
    def step() -> object:
        with torch.no_grad():
            return run(x)

    return step


def _training_step(run: Callable[[Tensor], Any], model: nn.Module, x: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    with torch.no_grad():
        classes = model(x).shape[-1]
    target = torch.randint(classes, (len(x),), device=x.device)

    def step() -> object:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(run(x).float(), target).backward()
        return optimizer.step()

    return step


def _captured(step: Callable[[], object]) -> Callable[[], object]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _onnx_step(model: nn.Module, x: Tensor, path: Path, setting: Setting) -> Callable[[], object]:
    import onnxruntime

    import surgery

    surgery.export(model, path, input_size=tuple(x.shape[1:]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.contiguous().numpy()}
    return lambda: session.run(None, feed)
