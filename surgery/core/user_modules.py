"""A user's own modules, imported by name so that what they register (builders, methods) is known."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Iterable

from surgery.core.errors import UserModuleError


def import_user_modules(names: Iterable[str]) -> None:
    """Import modules as ``import NAME`` would in a script of the current folder.

    They run with the user's rights: names come from the command line or from a recipe, never from a saved model.

    Raises:
        UserModuleError: in one line, which module cannot be imported, why, and where it fails.
    """
    for name in names:
        folder = os.getcwd()
        if not {folder, ""} & set(sys.path):
            sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # a module may raise anything, and may mean to be a script
            raise UserModuleError(f"module {name!r} cannot be imported: {_cause(error, name)}") from error


def _cause(error: BaseException, name: str) -> str:
    """What went wrong, on one line; of an error that the module's own code raises, where."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        return f"there is no such module in {os.getcwd()!r} or on Python's path (name it as in 'import {name}')"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    inside = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    last = inside[-1] if inside[1:] else None  # the first is this file's
    return f"{text} ({os.path.basename(last.filename)}, line {last.lineno})" if last else text


def add_import_option(command: argparse.ArgumentParser) -> None:
    """The option ``--import MODULE``, whose values :func:`import_user_modules` takes."""
    command.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="first import a module of yours that registers builders or methods (repeatable)",
    )
