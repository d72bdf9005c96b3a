"""What a user may say of an image's size: one side, (H, W), or (C, H, W)."""

import numbers
from collections.abc import Sequence

from surgery.core.errors import is_whole

InputSize = int | Sequence[int]


def image_shapes(input_size: InputSize, channels: Sequence[int]) -> list[tuple[int, int, int]]:
    """Shapes (C, H, W) that an ``input_size`` may mean.

    Args:
        input_size: the side of a square image, (height, width), or (channels, height, width).
        channels: numbers of channels worth trying, the likeliest first, where the size names none.

    Raises:
        ValueError: it is something else.
    """
    parts = tuple(input_size) if isinstance(input_size, Sequence) else (input_size, input_size)
    if (
        len(parts) not in (2, 3)
        or isinstance(input_size, str)
        or not all(is_whole(part, 1, kind=numbers.Integral) for part in parts)
    ):
        raise ValueError(
            f"input_size={input_size!r}: a side in pixels (224), (height, width) or (channels, height, width) is "
            "needed, each a positive int"
        )
    *own, height, width = (int(part) for part in parts)
    return [(count, height, width) for count in dict.fromkeys(own or channels)]
