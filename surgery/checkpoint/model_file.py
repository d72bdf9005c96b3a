"""Converted models as one safetensors file: the weights, and a JSON manifest that rebuilds the structure.

The file's metadata holds two strings. ``surgery`` is the manifest: schema version, source, transforms in order, tensor
aliases, versions. ``sha256`` is the digest of the manifest and of every tensor. ``docs/format.md`` specifies it.
"""

import hashlib
import json
import os
from collections import OrderedDict
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import safetensors
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from surgery.checkpoint.build_budget import Budget
from surgery.checkpoint.manifest import SCHEMA, Manifest, parse_manifest
from surgery.checkpoint.source import MEMORY, Source, find_source, parse_source, rebuild
from surgery.core.atomic_file import write_atomically
from surgery.core.checked_model import check_model, unwrapped
from surgery.core.errors import CheckpointError, described
from surgery.graph.input_size import InputSize
from surgery.transforms.history import history
from surgery.vision.preprocessing import MEMORY as PREPROCESSING
from surgery.vision.preprocessing import Preprocessing


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
        CheckpointError: what belongs in the manifest cannot be there, such as a transform that is not registered.
        OSError: the file cannot be written; nothing is left half-written.
    """
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    check_model(model, weights=True)
    if isinstance(source, str):
        source = parse_source(source, kwargs)
    elif source is None and kwargs is not None:
        raise ValueError(f"kwargs={kwargs!r} belong to a source: pass source= too")
    tensors, aliases = _unique({name: t.detach().cpu() for name, t in model.state_dict().items()})
    checked_source = find_source(model, source, input_size, Budget.of(tensors.values()))
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "source": asdict(checked_source),
        "transforms": _transforms(model),
        "aliases": aliases,
        "versions": {name: version(name) for name in ("surgery", "torch", "torchvision", "timm")},
    }
    preprocessing = preprocessing or getattr(model, PREPROCESSING, None)
    if preprocessing is not None:
        content["preprocessing"] = preprocessing.to_json()
    manifest = _checked_text(content, len(tensors))
    metadata = {"format": "pt", "surgery": manifest, "sha256": _digest(manifest, tensors)}
    write_atomically(path, _ordered(to_bytes(tensors, metadata)))


def _transforms(model: nn.Module) -> list[dict[str, Any]]:
    try:
        return [transform.to_json() for transform in history(model)]
    except ValueError as error:
        raise CheckpointError(f"the model's history cannot be written: {error}") from error


def _checked_text(content: dict[str, Any], tensors: int) -> str:
    """A manifest's text, which can be read; raises CheckpointError where it could not."""
    try:
        text = json.dumps(content, sort_keys=True)
    except (TypeError, ValueError) as error:  # a transform of a user's own may hold anything
        raise CheckpointError(f"the manifest cannot be written as JSON: {error}") from error
    parse_manifest(text, tensors)
    return text


def _ordered(content: bytes) -> bytes:
    """The same file with its metadata sorted, which safetensors writes in a random order: equal models, equal bytes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> nn.Module:
    """Rebuild a saved model: structure from the manifest, then every tensor, strictly.

    Reads this file and nothing else: no code is unpickled, nothing is downloaded, no other file is opened. What a file
    asks for is built only as far as a network with its tensors can need, so a small file loads or fails in little time.

    Returns:
        The model in eval mode, in the dtype it was saved in.

    Raises:
        CheckpointError: the file is cut, damaged, foreign or of a later schema, or does not fit what it names.
        FileNotFoundError, OSError: it cannot be read.
    """
    manifest, tensors = _read(path)
    budget = Budget.of(tensors.values())
    _add_aliases(path, manifest, tensors)
    try:
        model = _fill(rebuild(manifest.source, manifest.transforms, budget), tensors)
        if _needs_values(model):
            model = _fill(rebuild(manifest.source, manifest.transforms, budget, values=True), tensors)
    except Exception as error:  # what builders and transforms raise for a foreign description is of any kind
        raise CheckpointError(f"{_name(path)} cannot be rebuilt: {described(error)}") from error
    setattr(model, MEMORY, manifest.source)
    if manifest.preprocessing is not None:
        setattr(model, PREPROCESSING, manifest.preprocessing)
    return model.to(device).eval()


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Manifest and tensors of a file, both verified against the digest.

    Returns:
        The manifest's JSON in today's schema, whatever schema the file has; and every tensor by name, those that share
        storage under each of their names.

    Raises:
        CheckpointError, FileNotFoundError, OSError: as :func:`load`.
    """
    manifest, tensors = _read(path)
    _add_aliases(path, manifest, tensors)
    return manifest.content, tensors


def _read(path: str | os.PathLike[str]) -> tuple[Manifest, dict[str, Tensor]]:
    """Manifest and tensors, each once: without those that are aliases."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{_name(path)} is a folder; a safetensors file is needed")
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            # a copy: tensors inside the file are not aligned, and kernels may sum in another order for such memory
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise FileNotFoundError(f"{_name(path)} does not exist") from None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of safetensors, or of torch for a type of numbers that it does not have
        raise CheckpointError(f"{_name(path)} is not a whole safetensors file (cut or damaged?): {error}") from error
    if "surgery" not in metadata:
        raise CheckpointError(
            f"{_name(path)} is a safetensors file without a surgery manifest: surgery.save did not write it"
        )
    try:
        manifest = parse_manifest(metadata["surgery"], len(tensors))
    except CheckpointError as error:
        raise CheckpointError(f"{_name(path)}: {error}") from error
    if metadata.get("sha256") != _digest(metadata["surgery"], tensors):
        raise CheckpointError(f"{_name(path)} is damaged: its digest is not that of its contents")
    return manifest, tensors


def _add_aliases(path: str | os.PathLike[str], manifest: Manifest, tensors: dict[str, Tensor]) -> None:
    for alias, name in manifest.aliases.items():
        if alias in tensors or name not in tensors or name in manifest.aliases:
            raise CheckpointError(
                f"{_name(path)}: manifest aliases: {alias!r:.80} → {name!r:.80}: a name without a tensor, and that of "
                "a tensor in the file, are needed"
            )
    tensors |= {alias: tensors[name] for alias, name in manifest.aliases.items()}


def _fill(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    own: Any = model.state_dict()
    missing, foreign = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or foreign:
        raise CheckpointError(f"it does not fit its model: lacks {missing[:3]}, has besides {foreign[:3]!s:.300}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(f"{name!r} has shape {tuple(tensor.shape)}, {tuple(own[name].shape)} is needed")
        if _kind(tensor) != _kind(own[name]):
            raise CheckpointError(f"{name!r} is {tensor.dtype}; a kind of {own[name].dtype} is needed")
    state: Any = OrderedDict(tensors)
    state._metadata = own._metadata  # versions of the modules' layouts: some refuse to load without
    model.load_state_dict(state, strict=True, assign=True)
    return model


def _kind(tensor: Tensor) -> tuple[bool, bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool


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
