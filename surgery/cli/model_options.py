"""The options that say which model a command works on, and the model that they stand for."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from torch import nn

import surgery
from surgery.checkpoint.source import MEMORY
from surgery.core.errors import SourceError
from surgery.core.user_modules import add_import_option
from surgery.graph.input_size import InputSize


def add_model_options(command: argparse.ArgumentParser, several: bool = False) -> None:
    """NAME (``args.name``; with ``several`` any number of them, ``args.names``) and how its builder is called."""
    name_help = "timm name, torchvision/NAME, a builder of yours (--import), or a file written by surgery"
    if several:
        command.add_argument("names", metavar="NAME", nargs="*", help=name_help)
    else:
        command.add_argument("name", metavar="NAME", help=name_help)
    command.add_argument(
        "--kwargs", type=_json_object, default={}, metavar="JSON", help="builder arguments: '{\"num_classes\": 10}'"
    )
    command.add_argument("--pretrained", action="store_true", help="with the builder's pretrained weights (a download)")
    command.add_argument(
        "--input-size",
        type=_image_size,
        metavar="C,H,W",
        help="image size to record with: 3,224,224 or 224,224 or 224 (default: the model's)",
    )
    add_import_option(command)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: a JSON object is needed")
    return value


def _image_size(text: str) -> InputSize:
    try:
        size = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: C,H,W such as 3,224,224, or one side, is needed") from None
    return size if len(size) > 1 else size[0]


def _is_file(name: str) -> bool:
    """Whether NAME means what surgery wrote, rather than a builder's model (a folder may be called resnet50 too)."""
    path = Path(name)
    return path.suffix == ".safetensors" or path.is_file() or (path.is_dir() and path.name != name)


def build_model(args: argparse.Namespace) -> nn.Module:
    """The model of ``args.name``: loaded from a file of surgery, or made by its builder.

    Raises:
        ValueError: ``--kwargs`` holds ``pretrained``.
        SurgeryError, OSError: it cannot be made.
    """
    if _is_file(args.name):
        return surgery.load(args.name)
    if "pretrained" in args.kwargs:
        raise ValueError(f"--kwargs holds pretrained={args.kwargs['pretrained']!r}: use --pretrained, or leave it out")
    try:
        return surgery.create(args.name, pretrained=args.pretrained, **args.kwargs)
    except SourceError as error:
        if "load_state_dict() gives it weights" not in str(error):
            raise
        raise SourceError(f"{error}; --pretrained gives it those of its builder") from error


def warn_of_random_weights(args: argparse.Namespace, model: nn.Module, consequence: str) -> None:
    """One line on stderr where a model was made by a builder that gave it random weights."""
    source = getattr(model, MEMORY, None)
    if args.pretrained or _is_file(args.name) or source is None or source.builder not in ("timm", "torchvision"):
        return
    print(
        f"surgery: the weights of {args.name} are random, {consequence}; --pretrained downloads trained ones, and "
        "a file that surgery wrote may stand in place of the name",
        file=sys.stderr,
    )
