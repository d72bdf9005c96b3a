"""``plan`` and ``cost``: what surgery would do to a model, and what a model costs; nothing is written."""

import argparse

import surgery
from surgery.cli.image_options import method_images
from surgery.cli.model_options import add_model_options, build_model
from surgery.cli.surgery_options import add_surgery_options, surgery_arguments


def add_plan(command: argparse.ArgumentParser) -> None:
    """The options of ``plan``."""
    add_model_options(command)
    add_surgery_options(command)
    command.set_defaults(run=_plan)


def add_cost(command: argparse.ArgumentParser) -> None:
    """The options of ``cost``."""
    add_model_options(command)
    command.set_defaults(run=_cost)


def _plan(args: argparse.Namespace) -> str:
    model = build_model(args)
    images = method_images(args, model)
    return str(surgery.plan(model, args.method, images=images, **surgery_arguments(args)))


def _cost(args: argparse.Namespace) -> str:
    return str(surgery.cost(build_model(args), args.input_size))
