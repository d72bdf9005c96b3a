"""``methods``: what can be done to a model, in one table."""

import argparse

from surgery.core.table import table
from surgery.core.user_modules import add_import_option
from surgery.planning.default_method import default_method
from surgery.planning.registry import methods

HEADER = ("method", "needs", "what it changes", "where it may go")


def add_methods(command: argparse.ArgumentParser) -> None:
    """No options but those of every command."""
    add_import_option(command)
    command.set_defaults(run=_methods)


def _methods(args: argparse.Namespace) -> str:
    default = default_method()
    rows = [
        (
            f"{name} (default)" if name == default else name,
            "" if method.evidence == "none" else method.evidence,
            method.changes,
            method.where,
        )
        for name, method in sorted(methods().items())
    ]
    return f"{table(HEADER, rows)}\ndocs/methods/NAME.md has a page on each: equations, options, what was measured"
