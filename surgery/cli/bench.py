"""``bench``: the models that it times; how, :mod:`surgery.bench.command` says."""

import argparse
from collections.abc import Iterator

from torch import nn

import surgery
from surgery.bench.command import add_options
from surgery.bench.command import run as bench_command
from surgery.checkpoint.source import build
from surgery.cli.image_options import method_images
from surgery.cli.model_options import add_model_options, build_model
from surgery.cli.surgery_options import add_surgery_options, surgery_arguments
from surgery.transforms.changed import is_converted


def add_bench(command: argparse.ArgumentParser) -> None:
    """The options of ``bench``."""
    add_model_options(command, several=True)
    add_surgery_options(command)
    add_options(command)
    command.set_defaults(run=_bench)


def _bench(args: argparse.Namespace) -> str:
    if not args.names and not args.op and args.train is None:
        raise ValueError("bench needs the name of a model, or --op for the operator alone, or --train RECIPE")
    return bench_command(args, lambda: _pairs(args), args.command_line)


def _pairs(args: argparse.Namespace) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """(name, original, converted): a converted file's original is built anew, anything else is converted here."""
    for name in args.names:
        model = build_model(argparse.Namespace(**{**vars(args), "name": name}))
        if is_converted(model):
            source = surgery.Source(**surgery.checkpoint.read(name)[0]["source"])
            yield name, build(source), model
        else:
            images = method_images(args, model)
            yield (
                name,
                model,
                surgery.convert(model, args.method, strict=True, images=images, **surgery_arguments(args)),
            )
