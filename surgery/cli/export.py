"""``export``: a model in another runtime's format."""

import argparse
from pathlib import Path

import surgery
from surgery.calibration.folder import folder_batches
from surgery.cli.model_options import add_model_options, build_model, warn_of_random_weights
from surgery.core.table import si
from surgery.deploy.formats import FORMATS

BRANCH_IMAGES = 256


def add_export(command: argparse.ArgumentParser) -> None:
    """The options of ``export``."""
    add_model_options(command)
    command.add_argument("--out", required=True, metavar="FILE", help="the file to write: .onnx or .pt2")
    command.add_argument("--format", help=f"one of: {', '.join(FORMATS)} (default: what the suffix says)")
    command.add_argument(
        "--branches",
        metavar="FOLDER",
        help="images of the kind that the file will see, up to 256: a layer that makes one choice on all of them is "
        "written with that one only, and the file says so (.onnx)",
    )
    command.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> str:
    model = build_model(args)
    warn_of_random_weights(args, model, "and so are those of the file")
    branches = folder_batches(args.branches, model, BRANCH_IMAGES, args.input_size) if args.branches else None
    surgery.export(model, args.out, format=args.format, input_size=args.input_size, branches=branches)
    return f"wrote {args.out} ({si(Path(args.out).stat().st_size, 'B')}), checked against the model"
