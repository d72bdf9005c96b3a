"""Image files below folders."""

from pathlib import Path
from typing import IO

from PIL import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})


def images_below(folder: str | Path) -> list[Path]:
    """All image files below a folder, sorted by name.

    Raises:
        FileNotFoundError: no such folder, or no image below it.
    """
    names = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not names:
        raise FileNotFoundError(f"there is no image ({', '.join(sorted(SUFFIXES))}) below {str(folder)!r}")
    return names


def open_image(path: str | Path, channels: int = 3) -> Image.Image:
    """An image with one channel or three, in memory.

    Raises:
        ValueError: the file is no image, or a damaged one.
        FileNotFoundError: there is no such file.
    """
    try:
        with open(path, "rb") as file:
            return decode_image(file, repr(str(path)), channels)
    except FileNotFoundError:
        raise FileNotFoundError(f"{str(path)!r} does not exist") from None
    except OSError as error:
        raise ValueError(f"{str(path)!r} is no image that can be read: {error}") from None


def decode_image(file: IO[bytes], name: str, channels: int = 3) -> Image.Image:
    """As :func:`open_image`, from an open file with a name for the error."""
    try:
        with Image.open(file) as image:
            return image.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError) as error:  # the latter is Pillow's for some damaged PNG files
        raise ValueError(f"{name} is no image that can be read: {error}") from None
