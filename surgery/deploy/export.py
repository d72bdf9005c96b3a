"""Write a model to a file for another runtime, checked against the model before it gets its name."""

import contextlib
import copy
import logging
import os
import tempfile
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm import tqdm

from surgery.core.atomic_file import write_atomically
from surgery.core.checked_model import check_model, unwrapped
from surgery.core.errors import ExportError, ExportWarning, is_whole
from surgery.core.surgery_layer import replace_layers
from surgery.deploy.checking import DRAWS, TOLERANCE, DifferentOutputsError, Sample, check, sample
from surgery.deploy.formats import LEAST_OPSET, Format, Labels, format_named, tensors_of
from surgery.deploy.images import Images
from surgery.deploy.interleaving import interleave
from surgery.deploy.naming import output_names, preprocessing_metadata
from surgery.deploy.one_branch import one_branch
from surgery.graph import record
from surgery.graph.input_size import InputSize


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    input_size: InputSize | None = None,
    batch_size: int | None = None,
    dynamic_size: bool | None = None,
    opset: int | None = None,
    branches: Iterable[Tensor] | None = None,
    progress: bool = True,
) -> None:
    """Write a model, converted or not, to a file that runs without surgery, in eval mode.

    The written file is loaded and compared with the model on random images, of two batch sizes and two image sizes
    where these are free, before it gets its name. The model itself is neither changed nor run. An ONNX file names its
    input and outputs, and holds as metadata how images are prepared, where the model carries that.

    Args:
        path: ends in ``.onnx`` or ``.pt2``; an existing file is replaced only by a whole, checked one.
        format: ``onnx``, ``torch-export`` or ``aotinductor``; needed where the suffix leaves a choice.
        input_size: (C, H, W) of one image, (H, W) or one side; default: the model's configured size, else 224, else
            32 pixels.
        batch_size: the only batch size that the file accepts; default: any.
        dynamic_size: whether the file accepts images of any height and width. Default: where the model permits it, else
            a warning says what is fixed; in AOTInductor packages not.
        opset: of ONNX; default: the exporter's.
        branches: batches of images (N, C, H, W) as the model takes them, of those that the file will see. A layer that
            chooses between two computations and made one choice on all of them is written with that one only, and the
            file's metadata (``one_branch``) says so; on other images it may differ from the model. Default: all
            computations are written. ONNX only.
        progress: show a line with the step that runs.

    Raises:
        ValueError, TypeError: an argument that does not fit; the message says what would.
        MissingPackageError: what the format needs is not installed.
        ExportError: the model cannot be exported, or the file computes something else.
        TraceError: the model's forward fails on the image.
        OSError: the file cannot be written; nothing is left half-written.
    """
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    check_model(model, weights=True)
    target = Path(path)
    name, form = format_named(format, target)
    _check_choices(name, batch_size, dynamic_size, opset)
    if branches is not None and name != "onnx":
        raise ValueError(f"branches= belongs to format 'onnx', whose files can say so; this one is of format {name!r}")
    _check_place(target)
    frozen = _frozen_copy(model, form)
    chosen = {} if branches is None else one_branch(frozen, branches, progress)
    wanted = form.any_size if dynamic_size is None else dynamic_size
    images = Images(record(frozen, input_size).input_shape, batch_size, wanted)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model{form.suffix}"
        kind = _Kind(name, form, opset, preprocessing_metadata(model, images.shape) | chosen)
        with tqdm(bar_format="{desc} [{elapsed}]", leave=False, disable=not progress) as bar:
            made = _Export(frozen, type(model).__name__, kind, file, bar)
            made.write([images] if dynamic_size or not wanted else [images, replace(images, any_size=False)])
        write_atomically(target, file.read_bytes())


def lowered(model: nn.Module) -> nn.Module:
    """The model in eval mode, with plain operators in the place of every surgery layer, in place.

    Returns:
        The model; for a model that is a surgery layer itself, its lowered form.
    """
    return replace_layers(model, lambda layer: layer.lowered()).eval()


@dataclass(frozen=True)
class _Kind:
    """Of what kind a file is to be: its format with that one's name, the opset asked for, and ONNX metadata."""

    name: str
    form: Format
    opset: int | None
    metadata: Mapping[str, str]


class _Export:
    """One export of one frozen copy, which it takes apart."""

    def __init__(self, frozen: nn.Module, model: str, kind: _Kind, file: Path, bar: tqdm) -> None:
        self.frozen, self.model, self.kind, self.file, self.bar = frozen, model, kind, file, bar
        self.labels = Labels()
        weights = (t for t in (*frozen.parameters(), *frozen.buffers()) if t.is_floating_point())
        first = next(weights, torch.empty(0))
        self.dtype, self.device = first.dtype, first.device
        if self.dtype not in TOLERANCE:
            dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in TOLERANCE)
            raise ExportError(f"{model} has weights of {self.dtype}: one of {dtypes} is needed")

    def write(self, choices: Sequence[Images]) -> None:
        """Write and check a file for the first choice that works, with a warning where it is not the first of all."""
        draws: dict[Images, list[list[Sample]]] = {}
        failures: dict[Images, Exception] = {}
        self._say("running the model")
        for images in choices:  # by the model itself, so before its layers are replaced
            try:
                draws[images] = self._draws(images)
            except Exception as error:  # any forward may raise anything; all of it is reported below
                failures[images] = error
        self._interleave(choices[0])
        self.frozen = lowered(self.frozen)
        for images, samples in draws.items():
            try:
                self._attempt(images, samples)
            except ExportError as error:
                # exporters may take what depends on the size for a constant, without a word
                if images == choices[-1] or not isinstance(error, DifferentOutputsError):
                    raise
                failures[images] = error
            except Exception as error:  # so may any exporter
                failures[images] = error
            else:
                self._tell(choices[0], images, failures)
                return
        last = failures[choices[-1]]
        raise ExportError(
            f"{self.model} cannot be exported to {self.kind.name} for images {choices[-1]}: {_reason(last)}"
            f"{self._advice()}"
        ) from last

    def _interleave(self, images: Images) -> None:
        """Let layers reduce chunks of channels instead of runs, for the engines that read ONNX."""
        if self.kind.name != "onnx":
            return
        refused = interleave(self.frozen, images.shape).refused
        if refused:
            first, reason = next(iter(refused.items()))
            warnings.warn(
                f"{len(refused)} layer{'s' * (len(refused) > 1)} of {self.model} reduce runs of channels, which cannot "
                f"be reordered here ({first}: {reason}): OpenVINO may run this file slower than the original's; time "
                "it there (docs/export.md)",
                ExportWarning,
                stacklevel=4,
            )

    def _draws(self, images: Images) -> list[list[Sample]]:
        return [sample(self.frozen, images.checked(), self.dtype, self.device, draw) for draw in range(DRAWS)]

    def _attempt(self, images: Images, draws: list[list[Sample]]) -> None:
        image = images.traced(self.dtype, self.device)
        if not self.labels.outputs:
            self._keep_tensors_only(image)
        self._say("tracing")
        with _quiet():
            program = torch.export.export(self.frozen, (image,), dynamic_shapes=images.dynamic_shapes())
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it holds the paths of this machine
        self._say("writing")
        self.kind.form.write(program, images, self.file, self.kind.opset, self.labels)
        self._say("comparing the file with the model")
        check(self.kind.form.load(self.file), draws, self.dtype)

    def _keep_tensors_only(self, image: Tensor) -> None:
        """Name what the model returns; of what else it returns an ONNX file can hold nothing."""
        output = self.frozen(image)
        self.labels = Labels(tuple(output_names(output)), self.kind.metadata)
        if self.kind.name == "onnx" and not all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(output)):
            self.frozen = _TensorsOnly(self.frozen)

    def _say(self, step: str) -> None:
        self.bar.set_description_str(f"exporting to {self.kind.name}: {step}")

    def _advice(self) -> str:
        if self.kind.name == "onnx" and self.dtype in (torch.float64, torch.bfloat16):
            kind = str(self.dtype).removeprefix("torch.")
            return f" (ONNX Runtime has no convolution in {kind}: export model.float(), or to format 'torch-export')"
        return ""

    def _tell(self, wanted: Images, written: Images, failures: dict[Images, Exception]) -> None:
        if written != wanted:
            warnings.warn(
                f"height and width are fixed in this export of {self.model} ({_reason(failures[wanted])}): "
                f"the file takes images {written} only",
                stacklevel=4,
            )


class _TensorsOnly(nn.Module):
    """A model that returns a list of the tensors among what another one returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> list[Tensor]:
        return tensors_of(self.model(image))


def _check_choices(name: str, batch_size: object, dynamic_size: object, opset: object) -> None:
    for argument, value, least in (("batch_size", batch_size, 1), ("opset", opset, LEAST_OPSET)):
        if value is not None and not is_whole(value, least):
            raise ValueError(f"{argument}={value!r}: a whole number >= {least} is needed")
    if dynamic_size not in (None, True, False):
        raise ValueError(f"dynamic_size={dynamic_size!r}: True, False or None is needed")
    if opset is not None and name != "onnx":
        raise ValueError(f"opset={opset!r} belongs to format 'onnx'; this file is of format {name!r}")


def _check_place(target: Path) -> None:
    """Raise OSError for a place that no file can be written to: before the minutes that an export may take."""
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {str(target)!r}: it is a folder; the name of a file is needed")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {str(target)!r}: there is no folder {str(target.parent)!r}")


def _frozen_copy(model: nn.Module, form: Format) -> nn.Module:
    """A copy in eval mode without gradients, on the CPU where the format wants that."""
    try:
        frozen = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ExportError(f"{type(model).__name__} cannot be copied: {_reason(error)}") from error
    if form.on_cpu:  # and in the plain layout: images come in it, and torch.export warns of stored weights in others
        frozen = frozen.cpu().to(memory_format=torch.contiguous_format)
    return frozen.eval().requires_grad_(False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracebacks that are logged for sizes whose bounds cannot be simplified, which changes nothing."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


def _reason(error: BaseException) -> str:
    """What failed in the end, in one line: exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {textwrap.shorten(line, 160)}" if line else type(error).__name__
