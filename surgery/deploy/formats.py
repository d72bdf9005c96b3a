"""The three formats: how a traced program is written to a file, and how that file is run again."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from surgery.core.errors import ExportError, check_choice
from surgery.core.extras import check_extra
from surgery.deploy.images import Images
from surgery.deploy.naming import INPUT

Run = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Labels:
    """What a file says besides the computation: names of its outputs, and strings by key."""

    outputs: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


LEAST_OPSET = 18  # older ones have no reductions over axes given as input, which torch writes


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        suffix: of its files.
        write: (program, images, file, opset, labels) → None; only ONNX files hold the labels.
        load: file → a function that runs it.
        packages: what it needs besides torch.
        on_cpu: whether the file is made from a copy on the CPU, whatever device the model is on.
        any_size: whether height and width are left free unless the caller decides.
    """

    suffix: str
    write: Callable[[ExportedProgram, Images, Path, int | None, Labels], None]
    load: Callable[[Path], Run]
    packages: tuple[str, ...] = ()
    on_cpu: bool = True
    any_size: bool = True


def format_named(name: str | None, path: Path) -> tuple[str, Format]:
    """The format asked for, or the only one with the path's suffix.

    Raises:
        ValueError: an unknown format, or a suffix that is unknown, ambiguous or not the format's.
        MissingPackageError: a package that the format needs is not installed.
    """
    if name is None:
        fitting = [name for name, form in FORMATS.items() if form.suffix == path.suffix]
        if not fitting:
            suffixes = ", ".join(f"{form.suffix} ({name})" for name, form in FORMATS.items())
            raise ValueError(f"the suffix of {str(path)!r} names no format: one of {suffixes} is needed")
        if len(fitting) > 1:
            raise ValueError(f"{str(path)!r} may be of several formats: pass format={' or '.join(map(repr, fitting))}")
        name = fitting[0]
    check_choice("format", name, FORMATS)
    form = FORMATS[name]
    if path.suffix != form.suffix:
        raise ValueError(f"{str(path)!r}: a file of format {name!r} ends in {form.suffix}")
    if form.packages:
        check_extra("export", f"format {name!r}", form.packages)
    return name, form


def _write_onnx(program: ExportedProgram, images: Images, file: Path, opset: int | None, labels: Labels) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporter and optimiser about themselves; the file is checked
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            dynamic_shapes=(images.names(),),
            verbose=False,
        )
    assert written is not None
    written_opset = written.model.opset_imports.get("")
    if opset is not None and written_opset != opset:
        raise ExportError(f"operators of this model have no form in opset {opset}; {written_opset} has one for each")
    _name_outputs(written.model.graph, labels.outputs)
    written.model.metadata_props.update(labels.metadata)
    file.write_bytes(written.model_proto.SerializeToString())


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Rename a graph's outputs, where nothing inside has such a name already."""
    inside = {value.name for node in graph for value in node.outputs} | set(graph.initializers)
    if len(names) != len(graph.outputs):
        return
    for value, wanted in zip(graph.outputs, names, strict=True):
        free = wanted
        while free in inside - {value.name}:
            free += "_"
        value.name = free


def _load_onnx(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # it raises besides; one report of a failure is enough
    session = onnxruntime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: [torch.from_numpy(array) for array in session.run(None, {name: image.numpy()})]


def _write_program(program: ExportedProgram, images: Images, file: Path, opset: int | None, labels: Labels) -> None:
    torch.export.save(program, file)


def _load_program(file: Path) -> Run:
    return _returning_list(torch.export.load(file).module())


def _write_compiled(program: ExportedProgram, images: Images, file: Path, opset: int | None, labels: Labels) -> None:
    torch._inductor.aoti_compile_and_package(program, package_path=os.fspath(file))


def _load_compiled(file: Path) -> Run:
    return _returning_list(torch._inductor.aoti_load_package(os.fspath(file)))


def _returning_list(module: Callable[[Tensor], Any]) -> Run:
    return lambda image: tensors_of(module(image))


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of whatever a model returns, in the order in which every format keeps them."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _load_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torch-export": Format(".pt2", _write_program, _load_program),
    # compiled code is for one kind of device, and faster for one size of image
    "aotinductor": Format(".pt2", _write_compiled, _load_compiled, on_cpu=False, any_size=False),
}
