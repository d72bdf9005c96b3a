"""``overhead``: what one module of a method adds, counted as papers do and measured."""

import argparse
import os
from pathlib import Path

from surgery.bench.overhead import (
    OverheadSettings,
    check_picture,
    drawn_overheads,
    measure_overheads,
    overhead_json,
    overhead_table,
)
from surgery.bench.report import machine
from surgery.core.atomic_file import write_atomically
from surgery.core.user_modules import add_import_option


def add_overhead(command: argparse.ArgumentParser) -> None:
    """The options of ``overhead``."""
    command.add_argument("--channels", type=int, default=512, metavar="N", help="of the map (default: 512)")
    command.add_argument(
        "--sizes", type=_numbers, default=[112, 56, 28], metavar="N,…", help="sides of the map (default: 112,56,28)"
    )
    command.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    command.add_argument("--seconds", type=float, default=1.0, help="for each module and size (default: 1)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw them (.png, .svg, .pdf)")
    add_import_option(command)
    command.set_defaults(run=_overhead)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers such as 112,56 are needed") from None


def _check_writable(option: str, path: Path) -> None:
    """Raise OSError for a file that could not be written, before anything is measured for it."""
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise OSError(f"{option} {str(path)!r}: cannot be written; a file in a folder that may be written is needed")


def _overhead(args: argparse.Namespace) -> str:
    settings = OverheadSettings(args.channels, args.sizes, args.threads, args.seconds)
    for option, path in (("--json", args.json), ("--plot", args.plot)):
        if path is not None:
            _check_writable(option, path)
    if args.plot is not None:
        check_picture(args.plot.suffix)
    rows = measure_overheads(settings)
    if args.json is not None:
        write_atomically(args.json, overhead_json(rows))
    if args.plot is not None:
        write_atomically(args.plot, drawn_overheads(rows, args.plot.suffix))
    return f"{machine('cpu')}\n\n{overhead_table(rows)}"
