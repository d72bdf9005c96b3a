"""``load-check``: whether a file is sound, and what it holds."""

import argparse

import surgery
from surgery.core.table import si
from surgery.core.user_modules import add_import_option
from surgery.transforms.history import changed_modules


def add_load_check(command: argparse.ArgumentParser) -> None:
    """The options of ``load-check``."""
    command.add_argument("name", metavar="FILE")
    add_import_option(command)
    command.set_defaults(run=_load_check)


def _load_check(args: argparse.Namespace) -> str:
    manifest, tensors = surgery.checkpoint.read(args.name)
    model = surgery.load(args.name)
    source = surgery.Source(**manifest["source"])
    versions = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    transforms = f"{len(manifest['transforms'])} transforms change {len(changed_modules(model))} modules"
    return (
        f"{args.name}: sound\n  made from {source}; {transforms}; {len(tensors)} tensors\n"
        f"  written by {versions}\n"
        f"  loads as {type(model).__name__} with {si(sum(p.numel() for p in model.parameters()))} parameters"
    )
