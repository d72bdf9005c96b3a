"""``convert``: a model, converted and calibrated where that is asked for, in one safetensors file."""

import argparse
from pathlib import Path

from torch import nn

import surgery
from surgery.calibration.folder import folder_batches
from surgery.cli.image_options import BatchesWhenAsked, method_images
from surgery.cli.model_options import add_model_options, build_model, warn_of_random_weights
from surgery.cli.surgery_options import add_surgery_options, surgery_arguments
from surgery.core.extras import check_extra
from surgery.core.table import si, table
from surgery.mimicry import MimicrySettings
from surgery.sensitivity_analysis.images import split_images


def add_convert(command: argparse.ArgumentParser) -> None:
    """The options of ``convert``."""
    add_model_options(command)
    add_surgery_options(command)
    command.add_argument("--out", required=True, metavar="FILE", help="the safetensors file to write")
    images = command.add_mutually_exclusive_group()
    images.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help="recover accuracy with the images below this folder (labels are not needed); without --images "
        "the method looks at these",
    )
    images.add_argument(
        "--synthetic", action="store_true", help="the same without images: some are made from the model's BatchNorms"
    )
    command.add_argument(
        "--calibration-images", type=int, metavar="N", help="how many (default: 1024 of a folder, 256 synthetic ones)"
    )
    command.add_argument(
        "--mimic",
        type=int,
        default=0,
        metavar="STEPS",
        help="after calibration, so many gradient steps towards the original on the same images; a quarter of them "
        "judges, and is left out of both (docs/recovery.md)",
    )
    command.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> str:
    if args.mimic and not (args.calibrate or args.synthetic):
        raise ValueError(f"--mimic {args.mimic}: goes with --calibrate FOLDER, whose images are learnt from")
    MimicrySettings(steps=args.mimic)
    model = build_model(args)
    before = surgery.cost(model, args.input_size)
    images, evidence = _calibration_images(args, model), method_images(args, model)
    planned = surgery.plan(model, args.method, images=evidence or images, **surgery_arguments(args))
    teacher = surgery.match(model, planned) if args.mimic else None
    fit, held = split_images(images) if images is not None and args.mimic else (None, None)
    converted = surgery.convert(model, planned, inplace=True, strict=True, calibrate=fit.batches if fit else images)
    learnt = []
    if teacher is not None and fit is not None and held is not None:
        learnt = [str(surgery.mimic(converted, teacher, fit.batches, held=held.batches, count=None, steps=args.mimic))]
    warn_of_random_weights(args, model, "and so are those of the file")
    after = surgery.cost(converted, args.input_size)
    surgery.save(converted, args.out, input_size=args.input_size)
    rows = [
        (name, si(cost.macs), si(cost.params), si(cost.memory, "B"))
        for name, cost in (("before", before), ("after", after))
    ]
    size = si(Path(args.out).stat().st_size, "B")
    reasons = [decision.note for decision in planned.decisions if decision.note]
    costs = table(("", "MACs", "params", "memory written"), rows, right=(1, 2, 3))
    return "\n".join([*reasons, *learnt, costs, f"wrote {args.out} ({size})"])


def _calibration_images(args: argparse.Namespace, model: nn.Module) -> BatchesWhenAsked | None:
    """What to calibrate with, read or made when it is asked for: not where there is nothing to convert."""
    if not args.calibrate and not args.synthetic:
        return None
    check_extra("calibrate", "--calibrate" if args.calibrate else "--synthetic")
    count = args.calibration_images
    if args.calibrate:
        folder = args.calibrate
        return BatchesWhenAsked(
            lambda: folder_batches(folder, model, 1024 if count is None else count, args.input_size)
        )
    wanted = 256 if count is None else count
    return BatchesWhenAsked(lambda: [surgery.synthetic_images(model, wanted, input_size=args.input_size)])
