"""``compare``: methods at one budget, with equal controls."""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.core.errors import SurgeryError
from surgery.core.extras import check_extra
from surgery.core.user_modules import add_import_option, import_user_modules
from surgery.training.shipped_recipes import find_recipe

if TYPE_CHECKING:
    from surgery.training.recipe import Recipe

INTERRUPTED, TERMINATED = 130, 143
SOME_FAILED = 1
DESCRIPTION = """\
Compare methods at one budget: the same images, fine-tuning and seeds, beside the original trained as long.

    {prog} RECIPE --methods dwp,l1,resolution --macs 0.77,0.5 --budgets 0,0.05 --seeds 3 --output FOLDER [key=value ...]

The recipe's network is trained once (or is --original FILE). A method with an option macs gets the budget by it, others
by how many of their sites they take, or by zeta; resolution is the original on smaller images. FOLDER receives
results.json, comparison.md, accuracy_macs.png, accuracy_time.png, and cells/ with a job's folder and log for every
method, budget, length and seed. The same command goes on where it was stopped, and with more methods, budgets or seeds.

A recipe may name variants of one conversion instead (ablations.yaml); they are run as they are, without a budget, and
shown beside published figures.
"""


def main(arguments: Sequence[str], prog: str) -> int:
    """Parse, run, report; returns the exit status (1: a cell failed, 2: nothing can be run, 130, 143: stopped)."""
    args = parser(prog).parse_intermixed_args(arguments)
    try:
        check_extra("train", prog)
        with _terminated_as_interrupted():
            return _compare(args)
    except KeyboardInterrupt as stopped:
        print(f"\n{str(stopped) or 'stopped'}; the same command goes on", file=sys.stderr)
        return getattr(stopped, "status", INTERRUPTED)
    except (SurgeryError, ValueError, TypeError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2


def parser(prog: str) -> argparse.ArgumentParser:
    """What the command line may hold."""
    line = argparse.ArgumentParser(
        prog=prog, description=DESCRIPTION.format(prog=prog), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    line.add_argument("recipe", help="a YAML file, or the name of a recipe that comes with surgery")
    line.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    line.add_argument(
        "--methods",
        type=_names,
        metavar="NAMES",
        help="such as dwp,l1,resolution (default: resolution and all that save something)",
    )
    line.add_argument(
        "--macs", type=_numbers, default="0.77", metavar="SHARES", help="of the original's MACs: 0.77,0.5"
    )
    line.add_argument(
        "--budgets",
        type=_numbers,
        default="0,0.05",
        metavar="SHARES",
        help="lengths of the fine-tuning, as shares of baseline.epochs; 0: none (default: 0,0.05)",
    )
    line.add_argument("--seeds", type=int, default=1, metavar="N", help="from the recipe's seed on (default: 1)")
    line.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at a time, each in a process of its own")
    line.add_argument(
        "--best",
        type=int,
        metavar="N",
        help="the longest fine-tuning only for the control and the N methods that are best after the one before, "
        "at each budget (default: for all)",
    )
    line.add_argument("--original", metavar="FILE", help="a file that surgery wrote, in place of training the baseline")
    line.add_argument(
        "--output", type=Path, default=Path("runs/compare"), metavar="FOLDER", help="default: runs/compare"
    )
    line.add_argument("--published", action="store_true", help="print figures of papers below the table")
    _add_timing(line)
    add_import_option(line)
    return line


def _add_timing(line: argparse.ArgumentParser) -> None:
    timing = line.add_argument_group("time of a forward, eager and float32 on the CPU, in turn with the original's")
    timing.add_argument("--batch", type=int, default=1, metavar="N", help="images (default: 1)")
    timing.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    timing.add_argument("--seconds", type=float, default=3.0, help="for each network; 0: not timed (default: 3)")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part.strip()]


def _compare(args: argparse.Namespace) -> int:
    import_user_modules(args.imports)
    from surgery.comparison.comparing import (
        Comparison,
        compare,
        default_methods,
    )  # all that trains takes seconds to import
    from surgery.comparison.latency import LatencySettings
    from surgery.training import load_recipe

    recipe = load_recipe(find_recipe(args.recipe), [*args.settings, *_imports(args.imports)])
    if recipe.variants and args.methods:
        raise ValueError(
            f"--methods {','.join(args.methods)}: the recipe names its variants; leave it out, or variants={{}}"
        )
    comparison = Comparison(
        args.methods or default_methods(), args.macs, args.budgets, args.seeds, args.jobs, args.best
    )
    latency = LatencySettings(args.batch, args.threads, args.seconds)
    compared = compare(recipe, args.output, comparison, latency, args.original)
    print(f"\n{compared}\n\n{args.output}: results.json, comparison.md, accuracy_macs.png, accuracy_time.png")
    if args.published:
        print(f"\n{_published(recipe)}")
    return SOME_FAILED if compared.failed else 0


def _imports(modules: Sequence[str]) -> list[str]:
    """As a recipe's key, by which the processes of cells import them as well."""
    return [f"imports=[{', '.join(modules)}]"] if modules else []


def _published(recipe: "Recipe") -> str:
    from surgery.comparison.published import published_text

    as_it_is = not recipe.model.kwargs.keys() - {"num_classes"}
    return published_text(recipe.model.name if as_it_is else "", recipe.data.name)


class _Terminated(KeyboardInterrupt):
    status = TERMINATED


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the processes of cells too."""

    def stop(*_: Any) -> None:
        raise _Terminated("stopped by SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
