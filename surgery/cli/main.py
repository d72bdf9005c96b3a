"""The command line, ``python -m surgery COMMAND``; :data:`COMMANDS` has all but ``finetune`` and ``compare``."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from surgery.cli.bench import add_bench
from surgery.cli.compare import main as compare
from surgery.cli.convert import add_convert
from surgery.cli.evaluate import add_eval, add_predict
from surgery.cli.explain import add_explain
from surgery.cli.export import add_export
from surgery.cli.load_check import add_load_check
from surgery.cli.methods import add_methods
from surgery.cli.overhead import add_overhead
from surgery.cli.plan import add_cost, add_plan
from surgery.core.errors import NoSitesError, SurgeryError
from surgery.core.user_modules import import_user_modules
from surgery.training.command import main as finetune

PROGRAM = "python -m surgery"
NOTHING_TO_CONVERT = 3
COMMANDS = (
    ("plan", "what would change and why, and why not the rest", add_plan),
    ("convert", "convert a model and write it to one safetensors file", add_convert),
    ("methods", "what can be done to a model, in one table", add_methods),
    ("cost", "MACs, FLOPs, parameters and memory, in total and per site", add_cost),
    ("eval", "accuracy, or mean IoU, on a folder of images", add_eval),
    ("predict", "the five likeliest classes of images, or masks as PNG files", add_predict),
    ("bench", "time original, converted and the floor in turn, in one process", add_bench),
    ("overhead", "FLOPs, memory and time of one module of each method, beside published figures", add_overhead),
    ("explain", "pictures of what a converted network does: Grad-CAM, gates, picked channels, widths", add_explain),
    ("export", "write a model for another runtime, checked against the original", add_export),
    ("load-check", "load a file and say what it holds; fails where anything is wrong", add_load_check),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0, or with one line on stderr 2 (what was asked for cannot be) or 3 (there is nothing to convert).
    """
    command_line = list(sys.argv[1:] if arguments is None else arguments)
    if command_line[:1] == ["finetune"]:  # settings come before and after its options, which no subcommand permits
        return finetune(command_line[1:], f"{PROGRAM} finetune")
    if command_line[:1] == ["compare"]:
        return compare(command_line[1:], f"{PROGRAM} compare")
    args = parser().parse_args(command_line)
    args.command_line = command_line
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.showwarning = _show_warning
            import_user_modules(args.imports)
            print(args.run(args))
    except NoSitesError as error:
        print(f"surgery: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        return NOTHING_TO_CONVERT
    except BrokenPipeError:  # an OSError: what reads the output, such as head, has seen enough
        return 0
    except (SurgeryError, ValueError, TypeError, OSError) as error:
        print(f"surgery: {error}", file=sys.stderr)
        return 2
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"surgery: warning: {message}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """What the command line may hold."""
    program = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Plan, carry out, count and check model surgery.",
        epilog="NAME is a timm model (resnet50), torchvision/NAME, a builder of yours (--import), or a file that "
        "surgery wrote.",
    )
    commands = program.add_subparsers(required=True, metavar="COMMAND")
    for name, summary, add_options in COMMANDS:
        add_options(commands.add_parser(name, help=summary))
    commands.add_parser("finetune", add_help=False, help="what finetune.py does: convert and fine-tune by a recipe")
    commands.add_parser("compare", add_help=False, help="methods at one budget, trained alike, beside equal controls")
    return program
