"""Convert a network and fine-tune it until its accuracy is back: ``finetune.py`` and ``python -m surgery finetune``."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.core.errors import ConversionWarning, SurgeryError
from surgery.core.extras import check_extra
from surgery.core.user_modules import add_import_option, import_user_modules
from surgery.training.shipped_recipes import QUICKSTART, find_recipe, recipe_list

if TYPE_CHECKING:
    from surgery.training.recipe import Recipe

INTERRUPTED = 130
DESCRIPTION = """\
Convert a network and fine-tune it until its accuracy is back.

    {prog}                              the recipe quickstart: minutes on two CPU cores, no download
    {prog} RECIPE [key=value ...]       another recipe, with settings changed: finetune.epochs=5

The recipe's output folder receives m.safetensors, results.json and curve.png. Ctrl-C and SIGTERM write a state before
they end it, as is done every ten minutes and each epoch, and the same command goes on from there; fresh=true starts
over. Every key is described in docs/recipes.md.
"""


def main(arguments: Sequence[str] | None = None, prog: str = "finetune.py") -> int:
    """Parse, run, report; returns the exit status (2: bad recipe, model or data; 130, 143: stopped)."""
    options = _parsed(arguments, prog)
    try:
        if options.list:
            print(recipe_list())
        else:
            import_user_modules(options.imports)
            check_extra("train", prog)
            return _start(options)
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt as stopped:
        return _stopped(stopped)
    except (SurgeryError, RuntimeError, ValueError, TypeError, OSError) as error:
        if isinstance(error, RuntimeError) and not _is_explained(error):
            raise
        print(f"{prog}: {_cause(error)}", file=sys.stderr)
        return 2
    return 0


def parser(prog: str) -> argparse.ArgumentParser:
    """What the command line may hold."""
    command_line = argparse.ArgumentParser(
        prog=prog,
        description=DESCRIPTION.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command_line.add_argument(
        "recipe",
        nargs="?",
        help=f"a YAML file, or the name of a recipe that comes with surgery (--list; default: {QUICKSTART})",
    )
    command_line.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    instead = command_line.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="list the recipes that come with surgery, and stop")
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved recipe, the plan, the cost and the shapes of a batch, and stop",
    )
    instead.add_argument(
        "--check-data",
        action="store_true",
        help="decode every image, list those that cannot be read, and stop: status 2 if there are some",
    )
    add_import_option(command_line)
    return command_line


def _parsed(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    options = parser(prog).parse_intermixed_args(arguments)
    if options.recipe is None:
        options.recipe = QUICKSTART
    elif "=" in options.recipe and not Path(options.recipe).exists():
        options.recipe, options.settings = QUICKSTART, [options.recipe, *options.settings]
    return options


def _start(options: argparse.Namespace) -> int:
    """Read the recipe, and do what it says, or say what it would do, or look at its images; returns the exit status."""
    from surgery.training import describe, load_recipe  # all that trains takes seconds to import

    recipe = load_recipe(find_recipe(options.recipe), options.settings)
    if options.check_data:
        return _check_data(recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)  # the job says so itself
        if not options.dry_run:
            return _run(recipe)
        description = describe(recipe)
    if _is_main_process():
        print(description)
    return 0


def _check_data(recipe: "Recipe") -> int:
    from surgery.training.datasets import open_files
    from surgery.training.image_scan import check_data

    if not _is_main_process():
        return 0
    return 2 if check_data(open_files(recipe.data), recipe.data, print) else 0


def _is_main_process() -> bool:
    """Of those that a launcher started, all with the same command."""
    from accelerate import PartialState

    return PartialState().is_main_process


def _run(recipe: "Recipe") -> int:
    from surgery.training import run

    try:
        run(recipe)
    except KeyboardInterrupt as stopped:
        return _stopped(stopped, recipe)
    return 0


def _stopped(stopped: KeyboardInterrupt, recipe: "Recipe | None" = None) -> int:
    """Say what ended the job, and how it goes on where it has written a state; returns the exit status."""
    goes_on = ""
    if recipe is not None and any(Path(recipe.output).glob("state/*/state.json")):
        same = "the same command without fresh=true" if recipe.fresh else "the same command"
        goes_on = f"; {same} goes on from the last state"
    print(f"\n{str(stopped) or 'stopped'}{goes_on}", file=sys.stderr)
    return getattr(stopped, "status", INTERRUPTED)


def _is_explained(error: RuntimeError) -> bool:
    """Whether an error says all that its user needs to know."""
    from surgery.training.non_finite import NonFiniteLossError
    from surgery.training.trainer import BatchTooLargeError

    return isinstance(error, NonFiniteLossError | BatchTooLargeError)


def _cause(error: Exception) -> str:
    """What went wrong; of an error in a process that loads images the last line, which follows its traceback."""
    text = str(error)
    if text.startswith("Caught ") and "DataLoader worker" in text:
        return text.strip().splitlines()[-1].partition(": ")[2]
    return text
