"""The options that say what surgery does: method, ratio, mode, selection."""

import argparse
import json
from typing import Any

from surgery.methods.planners.squeeze_options import HEADS, MODES, PROJECTIONS
from surgery.planning.default_method import default_method
from surgery.planning.registry import methods


def add_surgery_options(command: argparse.ArgumentParser) -> None:
    """The arguments of ``surgery.plan`` and ``surgery.convert`` as options."""
    default = default_method()
    command.add_argument("--method", default=default, help=f"one of: {', '.join(methods())} (default: {default})")
    command.add_argument("--zeta", type=_zeta, help="dominating ratio, such as 4, or per pattern: layer3=8,layer4=8")
    command.add_argument("--mode", help=f"one of: {', '.join(MODES)} (default: the method's)")
    command.add_argument(
        "--include", action="append", default=[], metavar="PATTERN", help="only these sites (repeatable)"
    )
    command.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="not these sites (repeatable)"
    )
    command.add_argument(
        "--insert", action="append", default=[], metavar="PATTERN", help="insert before these (repeatable)"
    )
    command.add_argument("--projections", help=f"one of: {', '.join(PROJECTIONS)} (default: residual)")
    command.add_argument("--equal-width", action="store_true", default=None, help="include heads that keep the width")
    command.add_argument("--head", help=f"one of: {', '.join(HEADS)} (pool: for VGG)")
    command.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the method: tau=0.5")


def surgery_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of ``surgery.plan`` and ``surgery.convert``, but for the method.

    Raises:
        ValueError: an ``--option`` is no KEY=VALUE.
    """
    options = {}
    for option in args.option:
        key, separator, value = option.partition("=")
        if not separator:
            raise ValueError(f"--option {option!r}: KEY=VALUE is needed, such as tau=0.5")
        options[key] = _json_value(value)
    names = ("zeta", "mode", "include", "exclude", "insert", "projections", "equal_width", "head", "input_size")
    return {name: value for name in names if (value := getattr(args, name)) not in (None, [])} | options


def _json_value(text: str) -> Any:
    """A JSON value where the text is one, else the text; what it may be is for the library to say."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def _zeta(text: str) -> Any:
    if "=" not in text:
        return _json_value(text)
    return {pattern: _json_value(value) for pattern, _, value in (part.partition("=") for part in text.split(","))}
