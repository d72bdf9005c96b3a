"""``export``: a model in another runtime's format."""

import argparse
from pathlib import Path

import surgery
from surgery.cli.model_options import add_model_options, build_model, warn_of_random_weights
from surgery.core.table import si
from surgery.deploy.formats import FORMATS


def add_export(command: argparse.ArgumentParser) -> None:
    """The options of ``export``."""
    add_model_options(command)
    command.add_argument("--out", required=True, metavar="FILE", help="the file to write: .onnx or .pt2")
    command.add_argument("--format", help=f"one of: {', '.join(FORMATS)} (default: what the suffix says)")
    command.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> str:
    model = build_model(args)
    warn_of_random_weights(args, model, "and so are those of the file")
    surgery.export(model, args.out, format=args.format, input_size=args.input_size)
    return f"wrote {args.out} ({si(Path(args.out).stat().st_size, 'B')}), checked against the model"
