"""Image files below folders."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from PIL import Image

T = TypeVar("T")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})
LEFT_BEHIND = frozenset(
    {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information"}
)
DAMAGED = (  # what Pillow's decoders raise for damaged files, and for those that claim more pixels than memory holds
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    EOFError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where warnings are errors
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
        ValueError: the file is no image, or a damaged one, or has more pixels than Pillow accepts (twice
            ``PIL.Image.MAX_IMAGE_PIXELS``, 179 million).
        FileNotFoundError: there is no such file.
    """
    return look_into(path, lambda image: _converted(image, channels))


def check_header(path: str | Path) -> None:
    """Read the header of an image file, not its pixels; raises as :func:`open_image`."""
    look_into(path, lambda image: image.size)


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
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name} has too many pixels: {str(error).split(', could')[0]} (PIL.Image.MAX_IMAGE_PIXELS sets the limit)"
        ) from None
    except DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} is no image that can be read: {reason}") from None
