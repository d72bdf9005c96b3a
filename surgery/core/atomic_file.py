"""Files that are whole or not there: written beside their place, then renamed."""

import contextlib
import os
import uuid
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``; on any failure what was there before stays, and nothing is left beside it.

    Raises:
        OSError: with the path, for a folder that is missing or read-only, a full disk and the like.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {str(target)!r}: it is a folder; the name of a file is needed")
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {str(target)!r}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
