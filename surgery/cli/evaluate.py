"""``eval`` and ``predict``: a model on images in files, a classifier, or one that labels pixels or finds objects."""

import argparse

from surgery.cli.model_options import add_model_options, build_model, warn_of_random_weights
from surgery.vision import saliency_maps, segmentation
from surgery.vision.classification import evaluate, predict, prediction_table


def add_eval(command: argparse.ArgumentParser) -> None:
    """The options of ``eval``."""
    add_model_options(command)
    command.add_argument(
        "data",
        metavar="FOLDER",
        help="holds CLASS/* (or val/CLASS/*, test/CLASS/*); for maps images/NAME.* and masks/NAME.* (or val/…)",
    )
    command.add_argument("--batch-size", type=int, default=32, metavar="N", help="default: 32; maps: one by one")
    command.add_argument("--workers", type=int, default=0, metavar="N", help="processes that load images")
    _add_view_options(command)
    command.set_defaults(run=_eval)


def add_predict(command: argparse.ArgumentParser) -> None:
    """The options of ``predict``."""
    add_model_options(command)
    command.add_argument("images", metavar="IMAGE", nargs="+")
    command.add_argument(
        "--out", default=".", metavar="FOLDER", help="where NAME.mask.png or NAME.saliency.png go (default: here)"
    )
    _add_view_options(command)
    command.set_defaults(run=_predict)


def _add_view_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--window", type=int, default=0, metavar="N", help="label maps: look at windows of N×N pixels (default: all)"
    )
    command.add_argument("--overlap", type=float, default=1 / 3, metavar="SHARE", help="of a window (default: 1/3)")
    command.add_argument("--flip", action="store_true", help="label maps: look at the mirror image too")


def _eval(args: argparse.Namespace) -> str:
    model = build_model(args)
    warn_of_random_weights(args, model, "so it can only guess")
    if saliency_maps.finds_objects(model):
        _check_whole(args)
        return str(saliency_maps.evaluate(model, args.data))
    if segmentation.segments(model):
        return str(segmentation.evaluate(model, args.data, _view(args)))
    return str(evaluate(model, args.data, batch_size=args.batch_size, workers=args.workers))


def _predict(args: argparse.Namespace) -> str:
    model = build_model(args)
    warn_of_random_weights(args, model, "so it can only guess")
    if saliency_maps.finds_objects(model):
        _check_whole(args)
        return saliency_maps.map_table(saliency_maps.predict(model, args.images, args.out))
    if segmentation.segments(model):
        return segmentation.label_table(model, segmentation.predict(model, args.images, args.out, _view(args)))
    return prediction_table(predict(model, args.images))


def _check_whole(args: argparse.Namespace) -> None:
    if args.window or args.flip:
        raise ValueError("--window, --flip: for label maps; a network that finds objects looks at the whole image once")


def _view(args: argparse.Namespace) -> segmentation.View:
    return segmentation.View(args.window, args.overlap, args.flip)
