"""Convert a network and fine-tune it until its accuracy is back: ``finetune.py`` and ``python -m surgery finetune``."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from surgery.errors import ConversionWarning, SurgeryError
from surgery.extras import check_extra
from surgery.training.shipped_recipes import QUICKSTART, find_recipe, recipe_list
from surgery.user_modules import add_import_option, import_user_modules

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
    given = _parsed(arguments, prog)
    try:
        if given.list:
            print(recipe_list())
        else:
            import_user_modules(given.imports)
            check_extra("train", prog)
            return _start(given)
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt as stopped:
        print(f"\n{str(stopped) or 'stopped'}; the same command goes on from the last state", file=sys.stderr)
        return getattr(stopped, "status", INTERRUPTED)
    except (SurgeryError, RuntimeError, ValueError, TypeError, OSError) as error:
        if isinstance(error, RuntimeError) and not _is_explained(error):
            raise
        print(f"{prog}: {_cause(error)}", file=sys.stderr)
        return 2
    return 0


def parser(prog: str) -> argparse.ArgumentParser:
    """What the command line may hold."""
    made = argparse.ArgumentParser(
        prog=prog,
        description=DESCRIPTION.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "recipe",
        nargs="?",
        help=f"a YAML file, or the name of a recipe that comes with surgery (--list; default: {QUICKSTART})",
    )
    made.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    made.add_argument("--list", action="store_true", help="list the recipes that come with surgery, and stop")
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved recipe, the plan, the cost and the shapes of a batch, and stop",
    )
    made.add_argument(
        "--check-data",
        action="store_true",
        help="decode every image, list those that cannot be read, and stop: status 2 if there are some",
    )
    add_import_option(made)
    return made


def _parsed(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    given = parser(prog).parse_intermixed_args(arguments)
    if given.recipe is None:
        given.recipe = QUICKSTART
    elif "=" in given.recipe and not Path(given.recipe).exists():
        given.recipe, given.settings = QUICKSTART, [given.recipe, *given.settings]
    return given


def _start(given: argparse.Namespace) -> int:
    """Read the recipe, and do what it says, or say what it would do, or look at its images; returns the exit status."""
    from surgery.training import describe, load_recipe, run  # all that trains takes seconds to import
    from surgery.training.data_sets import open_data
    from surgery.training.image_scan import check_data

    recipe = load_recipe(find_recipe(given.recipe), given.settings)
    if given.check_data:
        return 2 if check_data(open_data(recipe.data), recipe.data, print) else 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)  # the job says so itself
        if given.dry_run:
            print(describe(recipe))
        else:
            run(recipe)
    return 0


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
