"""Cells run in this process, or several at a time in processes of their own; what fails stops nothing else."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from surgery.comparison.cells import Cell, read_cell
from surgery.comparison.original_run import run_original
from surgery.core.errors import SurgeryError, described
from surgery.core.user_modules import import_user_modules
from surgery.training import run

PATIENCE = 60.0  # seconds in which a stopped process may write its state


def run_cells(cells: Sequence[Cell], jobs: int) -> dict[str, str]:
    """Run what is not finished, ``jobs`` at a time; returns the errors by the cells' names.

    Raises:
        RecipeError: a cell's folder holds it with other settings; nothing is run then.
        KeyboardInterrupt: after all have ended; those that were running have written a state.
    """
    for cell in cells:
        cell.check_spec()
    waiting = [cell for cell in cells if not cell.finished]
    for cell in waiting:
        cell.folder.parent.mkdir(parents=True, exist_ok=True)
        cell.write_spec()
    with tqdm(total=len(cells), initial=len(cells) - len(waiting), desc="cells", unit="cell", smoothing=0) as bar:
        return _in_turn(waiting, bar) if jobs == 1 else _at_a_time(waiting, jobs, bar)


def run_cell(cell: Cell) -> None:
    """One cell, in this process."""
    import_user_modules(cell.recipe.imports)
    if cell.recipe.threads:
        torch.set_num_threads(cell.recipe.threads)
    if cell.kind == "surgery":
        run(cell.recipe)
    else:
        run_original(cell.recipe)


def _in_turn(cells: Sequence[Cell], bar: tqdm) -> dict[str, str]:
    failed = {}
    for cell in cells:
        bar.set_postfix_str(cell.name)
        try:
            with cell.log.open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                run_cell(cell)
        except (SurgeryError, RuntimeError, ValueError, TypeError, OSError) as error:
            failed[cell.name] = described(error)
        bar.update()
    return failed


def _at_a_time(cells: Sequence[Cell], jobs: int, bar: tqdm) -> dict[str, str]:
    failed: dict[str, str] = {}
    waiting, running = list(cells), dict[str, tuple[Cell, subprocess.Popen[bytes]]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[cell.name] = cell, _started(cell)
            time.sleep(0.1)
            for name, (cell, process) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    bar.update()
                    if process.returncode:
                        failed[name] = _last_line(cell.log) or f"ended with status {process.returncode}"
    finally:
        _stop([process for _, process in running.values()])
    return failed


def _started(cell: Cell) -> subprocess.Popen[bytes]:
    """A process that the terminal's Ctrl-C does not reach: it is stopped from here, once."""
    command = [sys.executable, "-m", "surgery.comparison.running", str(cell.spec)]
    packages = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": packages}
    with cell.log.open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def main(path: str) -> int:
    """One cell of a file; the last line of stderr says what went wrong."""
    try:
        run_cell(read_cell(Path(path)))
    except KeyboardInterrupt as stopped:
        print(str(stopped) or "stopped", file=sys.stderr)
        return getattr(stopped, "status", 130)
    except (SurgeryError, RuntimeError, ValueError, TypeError, OSError) as error:
        print(described(error), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
