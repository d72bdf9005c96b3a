"""What runs a network: PyTorch as it is or compiled, ONNX Runtime, OpenVINO. One function readies any of them."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgery.core.extras import check_extra
from surgery.core.run_setting import DTYPES, LAYOUTS, Setting, threads_set_to
from surgery.core.timing import Timing, interleaved
from surgery.deploy.export import export

Step = Callable[[], object]


def prepared(model: nn.Module, x: Tensor, setting: Setting, folder: Path) -> Step:
    """A function that runs a copy of a network once, in eval mode, by the setting's engine.

    Args:
        model: any that takes one tensor; not changed.
        x: (N, C, H, W), an image batch or a feature map; brought into the setting's dtype and layout.
        folder: where files for other engines are written; it must exist as long as the function is used.

    Raises:
        MissingPackageError: the engine is not installed.
        ExportError: the network cannot be written for it.
    """
    check_engine(setting.mode)
    if setting.mode in FILE_ENGINES:
        return FILE_ENGINES[setting.mode](_exported(model, x, folder), x.float().contiguous(), setting)
    ready = copy.deepcopy(model).to(setting.device, DTYPES[setting.dtype])
    ready = ready.to(memory_format=LAYOUTS[setting.layout]).eval()
    x = placed(x, setting)
    run = torch.compile(ready) if setting.mode == "compile" else ready
    step = _in_torch(run, x)
    return captured(step) if setting.mode == "cudagraph" else step


def timed_in_turn(
    networks: Mapping[str, nn.Module], x: Tensor, setting: Setting, folder: Path, seconds: float
) -> Timing:
    """Time networks by name, in turn, by the setting's engine.

    Args:
        x: (N, C, H, W) that all take; brought into the setting's dtype and layout.
        folder: for files of other engines.
        seconds: for all rounds together, at least seven.
    """
    with threads_set_to(setting.threads):
        steps = {}
        for name, network in networks.items():
            (folder / name).mkdir()
            steps[name] = prepared(network, x, setting, folder / name)
        return interleaved(steps, seconds=seconds, device=setting.device, label=f"timing, {setting.mode}")


def check_engine(mode: str) -> None:
    """Raise MissingPackageError where an engine is not installed."""
    if mode == "onnxruntime":
        check_extra("export", "engine 'onnxruntime'")
    elif mode == "openvino":
        check_extra("openvino", "engine 'openvino'")


def placed(x: Tensor, setting: Setting) -> Tensor:
    """A batch on the setting's device, in its dtype and layout."""
    return x.to(setting.device, DTYPES[setting.dtype], memory_format=LAYOUTS[setting.layout])


def captured(step: Step) -> Step:
    """A step as one CUDA graph."""
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


def _in_torch(run: Callable[[Tensor], Any], x: Tensor) -> Step:
    def step() -> object:
        with torch.no_grad():
            return run(x)

    return step


def _exported(model: nn.Module, x: Tensor, folder: Path) -> Path:
    """The network as an ONNX file of float32, for batches of this size alone."""
    path = folder / "model.onnx"
    export(
        copy.deepcopy(model).float(),
        path,
        input_size=tuple(x.shape[1:]),
        batch_size=len(x),
        dynamic_size=False,
        progress=False,
    )
    return path


def _onnxruntime(path: Path, x: Tensor, setting: Setting) -> Step:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def _openvino(path: Path, x: Tensor, setting: Setting) -> Step:
    import openvino

    hints = {
        "INFERENCE_NUM_THREADS": setting.threads or torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[setting.dtype],
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)
    request, image = compiled.create_infer_request(), [x.numpy()]
    return lambda: request.infer(image)


FILE_ENGINES: Mapping[str, Callable[[Path, Tensor, Setting], Step]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
