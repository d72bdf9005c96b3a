#!/usr/bin/env python3
"""Convert a network and fine-tune it until its accuracy is back.

    python finetune.py                                   recipes/quickstart.yaml: minutes on two CPU cores, no download
    python finetune.py RECIPE [key=value ...]            another recipe, with settings changed: finetune.epochs=5

The recipe's output folder receives m.safetensors, results.json and curve.png. Ctrl-C and SIGTERM write a state
before they end it, as is done every ten minutes and each epoch, and the same command goes on from there; fresh=true
starts over. Every key is described in surgery/training/recipe.py.
"""

import argparse
import sys
from pathlib import Path

QUICKSTART = Path(__file__).parent / "recipes" / "quickstart.yaml"


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, report; returns the exit status (2: bad recipe, model or data; 130, 143: stopped)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default=str(QUICKSTART), help="a YAML file (default: %(default)s)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved recipe, the plan, the cost and the shapes of a batch, and stop",
    )
    parser.add_argument(
        "--check-data",
        action="store_true",
        help="decode every image, list those that cannot be read, and stop: status 2 if there are some",
    )
    given = parser.parse_intermixed_args(arguments)
    if "=" in given.recipe and not Path(given.recipe).exists():
        given.recipe, given.settings = str(QUICKSTART), [given.recipe, *given.settings]

    from surgery.errors import SurgeryError
    from surgery.training import describe, load_recipe, run
    from surgery.training.data_sets import open_data
    from surgery.training.image_scan import check_data
    from surgery.training.non_finite import NonFiniteLossError
    from surgery.training.recipe import RecipeError
    from surgery.training.trainer import BatchTooLargeError

    try:
        recipe = load_recipe(given.recipe, given.settings)
        if given.dry_run:
            print(describe(recipe))
            return 0
        if given.check_data:
            return 2 if check_data(open_data(recipe.data), recipe.data, print) else 0
        run(recipe)
    except KeyboardInterrupt as stopped:
        print(f"\n{str(stopped) or 'stopped'}; the same command goes on from the last state", file=sys.stderr)
        return getattr(stopped, "status", 130)
    except (RecipeError, SurgeryError, NonFiniteLossError, BatchTooLargeError, ValueError, TypeError, OSError) as error:
        print(f"finetune.py: {_cause(error)}", file=sys.stderr)
        return 2
    return 0


def _cause(error: Exception) -> str:
    """What went wrong; of an error in a process that loads images the last line, which follows its traceback."""
    text = str(error)
    if text.startswith("Caught ") and "DataLoader worker" in text:
        return text.strip().splitlines()[-1].partition(": ")[2]
    return text


if __name__ == "__main__":
    sys.exit(main())
