"""``explain``: pictures of what a converted network does."""

import argparse
from pathlib import Path

from torch import nn

import surgery
from surgery.checkpoint.source import build
from surgery.cli.model_options import build_model
from surgery.core.user_modules import add_import_option
from surgery.explanation import ExplanationSettings, explain


def add_explain(command: argparse.ArgumentParser) -> None:
    """The options of ``explain``."""
    command.add_argument("name", metavar="FILE", help="that surgery wrote")
    command.add_argument("images", metavar="IMAGE", nargs="+", help="files, or folders whose subfolders are classes")
    command.add_argument(
        "--original",
        metavar="NAME",
        help="what it was converted from, drawn beside it: a file of surgery, or a name (with pretrained weights, a "
        "download)",
    )
    command.add_argument("--out", type=Path, default=Path("explanation"), metavar="FOLDER", help="default: explanation")
    command.add_argument("--count", type=int, default=64, metavar="N", help="images at most (default: 64)")
    command.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: 16")
    command.add_argument(
        "--layer", metavar="NAME", help="module for Grad-CAM (default: the one that gives the map which is pooled)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="which images are drawn (default: 0)")
    add_import_option(command)
    command.set_defaults(run=_explain)


def _explain(args: argparse.Namespace) -> str:
    settings = ExplanationSettings(args.count, args.batch_size, args.layer, args.seed)
    model, structure = surgery.load(args.name), _before(args.name)
    original = None if args.original is None else _original(args.original)
    return str(explain(model, args.images, args.out, original=original, structure=structure, settings=settings))


def _original(name: str) -> nn.Module:
    """With weights, for those that a builder draws by chance explain nothing."""
    return build_model(argparse.Namespace(name=name, kwargs={}, pretrained=True))


def _before(name: str) -> nn.Module:
    """The network that a file was made from, without weights."""
    return build(surgery.Source(**surgery.checkpoint.read(name)[0]["source"]))
