"""Converted models as one safetensors file: the weights, and a JSON manifest that rebuilds the structure.

The file's metadata holds two strings. ``surgery`` is the manifest: schema version, source, edits in order, tensor
aliases, versions. ``sha256`` is the digest of the manifest and of every tensor. ``docs/format.md`` specifies it.
"""

import hashlib
import json
import os
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import safetensors
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from surgery.atomic_file import write_atomically
from surgery.checked_model import check_model, unwrapped
from surgery.edit import Edit, apply, history
from surgery.errors import CheckpointError, SourceError, SurgeryError
from surgery.input_size import InputSize
from surgery.preprocessing import MEMORY as PREPROCESSING
from surgery.preprocessing import Preprocessing
from surgery.source import MEMORY, Source, build, build_on_meta, find_source, parse_source

SCHEMA = 1
_OPTIONAL = {"preprocessing"}
_KEYS = {"schema": int, "source": dict, "edits": list, "aliases": dict, "versions": dict}


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    source: str | Source | None = None,
    kwargs: dict[str, Any] | None = None,
    input_size: InputSize | None = None,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Write a model, converted or not, to one safetensors file.

    How the model was made is inferred for timm and torchvision models and checked by rebuilding it on the meta
    device, so a file that is written can be loaded.

    Args:
        path: written beside and renamed; an existing file is replaced only by a whole one.
        source: ``timm/NAME``, ``torchvision/NAME`` or a registered builder, where inference is not enough.
        kwargs: the keyword arguments of that builder.
        input_size: (C, H, W), (H, W) or one side to record the model with, where its default does not fit.
        preprocessing: how images are prepared for the model, and its classes; default: what it was loaded with.

    Raises:
        SourceError: the model cannot be rebuilt from what is known; the message says what to pass.
        OSError: the file cannot be written; nothing is left half-written.
    """
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    check_model(model, weights=True)
    if isinstance(source, str):
        source = parse_source(source, kwargs)
    elif source is None and kwargs is not None:
        raise ValueError(f"kwargs={kwargs!r} belong to a source: pass source= too")
    found = find_source(model, source, input_size)
    tensors, aliases = _unique({name: t.detach().cpu() for name, t in model.state_dict().items()})
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "source": asdict(found),
        "edits": [edit.to_json() for edit in history(model)],
        "aliases": aliases,
        "versions": {name: version(name) for name in ("surgery", "torch", "torchvision", "timm")},
    }
    preprocessing = preprocessing or getattr(model, PREPROCESSING, None)
    if preprocessing is not None:
        content["preprocessing"] = preprocessing.to_json()
    manifest = json.dumps(content, sort_keys=True)
    metadata = {"format": "pt", "surgery": manifest, "sha256": _digest(manifest, tensors)}
    write_atomically(path, _ordered(to_bytes(tensors, metadata)))


def _ordered(content: bytes) -> bytes:
    """The same file with its metadata sorted, which safetensors writes in a random order: equal models, equal bytes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> nn.Module:
    """Rebuild a saved model: structure from the manifest, then every tensor, strictly. No code is unpickled.

    Returns:
        The model in eval mode, in the dtype it was saved in.

    Raises:
        CheckpointError: the file is cut, damaged, foreign or of a later schema, or does not fit what it names.
        FileNotFoundError, OSError: it cannot be read.
    """
    manifest, tensors = read(path)
    source = _source(path, manifest["source"])
    try:
        edits = [Edit.from_json(value) for value in manifest["edits"]]
        model = _fill(path, apply(build_on_meta(source), edits), tensors)
        if _needs_values(model):
            model = _fill(path, apply(build(source), edits), tensors)
    except CheckpointError:
        raise
    except (SourceError, SurgeryError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{_name(path)} cannot be rebuilt: {error}") from error
    setattr(model, MEMORY, source)
    if "preprocessing" in manifest:
        setattr(model, PREPROCESSING, _preprocessing(path, manifest["preprocessing"]))
    return model.to(device).eval()


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Manifest and tensors of a file, both verified against the digest; errors as :func:`load`."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{_name(path)} is a folder; a safetensors file is needed")
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            # a copy: tensors inside the file are not aligned, and kernels may sum in another order for such memory
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise FileNotFoundError(f"{_name(path)} does not exist") from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{_name(path)} is not a whole safetensors file (cut or damaged?): {error}") from error
    if "surgery" not in metadata:
        raise CheckpointError(
            f"{_name(path)} is a safetensors file without a surgery manifest: surgery.save did not write it"
        )
    manifest = _manifest(path, metadata["surgery"])
    if metadata.get("sha256") != _digest(metadata["surgery"], tensors):
        raise CheckpointError(f"{_name(path)} is damaged: its digest is not that of its contents")
    for alias, name in manifest["aliases"].items():
        tensors[alias] = tensors[name]
    return manifest, tensors


def _manifest(path: str | os.PathLike[str], text: str) -> dict[str, Any]:
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{_name(path)} is damaged: its manifest is not JSON ({error})") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise CheckpointError(f"{_name(path)} has schema {schema}; this version reads up to {SCHEMA}: upgrade surgery")
    if schema != SCHEMA or set(manifest) - _OPTIONAL != set(_KEYS):
        raise CheckpointError(
            f"{_name(path)}: a manifest of schema {SCHEMA} has {', '.join(_KEYS)}; found {list(manifest or [])}"
        )
    for key, kind in _KEYS.items():
        if not isinstance(manifest[key], kind):
            raise CheckpointError(f"{_name(path)}: manifest {key} is {manifest[key]!r}; {kind.__name__} is needed")
    return manifest


def _source(path: str | os.PathLike[str], value: dict[str, Any]) -> Source:
    if set(value) != {"builder", "name", "kwargs"} or not isinstance(value["kwargs"], dict):
        raise CheckpointError(f"{_name(path)}: manifest source {value!r} is not builder, name and kwargs")
    if "pretrained" in value["kwargs"] or "weights" in value["kwargs"]:
        raise CheckpointError(f"{_name(path)}: manifest source {value!r} asks for a download; load never downloads")
    return Source(**value)


def _preprocessing(path: str | os.PathLike[str], value: Any) -> Preprocessing:
    try:
        return Preprocessing.from_json(value)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{_name(path)}: manifest preprocessing {value!r} cannot be: {error}") from error


def _fill(path: str | os.PathLike[str], model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    own = model.state_dict()
    missing, foreign = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or foreign:
        raise CheckpointError(f"{_name(path)} does not fit its model: lacks {missing[:3]}, has besides {foreign[:3]}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{_name(path)}: {name!r} has shape {tuple(tensor.shape)}, {tuple(own[name].shape)} is needed"
            )
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise CheckpointError(f"{_name(path)}: {name!r} is {tensor.dtype}; a kind of {own[name].dtype} is needed")
    model.load_state_dict(tensors, strict=True, assign=True)
    return model


def _needs_values(model: nn.Module) -> bool:
    """Whether something that no state dict holds (a non-persistent buffer, a plain tensor) is still on meta."""
    plain = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return any(tensor.is_meta for tensor in (*model.buffers(), *plain))


def _unique(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name with each shared storage once, and the other names as aliases."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            kept[name] = tensor.contiguous()
    return {name: t.clone() if _overlaps(t) else t for name, t in kept.items()}, aliases


def _overlaps(tensor: Tensor) -> bool:
    """Whether a tensor is a view of a larger storage, which safetensors would refuse beside its siblings."""
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()


def _digest(manifest: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(manifest.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()


def _name(path: str | os.PathLike[str]) -> str:
    return repr(os.fspath(path))
