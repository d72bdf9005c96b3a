"""A job's folder: made, locked, seen by all processes, and cleared where the job starts over."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from surgery.training.image_scan import DECODED
from surgery.training.main_process import on_main
from surgery.training.output_lock import locked
from surgery.training.recipe import RecipeError


@contextmanager
def opened_output(accelerator: Accelerator, output: Path, fresh: bool) -> Iterator[None]:
    """The job's folder, for it alone.

    Raises:
        OutputInUseError: another job writes there.
        RecipeError: it cannot be made or written to, or a process, on whatever machine, does not see what the main one
            writes there.
    """
    with ExitStack() as stack:
        on_main(accelerator, lambda: _claim(stack, output, fresh))
        _check_seen_by_all(accelerator, output)
        yield


def _claim(stack: ExitStack, output: Path, fresh: bool) -> None:
    """Make the folder, lock it, and clear it where the job starts over."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(output))
        if fresh:
            _clear(output)
    except OSError as error:
        raise RecipeError(f"output={output}: {error.strerror or error}; a folder to write to is needed") from error


def _check_seen_by_all(accelerator: Accelerator, output: Path) -> None:
    mark = output / f"seen-by-all-{broadcast_object_list([uuid.uuid4().hex])[0]}"
    on_main(accelerator, mark.touch)
    blind = [number for number, exists in enumerate(gather_object([mark.exists()])) if not exists]
    on_main(accelerator, mark.unlink)
    if blind:
        raise RecipeError(
            f"output={output}: process {blind[0]} does not see what process 0 writes there; "
            "it must be one folder that all machines share, for a job goes on from the state in it"
        )


def _clear(output: Path) -> None:
    """Remove what earlier runs of a job left, and nothing else."""
    shutil.rmtree(output / "state", ignore_errors=True)
    for name in (
        "baseline.safetensors",
        "m.safetensors",
        "best.safetensors",
        "results.json",
        "log.csv",
        "curve.png",
        DECODED,
    ):
        (output / name).unlink(missing_ok=True)
