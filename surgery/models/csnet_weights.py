"""The published weights of CSNet, tensors of another layout: read without running anything that a file holds.

Its authors' convolutions multiply their stored weights by 100 in every call, "for faster convergence", but for those
between several resolutions; here the product is stored.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgery.checkpoint.source import create
from surgery.core.errors import CheckpointError, SourceError
from surgery.models.csnet import BLOCKS, DILATIONS, CSNet, csnet
from surgery.vision.preprocessing import MEMORY, Preprocessing

MULTIPLIED = 100.0
PREPROCESSING = Preprocessing((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1.0, "bilinear")
_CONVS = {"conv1x1": "0", "conv3x3_1": "1", "conv3x3_2": "2"}
_HEADS = {"fuse": "fuse", "fuse1x1": "merge"}
_BLOCK = re.compile(r"stage(\d)\.(\d+)\.(conv1x1|conv3x3_1|conv3x3_2)\.(.+)")
_HEAD = re.compile(r"oct_fuse\.(fuse|fuse1x1)\.(.+)")
_DILATED = re.compile(r"oct_fuse\.ms\.convs\.(\d)\.(?:msconv\.(\d)\.weight|(bn|prelu)\.(.+))")


def load_published_csnet(path: str | Path) -> CSNet:
    """A CSNet with the weights, and so with the widths, of a file that its authors published.

    Args:
        path: such as ``csnet-L-x1.pth.tar``.

    Returns:
        The network in eval mode, which knows how images are prepared; :func:`surgery.save` writes it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it would run code, or is not of such a network; names a tensor.
    """
    tensors = _read(Path(path))
    try:
        converted, widths = dict(_renamed(tensors)), _widths(tensors)
        with torch.device("meta"):  # nothing is allocated for widths that the file's tensors do not have
            expected = {name: tensor.shape for name, tensor in csnet(widths=widths).state_dict().items()}
        if {name: tensor.shape for name, tensor in converted.items()} != expected:
            raise ValueError("its tensors are not those of a network of its widths")
        network = create("csnet", widths=widths)
        network.load_state_dict(converted)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, SourceError) as error:
        raise CheckpointError(f"{path}: no published CSNet: {type(error).__name__}: {error!s:.300}") from None
    assert isinstance(network, CSNet)
    setattr(network, MEMORY, PREPROCESSING)
    return network.eval()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own kinds differ from version to version
        raise CheckpointError(f"{path}: no file of tensors alone: {type(error).__name__}: {error!s:.200}") from None
    tensors = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(tensors, Mapping) or not all(_is_plain(name, value) for name, value in tensors.items()):
        raise CheckpointError(f"{path}: a dictionary with state_dict, plain tensors by name, is needed")
    return dict(tensors)


def _is_plain(name: object, value: object) -> bool:
    """Whether a tensor is dense, so that the file holds as much as its shape says."""
    return isinstance(name, str) and isinstance(value, Tensor) and not value.is_sparse and value.is_contiguous()


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our names and values."""
    for name, tensor in tensors.items():
        if match := _BLOCK.fullmatch(name):
            stage, block, conv, rest = match.groups()
            at, number = _numbered(int(stage), int(block))
            yield f"stages.{at}.{number}.{_CONVS[conv]}.{_of_scaled(rest)}", _value(tensor, conv, rest)
        elif match := _HEAD.fullmatch(name):
            yield f"{_HEADS[match[1]]}.{_of_scaled(match[2])}", tensor
        elif match := _DILATED.fullmatch(name):
            yield _of_dilated(tensors, match), tensor * MULTIPLIED if match[2] else tensor
        else:
            yield name.replace("cls_layer", "classifier"), tensor


def _numbered(stage: int, block: int) -> tuple[int, int]:
    """Our stage and block: theirs begins with a stage of one block, which is the first of our first."""
    return (0, block if stage == 0 else block + 1) if stage <= 1 else (stage - 1, block)


def _of_scaled(rest: str) -> str:
    """A name within a convolution of several maps."""
    return re.sub(r"^bns\.", "norm_acts.norms.", re.sub(r"^prelus\.", "norm_acts.acts.", rest))


def _value(tensor: Tensor, conv: str, rest: str) -> Tensor:
    return tensor * MULTIPLIED if conv != "conv1x1" and rest.startswith("convs.") else tensor


def _of_dilated(tensors: Mapping[str, Tensor], match: re.Match[str]) -> str:
    position, dilation, kind, rest = match.groups()
    if dilation is None:
        return f"dilated.{position}.{'norm' if kind == 'bn' else 'act'}.{rest}"
    present = [n for n in range(len(DILATIONS)) if f"oct_fuse.ms.convs.{position}.msconv.{n}.weight" in tensors]
    return f"dilated.{position}.convs.{present.index(int(dilation))}.weight"


def _widths(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of :class:`CSNetWidths` that the tensors' shapes say."""

    def scaled(prefix: str, maps: int) -> list[int]:
        keys = [f"{prefix}.bns.{number}.weight" for number in range(maps)]
        return [len(tensors[key]) for key in keys if key in tensors]

    def dilated(position: int) -> list[int]:
        keys = [f"oct_fuse.ms.convs.{position}.msconv.{number}.weight" for number in range(len(DILATIONS))]
        return [len(tensors[key]) if key in tensors else 0 for key in keys]

    first = [scaled("stage0.0.conv1x1", 2)] + [scaled(f"stage1.{n}.conv1x1", 2) for n in range(BLOCKS[0] - 1)]
    later = [[scaled(f"stage{stage + 1}.{n}.conv1x1", 2) for n in range(BLOCKS[stage])] for stage in (1, 2, 3)]
    return {
        "blocks": [first, *later],
        "fused": scaled("oct_fuse.fuse", 3),
        "dilated": [dilated(position) for position in range(3)],
        "head": scaled("oct_fuse.fuse1x1", 1)[0],
    }
