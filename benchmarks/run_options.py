"""Command-line options of benchmarks that run a recipe many times, each run in a folder of its own."""

import argparse
import math
from pathlib import Path


def run_options(description: str | None, recipe: Path, output: str) -> argparse.ArgumentParser:
    """A parser with --recipe, --data, --output, --seeds, --jobs, and settings of the recipe."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(recipe), help=f"default: recipes/{recipe.name}")
    parser.add_argument("--data", metavar="FOLDER", help="data.root of the recipe (default: SURGERY_DATA)")
    parser.add_argument("--output", type=Path, default=Path(output), metavar="FOLDER")
    parser.add_argument("--seeds", type=_count, default=3)
    parser.add_argument(
        "--jobs", type=_count, default=1, metavar="N", help="runs at a time, each in a process of its own"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    return parser


def shares(text: str) -> list[float]:
    """Such as 0.05,0.25: numbers above 0."""
    numbers = [float(part) for part in text.split(",")]
    if not all(0 < number < math.inf for number in numbers):
        raise argparse.ArgumentTypeError(f"{text}: numbers above 0 are needed")
    return numbers


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number, 1 or more, is needed")
    return int(text)
