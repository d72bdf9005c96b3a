"""Make a network ready to run in one of the engines that a :class:`Setting` names, one call at a time."""

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgery.core.extras import check_extra
from surgery.core.run_setting import DTYPES, FILE_MODES, LAYOUTS, Setting, threads_set_to
from surgery.core.surgery_layer import SurgeryLayer
from surgery.core.timing import Timing, interleaved
from surgery.deploy.export import export
from surgery.deploy.inference import optimize_for_inference

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
_EXTRAS = {"onnxruntime": "export", "openvino": "openvino"}


def prepared(model: nn.Module, x: Tensor, setting: Setting, folder: Path) -> Callable[[], object]:
    """A callable that runs a model once on ``x`` in eval mode, in the way that ``setting.mode`` says.

    ``onnxruntime`` and ``openvino`` run a file that :func:`surgery.export` writes for the batch and size of ``x``. What
    comes back differs: tensors from PyTorch, arrays from the others.

    Args:
        model: any module that takes one tensor, with weights; copied, so it does not change.
        x: (N, C, H, W), images or a feature map, of any floating dtype; it is brought into the setting's own.
        setting: its dtype, layout, threads and device are honoured; its batch is not asked for, since ``x`` has one.
        folder: for files that are needed in between; nothing in it is needed once this returns.

    Raises:
        ValueError: ``setting.training``, which is no inference.
        MissingPackageError: the engine is not installed; the message says how.
        ExportError: the model cannot become a file.
    """
    if setting.training:
        raise ValueError("training=True: prepared() makes a model ready for inference")
    check_engine(setting.mode)
    with threads_set_to(setting.threads):
        if setting.mode in FILE_MODES:
            return _of_file(model, x, setting, folder)
        return _of_torch(model, x, setting)


def timed_in_turn(
    networks: Mapping[str, nn.Module], x: Tensor, setting: Setting, folder: Path, seconds: float
) -> Timing:
    """Time networks by name, one after the other in each round, each by the setting's engine.

    Args:
        x: (N, C, H, W) that all take; brought into the setting's dtype and layout.
        folder: for files that are needed in between.
        seconds: for all rounds together, at least seven.

    Raises:
        MissingPackageError, ExportError: as :func:`prepared`.
    """
    with threads_set_to(setting.threads):
        steps = {name: prepared(network, x, setting, folder) for name, network in networks.items()}
        return interleaved(steps, seconds=seconds, device=setting.device, label=f"timing, {setting.mode}")


def check_engine(mode: str) -> None:
    """Raise MissingPackageError where what a mode needs is not installed."""
    if mode in _EXTRAS:
        check_extra(_EXTRAS[mode], f"mode {mode!r}")


def placed(x: Tensor, setting: Setting) -> Tensor:
    """A tensor (N, C, H, W) on the device, in the dtype and layout of a setting."""
    return x.to(setting.device, DTYPES[setting.dtype], memory_format=LAYOUTS[setting.layout])


def placed_copy(model: nn.Module, setting: Setting) -> nn.Module:
    """A copy of a model, in training or eval mode, on the device, in the dtype and layout of a setting."""
    ready = copy.deepcopy(model).to(setting.device, DTYPES[setting.dtype])
    return ready.to(memory_format=LAYOUTS[setting.layout]).train(setting.training)


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """A replay of the CUDA graph of a step."""
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


def _of_torch(model: nn.Module, x: Tensor, setting: Setting) -> Callable[[], object]:
    ready, image = placed_copy(model, setting), placed(x, setting)
    if setting.mode == "optimized":
        shape = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
        ready = optimize_for_inference(
            model,
            dtype=DTYPES[setting.dtype],
            channels_last=setting.layout == "channels_last",
            input_size=shape,
        ).to(setting.device)
    run: Callable[[Tensor], Any] = torch.compile(ready) if setting.mode == "compile" else ready

    def step() -> object:
        with torch.no_grad(), threads_set_to(setting.threads):
            return run(image)

    return captured(step) if setting.mode == "cudagraph" else step


def _of_file(model: nn.Module, x: Tensor, setting: Setting, folder: Path) -> Callable[[], object]:
    whole = (
        nn.Sequential(model) if isinstance(model, SurgeryLayer) else model
    )  # what is exported is never a layer alone
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        file = Path(inner) / "model.onnx"
        ready = copy.deepcopy(whole).float()
        shape = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
        export(ready, file, input_size=shape, batch_size=len(x), dynamic_size=False, progress=False)
        start = _onnxruntime if setting.mode == "onnxruntime" else _openvino
        return start(file, x.detach().float().cpu().contiguous(), setting)


def _onnxruntime(file: Path, x: Tensor, setting: Setting) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def _openvino(file: Path, x: Tensor, setting: Setting) -> Callable[[], object]:
    import openvino

    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": _PRECISIONS[setting.dtype],
    }
    core = openvino.Core()
    # read from memory: a file that is mapped cannot be deleted everywhere
    compiled = core.compile_model(core.read_model(model=file.read_bytes()), "CPU", hints)
    request, image = compiled.create_infer_request(), x.numpy()
    return lambda: request.infer([image], share_inputs=True)
