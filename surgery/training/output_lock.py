"""One job at a time in an output folder.

The folder holds ``.lock`` while a job runs: the host, the process and the time of its start as JSON, under a POSIX
record lock (``fcntl``). The system drops that lock with its process, however it ends, and no process that loads images
inherits it (as it would flock's); NFS passes it on to the server. So a file that is left over is told from one in use
without guessing from process numbers. Where a file system has no such locks, the process number decides. A file that
another host left is never taken over, since a mount without shared locks would not show that its job still runs.
"""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from surgery.training.recipe import RecipeError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)
_held: set[Path] = set()  # by this process, to which a record lock gives way


class OutputInUseError(RecipeError):
    """Another job writes to the folder; names its process and host."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other jobs out of ``folder`` while this is entered.

    Raises:
        OutputInUseError: one is in it.
        OSError: the folder cannot be written to.
    """
    path = folder.resolve() / NAME
    if path in _held:
        raise _in_use(folder, _us())
    descriptor = _acquire(folder, path)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        _release(path, descriptor)


def _release(path: Path, descriptor: int) -> None:
    if fcntl is None:  # Windows removes no file that is open
        os.close(descriptor)
    with contextlib.suppress(FileNotFoundError):  # the folder was removed meanwhile
        path.unlink()
    if fcntl is not None:
        os.close(descriptor)  # and with it the lock, after the file is gone: nobody gets a lock on it and keeps it


def _us() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _acquire(folder: Path, path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(folder, descriptor)
            if _is_still(path, descriptor):
                _write(descriptor, _us())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its job ended between our opening and locking it; there may be a new one


def _lock(folder: Path, descriptor: int) -> None:
    """The record lock; raises OutputInUseError where a job holds it, or may."""
    holder = _read(descriptor)
    shared = _record_lock(descriptor)
    if shared is False:
        raise _in_use(folder, _read(descriptor) or holder)
    if not holder:
        return
    if holder.get("host") != socket.gethostname():
        raise _in_use(folder, holder)
    if shared is None and psutil.pid_exists(holder.get("pid", -1)):
        raise _in_use(folder, holder)


def _record_lock(descriptor: int) -> bool | None:
    """Whether this process has the lock now; None where the file system knows no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in HELD else None
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write(descriptor: int, content: dict[str, Any]) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(content).encode())
    os.fsync(descriptor)


def _read(descriptor: int) -> dict[str, Any]:
    """What the file says; nothing where it is new, or its job was killed while it wrote."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        content = json.loads(os.read(descriptor, 4096))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _in_use(folder: Path, holder: dict[str, Any]) -> OutputInUseError:
    pid, host, since = (holder.get(key, "unknown") for key in ("pid", "host", "since"))
    return OutputInUseError(
        f"output={folder}: another job writes there: process {pid} on {host}, since {since}; output=FOLDER keeps both "
        f"(if it has ended, remove {folder / NAME})"
    )
