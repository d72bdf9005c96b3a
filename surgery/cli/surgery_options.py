"""The options that say what surgery does: method, how much, where, and what it looks at."""

import argparse
import dataclasses
import json
from typing import Any

from surgery.cli.image_options import add_image_options
from surgery.methods.planners.squeeze_options import HEADS, MODES, PROJECTIONS
from surgery.planning.default_method import default_method
from surgery.planning.registry import Method, methods

METHOD_OPTIONS = ("macs", "params", "latency", "keep", "zeta", "mode", "insert", "projections", "equal_width", "head")


def add_surgery_options(command: argparse.ArgumentParser) -> None:
    """The arguments of ``surgery.plan`` and ``surgery.convert`` as options."""
    default = default_method()
    command.add_argument("--method", default=default, help=f"one of: {', '.join(methods())} (default: {default})")
    command.add_argument(
        "--include", action="append", default=[], metavar="PATTERN", help="only these sites (repeatable)"
    )
    command.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="not these sites (repeatable)"
    )
    add_image_options(command)
    _add_method_options(command)


def _add_method_options(command: argparse.ArgumentParser) -> None:
    """Options that only some methods have, with the names of these."""
    group = command.add_argument_group("options of methods", "which methods have an option is said in brackets")

    def add(option: str, text: str, **settings: Any) -> None:
        field = option.removeprefix("--").replace("-", "_")
        group.add_argument(option, help=f"{text} ({', '.join(_methods_with(field))})", **settings)

    add("--macs", "share of the MACs that stays: 0.7", type=_json_value, metavar="SHARE")
    add("--params", "share of the parameters that stays: 0.7", type=_json_value, metavar="SHARE")
    add("--latency", "share of the time that stays, measured on this machine: 0.8", type=_json_value, metavar="SHARE")
    add(
        "--keep",
        "share of the channels that stays everywhere, or per pattern: layer3=0.5,layer4=0.25",
        type=_by_pattern,
        metavar="SHARE",
    )
    add("--zeta", "dominating ratio, such as 4, or per pattern: layer3=8,layer4=8", type=_by_pattern)
    add("--mode", f"one of: {', '.join(MODES)}; default: the method's")
    add("--insert", "insert before these, repeatable", action="append", default=[], metavar="PATTERN")
    add("--projections", f"one of: {', '.join(PROJECTIONS)}; default: residual")
    add("--equal-width", "include heads that keep the width", action="store_true", default=None)
    add("--head", f"one of: {', '.join(HEADS)}; pool: for VGG")
    group.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"any other option of the method, such as tau=0.5; of {_options_by_method()}",
    )


def _option_names(method: Method) -> list[str]:
    return [field.name for field in dataclasses.fields(method.Config)]


def _methods_with(option: str) -> list[str]:
    return [name for name, method in sorted(methods().items()) if option in _option_names(method)]


def _options_by_method() -> str:
    """The options of each method that :func:`_add_method_options` has no own one for."""
    rest = {
        name: ", ".join(option for option in _option_names(method) if option not in METHOD_OPTIONS)
        for name, method in sorted(methods().items())
    }
    alike: dict[str, list[str]] = {}
    for name, options in rest.items():
        alike.setdefault(options, []).append(name)
    return "; ".join(f"{', '.join(names)}: {options}" for options, names in alike.items() if options)


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
    names = ("include", "exclude", "input_size", *METHOD_OPTIONS)
    return {name: value for name in names if (value := getattr(args, name)) not in (None, [])} | options


def _json_value(text: str) -> Any:
    """A JSON value where the text is one, else the text; what it may be is for the library to say."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def _by_pattern(text: str) -> Any:
    if "=" not in text:
        return _json_value(text)
    return {pattern: _json_value(value) for pattern, _, value in (part.partition("=") for part in text.split(","))}
