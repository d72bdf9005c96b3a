"""Image files below folders."""

from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from PIL import Image

T = TypeVar("T")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})
LEFT_BEHIND = frozenset(
    {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information"}
)


def is_hidden(path: str | Path, below: str | Path) -> bool:
    """Whether a path is of what programs leave beside a user's files: a name begins with a dot, or is ``__MACOSX``."""
    return any(part.startswith(".") or part in LEFT_BEHIND for part in Path(path).relative_to(below).parts)


def images_below(folder: str | Path) -> list[Path]:
    """All image files below a folder, sorted by name.

    Raises:
        FileNotFoundError: no such folder, or no image below it.
    """
    names = sorted(
        path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES and not is_hidden(path, folder)
    )
    if not names:
        raise FileNotFoundError(f"there is no image ({', '.join(sorted(SUFFIXES))}) below {str(folder)!r}")
    return names


def open_image(path: str | Path, channels: int = 3) -> Image.Image:
    """An image with one channel or three, in memory.

    Raises:
        ValueError: the file is no image, or a damaged one.
        FileNotFoundError: there is no such file.
    """
    return look_into(path, lambda image: _converted(image, channels))


def look_into(path: str | Path, look: Callable[[Image.Image], T]) -> T:
    """What ``look`` makes of the image in a file, as it is stored; raises as :func:`open_image`."""
    try:
        with open(path, "rb") as file:
            return _decoded(file, repr(str(path)), look)
    except FileNotFoundError:
        raise FileNotFoundError(f"{str(path)!r} does not exist") from None
    except OSError as error:
        raise ValueError(f"{str(path)!r} is no image that can be read: {error}") from None


def decode_image(file: IO[bytes], name: str, channels: int = 3) -> Image.Image:
    """As :func:`open_image`, from an open file with a name for the error."""
    return _decoded(file, name, lambda image: _converted(image, channels))


def _converted(image: Image.Image, channels: int) -> Image.Image:
    return image.convert("L" if channels == 1 else "RGB")


def _decoded(file: IO[bytes], name: str, look: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(file) as image:
            return look(image)
    except (OSError, SyntaxError) as error:  # the latter is Pillow's for some damaged PNG files
        raise ValueError(f"{name} is no image that can be read: {error}") from None
